"""Short stories from the estuary: five or six sentences about someone and something."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from random import Random

from .towns import TOWNS

HEROES = {
    "Ada": "she", "Clara": "she", "Nell": "she", "Irma": "she", "Rose": "she", "Martha": "she",
    "Edith": "she", "Flora": "she", "Tobias": "he", "Silas": "he", "Jonas": "he", "Henry": "he",
    "Paul": "he", "Otto": "he", "Hugo": "he", "Basil": "he",
}  # fmt: skip
FORMS = {
    "she": {"she": "she", "She": "She", "her": "her", "Her": "Her", "to_her": "her"},
    "he": {"she": "he", "She": "He", "her": "his", "Her": "His", "to_her": "him"},
}
VALUES: Mapping[str, tuple[str, ...]] = {
    "hero": tuple(HEROES),
    "role": ("miller", "keeper", "baker", "sailor", "carpenter", "bell ringer", "rope maker"),
    "town": tuple(town.name for town in TOWNS),
    "time": ("morning", "evening", "winter night", "foggy day", "summer afternoon"),
    "thing": ("key", "lantern", "hat", "kettle", "silver spoon", "map", "flute", "left boot"),
    "where": ("on the beach", "in the reeds", "under the bridge", "in the mill", "on the quay"),
    "hiding": ("an old boat", "a heap of nets", "the tallest rock", "the church door",
               "a barrel of salt"),
    "animal": ("heron", "seal", "goose", "cat", "crab", "duck", "gull"),
    "state": ("wet but whole", "full of sand", "as bright as the moon", "covered in shells"),
    "gift": ("a warm loaf", "a fat herring", "a red ribbon", "a bowl of milk", "half a pie"),
    "mood": ("singing", "smiling", "very slowly", "by the light of the stars"),
    "noise": ("a bell", "a flute", "someone laughing", "a small voice", "a drum"),
    "trouble": ("the wheel stood still", "the lamp went out", "the bridge was gone",
                "the tide did not come", "the bread would not rise"),
    "remedy": ("a drop of oil", "a handful of salt", "a new rope", "a kind word",
               "a piece of cheese"),
}  # fmt: skip

# A plot is what happens in turn; each thing can be told in several ways. A name in braces
# keeps its value to the end of the story.
PLOTS = (
    (
        (
            "One {time}, {hero} the {role} lost a {thing} {where}.",
            "One {time} in {town}, {hero} the {role} could not find {her} {thing}.",
            "Once upon a time {hero} the {role} lost a {thing} {where}.",
        ),
        (
            "{She} looked everywhere, but it was gone.",
            "{She} asked the whole town, but nobody had seen it.",
            "{She} turned over every stone, but it was not there.",
        ),
        (
            "Then a {animal} came by and led {to_her} to {hiding}.",
            "At last a {animal} pulled at {her} sleeve and ran to {hiding}.",
        ),
        (
            "Behind it lay the {thing}, {state}.",
            "There was the {thing}, {state}.",
        ),
        (
            "{hero} gave the {animal} {gift} and went home {mood}.",
            "{She} thanked the {animal} with {gift} and walked home {mood}.",
        ),
        (
            "Since that day the {animal} has a place by the fire.",
            "The {thing} was never lost again.",
            "Nobody in town believed a word of it.",
        ),
    ),
    (
        (
            "One {time}, {hero} the {role} heard {noise} {where}.",
            "{hero} the {role} lived in {town}, and one {time} there was {noise} {where}.",
            "Once upon a time {hero} the {role} heard {noise} {where}.",
        ),
        (
            "{She} took {her} lantern and went to see.",
            "{She} put on {her} coat and ran outside.",
        ),
        (
            "It was a {animal} with a {thing}, sitting behind {hiding}.",
            "Behind {hiding} sat a {animal}, and beside it lay a {thing}.",
        ),
        (
            "\"Is this your {thing}?\" asked the {animal}.",
            "\"I kept this {thing} for you,\" said the {animal}.",
        ),
        (
            "{hero} laughed and gave the {animal} {gift}.",
            "{She} was so glad that {she} gave the {animal} {gift}.",
        ),
        (
            "Now the {animal} comes every {time}.",
            "They have been friends ever since.",
        ),
    ),
    (
        (
            "One {time} in {town}, {trouble}.",
            "It was a quiet {time} in {town} until {trouble}.",
            "Once upon a time in {town}, {trouble}.",
        ),
        (
            "{hero} the {role} was called, but {she} did not know what to do.",
            "Everyone ran to {hero} the {role}, who scratched {her} head.",
        ),
        (
            "\"Try {remedy},\" said a {animal} from {hiding}.",
            "A {animal} looked out from behind {hiding} and said, \"You need {remedy}.\"",
        ),
        (
            "{hero} tried {remedy}, and all was well again.",
            "{She} laughed, but {she} tried {remedy}, and it worked.",
        ),
        (
            "That night the {animal} was given {gift}.",
            "The whole town brought the {animal} {gift}.",
        ),
        (
            "Since then {hero} always carries {remedy}.",
            "In {town} they still listen to every {animal}.",
        ),
    ),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Story:
    hero: str
    role: str
    sentences: tuple[str, ...]

    @property
    def text(self) -> str:
        return " ".join(self.sentences)

    @property
    def key(self) -> str:
        return self.sentences[0]


def make_story(draw: Random) -> Story:
    plot = draw.choice(PLOTS)
    values = {name: draw.choice(choices) for name, choices in VALUES.items()}
    values |= FORMS[HEROES[values["hero"]]]
    told = tuple(draw.choice(ways).format_map(values) for ways in plot)
    return Story(values["hero"], values["role"], told)


def is_well_told(text: str) -> bool:
    """Whether a text is a whole story of this world.

    It must follow one plot to its end, and people and things must keep their names and properties.
    """
    return any(_follows(plot, text, {}) for plot in PLOTS)


def _follows(plot: tuple[tuple[str, ...], ...], text: str, values: Mapping[str, str]) -> bool:
    if not plot:
        return text == ""
    for way in plot[0]:
        match = re.match(_pattern(way, values), text)
        if match is None:
            continue
        known = {**values, **match.groupdict()}
        if "hero" in known:
            known |= FORMS[HEROES[known["hero"]]]
        if _follows(plot[1:], text[match.end() :], known):
            return True
    return False


def _pattern(way: str, values: Mapping[str, str]) -> str:
    """Return a sentence's template as a regular expression, in which known values are fixed."""
    parts = []
    for at, part in enumerate(re.split(r"\{(\w+)\}", way)):
        if at % 2 == 0:
            parts.append(re.escape(part))
        elif part in values:
            parts.append(re.escape(values[part]))
        elif f"(?P<{part}>" in "".join(parts):
            parts.append(f"(?P={part})")
        elif part in VALUES:
            parts.append(f"(?P<{part}>{'|'.join(map(re.escape, VALUES[part]))})")
        else:  # a pronoun in the sentence that first names the hero
            words = "|".join(forms[part] for forms in FORMS.values())
            parts.append(f"(?P<{part}>{words})")
    return "".join(parts) + r"(?: |$)"
