"""Agreement: phrases of English and French, and the rules by which French words agree."""

from dataclasses import dataclass

from .words import NUMBERS, VOWELS, Adjective, Verb

Pair = tuple[str, str]  # the same words in English and in French


@dataclass(frozen=True, slots=True)
class Phrase:
    """Words in both languages, and the gender and number that the sentence must agree with."""

    english: str
    french: str
    gender: str
    is_plural: bool


def with_article(
    article: str, english: list[str], french: list[str], gender: str, is_plural: bool
) -> Pair:
    """Put an article, a determiner or a number before a noun and its adjectives."""
    before_vowel = french[0][0] in VOWELS
    if article == "the":
        singular = "la" if gender == "f" else "le"
        words = f"les {' '.join(french)}" if is_plural else elide(singular, " ".join(french))
        return f"the {' '.join(english)}", words
    if article == "a":
        article = "an" if english[0][0] in "aeiou" else "a"
        determiner = "une" if gender == "f" else "un"
    elif article == "our":
        determiner = "nos" if is_plural else "notre"
    elif article == "this":
        article = "these" if is_plural else "this"
        determiner = "cette" if gender == "f" else "cet" if before_vowel else "ce"
        determiner = "ces" if is_plural else determiner
    else:
        determiner = NUMBERS[article]
    return f"{article} {' '.join(english)}", f"{determiner} {' '.join(french)}"


def predicate(subject: Phrase, verb: Verb, tense: str) -> Pair:
    """Return the verb in both languages, in agreement with its subject."""
    if tense == "present":
        return (verb.base if subject.is_plural else verb.present, verb.french[subject.is_plural])
    if tense == "future":
        return (f"will {verb.base}", verb.future[subject.is_plural])
    if verb.takes_etre:
        ending = ("e" if subject.gender == "f" else "") + ("s" if subject.is_plural else "")
        return (verb.past, f"{'sont' if subject.is_plural else 'est'} {verb.participle}{ending}")
    return (verb.past, f"{'ont' if subject.is_plural else 'a'} {verb.participle}")


def said_of(subject: Phrase, english: str, french: str, quality: Adjective) -> Pair:
    """Say a quality of a subject: "the boat is old", in agreement in French."""
    return (
        f"{subject.english} {english} {quality.english}",
        f"{subject.french} {french} {quality.french(subject.gender, subject.is_plural)}",
    )


def after(pair: Pair, more: Pair) -> Pair:
    """Append words in both languages."""
    return f"{pair[0]} {more[0]}", f"{pair[1]} {more[1]}"


def elide(word: str, following: str) -> str:
    """Elide an article: le + huître is l'huître. Before a person's name with H or Y it stays."""
    letter = following[0]
    if letter in VOWELS or letter in "AEIOU":
        return f"{word[:-1]}'{following}"
    return f"{word} {following}"


def contract(word: str, following: str) -> str:
    """Contract a preposition: à + le meunier is au meunier, de + les is des, de + Ada is d'Ada."""
    article, _, rest = following.partition(" ")
    short = {"à": {"le": "au", "les": "aux"}, "de": {"le": "du", "les": "des"}}[word]
    if article in short and rest:
        return f"{short[article]} {rest}"
    return elide(word, following) if word == "de" else f"{word} {following}"


def capital(text: str) -> str:
    """Capitalize the first letter, and leave the others as they are."""
    return text[0].upper() + text[1:]
