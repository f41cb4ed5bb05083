"""The phases of training, in order, and what each sees.

The draft learns to solve problems of the wide mix and nothing of the judge turn's use; it writes
steps; the base learns to solve the wide mix, then the final mix together with judging those steps.
"""

import json
import random
from dataclasses import asdict, dataclass

import numpy as np

from .builder import FINAL, WIDE, Mix, Step
from .fit import continuations, fit
from .formats import STEP_STOP, THINK_END, prompt_text
from .model import BASE, DRAFT, ModelConfig, init_params
from .packing import Packer
from .problems import Problem, generate, kept_back_texts
from .steps import is_right, solution_text, step_text

ROW_LEN = 384
DRAFTED_LEN = 256  # tokens of a problem and the draft's continuation
DRAFTED_PROBLEM_LEN = 215  # so that a continuation has room


@dataclass(frozen=True)
class Phase:
    """One run of the optimiser. Schedules are `(from this share of the steps, value)` pairs."""

    name: str
    model: ModelConfig
    mix: Mix
    steps: int
    rows: int
    peak_lr: float
    branches: tuple  # judge branches a problem
    drill_share: tuple  # rows that hold nothing but equations
    drafted_share: float = 0.0  # problems with steps that the draft wrote


DRAFT_PHASE = Phase(
    "draft", DRAFT, WIDE, steps=2400, rows=8, peak_lr=4e-3,
    branches=((0.0, 0.0), (0.5, 1.0)), drill_share=((0.0, 0.25), (0.3, 0.05)),
)  # fmt: skip
BASE_PHASES = (
    Phase(
        "base-solve", BASE, WIDE, steps=3000, rows=6, peak_lr=2.5e-3,
        branches=((0.0, 0.0), (0.3, 2.0)), drill_share=((0.0, 0.2), (0.15, 0.1)),
    ),
    Phase(
        "base-judge", BASE, FINAL, steps=4500, rows=6, peak_lr=1.3e-3,
        branches=((0.0, 2.5), (0.8, 1.5)), drill_share=((0.0, 0.1), (0.6, 0.05)),
        drafted_share=0.6,
    ),
)  # fmt: skip


@dataclass(frozen=True)
class Scale:
    """How much of the curriculum runs."""

    steps_max: int
    drafted_problems: int


FULL = Scale(steps_max=1 << 30, drafted_problems=4000)
SMOKE = Scale(steps_max=12, drafted_problems=40)


def scheduled(schedule, share):
    """The value of a schedule at a share of the steps."""
    return [value for begin, value in schedule if begin <= share][-1]


def run_phase(phase, params, tokenizer, seed, scale, drafted=()):
    """Train `params` for one phase."""
    steps = min(phase.steps, scale.steps_max)
    packer = Packer(
        tokenizer,
        f"{seed}-train-{phase.name}",
        phase.mix,
        kept_back_texts(seed),
        drafted,
        phase.drafted_share,
    )

    def batches():
        for step in range(steps):
            branches = scheduled(phase.branches, step / steps)
            drill_share = scheduled(phase.drill_share, step / steps)
            yield packer.batch(phase.rows, ROW_LEN, branches, drill_share)

    return fit(params, phase.model, batches(), phase.peak_lr, steps, phase.name)


def train_draft(tokenizer, seed, scale):
    """The draft's parameters."""
    return run_phase(DRAFT_PHASE, init_params(DRAFT, seed + 2), tokenizer, seed, scale)


def train_base(tokenizer, seed, scale, drafted):
    """The base's parameters, through all its phases."""
    params = init_params(BASE, seed + 1)
    for phase in BASE_PHASES:
        params = run_phase(phase, params, tokenizer, seed, scale, drafted)
    return params


def draft_steps(draft_params, tokenizer, seed, scale):
    """`(problem, [(step index, text, right)])` pairs, the steps written by the draft.

    It goes on from the prompt and once from a random gold prefix, at several temperatures, until
    its first wrong step: what follows an error has no gold step to compare with.
    """
    rng = random.Random(f"{seed}-samples")
    cuts = list(_cuts(rng, tokenizer, seed, scale.drafted_problems))
    prompts = [
        prompt_text(problem.text)
        + "".join(step_text(step) + STEP_STOP for step in problem.steps[:cut])
        for problem, cut in cuts
    ]
    temperatures = np.array([rng.choice([0.0, 0.0, 0.7, 1.0]) for _ in cuts])
    texts = continuations(draft_params, DRAFT, tokenizer, prompts, temperatures, DRAFTED_LEN, seed)
    drafted = {}
    for (problem, cut), text in zip(cuts, texts):
        drafted.setdefault(problem, []).extend(_labelled(problem, cut, written_steps(text)))
    return list(drafted.items())


def _cuts(rng, tokenizer, seed, problem_count):
    """`(problem, number of gold steps given)` pairs of short enough problems."""
    kept_back = kept_back_texts(seed)
    for _ in range(problem_count):
        problem = generate(rng, FINAL)
        whole = prompt_text(problem.text) + solution_text(problem)
        if problem.text in kept_back or len(tokenizer.encode(whole).ids) > DRAFTED_PROBLEM_LEN:
            continue
        for cut in (0, rng.randint(1, len(problem.steps))):
            yield problem, cut


def written_steps(text):
    """The finished steps of a reply; the end marker is one, and what follows it is none."""
    thinking, end, _ = text.partition(THINK_END)
    *steps, rest = thinking.split(STEP_STOP)
    return steps + [rest + THINK_END] if end else steps


def _labelled(problem, first, steps):
    for index, text in enumerate(steps, first):
        gold = problem.steps[index] if index < len(problem.steps) else None
        right = is_right(text, gold)
        yield index, text, right
        if gold is None or not right:
            return


def save_drafted(path, drafted):
    """One JSON line a problem."""
    with open(path, "w", encoding="utf-8") as file:
        for problem, steps in drafted:
            file.write(json.dumps({"problem": asdict(problem), "drafted": steps}) + "\n")


def load_drafted(path):
    """What `save_drafted` wrote."""
    drafted = []
    for line in open(path, encoding="utf-8"):
        entry = json.loads(line)
        fields = entry["problem"]
        steps = tuple(Step(**step) for step in fields["steps"])
        drafted.append((Problem(fields["text"], fields["answer"], steps), entry["drafted"]))
    return drafted
