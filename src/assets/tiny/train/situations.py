"""Problems with a fixed situation: 14 templates, each with a few lengths.

Every function tells one problem to the builder and returns its answer. `step_count` is a wish: a
template gives what it has when it cannot give that many equations.
"""

from .builder import OutOfRange


def shopping(b, step_count):
    """Two kinds of goods, perhaps a discount, perhaps change."""
    shirts, shirt_price = b.draw(2, 6), b.draw(2, 12)
    hats, hat_price = b.draw(2, 6), b.draw(2, 12)
    b.say(
        f"{b.name} buys {shirts} shirts for {shirt_price} dollars each "
        f"and {hats} hats for {hat_price} dollars each."
    )
    for_shirts = b.step("The shirts cost", shirts, "*", shirt_price, "dollars")
    for_hats = b.step("The hats cost", hats, "*", hat_price, "dollars")
    total = b.step("Together they cost", for_shirts, "+", for_hats, "dollars")
    if step_count <= 3:
        b.say("How many dollars does it cost in total?")
        return total
    if step_count >= 5:
        discount = b.draw(2, min(30, total - 1))
        b.say(f"{b.pronoun} gets {discount} dollars off.")
        total = b.step("With the discount it is", total, "-", discount, "dollars")
    paid = total + b.draw(1, 40)
    b.say(f"{b.pronoun} pays with {paid} dollars. How many dollars does {b.name} get back?")
    return b.step("The change is", paid, "-", total, "dollars")


def comparison(b, step_count):
    """One has more or fewer than another; a sister has several times as many."""
    things = b.rng.choice(["cards", "books", "coins", "marbles"])
    own, difference, factor = b.skewed(5, 40), b.skewed(2, 25), b.draw(2, 3)
    b.say(f"{b.name} has {own} {things}.")
    if b.rng.random() < 0.5:
        b.say(f"{b.other} has {difference} more {things} than {b.name}.")
        theirs = b.step(f"{b.other} has", own, "+", difference, things)
    else:
        if difference >= own:
            raise OutOfRange
        b.say(f"{b.other} has {difference} fewer {things} than {b.name}.")
        theirs = b.step(f"{b.other} has", own, "-", difference, things)
    if step_count <= 2:
        b.say(f"How many {things} do they have together?")
        return b.step("Together they have", own, "+", theirs, things)
    b.say(f"Leo's sister has {factor} times as many {things} as {b.other}.")
    hers = b.step("The sister has", theirs, "*", factor, things)
    if step_count == 3:
        b.say(f"How many more {things} does the sister have than {b.other}?")
        return b.step("The difference is", hers, "-", theirs, things)
    b.say(f"How many {things} do the three have in total?")
    two = b.step(f"Together {b.name} and {b.other} have", own, "+", theirs, things)
    return b.step("In total they have", two, "+", hers, things)


def reading(b, step_count):
    """What is left of a book."""
    pages, days, daily = b.draw(40, 200), b.draw(2, 6), b.draw(3, 15)
    b.say(f"A book has {pages} pages. {b.name} reads {daily} pages a day for {days} days.")
    read = b.step(f"{b.name} reads", days, "*", daily, "pages")
    left = b.step("This leaves", pages, "-", read, "pages")
    if step_count >= 3 and left % 2 == 0:
        b.say("Then half of the rest is read.")
        left = b.step("Half is", left, "/", 2, "pages")
    if step_count >= 4:
        more = b.draw(1, max(1, min(40, left - 1)))
        b.say(f"On Sunday {b.name} reads {more} more pages.")
        left = b.step("This leaves", left, "-", more, "pages")
    b.say("How many pages are left?")
    return left


def wages(b, step_count):
    """Hours of two days, paid together or each day on its own."""
    wage, monday, friday = b.draw(5, 15), b.draw(2, 4), b.draw(2, 4)
    opening = (
        f"{b.name} earns {wage} dollars per hour. "
        f"{b.pronoun} works {monday} hours on Monday and {friday} hours on Friday."
    )
    if step_count == 2 or b.rng.random() < 0.5:
        b.say(opening)
        hours = b.step(f"{b.name} works", monday, "+", friday, "hours")
        money = b.step(f"{b.pronoun} earns", hours, "*", wage, "dollars")
    else:
        b.say(f"{opening} Count each day on its own.")
        first = b.step("Monday gives", monday, "*", wage, "dollars")
        second = b.step("Friday gives", friday, "*", wage, "dollars")
        money = b.step(f"{b.pronoun} earns", first, "+", second, "dollars")
    if step_count >= 4:
        spent = b.skewed(2, 30)
        b.say(f"{b.pronoun} spends {spent} dollars.")
        money = b.step("This leaves", money, "-", spent, "dollars")
    if step_count >= 5:
        returned = b.skewed(2, 30)
        b.say(f"A friend gives back {returned} dollars.")
        money = b.step("Now there are", money, "+", returned, "dollars")
    b.say(f"How many dollars does {b.name} have?")
    return money


def seats(b, step_count):
    """Free seats of a hall."""
    rows, row_len = b.draw(2, 6), b.draw(3, 15)
    person = f"{b.name} is in a hall. " if b.mix.named else ""
    b.say(f"{person}A hall has {rows} rows with {row_len} seats each.")
    free = b.step("The hall has", rows, "*", row_len, "seats")
    taken = b.draw(2, max(2, free // 2))
    b.say(f"{taken} seats are taken.")
    free = b.step("This leaves", free, "-", taken, "seats")
    if step_count >= 3:
        leaving = b.draw(2, 20)
        b.say(f"Then {leaving} people leave their seats.")
        free = b.step("Now there are", free, "+", leaving, "free seats")
    if step_count >= 4:
        families, size = b.draw(2, 6), b.draw(2, 8)
        b.say(f"Then {families} families of {size} people sit down.")
        sitting = b.step("The families take", families, "*", size, "seats")
        free = b.step("This leaves", free, "-", sitting, "seats")
    b.say("How many seats are free?")
    return free


def rectangle(b, step_count):
    """The way around a field, perhaps several times."""
    width, difference = b.draw(3, 40), b.draw(2, 25)
    place = b.rng.choice(["field", "garden", "room"])
    b.say(f"A {place} is {width} meters wide. It is {difference} meters longer than wide.")
    length = b.step("The length is", width, "+", difference, "meters")
    half = b.step("Length and width are", length, "+", width, "meters")
    around = b.step("The way around is", half, "*", 2, "meters")
    if step_count >= 4:
        laps = b.draw(2, 3)
        b.say(f"{b.name} walks around it {laps} times. How many meters is that?")
        return b.step(f"{b.name} walks", around, "*", laps, "meters")
    b.say(f"How many meters is it around the {place}?")
    return around


def ages(b, step_count):
    """Two or three people's ages."""
    own, difference = b.draw(4, 40), b.draw(2, 20)
    b.say(
        f"{b.name} is {own} years old. "
        f"{b.other} is {difference} years older than {b.name}."
    )
    older = b.step(f"{b.other} is", own, "+", difference, "years old")
    if step_count >= 3 and older % 2 == 0:
        b.say(f"A cousin is half as old as {b.other}.")
        cousin = b.step("The cousin is", older, "/", 2, "years old")
        two = b.step(f"{b.name} and {b.other} are", own, "+", older, "years old")
        b.say("How many years old are the three together?")
        return b.step("Together they are", two, "+", cousin, "years old")
    years = b.draw(2, 30)
    b.say(f"How old will {b.other} be in {years} years?")
    return b.step(f"In {years} years {b.other} is", older, "+", years, "years old")


def drive(b, step_count):
    """A trip at two speeds."""
    speed, hours = b.draw(10, 40), b.draw(2, 3)
    then_speed, then_hours = b.draw(10, 40), b.draw(2, 3)
    b.say(
        f"{b.name} drives {speed} km per hour for {hours} hours "
        f"and then {then_speed} km per hour for {then_hours} hours."
    )
    first = b.step("First it is", speed, "*", hours, "km")
    second = b.step("Then it is", then_speed, "*", then_hours, "km")
    way = b.step("The whole way is", first, "+", second, "km")
    if step_count >= 4:
        trip = way + b.draw(5, 60)
        b.say(f"The trip is {trip} km long. How many km are left?")
        return b.step("This leaves", trip, "-", way, "km")
    b.say("How many km is the whole way?")
    return way


def boxes(b, step_count):
    """Boxes of fragile things."""
    things = b.rng.choice(["eggs", "cups", "plates"])
    count, size = b.draw(2, 6), b.draw(4, 15)
    b.say(f"{b.name} gets {count} boxes with {size} {things} each.")
    value = b.step(f"{b.name} gets", count, "*", size, things)
    broken = b.draw(1, min(40, value - 1))
    b.say(f"{broken} of the {things} are broken.")
    value = b.step("This leaves", value, "-", broken, things)
    if step_count >= 3:
        if value % 2:
            raise OutOfRange
        b.say(f"Half of the good {things} go to {b.other}.")
        value = b.step("Half is", value, "/", 2, things)
    if step_count >= 4:
        more = b.skewed()
        b.say(f"Then {b.name} buys {more} more {things}.")
        value = b.step("Now there are", value, "+", more, things)
    b.say(f"How many {things} does {b.name} have now?")
    return value


def tickets(b, step_count):
    """Large and small tickets: their sum, or their difference for an even wish."""
    large, large_price = b.draw(2, 15), b.draw(3, 6)
    small, small_price = b.draw(2, 15), b.draw(2, 6)
    zoo = f"{b.name} has a zoo. The" if b.mix.named else "A"
    b.say(
        f"{zoo} zoo sells {large} large tickets for {large_price} dollars each "
        f"and {small} small tickets for {small_price} dollars each."
    )
    from_large = b.step("The large tickets give", large, "*", large_price, "dollars")
    from_small = b.step("The small tickets give", small, "*", small_price, "dollars")
    if step_count % 2:
        b.say("How many dollars does the zoo get in total?")
        return b.step("Together they give", from_large, "+", from_small, "dollars")
    if from_large <= from_small:
        raise OutOfRange
    b.say("How many more dollars do the large tickets give?")
    return b.step("The difference is", from_large, "-", from_small, "dollars")


def legs(b, _step_count):
    """Cows and hens."""
    cows, hens = b.draw(2, 30), b.draw(2, 30)
    owner = b.name if b.mix.named else "A farm"
    b.say(f"{owner} has {cows} cows with 4 legs each and {hens} hens with 2 legs each.")
    of_cows = b.step("The cows have", cows, "*", 4, "legs")
    of_hens = b.step("The hens have", hens, "*", 2, "legs")
    b.say("How many legs are there in total?")
    return b.step("Together they have", of_cows, "+", of_hens, "legs")


def classroom(b, step_count):
    """Students at tables, some of them sick."""
    tables, size, sick = b.draw(2, 6), b.draw(2, 8), b.draw(2, 6)
    sitting = f"{b.name} has a class that sits" if b.mix.named else "A class sits"
    b.say(
        f"{sitting} at {tables} tables with {size} students each. "
        f"Today {sick} students are sick."
    )
    value = b.step("The class has", tables, "*", size, "students")
    value = b.step("Today there are", value, "-", sick, "students")
    if step_count < 3:
        b.say("How many students are in class today?")
        return value
    each = b.draw(2, 3)
    b.say(f"Each student gets {each} pens.")
    value = b.step("They need", value, "*", each, "pens")
    if step_count < 4:
        b.say("How many pens do they need?")
        return value
    extra = b.skewed(2, 30)
    b.say(f"The teacher has {extra} pens more than needed. How many pens does the teacher have?")
    return b.step("The teacher has", value, "+", extra, "pens")


def three_days(b, step_count):
    """The sum of three days, and what is missing to a goal or twice as much."""
    monday, friday, sunday = b.skewed(5, 40), b.skewed(5, 40), b.skewed(5, 40)
    things, verb = b.rng.choice([("km", "runs"), ("pages", "reads"), ("points", "scores")])
    b.say(
        f"{b.name} {verb} {monday} {things} on Monday, {friday} {things} on Friday "
        f"and {sunday} {things} on Sunday."
    )
    total = b.step("Monday and Friday give", monday, "+", friday, things)
    total = b.step("With Sunday it is", total, "+", sunday, things)
    if step_count < 3:
        b.say(f"How many {things} is that in total?")
        return total
    if b.rng.random() < 0.5:
        goal = total + b.draw(2, 60)
        b.say(f"The goal is {goal} {things}. How many {things} are missing?")
        return b.step("The missing part is", goal, "-", total, things)
    b.say(f"{b.other} {verb} twice as many {things} in total. How many {things} is that?")
    return b.step(f"{b.other} gets", total, "*", 2, things)


def weights(b, step_count):
    """A truck's load."""
    bags, bag_weight, machine = b.draw(2, 6), b.draw(2, 20), b.draw(2, 40)
    person = f"{b.name} has a truck. " if b.mix.named else ""
    b.say(
        f"{person}A bag of rice weighs {bag_weight} kg. "
        f"A truck carries {bags} bags and a machine of {machine} kg."
    )
    rice = b.step("The bags weigh", bags, "*", bag_weight, "kg")
    load = b.step("With the machine it is", rice, "+", machine, "kg")
    if step_count >= 3:
        limit = load + b.draw(3, 60)
        b.say(f"The truck can carry {limit} kg. How many more kg can it carry?")
        return b.step("The difference is", limit, "-", load, "kg")
    b.say("How many kg does the truck carry?")
    return load


SITUATIONS = [
    shopping, comparison, reading, wages, seats, rectangle, ages,
    drive, boxes, tickets, legs, classroom, three_days, weights,
]  # fmt: skip
