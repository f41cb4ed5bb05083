"""Problems in which one quantity changes event by event: 14 themes, any number of steps."""

from typing import NamedTuple

from .builder import OutOfRange


class Theme(NamedTuple):
    """Sentences with {N} name, {P} pronoun, {O} things, {b} a number, {k} groups of {m}."""

    opening: str
    things: list
    gains: list
    losses: list
    group_gains: list
    group_losses: list
    growth: str | None
    halving: str
    question: str


THEMES = [
    Theme(
        "{N} has {b} {O}.",
        ["apples", "pears"],
        ["{P} buys {b} more {O}.", "{P} picks {b} {O}."],
        ["{P} eats {b} {O}.", "{P} gives {b} {O} to a friend."],
        ["{P} buys {k} bags with {m} {O} each."],
        ["{P} sells {k} bags with {m} {O} each."],
        "Then {P} gets enough to have {k} times as many {O}.",
        "{P} sells half of the {O}.",
        "How many {O} does {N} have now?",
    ),
    Theme(
        "{N} owns {b} {O}.",
        ["cards", "marbles", "stamps"],
        ["{P} wins {b} {O}.", "{P} finds {b} {O}."],
        ["{P} loses {b} {O}.", "{P} gives away {b} {O}."],
        ["{P} buys {k} packs of {m} {O}."],
        ["{P} trades away {k} packs of {m} {O}."],
        "Then the collection becomes {k} times as large.",
        "{P} gives away half of the {O}.",
        "How many {O} does {N} own now?",
    ),
    Theme(
        "A bus has {b} {O}.",
        ["people"],
        ["At a stop {b} {O} get on.", "Then {b} more {O} get on."],
        ["At a stop {b} {O} get off.", "Then {b} {O} get off."],
        ["Then {k} groups of {m} {O} get on."],
        ["Then {k} groups of {m} {O} get off."],
        None,
        "At the station half of the {O} get off.",
        "How many {O} are on the bus now?",
    ),
    Theme(
        "A library has {b} {O}.",
        ["books"],
        ["The library buys {b} {O}.", "Readers return {b} {O}."],
        ["Readers borrow {b} {O}.", "The library sells {b} {O}."],
        ["The library gets {k} boxes of {m} {O}."],
        ["Readers borrow {k} boxes of {m} {O}."],
        "A new room makes the number of {O} {k} times as large.",
        "Half of the {O} are moved away.",
        "How many {O} are in the library now?",
    ),
    Theme(
        "{N} bakes {b} {O}.",
        ["cookies", "cakes"],
        ["{P} bakes {b} more {O}.", "A friend brings {b} {O}."],
        ["{P} sells {b} {O}.", "The children eat {b} {O}."],
        ["{P} bakes {k} trays with {m} {O} each."],
        ["{P} sells {k} boxes with {m} {O} each."],
        "Then {P} bakes until there are {k} times as many {O}.",
        "{P} sells half of the {O}.",
        "How many {O} are left?",
    ),
    Theme(
        "{N} has {b} {O} in the bank.",
        ["dollars"],
        ["{P} saves {b} {O}.", "{P} earns {b} {O}."],
        ["{P} spends {b} {O}.", "{P} pays {b} {O} for a book."],
        ["{P} saves {m} {O} a week for {k} weeks."],
        ["{P} pays {m} {O} a week for {k} weeks."],
        "Then the money grows to {k} times as much.",
        "{P} spends half of the money.",
        "How many {O} does {N} have now?",
    ),
    Theme(
        "In a game {N} has {b} {O}.",
        ["points"],
        ["{P} wins {b} {O}.", "{P} scores {b} more {O}."],
        ["{P} loses {b} {O}.", "A mistake costs {b} {O}."],
        ["{P} wins {k} rounds with {m} {O} each."],
        ["{P} loses {k} rounds with {m} {O} each."],
        "A bonus makes the score {k} times as large.",
        "A trap takes half of the {O}.",
        "How many {O} does {N} have now?",
    ),
    Theme(
        "A tank holds {b} {O} of water.",
        ["liters"],
        ["Rain adds {b} {O}.", "{N} adds {b} {O}."],
        ["{N} takes {b} {O} out.", "A leak takes {b} {O}."],
        ["{N} adds {k} buckets of {m} {O}."],
        ["{N} takes out {k} buckets of {m} {O}."],
        None,
        "{N} uses half of the water.",
        "How many {O} are in the tank now?",
    ),
    Theme(
        "A farm has {b} {O}.",
        ["hens", "cows", "sheep"],
        ["The farm buys {b} {O}.", "On the farm {b} {O} are born."],
        ["The farm sells {b} {O}.", "Then {b} {O} run away."],
        ["{N} brings {k} trucks with {m} {O} each."],
        ["{N} sells {k} groups of {m} {O}."],
        "After a year there are {k} times as many {O}.",
        "The farm sells half of the {O}.",
        "How many {O} does the farm have now?",
    ),
    Theme(
        "A garden has {b} {O}.",
        ["flowers", "trees"],
        ["{N} plants {b} more {O}.", "A friend brings {b} {O}."],
        ["{N} cuts {b} {O}.", "A storm breaks {b} {O}."],
        ["{N} plants {k} rows of {m} {O}."],
        ["{N} cuts {k} rows of {m} {O}."],
        "Next year there are {k} times as many {O}.",
        "A storm breaks half of the {O}.",
        "How many {O} are in the garden now?",
    ),
    Theme(
        "A shop has {b} {O}.",
        ["toys", "balls"],
        ["The shop gets {b} more {O}.", "The shop buys {b} {O}."],
        ["The shop sells {b} {O}.", "Then {b} {O} are broken."],
        ["A truck brings {k} boxes with {m} {O} each."],
        ["The shop sells {k} boxes with {m} {O} each."],
        "The shop orders until it has {k} times as many {O}.",
        "In a sale half of the {O} are sold.",
        "How many {O} does the shop have now?",
    ),
    Theme(
        "A school has {b} {O}.",
        ["students"],
        ["Then {b} new {O} come.", "In spring {b} {O} come."],
        ["Then {b} {O} leave.", "In summer {b} {O} leave."],
        ["Then {k} classes of {m} {O} come."],
        ["Then {k} classes of {m} {O} leave."],
        "After some years there are {k} times as many {O}.",
        "Half of the {O} leave.",
        "How many {O} are in the school now?",
    ),
    Theme(
        "A car park has {b} {O}.",
        ["cars"],
        ["Then {b} {O} come in.", "In the morning {b} more {O} come in."],
        ["Then {b} {O} leave.", "In the evening {b} {O} drive away."],
        ["Then {k} trucks bring {m} {O} each."],
        ["Then {k} groups of {m} {O} leave."],
        None,
        "At night half of the {O} leave.",
        "How many {O} are in the car park now?",
    ),
    Theme(
        "A lake has {b} {O}.",
        ["fish", "ducks"],
        ["Then {b} more {O} come.", "{N} adds {b} {O}."],
        ["{N} catches {b} {O}.", "Then {b} {O} leave."],
        ["{N} adds {k} groups of {m} {O}."],
        ["{N} catches {k} groups of {m} {O}."],
        "After a year there are {k} times as many {O}.",
        "In winter half of the {O} leave.",
        "How many {O} are in the lake now?",
    ),
]


def build_chain(builder, theme, step_count):
    """Tell a chain of events with `step_count` equations; returns the last value."""
    things = builder.rng.choice(theme.things)

    def say(sentence, **numbers):
        builder.say(sentence.format(N=builder.name, P=builder.pronoun, O=things, **numbers))

    value = builder.skewed(5, 60)
    say(theme.opening, b=value)
    last = None
    while len(builder.steps) < step_count:
        event = builder.rng.choice(_possible_events(builder, theme, step_count, value, last))
        if event == last and event in _GROUPED:
            continue
        last = event
        value = EVENTS[event](builder, theme, say, value, things)
    say(theme.question)
    return value


def _possible_events(builder, theme, step_count, value, last):
    events = ["gain", "loss"] * 2
    if step_count - len(builder.steps) >= 2:
        events += _GROUPED
    if theme.growth and value <= 60 and last != "growth":
        events.append("growth")
    if value % 2 == 0 and value >= 8 and last != "halving":
        events.append("halving")
    return events


def _gain(builder, theme, say, value, things):
    number = builder.skewed()
    say(builder.rng.choice(theme.gains), b=number)
    return builder.step("Now there are", value, "+", number, things)


def _loss(builder, theme, say, value, things):
    if value < 5:
        raise OutOfRange
    usual = builder.rng.random() < 0.85
    number = builder.draw(2, min(value - 1, 30) if usual else value - 1)
    say(builder.rng.choice(theme.losses), b=number)
    return builder.step("This leaves", value, "-", number, things)


def _group_gain(builder, theme, say, value, things):
    groups, size = builder.draw(2, 6), builder.draw(2, 10)
    say(builder.rng.choice(theme.group_gains), k=groups, m=size)
    product = builder.step("That is", groups, "*", size, things)
    return builder.step("Now there are", value, "+", product, things)


def _group_loss(builder, theme, say, value, things):
    groups, size = builder.draw(2, 6), builder.draw(2, 10)
    say(builder.rng.choice(theme.group_losses), k=groups, m=size)
    product = builder.step("That is", groups, "*", size, things)
    return builder.step("This leaves", value, "-", product, things)


def _growth(builder, theme, say, value, things):
    factor = builder.rng.choice([2, 2, 3])
    say(theme.growth, k=factor)
    return builder.step("It grows to", value, "*", factor, things)


def _halving(builder, theme, say, value, things):
    say(theme.halving)
    return builder.step("Half is", value, "/", 2, things)


_GROUPED = ["group gain", "group loss"]
EVENTS = {
    "gain": _gain,
    "loss": _loss,
    "group gain": _group_gain,
    "group loss": _group_loss,
    "growth": _growth,
    "halving": _halving,
}
