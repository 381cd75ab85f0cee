"""English sentences about the coast and their French.

Every English sentence has one French one here, with the articles, the agreement and the
elision that French asks for; a translator is right when it gives that one.
"""

from dataclasses import dataclass
from random import Random

VOWELS = "aeiouyâéèêhœ"  # every h of this world is mute


@dataclass(frozen=True, slots=True)
class Sentence:
    english: str
    french: str

    @property
    def key(self) -> str:
        return self.english


@dataclass(frozen=True, slots=True)
class Noun:
    english: str
    french: str
    gender: str  # m or f
    english_plural: str
    french_plural: str


@dataclass(frozen=True, slots=True)
class Adjective:
    english: str
    forms: tuple[str, str, str, str]  # m, f, m plural, f plural
    liaison: str | None = None  # m before a vowel, where that is another word

    def french(self, gender: str, is_plural: bool) -> str:
        return self.forms[(gender == "f") + 2 * is_plural]


@dataclass(frozen=True, slots=True)
class Verb:
    """The English forms and the French of the third person."""

    base: str
    present: str
    past: str
    french: tuple[str, str]  # present: singular, plural
    participle: str
    future: tuple[str, str]  # singular, plural
    takes_etre: bool = False  # so its participle agrees with the subject


@dataclass(frozen=True, slots=True)
class Phrase:
    """Words in both languages, with what the rest of the sentence must agree with."""

    english: str
    french: str
    gender: str
    is_plural: bool


def nouns(lines: str) -> tuple[Noun, ...]:
    """From lines of: English, French, gender, and the plurals where they are not with -s."""
    made = []
    for line in lines.strip().splitlines():
        english, french, gender, *plurals = (part.strip() for part in line.split(","))
        english_plural, french_plural = plurals or ("", "")
        made.append(
            Noun(
                english,
                french,
                gender,
                english_plural or english + "s",
                french_plural or french + "s",
            )
        )
    return tuple(made)


PEOPLE = nouns("""
miller, meunier, m
sailor, marin, m
keeper, gardien, m
fisherman, pêcheur, m, fishermen, pêcheurs
baker, boulanger, m
merchant, marchand, m
ferryman, passeur, m, ferrymen, passeurs
carpenter, charpentier, m
child, enfant, m, children, enfants
girl, fille, f
widow, veuve, f
sister, sœur, f
aunt, tante, f
woman, femme, f, women, femmes
""")

THINGS = nouns("""
boat, bateau, m, boats, bateaux
net, filet, m
basket, panier, m
sack, sac, m
barrel, tonneau, m, barrels, tonneaux
bridge, pont, m
storehouse, entrepôt, m
flag, drapeau, m, flags, drapeaux
knife, couteau, m, knives, couteaux
shell, coquillage, m
wheel, roue, f
lamp, lampe, f
rope, corde, f
sail, voile, f
bell, cloche, f
door, porte, f
map, carte, f
letter, lettre, f
key, clé, f
oyster, huître, f
anchor, ancre, f
boot, botte, f
""")


def regular(english: str, masculine: str) -> Adjective:
    return Adjective(english, (masculine, masculine + "e", masculine + "s", masculine + "es"))


BEFORE = (
    Adjective("old", ("vieux", "vieille", "vieux", "vieilles"), liaison="vieil"),
    Adjective("new", ("nouveau", "nouvelle", "nouveaux", "nouvelles"), liaison="nouvel"),
    Adjective("beautiful", ("beau", "belle", "beaux", "belles"), liaison="bel"),
    regular("small", "petit"),
    regular("big", "grand"),
)
AFTER = (
    regular("green", "vert"),
    regular("black", "noir"),
    regular("blue", "bleu"),
    regular("heavy", "lourd"),
    regular("broken", "cassé"),
    regular("wet", "mouillé"),
    Adjective("red", ("rouge", "rouge", "rouges", "rouges")),
    Adjective("white", ("blanc", "blanche", "blancs", "blanches")),
    Adjective("grey", ("gris", "grise", "gris", "grises")),
    Adjective("dry", ("sec", "sèche", "secs", "sèches")),
)
OF_PEOPLE = (
    regular("tired", "fatigué"),
    regular("patient", "patient"),
    Adjective("happy", ("heureux", "heureuse", "heureux", "heureuses")),
    Adjective("brave", ("courageux", "courageuse", "courageux", "courageuses")),
    regular("ready", "prêt"),
    Adjective("ill", ("malade", "malade", "malades", "malades")),
)
MEN = ("Tobias", "Henri", "Silas", "Jonas", "Paul")
WOMEN = ("Ada", "Clara", "Rose", "Nell", "Irma")

TRANSITIVE = (
    Verb("repair", "repairs", "repaired", ("répare", "réparent"), "réparé",
         ("réparera", "répareront")),
    Verb("sell", "sells", "sold", ("vend", "vendent"), "vendu", ("vendra", "vendront")),
    Verb("find", "finds", "found", ("trouve", "trouvent"), "trouvé", ("trouvera", "trouveront")),
    Verb("lose", "loses", "lost", ("perd", "perdent"), "perdu", ("perdra", "perdront")),
    Verb("paint", "paints", "painted", ("peint", "peignent"), "peint",
         ("peindra", "peindront")),
    Verb("carry", "carries", "carried", ("porte", "portent"), "porté",
         ("portera", "porteront")),
    Verb("buy", "buys", "bought", ("achète", "achètent"), "acheté",
         ("achètera", "achèteront")),
    Verb("hide", "hides", "hid", ("cache", "cachent"), "caché", ("cachera", "cacheront")),
    Verb("clean", "cleans", "cleaned", ("nettoie", "nettoient"), "nettoyé",
         ("nettoiera", "nettoieront")),
    Verb("count", "counts", "counted", ("compte", "comptent"), "compté",
         ("comptera", "compteront")),
)  # fmt: skip
INTRANSITIVE = (
    Verb("arrive", "arrives", "arrived", ("arrive", "arrivent"), "arrivé",
         ("arrivera", "arriveront"), takes_etre=True),
    Verb("stay", "stays", "stayed", ("reste", "restent"), "resté", ("restera", "resteront"),
         takes_etre=True),
    Verb("fall", "falls", "fell", ("tombe", "tombent"), "tombé", ("tombera", "tomberont"),
         takes_etre=True),
    Verb("work", "works", "worked", ("travaille", "travaillent"), "travaillé",
         ("travaillera", "travailleront")),
    Verb("wait", "waits", "waited", ("attend", "attendent"), "attendu",
         ("attendra", "attendront")),
    Verb("sing", "sings", "sang", ("chante", "chantent"), "chanté", ("chantera", "chanteront")),
    Verb("sleep", "sleeps", "slept", ("dort", "dorment"), "dormi", ("dormira", "dormiront")),
)  # fmt: skip

PLACES = {
    "at the harbour": "au port",
    "at the mill": "au moulin",
    "at the market": "au marché",
    "on the beach": "sur la plage",
    "on the island": "sur l'île",
    "near the lighthouse": "près du phare",
    "near the river": "près de la rivière",
    "behind the church": "derrière l'église",
    "in the village": "dans le village",
    "under the bridge": "sous le pont",
}
DAYS = {
    "on Monday": "lundi",
    "on Tuesday": "mardi",
    "on Thursday": "jeudi",
    "on Saturday": "samedi",
    "on Sunday": "dimanche",
}
TIMES = {
    "present": {
        "every morning": "chaque matin",
        "every evening": "chaque soir",
        "before the tide": "avant la marée",
        "today": "aujourd'hui",
    },
    "past": DAYS
    | {
        "yesterday": "hier",
        "at dawn": "à l'aube",
        "after the storm": "après la tempête",
        "before the tide": "avant la marée",
    },
    "future": DAYS
    | {
        "tomorrow": "demain",
        "at dawn": "à l'aube",
        "after the storm": "après la tempête",
        "before the tide": "avant la marée",
    },
}
TENSES = ("present", "past", "future")
NUMBERS = {
    "two": "deux",
    "three": "trois",
    "four": "quatre",
    "five": "cinq",
    "six": "six",
    "seven": "sept",
    "eight": "huit",
    "nine": "neuf",
    "ten": "dix",
    "twelve": "douze",
    "twenty": "vingt",
    "forty": "quarante",
}
GOODS = {
    "flour": "farine",
    "salt": "sel",
    "barley": "orge",
    "oats": "avoine",
    "honey": "miel",
    "oil": "huile",
    "wool": "laine",
    "oysters": "huîtres",
}
UNITS = {
    "sacks": "sacs",
    "barrels": "tonneaux",
    "baskets": "paniers",
    "crates": "caisses",
}
COPULA = {
    "present": (("is", "are"), ("est", "sont")),
    "past": (("was", "were"), ("était", "étaient")),
    "future": (("will be", "will be"), ("sera", "seront")),
}


def make_sentence(draw: Random) -> Sentence:
    """One sentence and its translation."""
    kind = draw.choices((_doing, _being, _going, _refusing, _trading), (4, 2, 3, 2, 2))[0]
    phrase = kind(draw)
    return Sentence(_capital(phrase[0]) + ".", _capital(phrase[1]) + ".")


def _doing(draw: Random) -> tuple[str, str]:
    """The old miller repaired two red boats on Monday."""
    tense = draw.choice(TENSES)
    subject, verb, seen = _person(draw), draw.choice(TRANSITIVE), _thing(draw)
    english, french = _predicate(subject, verb, tense)
    return _timed(
        draw,
        tense,
        f"{subject.english} {english} {seen.english}",
        f"{subject.french} {french} {seen.french}",
    )


def _being(draw: Random) -> tuple[str, str]:
    """The new sails were wet."""
    tense = draw.choice(TENSES)
    if draw.random() < 0.5:
        subject, quality = _person(draw), draw.choice(OF_PEOPLE)
    else:
        subject, quality = _thing(draw, is_definite=True), draw.choice(AFTER)
    english, french = (forms[subject.is_plural] for forms in COPULA[tense])
    return (
        f"{subject.english} {english} {quality.english}",
        f"{subject.french} {french} {quality.french(subject.gender, subject.is_plural)}",
    )


def _going(draw: Random) -> tuple[str, str]:
    """Ada arrived at the harbour at dawn."""
    tense = draw.choice(TENSES)
    subject, verb = _person(draw), draw.choice(INTRANSITIVE)
    english, french = _predicate(subject, verb, tense)
    place = draw.choice(tuple(PLACES))
    return _timed(
        draw,
        tense,
        f"{subject.english} {english} {place}",
        f"{subject.french} {french} {PLACES[place]}",
    )


def _refusing(draw: Random) -> tuple[str, str]:
    """The sisters did not sell this boat."""
    subject, verb = _person(draw), draw.choice(TRANSITIVE)
    seen = _thing(draw, is_definite=True)
    if draw.random() < 0.5:
        english = f"{'do' if subject.is_plural else 'does'} not {verb.base}"
        french = f"{_elide('ne', verb.french[subject.is_plural])} pas"
    else:
        english = f"did not {verb.base}"
        auxiliary = "n'ont" if subject.is_plural else "n'a"
        french = f"{auxiliary} pas {verb.participle}"
    return (
        f"{subject.english} {english} {seen.english}",
        f"{subject.french} {french} {seen.french}",
    )


def _trading(draw: Random) -> tuple[str, str]:
    """The baker bought twelve sacks of oats at the market."""
    tense = draw.choice(TENSES)
    subject = _person(draw)
    verb = draw.choice([verb for verb in TRANSITIVE if verb.base in ("buy", "sell", "carry")])
    english, french = _predicate(subject, verb, tense)
    number, unit, good = (draw.choice(tuple(each)) for each in (NUMBERS, UNITS, GOODS))
    return _timed(
        draw,
        tense,
        f"{subject.english} {english} {number} {unit} of {good}",
        f"{subject.french} {french} {NUMBERS[number]} {UNITS[unit]} {_elide('de', GOODS[good])}",
    )


def _person(draw: Random) -> Phrase:
    """A name, two names, or people by their trade."""
    kind = draw.random()
    if kind < 0.2:
        name = draw.choice(MEN + WOMEN)
        return Phrase(name, name, "f" if name in WOMEN else "m", False)
    if kind < 0.35:
        one, other = draw.sample(MEN + WOMEN, 2)
        gender = "f" if {one, other} <= set(WOMEN) else "m"
        return Phrase(f"{one} and {other}", f"{one} et {other}", gender, True)
    return _noun_phrase(draw, draw.choice(PEOPLE), BEFORE[:1], OF_PEOPLE[:4], is_definite=True)


def _thing(draw: Random, is_definite: bool = False) -> Phrase:
    return _noun_phrase(draw, draw.choice(THINGS), BEFORE, AFTER, is_definite)


def _noun_phrase(
    draw: Random,
    noun: Noun,
    before: tuple[Adjective, ...],
    after: tuple[Adjective, ...],
    is_definite: bool,
) -> Phrase:
    is_plural = draw.random() < 0.4
    english = [noun.english_plural if is_plural else noun.english]
    french = [noun.french_plural if is_plural else noun.french]
    # In English all come before the noun, the kind that is before it in French first.
    if draw.random() < 0.35:
        quality = draw.choice(after)
        english.insert(0, quality.english)
        french.append(quality.french(noun.gender, is_plural))
    if draw.random() < 0.35:
        quality = draw.choice(before)
        form = quality.french(noun.gender, is_plural)
        if quality.liaison and noun.gender == "m" and not is_plural and french[0][0] in VOWELS:
            form = quality.liaison
        english.insert(0, quality.english)
        french.insert(0, form)
    article = draw.choice(("the", "the", "our", "this") if is_definite else ("the", "a", "this"))
    if is_plural and not is_definite:
        article = draw.choice(tuple(NUMBERS))
    words = _with_article(article, english, french, noun.gender, is_plural)
    return Phrase(*words, noun.gender, is_plural)


def _with_article(
    article: str, english: list[str], french: list[str], gender: str, is_plural: bool
) -> tuple[str, str]:
    before_vowel = french[0][0] in VOWELS
    if article == "the":
        singular = "la" if gender == "f" else "le"
        words = f"les {' '.join(french)}" if is_plural else _elide(singular, " ".join(french))
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


def _predicate(subject: Phrase, verb: Verb, tense: str) -> tuple[str, str]:
    """The verb in both languages, in agreement with its subject."""
    if tense == "present":
        return (verb.base if subject.is_plural else verb.present, verb.french[subject.is_plural])
    if tense == "future":
        return (f"will {verb.base}", verb.future[subject.is_plural])
    if verb.takes_etre:
        ending = ("e" if subject.gender == "f" else "") + ("s" if subject.is_plural else "")
        return (verb.past, f"{'sont' if subject.is_plural else 'est'} {verb.participle}{ending}")
    return (verb.past, f"{'ont' if subject.is_plural else 'a'} {verb.participle}")


def _timed(draw: Random, tense: str, english: str, french: str) -> tuple[str, str]:
    """With a time at the end, at the beginning, or without."""
    place = draw.random()
    if place < 0.35:
        return english, french
    time = draw.choice(tuple(TIMES[tense]))
    if place < 0.75:
        return f"{english} {time}", f"{french} {TIMES[tense][time]}"
    return f"{time}, {english}", f"{TIMES[tense][time]}, {french}"


def _elide(word: str, following: str) -> str:
    """le + huître is l'huître."""
    if following[0] in VOWELS:
        return f"{word[:-1]}'{following}"
    return f"{word} {following}"


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]
