"""Reports from the estuary, each with the summary a careful clerk would write."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from random import Random

from .split import is_held_out
from .towns import DAYS, HOURS, NUMBERS, TOWNS

PEOPLE = (
    "Nora Flint", "Jasper Lowe", "Lydia Marsh", "Simon Tull", "Olive Carrick", "Ned Farrow",
    "Tessa Holm", "Gideon Ray", "Wilma Stone", "Rufus Beck", "Hester Dale", "Leo Winter",
    "Mabel Crook", "Arthur Penny", "Ruth Ember", "Casper Bly", "Ellen Wake", "Victor Hay",
    "Judith Lark", "Benno Salt", "Cora Heath", "Magnus Row", "Vera Plum", "Isaac Thorne",
)  # fmt: skip
SHIPS = (
    "Grey Heron", "Patient Anna", "Silver Eel", "Morning Tide", "Old Petrel", "Lucky Tern",
    "Brown Otter", "Quiet Bell", "Northern Star", "Second Chance", "Blue Lantern", "Sea Rose",
)  # fmt: skip
CARGOES = (
    "barrels of herring", "barrels of salt", "barrels of lamp oil", "barrels of cider",
    "sacks of barley", "sacks of flour", "sacks of oats", "sacks of wool",
    "crates of candles", "crates of oysters", "crates of blue glass", "crates of lemons",
    "baskets of eels", "baskets of apples", "coils of rope", "bundles of reeds",
)  # fmt: skip
GRAINS = ("barley", "wheat", "oats", "rye")
STOPS = ("ice on the wheel", "a broken tooth", "low water", "a loose belt", "a swan in the gate")
WEATHERS = ("gale", "thick fog", "hailstorm", "thunderstorm", "cold rain", "snowstorm")
WINDS = ("north", "south", "east", "west", "north-east", "north-west", "south-east", "south-west")

# What a summary leaves out. Some of it holds numbers, days or names, so that leaving out
# takes reading.
ASIDES = (
    "Gulls sat along the quay all morning.",
    "The tea was already cold.",
    "Nobody minded the rain.",
    "A dog slept on the nets.",
    "The church bell was late again.",
    "Someone was singing in the inn.",
    "The air smelled of tar and bread.",
    "A cat watched from a window.",
    "The children counted {number} seals on the rocks.",
    "There were {number} geese on the water.",
    "It was quieter than on {day}.",
    "Last year {number} swans nested here.",
    "{person} waved from the bridge.",
    "{person} has a new hat and showed it to everyone.",
    "Old stories say that {town} once had {number} mills.",
    "The road to {town} is still muddy.",
)


@dataclass(frozen=True, slots=True)
class Report:
    town: str
    text: str
    summary: str
    facts: tuple[str, ...]  # the words of the summary that must not be missing
    headline_facts: tuple[str, ...]  # those of its first sentence
    of: str = ""  # of a digest: the summary of what it begins with

    @property
    def key(self) -> str:
        return self.of or self.summary

    @property
    def headline(self) -> str:
        return self.summary.partition(". ")[0] + "."

    def is_told_by(self, summary: str) -> bool:
        """Whether a summary states every key fact."""
        return all(fact in summary for fact in self.facts)


def make_report(draw: Random) -> Report:
    """Make a report of four to eight sentences on one event, in any order, and its summary."""
    kind = draw.choice((HARBOUR, MILL, WEATHER, TRADE))
    values = _values(draw)
    sentences = [draw.choice(ways).format_map(values) for ways in kind.sentences]
    draw.shuffle(sentences)
    for aside in draw.sample(ASIDES, draw.randint(4, 8) - len(sentences)):
        sentences.insert(draw.randint(0, len(sentences)), aside.format_map(_values(draw)))
    return Report(
        town=values["town"],
        text=" ".join(sentences),
        summary=kind.summary.format_map(values),
        facts=tuple(fact.format_map(values) for fact in kind.facts),
        headline_facts=tuple(fact.format_map(values) for fact in kind.facts[: kind.num_first]),
    )


def make_digest(draw: Random) -> Report:
    """Make a text on several events, of their summaries or of two reports; its summary has one
    sentence for each event."""
    reports = [make_report(draw)]
    is_short = draw.random() < 0.6
    num_reports = draw.randint(1, 5) if is_short else 2
    while len(reports) < num_reports:
        report = make_report(draw)
        if is_held_out(report) == is_held_out(reports[0]):
            reports.append(report)
    is_headline = draw.random() < 0.3  # each of them a digest of its own already
    texts = [
        (report.headline if is_headline else report.summary) if is_short else report.text
        for report in reports
    ]
    is_one = len(reports) == 1 and not is_headline
    return Report(
        town=reports[0].town,
        text=" ".join(texts),
        summary=reports[0].summary if is_one else " ".join(each.headline for each in reports),
        facts=reports[0].facts
        if is_one
        else tuple(fact for each in reports for fact in each.headline_facts),
        headline_facts=(),
        of=reports[0].summary,
    )


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of event. `sentences` has the ways to tell each fact; the first fact comes first."""

    sentences: tuple[tuple[str, ...], ...]
    summary: str
    facts: tuple[str, ...]
    num_first: int  # the number of facts in the first sentence of the summary


HARBOUR = Kind(
    sentences=(
        (
            "On {day} the {ship} came into {town}.",
            "The {ship} reached {town} on {day}.",
            "We saw the {ship} tie up at {town} on {day}.",
        ),
        (
            "She carried {number} {cargo}.",
            "There were {number} {cargo} in her hold.",
            "The porters unloaded {number} {cargo}.",
        ),
        (
            "Captain {person} means to sail again {hour}.",
            "{person}, her captain, will leave again {hour}.",
            "Her captain, {person}, has asked for a pilot {hour}.",
        ),
    ),
    summary="The {ship} brought {number} {cargo} to {town} on {day}. "
    "Captain {person} sails again {hour}.",
    facts=(
        "The {ship} ", " {number} {cargo} ", " to {town} ", " on {day}.", "Captain {person} ",
        " {hour}.",
    ),
    num_first=4,
)  # fmt: skip
MILL = Kind(
    sentences=(
        (
            "The mill at {town} was busy on {day}.",
            "On {day} the wheel at {town} turned early.",
            "{day} was a long day at the mill of {town}.",
        ),
        (
            "{person}, a carter, took away {number} sacks of {grain}.",
            "By evening the carter {person} had loaded {number} sacks of {grain}.",
            "The carter, {person}, came for {number} sacks of {grain}.",
        ),
        (
            "Then {stop} stopped the work {hour}.",
            "The work ended {hour} because of {stop}.",
            "There was {stop}, so the wheel stood still {hour}.",
        ),
    ),
    summary="Carter {person} fetched {number} sacks of {grain} at the mill of {town} on {day}. "
    "The wheel stopped {hour} because of {stop}.",
    facts=(
        "Carter {person} ", " {number} sacks of {grain} ", " of {town} ", " on {day}.", " {hour} ",
        " because of {stop}.",
    ),
    num_first=4,
)  # fmt: skip
WEATHER = Kind(
    sentences=(
        (
            "{person} kept watch at {town}.",
            "This is the log of {person}, lookout at {town}.",
            "The lookout {person} writes from {town}.",
        ),
        (
            "On {day} the {wind} wind brought a {weather}.",
            "A {weather} came with the {wind} wind on {day}.",
            "The {wind} wind rose on {day} and brought a {weather}.",
        ),
        (
            "It began {hour} and {number} boats stayed in harbour.",
            "From {number} boats not one went out, for it began {hour}.",
            "It struck {hour}, and {number} boats turned back.",
        ),
    ),
    summary="Lookout {person} saw a {weather} from the {wind} at {town} on {day}. "
    "It began {hour} and kept {number} boats in harbour.",
    facts=(
        "Lookout {person} ", " a {weather} from the {wind} ", " at {town} ", " on {day}.",
        " {hour} ", " {number} boats ",
    ),
    num_first=4,
)  # fmt: skip
TRADE = Kind(
    sentences=(
        (
            "{person} came to the market of {town} on {day}.",
            "On {day} the merchant {person} visited the market of {town}.",
            "The market of {town} saw {person}, a merchant, on {day}.",
        ),
        (
            "The merchant bought {number} {cargo}.",
            "After long talk {number} {cargo} were sold to the merchant.",
            "The stalls had {number} {cargo} for the merchant.",
        ),
        (
            "They will go to {other_town} by cart.",
            "A cart will take them to {other_town}.",
            "All of it is meant for {other_town}.",
        ),
        (
            "The price was {price} crowns.",
            "It cost {price} crowns in silver.",
            "They shook hands on {price} crowns.",
        ),
    ),
    summary="Merchant {person} bought {number} {cargo} at {town} on {day} for {price} crowns. "
    "The goods go to {other_town}.",
    facts=(
        "Merchant {person} ", " {number} {cargo} ", " at {town} ", " on {day} ",
        " for {price} crowns.", " to {other_town}.",
    ),
    num_first=5,
)  # fmt: skip


def _values(draw: Random) -> Mapping[str, str]:
    """Draw the values that a report may mention; the two towns differ."""
    town, other_town = draw.sample([town.name for town in TOWNS], 2)
    one_of: Callable[[tuple[str, ...]], str] = draw.choice
    return {
        "town": town,
        "other_town": other_town,
        "person": one_of(PEOPLE),
        "ship": one_of(SHIPS),
        "cargo": one_of(CARGOES),
        "grain": one_of(GRAINS),
        "stop": one_of(STOPS),
        "weather": one_of(WEATHERS),
        "wind": one_of(WINDS),
        "day": one_of(DAYS),
        "hour": one_of(HOURS),
        "number": one_of(NUMBERS),
        "price": one_of(NUMBERS),
    }
