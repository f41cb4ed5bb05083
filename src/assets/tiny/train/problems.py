"""Random word problems with their gold steps: 28 templates, 2 to 7 equations, numbers up to 399."""

import random
import re
from dataclasses import dataclass

from .builder import FINAL, Builder, OutOfRange
from .chains import THEMES, build_chain
from .situations import SITUATIONS

# A development and a held-out set follow from the seed; training never sees their texts.
KEPT_BACK = ("dev", "heldout")
SET_SIZE = 200


@dataclass(frozen=True)
class Problem:
    """A text, its steps and the answer, which is the last step's result in most templates."""

    text: str
    answer: int
    steps: tuple


def generate(rng, mix):
    """One problem; draws again until the numbers fit."""
    while True:
        template = rng.randrange(len(THEMES) + len(SITUATIONS))
        step_count = rng.choices(range(2, 8), mix.step_weights)[0]
        builder = Builder(rng, mix)
        try:
            if template < len(THEMES):
                answer = build_chain(builder, THEMES[template], step_count)
            else:
                answer = SITUATIONS[template - len(THEMES)](builder, step_count)
        except OutOfRange:
            continue
        return Problem(_join(builder.sentences), answer, tuple(builder.steps))


def _join(sentences):
    """One paragraph; a pronoun inside a sentence loses its capital."""
    return re.sub(r"(?<=[a-z] )(He|She)\b", lambda found: found[1].lower(), " ".join(sentences))


def problem_set(seed, name, size=SET_SIZE):
    """The development or held-out problems of a seed, in the final mix."""
    rng = random.Random(f"{seed}-{name}")
    return [generate(rng, FINAL) for _ in range(size)]


def kept_back_texts(seed):
    """Texts that no training row may hold."""
    return {problem.text for name in KEPT_BACK for problem in problem_set(seed, name)}
