"""Finds card numbers and IBANs."""

import re
from collections.abc import Iterator, Sequence
from itertools import accumulate

from worker.masking.match import Match

# The rest of a number is matched by a lookahead, so that another match may begin within it. The
# patterns begin with a digit, not with a lookbehind: that searches a text many times as fast.
# A number in groups of four (or six and five) may continue on the next line.
CARD = re.compile(
    r"[2-6](?<![A-Za-z0-9][2-6])(?<![0-9]-[2-6])"
    r"(?=(?P<rest>(?:[ -]?[0-9]){12,18}"
    r"|[0-9]{3}(?:[\s./_-]{1,3}[0-9]{4}){3}|[0-9]{3}[\s./_-]{1,3}[0-9]{6}[\s./_-]{1,3}[0-9]{5}))"
)
# A space or dash may follow the country's letters.
IBAN = re.compile(
    r"[0-9](?:(?<=[A-Za-z]{2}[0-9])(?<![A-Za-z0-9][A-Za-z]{2}[0-9])"
    r"|(?<=[A-Za-z]{2}[ -][0-9])(?<![A-Za-z0-9][A-Za-z]{2}[ -][0-9]))"
    r"(?=(?P<rest>[0-9](?:[\s./_-]{0,3}[A-Za-z0-9]){11,30}))"
)
CARD_LENGTHS = range(19, 12, -1)
NO_DIGITS = re.compile("[^0-9]+")
DOUBLED = (0, 2, 4, 6, 8, 1, 3, 5, 7, 9)  # the sum of the digits of twice a digit
IBAN_LENGTHS = {
    country: int(length)
    for length, countries in {
        "15": "NO", "16": "BE", "18": "DK FI FO GL NL SD FK", "19": "MK SI",
        "20": "AT BA EE KZ LT LU MN XK", "21": "CH CR HR LI LV",
        "22": "BG BH DE GB GE IE ME RS VA", "23": "AE GI IL IQ OM SO TL",
        "24": "AD CZ ES MD PK RO SA SE SK TN VG", "25": "LY PT ST", "26": "IS TR",
        "27": "BI DJ FR GR IT MC MR SM", "28": "AL AZ BY CY DO GT HN HU LB NI PL SV",
        "29": "BR EG PS QA UA", "30": "JO KW MU YE", "31": "MT SC", "32": "LC", "33": "RU",
    }.items()
    for country in countries.split()
}  # fmt: skip


class Ibans:
    """Finds IBANs, by the length for their country and their check digits (mod 97)."""

    def find(self, text: str) -> Iterator[Match]:
        for match in IBAN.finditer(text):
            start = match.start() - (2 if text[match.start() - 1].isalpha() else 3)
            length = IBAN_LENGTHS.get(text[start : start + 2].upper())
            places = _places(text, start, match.end("rest"))
            if (
                length is not None
                and _is_end(text, places, length)
                and is_iban([text[place] for place in places[:length]])
            ):
                yield Match(start, places[length - 1] + 1, "IBAN")


class Cards:
    """Finds card numbers: 13 to 19 digits with a valid Luhn check digit.

    More digits may follow the number.
    """

    def find(self, text: str) -> Iterator[Match]:
        at = 0
        for match in CARD.finditer(text):
            if match.start() < at:
                continue
            lengths = card_lengths(match.group() + match["rest"])
            if not lengths:
                continue
            places = _places(text, match.start(), match.end("rest"))
            length = next((each for each in lengths if _is_end(text, places, each)), None)
            if length is not None:
                at = places[length - 1] + 1
                yield Match(match.start(), at, "CARD")


def _places(text: str, start: int, end: int) -> list[int]:
    """The indices of the letters and digits between start and end."""
    return [place for place in range(start, end) if text[place].isalnum()]


def _is_end(text: str, places: Sequence[int], length: int) -> bool:
    """Whether there are `length` letters and digits, and the word ends after the last."""
    if length > len(places):
        return False
    following = text[places[length - 1] + 1 : places[length - 1] + 2]
    return not (following.isalnum() and following.isascii())


def is_iban(characters: Sequence[str]) -> bool:
    digits = "".join(str(int(each, 36)) for each in (*characters[4:], *characters[:4]))
    return int(digits) % 97 == 1


def card_lengths(written: str) -> list[int]:
    """The lengths at which the leading digits end with a valid Luhn check digit, longest first.

    One digit repeated throughout is no card number.
    """
    digits = [*map(int, NO_DIGITS.sub("", written))]
    if len(set(digits)) == 1:
        return []
    # Luhn doubles every other digit before the last: for an even number of digits from the first
    # on, for an odd one from the second on.
    doubled = [DOUBLED[each] for each in digits]
    sums = []
    for first in (0, 1):
        counted = digits.copy()
        counted[first::2] = doubled[first::2]
        sums.append([*accumulate(counted)])
    return [
        length
        for length in CARD_LENGTHS
        if length <= len(digits)
        and sums[length % 2][length - 1] % 10 == 0
        and len(set(digits[:length])) > 1
    ]
