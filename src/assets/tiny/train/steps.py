"""Steps as text: gold steps, right and wrong ones told apart, and wrong ones made on purpose.

A written step is right if its one equation has the gold operation, operands and result; the bare
end marker is right after the last step and nowhere else. Scores: 9 (sometimes 8 or 7) right, 3 a
slip in the arithmetic, 1 a wrong operand or operation, 0 out of place.
"""

import re
from dataclasses import replace

from .builder import VALUE_MAX, calculate, skewed
from .formats import STEP_STOP, THINK, THINK_END, closing_text

EQUATION = re.compile(r"(\d+) ([-+*/]) (\d+) = (\d+)")
SLIP, WRONG, OUT_OF_PLACE = 3, 1, 0
RESULT_MAX = 9999  # of a wrong equation
OTHER_LEADS = {"+": "Now there are", "-": "This leaves", "*": "It grows to", "/": "Half is"}


def step_text(step):
    """`Now there are 2 + 3 = 5 apples.`"""
    return f"{step.lead} {step.a} {step.op} {step.b} = {step.result}{step.tail}."


def solution_text(problem):
    """The assistant's whole gold reply."""
    steps = "".join(step_text(step) + STEP_STOP for step in problem.steps)
    return f"{THINK}\n{steps}{closing_text(problem.answer)}"


def read_equation(text):
    """`(a, op, b, result)` if the text holds exactly one equation, else None."""
    found = EQUATION.findall(text)
    if len(found) != 1:
        return None
    a, op, b, result = found[0]
    return int(a), op, int(b), int(result)


def is_right(text, gold):
    """Whether a written step matches the gold step; `gold` is None after the last."""
    text = text.strip()
    if gold is None:
        return text == THINK_END
    equation = read_equation(text)
    if THINK_END in text or equation is None:
        return False
    a, op, b, result = equation
    return op == gold.op and result == gold.result and _same_operands(a, b, gold)


def _same_operands(a, b, gold):
    if gold.op in "+*":
        return sorted((a, b)) == sorted((gold.a, gold.b))
    return (a, b) == (gold.a, gold.b)


def score_of_error(text, problem, index):
    """The score of a wrong step `index` that a model wrote."""
    equation = read_equation(text)
    if index < len(problem.steps) and equation:
        a, op, b, _ = equation
        gold = problem.steps[index]
        if op == gold.op and {a, b} == {gold.a, gold.b}:
            return SLIP
    return OUT_OF_PLACE if THINK_END in text or index == len(problem.steps) else WRONG


def score_of_right(rng):
    """Mostly 9, so that the digits below carry some meaning too."""
    return rng.choices([9, 8, 7], [90, 7, 3])[0]


def corrupt(rng, problem, index):
    """`(text, score)` of a wrong step `index`; `index == len(steps)` goes on after the end."""
    if index == len(problem.steps):
        return _after_the_end(rng, problem), OUT_OF_PLACE
    for _ in range(50):
        make, score = rng.choices(*_CORRUPTIONS)[0]
        text = make(rng, problem, index)
        if text and not is_right(text, problem.steps[index]):
            return text, score
    return THINK_END, OUT_OF_PLACE


def _wrong_equation(step, a, op, b, **changes):
    """The step with another, correctly calculated, equation; None if it leaves the range."""
    result = calculate(a, op, b) if a > 0 and b > 0 else None
    if result is None or not 0 < result <= RESULT_MAX:
        return None
    return step_text(replace(step, a=a, op=op, b=b, result=result, **changes))


def _after_the_end(rng, problem):
    step = rng.choice(problem.steps)
    text = None
    if rng.random() < 0.5:
        text = _wrong_equation(step, problem.steps[-1].result, rng.choice("+-*"), step.b)
    return text or step_text(step)


def _known_numbers(problem, index):
    """Numbers of the text and of the results so far."""
    told = [int(number) for number in re.findall(r"\d+", problem.text)]
    return told + [step.result for step in problem.steps[:index]]


def _slip(rng, problem, index):
    """A wrong result of the right equation."""
    step = problem.steps[index]
    changed = rng.choices(*_SLIPS)[0](rng, step.result)
    return step_text(replace(step, result=changed)) if changed >= 0 else None


def _off_by(*distances):
    return lambda rng, result: result + rng.choice(distances) * rng.choice((-1, 1))


def _digit_replaced(rng, result):
    digits = list(str(result))
    digits[rng.randrange(len(digits))] = rng.choice("0123456789")
    return int("".join(digits))


def _digits_swapped(rng, result):
    digits = list(str(result))
    if len(digits) > 1:
        at = rng.randrange(len(digits) - 1)
        digits[at], digits[at + 1] = digits[at + 1], digits[at]
    return int("".join(digits))


def _far_off(rng, result):
    return result + rng.randint(-30, 30)


def _wrong_operand(rng, problem, index):
    step = problem.steps[index]
    if rng.random() < 0.5:
        other = rng.choice(_known_numbers(problem, index))
    else:
        other = rng.choice((step.a, step.b)) + rng.choice([-1, 1, -10, 10, -2, 2, 20, -20])
    a, b = (other, step.b) if rng.random() < 0.5 else (step.a, other)
    return _wrong_equation(step, a, step.op, b)


def _wrong_operation(rng, problem, index):
    step = problem.steps[index]
    op = rng.choice([other for other in "+-*/" if other != step.op])
    changes = {"lead": OTHER_LEADS[op]} if rng.random() < 0.6 else {}
    return _wrong_equation(step, step.a, op, step.b, **changes)


def _another_step(rng, problem, index):
    others = [step for i, step in enumerate(problem.steps) if i != index]
    return step_text(rng.choice(others)) if others else None


def _early_end(_rng, _problem, _index):
    return THINK_END


def _unrelated(rng, problem, index):
    numbers = _known_numbers(problem, index)
    a, b = rng.choice(numbers), rng.choice(numbers)
    return _wrong_equation(problem.steps[index], a, rng.choice("+-*"), b)


_SLIPS = (
    [_off_by(1), _off_by(10), _off_by(20, 100), _off_by(2, 3, 9, 11)]
    + [_digit_replaced, _digits_swapped, _far_off],
    [35, 25, 8, 10, 12, 5, 5],
)
_CORRUPTIONS = (
    [
        (_slip, SLIP),
        (_wrong_operand, WRONG),
        (_wrong_operation, WRONG),
        (_another_step, OUT_OF_PLACE),
        (_early_end, OUT_OF_PLACE),
        (_unrelated, OUT_OF_PLACE),
    ],
    [50, 24, 12, 6, 5, 3],
)


def drill(rng, mix):
    """One bare equation `(a, op, b, result)` in the range of the problems."""
    draw = rng.choices([_sum, _difference, _product, _half], [36, 36, 18, 10])[0]
    while True:
        a, op, b = draw(rng, mix)
        result = calculate(a, op, b)
        if 0 < result <= VALUE_MAX:
            return a, op, b, result


def _sum(rng, mix):
    pair = [skewed(rng, mix, 2, 90), skewed(rng, mix, 2, 40)]
    if rng.random() < 0.3:
        pair.reverse()
    return pair[0], "+", pair[1]


def _difference(rng, mix):
    return skewed(rng, mix, 5, 100), "-", skewed(rng, mix, 2, 40)


def _product(rng, _mix):
    if rng.random() < 0.35:
        return rng.randint(5, 110), "*", rng.randint(2, 3)
    pair = [rng.randint(2, 20), rng.randint(2, 6)]
    rng.shuffle(pair)
    return pair[0], "*", pair[1]


def _half(rng, _mix):
    return rng.randint(4, 120) * 2, "/", 2
