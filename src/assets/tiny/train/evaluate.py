"""Measures an exported pair: accuracy of both models, the judge, and SpecReason over them.

Greedy throughout, in NumPy float32. A judged step is right or wrong by its equation, operands and
operation (`steps.is_right`). In SpecReason an end marker that the draft writes is judged like any
step, rewritten steps are not judged again, and the base writes the final sentence.
"""

import json
import multiprocessing
import os
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from .formats import JUDGE_SUFFIX, STEP_STOP, THINK_END, TURN_END, boxed_answer, prompt_text
from .forward import Llama
from .steps import is_right, step_text

REPLY_LEN, STEP_LEN, CLOSING_LEN, STEPS_MAX = 260, 48, 60, 16


class Pair:
    """Both models of a folder with their tokenizer and judge settings."""

    def __init__(self, folder):
        folder = Path(folder)
        self.tokenizer = Tokenizer.from_file(str(folder / "base" / "tokenizer.json"))
        self.base, self.draft = Llama(folder / "base"), Llama(folder / "draft")
        self.judge = json.loads((folder / "judge.json").read_text())
        self.turn_end = self.tokenizer.token_to_id(TURN_END)
        self.suffix = self.encode(JUDGE_SUFFIX)

    def encode(self, text):
        """Ids of a text."""
        return self.tokenizer.encode(text).ids

    def decode(self, ids):
        """Text of ids, special tokens kept."""
        return self.tokenizer.decode(ids, skip_special_tokens=False)

    def write_reply(self, model, prefix, limit=REPLY_LEN):
        """Ids to the end of the turn."""
        return model.greedy(prefix, lambda new: new[-1] == self.turn_end, limit)

    def write_step(self, model, prefix):
        """Ids of one step with its blank line."""

        def is_done(new):
            return new[-1] == self.turn_end or STEP_STOP in self.decode(new)

        return model.greedy(prefix, is_done, STEP_LEN)

    def digit_probabilities(self, prefix):
        """The base's probabilities of the digits 0 to 9 after the judge turn."""
        logits = self.base.logits_after(prefix + self.suffix)[self.judge["digit_token_ids"]]
        weights = np.exp(logits - logits.max())
        return weights / weights.sum()


# One number from the probabilities of the digits; a step is kept if it reaches the threshold.
READ_OUTS = {
    "greedy": lambda probabilities: int(probabilities.argmax()),
    "mean": lambda probabilities: float(probabilities @ np.arange(10)),
    "prob": lambda probabilities: float(probabilities[7:].sum()),  # of a score of 7 or more
}


def judged_steps(pair, problem):
    """`(right, {read-out: value})` of the draft's step after each gold prefix."""
    prefix = pair.encode(prompt_text(problem.text))
    judged = []
    for gold in (*problem.steps, None):
        step = pair.write_step(pair.draft, prefix)
        probabilities = pair.digit_probabilities(prefix + step)
        values = {name: read(probabilities) for name, read in READ_OUTS.items()}
        judged.append((is_right(pair.decode(step), gold), values))
        if gold:
            prefix = prefix + pair.encode(step_text(gold) + STEP_STOP)
    return judged


def spec_reason(pair, problem, score, threshold):
    """`(right, steps proposed, steps kept)` of one run."""
    ids = pair.encode(prompt_text(problem.text))
    prompt_len, proposed, kept = len(ids), 0, 0
    while proposed < STEPS_MAX:
        step = pair.write_step(pair.draft, ids)
        proposed += 1
        keep = READ_OUTS[score](pair.digit_probabilities(ids + step)) >= threshold
        kept += keep
        ids += step if keep else pair.write_step(pair.base, ids)
        if THINK_END in pair.decode(ids[prompt_len:][-STEP_LEN:]) or ids[-1] == pair.turn_end:
            break
    if ids[-1] != pair.turn_end:
        ids += pair.write_reply(pair.base, ids, CLOSING_LEN)
    return boxed_answer(pair.decode(ids[prompt_len:])) == problem.answer, proposed, kept


def measure(job):
    """Everything about one problem, in a worker process."""
    folder, problem, settings = job
    pair = _pair(folder)
    prompt = pair.encode(prompt_text(problem.text))

    def solves(model):
        return boxed_answer(pair.decode(pair.write_reply(model, prompt))) == problem.answer

    return {
        "step_count": len(problem.steps),
        "base": solves(pair.base),
        "draft": solves(pair.draft),
        "judged": judged_steps(pair, problem),
        "spec": [spec_reason(pair, problem, *setting) for setting in settings],
    }


_PAIRS = {}


def _pair(folder):
    """Loaded once a process."""
    if folder not in _PAIRS:
        _PAIRS[folder] = Pair(folder)
    return _PAIRS[folder]


def evaluate(folder, problems, sweep=(), jobs=2):
    """The report over `problems`; SpecReason at the pair's setting, then at each of `sweep`.

    A setting is `(read-out, threshold)`.
    """
    judge = json.loads((Path(folder) / "judge.json").read_text())
    settings = [(judge["score"], judge["threshold"]), *sweep]
    os.environ["OPENBLAS_NUM_THREADS"] = "1"  # read by the workers, which are many enough
    work = [(str(folder), problem, settings) for problem in problems]
    with multiprocessing.get_context("spawn").Pool(jobs) as pool:
        measured = pool.map(measure, work, chunksize=2)
    return {
        "problems": len(problems),
        "base": _share(entry["base"] for entry in measured),
        "draft": _share(entry["draft"] for entry in measured),
        "by_steps": _by_steps(measured),
        "judge": _judge_report([step for entry in measured for step in entry["judged"]]),
        "spec_reason": [
            {"score": score, "threshold": threshold}
            | _spec_report([entry["spec"][index] for entry in measured])
            for index, (score, threshold) in enumerate(settings)
        ],
    }


def _share(flags):
    flags = list(flags)
    return round(sum(flags) / len(flags), 4)


def _by_steps(measured):
    """`{steps: {model: "right/all"}}`."""
    table = {}
    for count in sorted({entry["step_count"] for entry in measured}):
        group = [entry for entry in measured if entry["step_count"] == count]
        table[count] = {
            model: f"{sum(entry[model] for entry in group)}/{len(group)}"
            for model in ("base", "draft")
        }
    return table


def _judge_report(judged):
    right = np.array([flag for flag, _ in judged])
    report = {"steps": len(judged), "wrong": int((~right).sum())}
    for name in READ_OUTS:
        values = np.array([of_step[name] for _, of_step in judged])
        report[f"auc_{name}"] = auc(values[right], values[~right])
    return report


def _spec_report(runs):
    right, proposed, kept = (sum(column) for column in zip(*runs))
    return {
        "accuracy": round(right / len(runs), 4),
        "steps": proposed,
        "accepted": round(kept / proposed, 4),
    }


def auc(higher, lower):
    """Probability that one of `higher` exceeds one of `lower`, ties half; None without pairs."""
    if not len(higher) or not len(lower):
        return None
    difference = np.asarray(higher)[:, None] - np.asarray(lower)[None, :]
    return round(float((difference > 0).mean() + (difference == 0).mean() / 2), 4)
