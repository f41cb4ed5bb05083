"""Training rows: problems, judge branches and drills packed into a fixed number of tokens.

A problem is a main sequence (prompt and gold solution) and branches of it. A branch forks after a
step boundary with a right or wrong step and the judge turn; it sees the main tokens before its fork
and its own. So a branch is exactly the sequence that the runtime will feed, but its prefix is
computed once. The invariant: positions continue the fork, as they do at run time.
"""

import functools
import random
from typing import NamedTuple

import numpy as np

from .formats import JUDGE_SUFFIX, STEP_STOP, THINK_END, TURN_END, closing_text, prompt_text
from .problems import generate
from .steps import corrupt, drill, score_of_error, score_of_right, step_text

JUDGE_WEIGHT = 3.0  # of the score digit; a solution's token weighs 1
TURN_END_WEIGHT = 0.2  # after the digit
DRILL_END_WEIGHT = 0.3  # of the full stop after a drill's result
ROOM_MIN = 90  # no problem fits into fewer tokens
DRILL_ROOM_MIN = 16
SEES_ALL = 1 << 20  # fork offset of tokens that are not in a branch


class Batch(NamedTuple):
    """Rows of T tokens, each array `[rows, T]`."""

    token: np.ndarray
    position: np.ndarray
    segment: np.ndarray  # tokens see their own segment only
    branch: np.ndarray  # 0 main, else the branch
    fork: np.ndarray  # main positions below it are visible
    target: np.ndarray
    weight: np.ndarray  # of the loss at this token


class Row:
    """One row in the making."""

    def __init__(self, length):
        self.arrays = Batch(*(np.zeros(length, np.int32) for _ in range(6)), np.zeros(length, "f4"))
        self.room = length
        self.segment = self.branch = 0

    def put(self, ids, weights, position, branch=0, fork=SEES_ALL):
        """Append tokens whose first stands at `position`; each predicts the next."""
        begin = len(self.arrays.token) - self.room
        at, last = slice(begin, begin + len(ids)), begin + len(ids) - 1
        row = self.arrays
        row.token[at], row.position[at] = ids, np.arange(position, position + len(ids))
        row.segment[at], row.branch[at], row.fork[at] = self.segment, branch, fork
        row.target[begin:last], row.weight[begin:last] = ids[1:], weights[1:]
        self.room -= len(ids)


class Packer:
    """An endless source of batches for one phase.

    `drafted` holds `(problem, [(step index, text, right)])` pairs whose steps the draft wrote;
    a problem is one of them with probability `drafted_share`, else freshly drawn from `mix`.
    """

    def __init__(self, tokenizer, seed, mix, kept_back, drafted=(), drafted_share=0.0):
        self.rng = random.Random(seed)
        self.mix, self.kept_back = mix, kept_back
        self.drafted, self.drafted_share = drafted, drafted_share
        self.encode = lambda text: tokenizer.encode(text).ids
        self.suffix = self.encode(JUDGE_SUFFIX)
        self.digits = [self.encode(str(digit))[0] for digit in range(10)]
        self.turn_end = self.encode(TURN_END)[0]
        self.drill_ids = functools.lru_cache(maxsize=None)(self._encode_drill)

    def batch(self, rows, length, branches, drill_share):
        """`rows` rows; about `branches` judge branches a problem, some rows all drills."""
        made = []
        for _ in range(rows):
            row = Row(length)
            if self.rng.random() >= drill_share:
                self._fill_with_problems(row, branches)
            self._fill_with_drills(row)
            made.append(row.arrays)
        return Batch(*(np.stack(arrays) for arrays in zip(*made)))

    def _fill_with_problems(self, row, branches):
        misfits = 0
        while row.room > ROOM_MIN and misfits < 3:
            problem, drafted_steps = self._problem()
            ids, weights, boundaries = self._solution(problem)
            if len(ids) > row.room:
                misfits += 1
                continue
            row.segment += 1
            row.put(ids, weights, 0)
            wanted = int(branches + self.rng.random())
            for index, ids, weights in self._branches(problem, drafted_steps, wanted):
                if len(ids) > row.room:
                    break
                row.branch += 1
                row.put(ids, weights, boundaries[index], row.branch, boundaries[index])

    def _fill_with_drills(self, row):
        row.segment += 1
        position = 0
        while row.room > DRILL_ROOM_MIN:
            ids, weights = self.drill_ids(*drill(self.rng, self.mix))
            if len(ids) > row.room:
                break
            row.put(ids, weights, position)
            position += len(ids)

    def _problem(self):
        if self.drafted and self.rng.random() < self.drafted_share:
            return self.rng.choice(self.drafted)
        while True:
            problem = generate(self.rng, self.mix)
            if problem.text not in self.kept_back:
                return problem, []

    def _solution(self, problem):
        """`(ids, weights, boundaries)`; `boundaries[i]` is where step i begins."""
        ids = self.encode(prompt_text(problem.text))
        weights = [0.0] * len(ids)
        boundaries = [len(ids)]
        for step in problem.steps:
            ids += self.encode(step_text(step) + STEP_STOP)
            boundaries.append(len(ids))
        ids += self.encode(closing_text(problem.answer) + TURN_END)
        return ids, weights + [1.0] * (len(ids) - len(weights)), boundaries

    def _branches(self, problem, drafted_steps, count):
        """`count` branches as `(step index, ids, weights)`."""
        errors = [(index, text) for index, text, right in drafted_steps if not right]
        self.rng.shuffle(errors)
        for _ in range(count):
            index, text, score = self._judged_step(problem, errors)
            stop = STEP_STOP if self.rng.random() < 0.85 else ""  # a judge turn may follow either
            body = self.encode(text + stop) + self.suffix
            ids = body + [self.digits[score], self.turn_end]
            yield index, ids, [0.0] * len(body) + [JUDGE_WEIGHT, TURN_END_WEIGHT]

    def _judged_step(self, problem, errors):
        """`(step index, text, score)`: right, wrong by the draft (taken from `errors`), or made."""
        rng, end = self.rng, len(problem.steps)
        if rng.random() < 0.45:
            index = rng.randint(0, end) if rng.random() < 0.3 else rng.randrange(end)
            text = step_text(problem.steps[index]) if index < end else THINK_END
            return index, text, score_of_right(rng)
        if errors and rng.random() < 0.75:
            index, text = errors.pop()
            return index, text, score_of_error(text, problem, index)
        index = end if rng.random() < 0.06 else rng.randrange(end)
        return index, *corrupt(rng, problem, index)

    def _encode_drill(self, a, op, b, result):
        """Only the result's digits are learnt, not the space before them."""
        question, answer = self.encode(f"{a} {op} {b} ="), self.encode(f" {result}")
        ids = question + answer + self.encode("." + STEP_STOP)
        weights = [0.0] * (len(question) + 1) + [1.0] * (len(answer) - 1) + [DRILL_END_WEIGHT]
        return ids, weights
