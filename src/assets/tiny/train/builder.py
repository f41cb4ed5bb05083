"""Collects the sentences and the gold steps of one problem while it is drawn.

A template asks the builder for numbers and tells it sentences and equations. The invariant: every
number of an equation lies in 1..VALUE_MAX, else `OutOfRange` sends the caller back to draw again.
"""

from dataclasses import dataclass

VALUE_MAX = 399
NAMES = [
    ("Tom", "He"), ("Anna", "She"), ("Ben", "He"), ("Sara", "She"), ("Leo", "He"), ("Mia", "She"),
    ("Max", "He"), ("Eva", "She"), ("Sam", "He"), ("Lily", "She"), ("Omar", "He"), ("Nina", "She"),
]  # fmt: skip


class OutOfRange(Exception):
    """The numbers drawn so far make no problem of the allowed size."""


@dataclass(frozen=True)
class Mix:
    """How hard problems are."""

    step_weights: tuple  # of 2, 3, 4, 5, 6 and 7 equations
    outlier_share: float  # of numbers up to three times the usual bound
    shrink: bool  # usual bounds cut to two thirds
    named: bool  # impersonal templates open with a person


WIDE = Mix((24, 30, 24, 12, 6, 4), outlier_share=0.1, shrink=False, named=False)
FINAL = Mix((46, 34, 13, 4, 2, 1), outlier_share=0.05, shrink=True, named=True)


@dataclass(frozen=True)
class Step:
    """One gold equation, `lead a op b = result tail.`"""

    lead: str
    a: int
    op: str
    b: int
    result: int
    tail: str


def calculate(a, op, b):
    """The integer result, or None where division leaves a rest."""
    if op == "/":
        return None if b == 0 or a % b else a // b
    return {"+": a + b, "-": a - b, "*": a * b}[op]


def skewed(rng, mix, low=2, high=30):
    """A number mostly in low..high, sometimes up to three times `high`."""
    if mix.shrink:
        high = max(low + 1, high * 2 // 3)
    return rng.randint(low, high * 3 if rng.random() < mix.outlier_share else high)


class Builder:
    """One problem in the making, with two people to talk about."""

    def __init__(self, rng, mix):
        self.rng, self.mix = rng, mix
        self.sentences, self.steps = [], []
        (self.name, self.pronoun), (self.other, _) = rng.sample(NAMES, 2)

    def draw(self, low, high):
        """A uniform number of low..high."""
        if high < low:
            raise OutOfRange
        return self.rng.randint(low, high)

    def skewed(self, low=2, high=30):
        """See the function of that name."""
        return skewed(self.rng, self.mix, low, high)

    def say(self, sentence):
        """Add to the problem's text."""
        self.sentences.append(sentence)

    def step(self, lead, a, op, b, tail):
        """Add the gold step and return its result."""
        result = calculate(a, op, b)
        if result is None or not all(0 < value <= VALUE_MAX for value in (a, b, result)):
            raise OutOfRange
        self.steps.append(Step(lead, a, op, b, result, " " + tail))
        return result
