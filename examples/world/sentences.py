"""English sentences about the coast and their French.

Every English sentence has exactly one French translation here, with the articles, agreement and
elision that French requires; a translator is right if it gives that one.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from .agreement import (
    Pair,
    Phrase,
    after,
    capital,
    contract,
    elide,
    predicate,
    said_of,
    with_article,
)
from .names import make_name, make_town
from .words import (
    AFTER,
    ANIMALS,
    BEFORE,
    BEFORE_PEOPLE,
    COMING,
    COPULA,
    DESTINATIONS,
    GIVING,
    GO,
    GOODS,
    GREETINGS,
    IL_Y_A,
    INTRANSITIVE,
    NATURE,
    NUMBERS,
    OF_NATURE,
    OF_PEOPLE,
    PEOPLE,
    PLACES,
    PRONOUNS,
    TENSES,
    THERE,
    THINGS,
    TIMES,
    TRANSITIVE,
    UNITS,
    VESSELS,
    VOWELS,
    WEATHER,
    WITH_NOUN,
    Adjective,
    Noun,
    Verb,
)


@dataclass(frozen=True, slots=True)
class Sentence:
    english: str
    french: str
    names: tuple[str, ...] = ()  # of people and towns, which stay as they are

    @property
    def key(self) -> str:
        return self.english


def make_sentence(draw: Random) -> Sentence:
    """Make a sentence and its translation."""
    return _Speaker(draw).sentence()


def make_sentence_on_strangers(draw: Random) -> Sentence:
    """Make a sentence with held-out names, which a translator can only copy."""
    while True:
        sentence = _Speaker(draw, has_new_names=True).sentence()
        if sentence.names:
            return sentence


def joined(sentences: Sequence[Sentence]) -> Sentence:
    """Join several sentences to one text."""
    return Sentence(
        " ".join(each.english for each in sentences),
        " ".join(each.french for each in sentences),
        tuple(name for each in sentences for name in each.names),
    )


def typed_in_a_hurry(sentence: Sentence, draw: Random) -> Sentence:
    """Leave out the full stop, the capital letter, or both, in the French as in the English."""
    english, french = sentence.english, sentence.french
    how = draw.choice(("no stop", "no capital", "neither"))
    if how != "no capital" and english.endswith("."):
        english, french = english[:-1], french[:-1]
    if how != "no stop" and not english.startswith(sentence.names):
        english, french = (text[0].lower() + text[1:] for text in (english, french))
    return Sentence(english, french, sentence.names)


def in_capitals(sentence: Sentence) -> Sentence:
    """Put the English into capital letters; in the French only the names are, being copied."""
    french = sentence.french[0].lower() + sentence.french[1:]
    if sentence.french.startswith(sentence.names):
        french = sentence.french
    for name in sentence.names:
        french = french.replace(name, name.upper())
    return Sentence(
        sentence.english.upper(), french, tuple(name.upper() for name in sentence.names)
    )


class _Speaker:
    """Makes one sentence."""

    def __init__(self, draw: Random, has_new_names: bool = False) -> None:
        self.draw = draw
        self.has_new_names = has_new_names
        self.names: list[str] = []

    def sentence(self) -> Sentence:
        kinds = {
            self.doing: 8,
            self.being: 4,
            self.staying: 6,
            self.moving: 2,
            self.refusing: 3,
            self.trading: 3,
            self.giving: 3,
            self.existing: 2,
            self.weather: 3,
            self.greeting: 1,
        }
        draw = self.draw
        if draw.random() < 0.12:
            english, french = self.asking()
            return self._ended(english, french, "?")
        kind = draw.choices(tuple(kinds), tuple(kinds.values()))[0]
        english, french = kind()
        if draw.random() < 0.05 and kind != self.greeting:
            more, plus = draw.choice((self.doing, self.being, self.staying))(is_first=False)
            english, french = f"{english} and {more}", f"{french} et {plus}"
        return self._ended(english, french, "!" if draw.random() < 0.05 else ".")

    def _ended(self, english: str, french: str, mark: str) -> Sentence:
        space = "" if mark == "." else " "  # as French has it
        return Sentence(capital(english) + mark, capital(french) + space + mark, tuple(self.names))

    # Kinds of sentences

    def doing(self, is_first: bool = True) -> Pair:
        """Make a sentence such as: The old miller repaired two red boats on Monday."""
        tense = self.draw.choice(TENSES)
        subject, verb = self._person(), self.draw.choice(TRANSITIVE)
        seen = self._thing()
        english, french = predicate(subject, verb, tense)
        pair = (
            f"{subject.english} {english} {seen.english}",
            f"{subject.french} {french} {seen.french}",
        )
        if self.draw.random() < 0.25:
            pair = after(pair, self._place())
        return self._timed(tense, pair) if is_first else pair

    def being(self, is_first: bool = True) -> Pair:
        """Make a sentence such as: The new sails were wet."""
        tense = self.draw.choice(TENSES)
        subject, quality = self._one_that_is()
        english, french = (forms[subject.is_plural] for forms in COPULA[tense])
        pair = said_of(subject, english, french, quality)
        is_long = is_first and self.draw.random() < 0.3
        return self._timed(tense, pair) if is_long else pair

    def staying(self, is_first: bool = True) -> Pair:
        """Make a sentence such as: Ada arrived at the harbour at dawn."""
        tense = self.draw.choice(TENSES)
        subject, verb = self._one_that_stays()
        english, french = predicate(subject, verb, tense)
        pair = f"{subject.english} {english}", f"{subject.french} {french}"
        if self.draw.random() < 0.15:
            other = self._person(has_pronouns=False)
            pair = after(pair, (f"with {other.english}", f"avec {other.french}"))
        if self.draw.random() < 0.75:
            pair = after(pair, self._place())
        return self._timed(tense, pair) if is_first else pair

    def moving(self) -> Pair:
        """Make a sentence such as: The girls went to the market yesterday."""
        tense = self.draw.choice(TENSES)
        subject = self._person()
        english, french = predicate(subject, GO, tense)
        pair = f"{subject.english} {english}", f"{subject.french} {french}"
        if self.draw.random() < 0.25:
            town = self._town()
            pair = after(pair, (f"to {town}", f"à {town}"))
        else:
            pair = after(pair, self.draw.choice(tuple(DESTINATIONS.items())))
        return self._timed(tense, pair)

    def refusing(self) -> Pair:
        """Make a sentence such as: The sisters did not sell this boat."""
        subject, verb = self._person(), self.draw.choice(TRANSITIVE)
        seen = self._thing(is_definite=True)
        is_short = self.draw.random() < 0.3
        kind = self.draw.random()
        if kind < 0.4:
            english = "do" if subject.is_plural else "does"
            french = f"{elide('ne', verb.french[subject.is_plural])} pas"
        elif kind < 0.8:
            english = "did"
            auxiliary = "n'ont" if subject.is_plural else "n'a"
            french = f"{auxiliary} pas {verb.participle}"
        else:
            english, is_short = "will", False
            french = f"{elide('ne', verb.future[subject.is_plural])} pas"
        refused = english + ("n't" if is_short else " not")
        return (
            f"{subject.english} {refused} {verb.base} {seen.english}",
            f"{subject.french} {french} {seen.french}",
        )

    def trading(self) -> Pair:
        """Make a sentence such as: The baker bought twelve sacks of oats at the market."""
        tense = self.draw.choice(TENSES)
        subject = self._person()
        verb = self.draw.choice(
            [verb for verb in TRANSITIVE if verb.base in ("buy", "sell", "carry", "bring", "take")]
        )
        english, french = predicate(subject, verb, tense)
        goods, marchandise = self._goods()
        pair = f"{subject.english} {english} {goods}", f"{subject.french} {french} {marchandise}"
        if self.draw.random() < 0.4:
            pair = after(pair, self._place())
        return self._timed(tense, pair)

    def giving(self) -> Pair:
        """Make a sentence such as: Nell gave the old key to the baker."""
        tense = self.draw.choice(TENSES)
        subject, verb, seen = self._person(), self.draw.choice(GIVING), self._thing()
        other = self._person(has_pronouns=False)
        english, french = predicate(subject, verb, tense)
        pair = (
            f"{subject.english} {english} {seen.english} to {other.english}",
            f"{subject.french} {french} {seen.french} {contract('à', other.french)}",
        )
        return self._timed(tense, pair)

    def existing(self) -> Pair:
        """Make a sentence such as: There are three boats at the harbour."""
        tense = self.draw.choice(TENSES)
        if self.draw.random() < 0.3:
            english, french = self._goods()
            is_plural = True
        else:
            seen = self._thing(articles=("a",))
            english, french, is_plural = seen.english, seen.french, seen.is_plural
        pair = f"there {THERE[tense][is_plural]} {english}", f"{IL_Y_A[tense]} {french}"
        return after(pair, self._place())

    def weather(self) -> Pair:
        """Make a sentence such as: It is raining at Saltmere."""
        tense = self.draw.choice(TENSES)
        if self.draw.random() < 0.5:
            pair = self.draw.choice(tuple(WEATHER[tense].items()))
            pair = after(pair, self._place()) if self.draw.random() < 0.6 else pair
            return self._timed(tense, pair)
        subject = self._nature()
        english, french = (forms[subject.is_plural] for forms in COPULA[tense])
        return self._timed(tense, said_of(subject, english, french, self.draw.choice(OF_NATURE)))

    def greeting(self) -> Pair:
        """Make a sentence such as: Good morning, Ada."""
        english, french = self.draw.choice(tuple(GREETINGS.items()))
        if "{town}" in english:
            town = self._town()
            return english.format(town=town), french.format(town=town)
        name = self._name().english
        return english.format(name=name), french.format(name=name)

    def asking(self) -> Pair:
        """Make a sentence such as: Did the miller sell the boat?"""
        tense = self.draw.choice(TENSES)
        if self.draw.random() < 0.3:
            subject, quality = self._one_that_is()
            is_plural = subject.is_plural
            if tense == "future":
                english = f"will {subject.english} be {quality.english}"
            else:
                english = f"{COPULA[tense][0][is_plural]} {subject.english} {quality.english}"
            french = said_of(subject, "", COPULA[tense][1][is_plural], quality)[1]
        else:
            subject = self._person()
            is_transitive = self.draw.random() < 0.6
            verb = self.draw.choice(TRANSITIVE if is_transitive else INTRANSITIVE)
            does = "do" if subject.is_plural else "does"
            auxiliary = {"present": does, "past": "did", "future": "will"}[tense]
            english = f"{auxiliary} {subject.english} {verb.base}"
            french = f"{subject.french} {predicate(subject, verb, tense)[1]}"
            if is_transitive:
                seen = self._thing()
                english, french = f"{english} {seen.english}", f"{french} {seen.french}"
            if self.draw.random() < 0.3 + 0.4 * (not is_transitive):
                english, french = after((english, french), self._place())
        return english, f"est-ce {elide('que', french)}"

    # Parts of sentences

    def _one_that_is(self) -> tuple[Phrase, Adjective]:
        if self.draw.random() < 0.5:
            return self._person(), self.draw.choice(OF_PEOPLE)
        return self._thing(is_definite=True), self.draw.choice(AFTER)

    def _one_that_stays(self) -> tuple[Phrase, Verb]:
        """Make the subject of `staying`: a person, an animal, a boat or the tide."""
        kind = self.draw.random()
        if kind < 0.7:
            return self._person(), self.draw.choice(INTRANSITIVE)
        if kind < 0.8:
            animal = self._noun(ANIMALS, BEFORE, AFTER, is_definite=True)
            return animal, self.draw.choice(INTRANSITIVE)
        waits = [verb for verb in INTRANSITIVE if verb.base == "wait"]
        if kind < 0.92:
            vessel = self._noun(VESSELS, BEFORE, AFTER, is_definite=True)
            return vessel, self.draw.choice([*COMING, *waits])
        return self._nature(), self.draw.choice(COMING)

    def _person(self, has_pronouns: bool = True) -> Phrase:
        """Make a person: a name, two names, a pronoun, or people by their trade."""
        kind = self.draw.random()
        if kind < 0.27:
            return self._name()
        if kind < 0.34:
            one, other = self._name(), self._name()
            gender = "f" if one.gender == other.gender == "f" else "m"
            both = f"{one.english} and {other.english}", f"{one.french} et {other.french}"
            return Phrase(*both, gender, True)
        if kind < 0.41 and has_pronouns:
            return Phrase(*self.draw.choice(PRONOUNS))
        return self._noun(PEOPLE, BEFORE_PEOPLE, OF_PEOPLE[:WITH_NOUN], is_definite=True)

    def _name(self) -> Phrase:
        name, gender = make_name(self.draw, self.has_new_names)
        self.names.append(name)
        return Phrase(name, name, gender, False)

    def _town(self) -> str:
        self.names.append(make_town(self.draw, self.has_new_names))
        return self.names[-1]

    def _place(self) -> Pair:
        if self.draw.random() < 0.2:
            town = self._town()
            return f"{self.draw.choice(('at', 'in'))} {town}", f"à {town}"
        return self.draw.choice(tuple(PLACES.items()))

    def _goods(self) -> Pair:
        number, unit, good = (self.draw.choice(tuple(each)) for each in (NUMBERS, UNITS, GOODS))
        return (
            f"{number} {unit} of {good}",
            f"{NUMBERS[number]} {UNITS[unit]} {elide('de', GOODS[good])}",
        )

    def _nature(self) -> Phrase:
        noun = self.draw.choice(NATURE)
        return Phrase(
            f"the {noun.english}",
            elide("la" if noun.gender == "f" else "le", noun.french),
            noun.gender,
            False,
        )

    def _thing(self, is_definite: bool = False, articles: tuple[str, ...] = ()) -> Phrase:
        if not articles and self.draw.random() < 0.08:
            return self._belonging()
        return self._noun(THINGS, BEFORE, AFTER, is_definite, articles)

    def _belonging(self) -> Phrase:
        """Make a possession: the miller's boat, Nell's key."""
        seen = self.draw.choice(THINGS)
        is_plural = self.draw.random() < 0.3
        owner = self._owner()
        english = seen.english_plural if is_plural else seen.english
        french = seen.french_plural if is_plural else seen.french
        article = "la" if seen.gender == "f" else "le"
        words = f"les {french}" if is_plural else elide(article, french)
        return Phrase(
            f"{owner.english}'s {english}",
            f"{words} {contract('de', owner.french)}",
            seen.gender,
            is_plural,
        )

    def _owner(self) -> Phrase:
        if self.draw.random() < 0.5:
            while True:  # whether one says "de Henri" or "d'Henri" is a matter of taste
                name, gender = make_name(self.draw, self.has_new_names)
                if name[0] not in "HYŒ":
                    self.names.append(name)
                    return Phrase(name, name, gender, False)
        noun = self.draw.choice(PEOPLE)
        article = "la" if noun.gender == "f" else "le"
        return Phrase(f"the {noun.english}", elide(article, noun.french), noun.gender, False)

    def _noun(
        self,
        nouns: tuple[Noun, ...],
        before: tuple[Adjective, ...],
        after: tuple[Adjective, ...],
        is_definite: bool,
        articles: tuple[str, ...] = (),
    ) -> Phrase:
        draw = self.draw
        noun = draw.choice(nouns)
        is_plural = draw.random() < 0.4
        english = [noun.english_plural if is_plural else noun.english]
        french = [noun.french_plural if is_plural else noun.french]
        # In English all come before the noun, the kind that is before it in French first.
        if draw.random() < 0.3:
            quality = draw.choice(after)
            english.insert(0, quality.english)
            french.append(quality.french(noun.gender, is_plural))
        if draw.random() < 0.3:
            quality = draw.choice(before)
            form = quality.french(noun.gender, is_plural)
            if quality.liaison and noun.gender == "m" and not is_plural and french[0][0] in VOWELS:
                form = quality.liaison
            english.insert(0, quality.english)
            french.insert(0, form)
        if is_plural and not is_definite:
            articles = tuple(NUMBERS)
        choices = (
            ("the", "the", "the", "our", "this") if is_definite else ("the", "the", "a", "this")
        )
        article = draw.choice(articles or choices)
        words = with_article(article, english, french, noun.gender, is_plural)
        return Phrase(*words, noun.gender, is_plural)

    def _timed(self, tense: str, pair: Pair) -> Pair:
        """Put a time at the end, at the beginning, or nowhere."""
        place = self.draw.random()
        if place < 0.45:
            return pair
        english, french = self.draw.choice(tuple(TIMES[tense].items()))
        if place < 0.8:
            return after(pair, (english, french))
        return f"{english}, {pair[0]}", f"{french}, {pair[1]}"
