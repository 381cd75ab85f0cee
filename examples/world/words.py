"""The words of the small world in English and French, with the forms that agreement needs."""

from dataclasses import dataclass

VOWELS = "aeiouyâéèêhœ"  # every h among the words here is mute


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
    """A verb: its English forms, and the French forms of the third person."""

    base: str
    present: str
    past: str
    french: tuple[str, str]  # present: singular, plural
    participle: str
    future: tuple[str, str]  # singular, plural
    takes_etre: bool = False  # so its participle agrees with the subject


def words(line: str) -> tuple[str, ...]:
    return tuple(line.split())


def nouns(lines: str) -> tuple[Noun, ...]:
    """Read nouns from lines of: English, French, gender, and the plurals where they are not with
    -s."""
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


def verbs(lines: str, takes_etre: bool = False) -> tuple[Verb, ...]:
    """Read verbs from lines of: base, past, French present in both numbers, participle, future
    stem."""
    made = []
    for line in lines.strip().splitlines():
        base, past, singular, plural, participle, stem = (part.strip() for part in line.split(","))
        made.append(
            Verb(
                base,
                _third_person(base),
                past,
                (singular, plural),
                participle,
                (stem + "a", stem + "ont"),
                takes_etre,
            )
        )
    return tuple(made)


def _third_person(base: str) -> str:
    if base.endswith(("sh", "ch", "s", "x", "go")):
        return base + "es"
    if base.endswith("y") and base[-2] not in "aeiou":
        return base[:-1] + "ies"
    return base + "s"


def regular(english: str, masculine: str) -> Adjective:
    return Adjective(english, (masculine, masculine + "e", masculine + "s", masculine + "es"))


def same(english: str, form: str) -> Adjective:
    """Make an adjective that ends in -e, whose genders have the same form."""
    return Adjective(english, (form, form, form + "s", form + "s"))


PEOPLE = nouns("""
miller, meunier, m
sailor, marin, m
keeper, gardien, m
fisherman, pêcheur, m, fishermen, pêcheurs
baker, boulanger, m
merchant, marchand, m
ferryman, passeur, m, ferrymen, passeurs
carpenter, charpentier, m
farmer, fermier, m
doctor, médecin, m
smith, forgeron, m
shepherd, berger, m
captain, capitaine, m
innkeeper, aubergiste, m
neighbour, voisin, m
traveller, voyageur, m
cook, cuisinier, m
king, roi, m
queen, reine, f
child, enfant, m, children, enfants
boy, garçon, m
girl, fille, f
man, homme, m, men, hommes
woman, femme, f, women, femmes
brother, frère, m
sister, sœur, f
father, père, m
mother, mère, f
uncle, oncle, m
aunt, tante, f
widow, veuve, f
grandmother, grand-mère, f, grandmothers, grands-mères
""")
ANIMALS = nouns("""
dog, chien, m
cat, chat, m
horse, cheval, m, horses, chevaux
cow, vache, f
goat, chèvre, f
goose, oie, f, geese, oies
gull, mouette, f
seal, phoque, m
swan, cygne, m
duck, canard, m
crab, crabe, m
""")
VESSELS = nouns("""
boat, bateau, m, boats, bateaux
ferry, bac, m, ferries, bacs
ship, navire, m
cart, charrette, f
""")
THINGS = (
    VESSELS
    + ANIMALS
    + nouns("""
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
lantern, lanterne, f
rope, corde, f
sail, voile, f
bell, cloche, f
door, porte, f
gate, portail, m
window, fenêtre, f
house, maison, f
mill, moulin, m
lighthouse, phare, m
church, église, f, churches, églises
inn, auberge, f
tower, tour, f
wall, mur, m
roof, toit, m
table, table, f
chair, chaise, f
bench, banc, m, benches, bancs
bed, lit, m
box, boîte, f, boxes, boîtes
bottle, bouteille, f
cup, tasse, f
spoon, cuillère, f
kettle, bouilloire, f
candle, bougie, f
clock, horloge, f
mirror, miroir, m
book, livre, m
map, carte, f
letter, lettre, f
key, clé, f
coin, pièce, f
hat, chapeau, m, hats, chapeaux
coat, manteau, m, coats, manteaux
boot, botte, f
ring, bague, f
hammer, marteau, m, hammers, marteaux
ladder, échelle, f
oar, rame, f
anchor, ancre, f
stone, pierre, f
oyster, huître, f
egg, œuf, m
apple, pomme, f
cake, gâteau, m, cakes, gâteaux
flower, fleur, f
tree, arbre, m
""")
)
NATURE = nouns("""
tide, marée, f
sea, mer, f
river, rivière, f
water, eau, f, waters, eaux
wind, vent, m
fog, brouillard, m
rain, pluie, f
snow, neige, f
storm, tempête, f
night, nuit, f
moon, lune, f
""")

BEFORE = (
    Adjective("old", ("vieux", "vieille", "vieux", "vieilles"), liaison="vieil"),
    Adjective("new", ("nouveau", "nouvelle", "nouveaux", "nouvelles"), liaison="nouvel"),
    Adjective("beautiful", ("beau", "belle", "beaux", "belles"), liaison="bel"),
    regular("small", "petit"),
    regular("big", "grand"),
)
BEFORE_PEOPLE = (BEFORE[0], same("young", "jeune"))
AFTER = (
    regular("green", "vert"),
    regular("black", "noir"),
    regular("blue", "bleu"),
    regular("heavy", "lourd"),
    regular("broken", "cassé"),
    regular("wet", "mouillé"),
    regular("round", "rond"),
    same("red", "rouge"),
    same("yellow", "jaune"),
    same("clean", "propre"),
    same("empty", "vide"),
    Adjective("white", ("blanc", "blanche", "blancs", "blanches")),
    Adjective("grey", ("gris", "grise", "gris", "grises")),
    Adjective("dry", ("sec", "sèche", "secs", "sèches")),
)
OF_PEOPLE = (
    regular("tired", "fatigué"),
    regular("patient", "patient"),
    Adjective("happy", ("heureux", "heureuse", "heureux", "heureuses")),
    Adjective("brave", ("courageux", "courageuse", "courageux", "courageuses")),
    same("sad", "triste"),
    same("rich", "riche"),
    regular("ready", "prêt"),
    same("ill", "malade"),
    regular("alone", "seul"),
    Adjective("late", ("en retard", "en retard", "en retard", "en retard")),
)
WITH_NOUN = 6  # so many of them may stand beside the noun
OF_NATURE = (
    regular("cold", "froid"),
    regular("strong", "fort"),
    regular("high", "haut"),
    Adjective("low", ("bas", "basse", "bas", "basses")),
    same("calm", "calme"),
    Adjective("late", ("en retard", "en retard", "en retard", "en retard")),
    regular("grey", "gris"),
    regular("black", "noir"),
)

TRANSITIVE = verbs("""
repair, repaired, répare, réparent, réparé, réparer
sell, sold, vend, vendent, vendu, vendr
find, found, trouve, trouvent, trouvé, trouver
lose, lost, perd, perdent, perdu, perdr
paint, painted, peint, peignent, peint, peindr
carry, carried, porte, portent, porté, porter
buy, bought, achète, achètent, acheté, achèter
hide, hid, cache, cachent, caché, cacher
clean, cleaned, nettoie, nettoient, nettoyé, nettoier
count, counted, compte, comptent, compté, compter
open, opened, ouvre, ouvrent, ouvert, ouvrir
close, closed, ferme, ferment, fermé, fermer
see, saw, voit, voient, vu, verr
take, took, prend, prennent, pris, prendr
bring, brought, apporte, apportent, apporté, apporter
watch, watched, regarde, regardent, regardé, regarder
hear, heard, entend, entendent, entendu, entendr
make, made, fabrique, fabriquent, fabriqué, fabriquer
break, broke, casse, cassent, cassé, casser
keep, kept, garde, gardent, gardé, garder
wash, washed, lave, lavent, lavé, laver
draw, drew, dessine, dessinent, dessiné, dessiner
lift, lifted, soulève, soulèvent, soulevé, soulèver
pull, pulled, tire, tirent, tiré, tirer
push, pushed, pousse, poussent, poussé, pousser
move, moved, déplace, déplacent, déplacé, déplacer
choose, chose, choisit, choisissent, choisi, choisir
build, built, construit, construisent, construit, construir
want, wanted, veut, veulent, voulu, voudr
like, liked, aime, aiment, aimé, aimer
""")
GIVING = verbs("""
give, gave, donne, donnent, donné, donner
show, showed, montre, montrent, montré, montrer
send, sent, envoie, envoient, envoyé, enverr
sell, sold, vend, vendent, vendu, vendr
bring, brought, apporte, apportent, apporté, apporter
""")
COMING = verbs(
    """
arrive, arrived, arrive, arrivent, arrivé, arriver
stay, stayed, reste, restent, resté, rester
fall, fell, tombe, tombent, tombé, tomber
come, came, vient, viennent, venu, viendr
return, returned, revient, reviennent, revenu, reviendr
""",
    takes_etre=True,
)
INTRANSITIVE = COMING + verbs("""
work, worked, travaille, travaillent, travaillé, travailler
wait, waited, attend, attendent, attendu, attendr
sing, sang, chante, chantent, chanté, chanter
sleep, slept, dort, dorment, dormi, dormir
laugh, laughed, rit, rient, ri, rir
cry, cried, pleure, pleurent, pleuré, pleurer
dance, danced, danse, dansent, dansé, danser
play, played, joue, jouent, joué, jouer
eat, ate, mange, mangent, mangé, manger
speak, spoke, parle, parlent, parlé, parler
swim, swam, nage, nagent, nagé, nager
walk, walked, marche, marchent, marché, marcher
live, lived, habite, habitent, habité, habiter
""")
GO = Verb("go", "goes", "went", ("va", "vont"), "allé", ("ira", "iront"), takes_etre=True)

PLACES = {
    "at the harbour": "au port",
    "at the mill": "au moulin",
    "at the market": "au marché",
    "at the inn": "à l'auberge",
    "at the window": "à la fenêtre",
    "on the beach": "sur la plage",
    "on the island": "sur l'île",
    "on the quay": "sur le quai",
    "on the bridge": "sur le pont",
    "near the lighthouse": "près du phare",
    "near the river": "près de la rivière",
    "near the church": "près de l'église",
    "behind the church": "derrière l'église",
    "behind the mill": "derrière le moulin",
    "in the village": "dans le village",
    "in the garden": "dans le jardin",
    "in the kitchen": "dans la cuisine",
    "in the street": "dans la rue",
    "in the house": "dans la maison",
    "in front of the inn": "devant l'auberge",
    "under the bridge": "sous le pont",
    "under the table": "sous la table",
}
DESTINATIONS = {
    "to the harbour": "au port",
    "to the mill": "au moulin",
    "to the market": "au marché",
    "to the inn": "à l'auberge",
    "to the lighthouse": "au phare",
    "to the river": "à la rivière",
    "to the church": "à l'église",
    "to the beach": "à la plage",
    "to the village": "au village",
    "to the island": "à l'île",
}
DAYS = {
    "on Monday": "lundi",
    "on Tuesday": "mardi",
    "on Wednesday": "mercredi",
    "on Thursday": "jeudi",
    "on Friday": "vendredi",
    "on Saturday": "samedi",
    "on Sunday": "dimanche",
}
ANY_TIME = {
    "before the tide": "avant la marée",
    "at noon": "à midi",
    "at midnight": "à minuit",
    "at dawn": "à l'aube",
    "at dusk": "au crépuscule",
    "in winter": "en hiver",
    "in summer": "en été",
}
TIMES = {
    "present": ANY_TIME
    | {
        "every morning": "chaque matin",
        "every evening": "chaque soir",
        "every day": "chaque jour",
        "today": "aujourd'hui",
        "now": "maintenant",
    },
    "past": ANY_TIME
    | DAYS
    | {
        "yesterday": "hier",
        "last night": "hier soir",
        "after the storm": "après la tempête",
    },
    "future": ANY_TIME
    | DAYS
    | {
        "tomorrow": "demain",
        "tonight": "ce soir",
        "soon": "bientôt",
        "after the storm": "après la tempête",
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
    "eleven": "onze",
    "twelve": "douze",
    "fifteen": "quinze",
    "twenty": "vingt",
    "thirty": "trente",
    "forty": "quarante",
    "fifty": "cinquante",
}
GOODS = {
    "flour": "farine",
    "salt": "sel",
    "barley": "orge",
    "oats": "avoine",
    "wheat": "blé",
    "honey": "miel",
    "oil": "huile",
    "wool": "laine",
    "oysters": "huîtres",
    "apples": "pommes",
    "herring": "hareng",
    "bread": "pain",
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
THERE = {"present": ("is", "are"), "past": ("was", "were"), "future": ("will be", "will be")}
IL_Y_A = {"present": "il y a", "past": "il y avait", "future": "il y aura"}
WEATHER = {
    "present": {"it is raining": "il pleut", "it is snowing": "il neige",
                "it is cold": "il fait froid", "it is warm": "il fait chaud"},
    "past": {"it was raining": "il pleuvait", "it was snowing": "il neigeait",
             "it was cold": "il faisait froid", "it was warm": "il faisait chaud"},
    "future": {"it will rain": "il pleuvra", "it will snow": "il neigera",
               "it will be cold": "il fera froid", "it will be warm": "il fera chaud"},
}  # fmt: skip
GREETINGS = {
    "good morning, {name}": "bonjour, {name}",
    "good evening, {name}": "bonsoir, {name}",
    "good night, {name}": "bonne nuit, {name}",
    "thank you, {name}": "merci, {name}",
    "my name is {name}": "je m'appelle {name}",
    "welcome to {town}": "bienvenue à {town}",
}
PRONOUNS = (("he", "il", "m", False), ("she", "elle", "f", False), ("they", "ils", "m", True))
