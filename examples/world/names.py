"""Names of people and towns: known ones, and invented ones without end.

A translator must copy any name, so its training texts need many. A held-out name occurs in no
training text.
"""

import re
import zlib
from random import Random

from .towns import TOWNS
from .words import words

HELD_OUT_ONE_IN = 5
MEN = words("""
    Tobias Henri Silas Jonas Paul Theodore Bartholomew Martin Walter Otto Felix Hugo Basil
    Ivan Amos Simon Ned Gideon Rufus Leo Arthur Casper Victor Benno Magnus Isaac Jasper George
    Thomas William Robert Samuel Daniel David Peter Philip Frank Ralph Oscar Edwin Edgar Alfred
    Albert Ernest Leonard Vincent Gilbert Marcus Lucas Matthew Andrew Anthony Benjamin Charles
    Christopher Dominic Duncan Elias Ethan Gabriel Gregory Harold Henry Jacob James John Joseph
    Julian Kenneth Lawrence Lewis Malcolm Maurice Nathan Nicholas Oliver Patrick Quentin Raymond
    Richard Roger Roland Rupert Sebastian Stephen Stanley Timothy Tristan Wilfred Xavier Zachary
    Omar Karim Kofi Kenji Dmitri Pavel Sven Lars Bjorn Diego Pedro Luis Marco Giovanni Adam Alan
    Brian Colin Derek Eric Fergus Graham Ian Kevin Liam Mark Neil Owen Percy Quincy Ross Scott
    Terence Ulric Vernon Wesley York Abel Caleb Ezra Jonah Levi Micah Noah Reuben Seth""")
WOMEN = words("""
    
    Ada Clara Rose Nell Irma Martha Edith Flora Maud Agnes Daisy Greta Nora Lydia Olive Tessa
    Wilma Hester Mabel Ruth Ellen Judith Cora Vera Alice Beatrice Charlotte Caroline Catherine
    Cecilia Diana Dorothy Eleanor Elizabeth Emily Emma Esther Eva Fiona Frances Georgia Gloria
    Grace Hannah Harriet Helen Ida Ingrid Iris Isabel Jane Jessica Joan Josephine Julia Karen
    Laura Lena Leonora Lily Linda Louisa Lucy Mary Margaret Maria Marina Matilda Mildred Miriam
    Molly Nancy Natalie Nina Olga Pamela Patricia Paula Penelope Phoebe Priscilla Rachel Rebecca
    Rosalind Sabrina Sally Sarah Sophia Stella Susan Sylvia Teresa Theodora Ursula Valerie
    Victoria Viola Violet Wanda Winifred Yvonne Zelda Zoe Amina Fatima Leila Yuki Anya Svetlana
    Astrid Freya Carmen Lucia Chiara Bianca Amelia Abigail Audrey Bridget Chloe Daphne""")
SURNAMES = words("""
    Finch Reed Crane Moss Harrow Pike Vane Teal Tarn Sedge Gale Quill Brine Alder Dune Rook
    Stern Wick Shoal Thorn Skerry Barrow Drift Hollow Flint Lowe Marsh Tull Carrick Farrow Holm
    Ray Stone Beck Dale Winter Crook Penny Ember Bly Wake Hay Lark Salt Heath Row Plum Thorne
    Miller Baker Carter Smith Cooper Fisher Brown Green Black White Young King Hill Wood Webb
    Hughes Murphy Walsh Novak Larsen Dubois Rossi Garcia Okafor Tanaka Schmidt Weaver""")
OPENINGS = words(
    "B Bl Br C Ch Cl Cr D Dr F Fl Fr G Gl Gr J K Kl L M N P Ph Pl Pr Qu R S Sh Sk Sl Sn St T Th "
    "Tr V W Wh Z A E I O U Al An El Er Is Or Un Le La De Il"
)
MIDDLES = words("a e i o u a e i o ar er or al el il an en in on as es ai ea ou ay oo ia io ie ei")
JOINTS = words(
    "b c d f g k l m n p r s t v z bb ck dd gg ll mm nn rr ss tt ld lm lt mb nd nt rd rl rm rn rt "
    "st th sh ph w x dr br gr lv rv"
)
ENDINGS = {
    "m": words("o us er ard in on old ick eth ew is an or im ert ulf am ix ock ward son"),
    "f": words("a ia ina ella etta ette elle ine issa ora ena ana ia wen ild lyn"),
    "town": words(
        "by holm mouth port gate stow cliff ton ham ford wick mere quay water ness ley burn "
        "field bury well bridge dale"
    ),
}
TOO_MUCH = re.compile(r"(.)\1\1|[aeiou]{3}|[^aeiouy]{5}", re.IGNORECASE)


def is_held_out_name(name: str) -> bool:
    return zlib.crc32(name.encode()) % HELD_OUT_ONE_IN == 0


def make_name(draw: Random, is_new: bool = False) -> tuple[str, str]:
    """Draw a name and its gender. is_new: whether it is held out of all training texts"""
    while True:
        gender = draw.choice("mf")
        if draw.random() < 0.5:
            name = draw.choice(MEN if gender == "m" else WOMEN)
        else:
            name = _made(draw, gender, 1)
        if is_held_out_name(name) == is_new:
            break
    if draw.random() < 0.15:
        name = f"{name} {_surname(draw, is_new)}"
    return name, gender


def make_town(draw: Random, is_new: bool = False) -> str:
    while True:
        name = draw.choice(TOWNS).name if draw.random() < 0.4 else _made(draw, "town", 0)
        if is_held_out_name(name) == is_new:
            return name


def _surname(draw: Random, is_new: bool) -> str:
    while True:
        name = draw.choice(SURNAMES) if draw.random() < 0.6 else _made(draw, "m", 0)
        if is_held_out_name(name) == is_new:
            return name


def _made(draw: Random, kind: str, most_joints: int) -> str:
    parts = [draw.choice(OPENINGS)]
    for _ in range(draw.choice((0, most_joints)) + 1):
        parts += [draw.choice(MIDDLES), draw.choice(JOINTS)]
    name = "".join([*parts, draw.choice(ENDINGS[kind])]).capitalize()
    return _made(draw, kind, most_joints) if TOO_MUCH.search(name) else name
