"""Finders: personal data that its form alone gives away. Rules do not find names: see
docs/masking.md.

Every pattern is bounded, so that no text takes quadratic time.
"""

import importlib
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from ipaddress import ip_address
from typing import Any, Protocol

from tasks.configuration.masking import KIND, MaskingRules
from tasks.errors import SettingsError
from worker.errors import PatternTooSlow


@dataclass(frozen=True, slots=True, order=True)
class Match:
    """A range of a text to mask, and its kind, as EMAIL."""

    start: int
    end: int
    kind: str


class Finder(Protocol):
    """A rule that finds matches. Several threads may call it, and equal texts should give equal
    matches."""

    def find(self, text: str) -> Iterable[Match]: ...


@dataclass(frozen=True, slots=True)
class Pattern:
    """Finds the matches of a regular expression that pass a check."""

    kind: str
    expression: re.Pattern[str]
    is_one: Callable[[str], bool] = lambda found: True

    def find(self, text: str) -> Iterator[Match]:
        for match in self.expression.finditer(text):
            if match.end() > match.start() and self.is_one(match.group()):
                yield Match(*match.span(), self.kind)


@dataclass(frozen=True, slots=True)
class OwnPattern:
    """A finder of an operator's expression, bounded in time: `(a+)+$` takes years."""

    kind: str
    pattern: str

    def find(self, text: str) -> Iterator[Match]:
        seconds = PATTERN_SECONDS + len(text) * PATTERN_SECONDS_PER_CHARACTER
        try:
            for found in compiled(self.pattern).finditer(text, timeout=seconds):
                if found.end() > found.start():
                    yield Match(found.start(), found.end(), self.kind)
        except TimeoutError:
            raise PatternTooSlow(self.kind, len(text), seconds) from None


PATTERN_SECONDS = 1.0
PATTERN_SECONDS_PER_CHARACTER = 2e-6


@cache
def compiled(pattern: str) -> Any:
    # The one of Python has no limit of time.
    import regex

    try:
        return regex.compile(pattern)
    except regex.error as error:
        raise SettingsError(f"masking: {pattern!r} is no regular expression: {error}") from None


# The last part of a host's name begins with a letter, as no version's does.
EMAIL = re.compile(
    r"(?<![\w.+%-])[\w.+%-]{1,64}@(?:[\w-]{1,63}\.){1,8}(?=[^\W\d_])[\w-]{2,63}(?<![-_])"
)
URL = re.compile(r"(?<![A-Za-z0-9+.-])[A-Za-z][A-Za-z0-9+.-]{1,20}://[^\s<>\"\x00]{1,4000}")
USERINFO = re.compile(r"://[^/?#\x00]{0,256}@")
SECRET = re.compile(
    r"(?<=[?&;#])"
    # Anywhere in a name; and what is a word of a name, or there were one in `monkey` and `author`.
    r"(?:[\w.%-]{0,40}?(?:token|secret|passw(?:or)?d|passphrase|pwd|signature|credential|session"
    r"|api_?key|access_?key|private_?key|auth_?key|auth_?code)[\w.%-]{0,40}"
    r"|(?:[\w.%-]{0,40}[._%-])?(?:key|sig|auth|otp|jwt|sid)(?:[._%-][\w.%-]{0,40})?"
    r"|code)"
    r"=(?P<value>[^&;#\s\x00]{1,2000})",
    re.IGNORECASE,
)
IPV4 = re.compile(r"(?<![\w.])[0-9]{1,3}(?:\.[0-9]{1,3}){3}(?![\w]|\.[0-9])")
IPV6 = re.compile(
    r"(?<![\w:.])[0-9A-Fa-f]{0,4}(?::[0-9A-Fa-f]{0,4}){2,7}(?:(?:\.[0-9]{1,3}){3})?(?![\w:])"
)
# The candidate is looked ahead at, so that another may begin within it.
CARD = re.compile(r"(?<![\w-])(?=(?P<number>[2-6](?:[ \u00a0-]?[0-9]){12,18}))[0-9]")
IBAN = re.compile(
    r"(?<![A-Za-z0-9])(?=(?P<number>[A-Za-z]{2}[0-9]{2}(?:[ \u00a0-]?[A-Za-z0-9]){11,30}))[A-Za-z]"
)
CARD_LENGTHS = range(19, 12, -1)
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
_SEPARATORS = str.maketrans("", "", " \u00a0-")


class UrlSecrets:
    """Passwords before a host, and the values of parameters such as `token`."""

    def find(self, text: str) -> Iterator[Match]:
        for url in URL.finditer(text):
            for match in USERINFO.finditer(text, *url.span()):
                yield Match(match.start() + 3, match.end() - 1, "SECRET")
            for match in SECRET.finditer(text, *url.span()):
                yield Match(*match.span("value"), "SECRET")


class Ibans:
    """Finds IBANs: the length of their country, with the right check digits (mod 97)."""

    def find(self, text: str) -> Iterator[Match]:
        for match in IBAN.finditer(text):
            written = match["number"]
            length = IBAN_LENGTHS.get(written[:2].upper())
            end = length and _end_of(
                written, length, text[match.end("number") : match.end("number") + 1]
            )
            if end and is_iban(written[:end]):
                yield Match(match.start(), match.start() + end, "IBAN")


class Cards:
    """Finds card numbers: 13 to 19 digits with the right check digit (Luhn); other numbers may
    follow."""

    def find(self, text: str) -> Iterator[Match]:
        at = 0
        for match in CARD.finditer(text):
            if match.start() < at:
                continue
            written, follows = match["number"], text[match.end("number") : match.end("number") + 1]
            for length in CARD_LENGTHS:
                end = _end_of(written, length, follows)
                if end and is_card(written[:end]):
                    at = match.start() + end
                    yield Match(match.start(), at, "CARD")
                    break


def _end_of(written: str, num_characters: int, follows: str) -> int | None:
    """The place after so many letters and digits; None where there are fewer, or a word goes on.

    follows: what stands behind `written`
    """
    for index, character in enumerate(written):
        num_characters -= character.isalnum()
        if num_characters == 0:
            return None if (written + follows)[index + 1 : index + 2].isalnum() else index + 1
    return None


def is_iban(written: str) -> bool:
    text = written.translate(_SEPARATORS).upper()
    digits = "".join(str(int(character, 36)) for character in text[4:] + text[:4])
    return int(digits) % 97 == 1


def is_card(written: str) -> bool:
    """Whether Luhn's sum is right; one digit repeated is no card."""
    digits = [int(character) for character in written.translate(_SEPARATORS)]
    if len(set(digits)) == 1:
        return False
    doubled = [sum(divmod(2 * digit, 10)) for digit in digits[-2::-2]]
    return (sum(digits[-1::-2]) + sum(doubled)) % 10 == 0


def is_ip(written: str) -> bool:
    try:
        ip_address(written)
    except ValueError:
        return False
    # Without a digit it may be a name as `dead::beef`, in a program or in play.
    return any(character.isdigit() for character in written)


class Phones:
    """Finds phone numbers by the numbering plans of all countries, as `phonenumbers` has them."""

    def __init__(self, region: str | None) -> None:
        try:
            import phonenumbers
        except ImportError:
            raise SettingsError(
                'masking: the rule "phone" needs phonenumbers; install it with: '
                'pip install "tidemill[masking]"'
            ) from None
        if region is not None and region not in phonenumbers.SUPPORTED_REGIONS:
            raise SettingsError(f"masking: {region} is no region that has telephone numbers")
        self._matcher: Any = phonenumbers.PhoneNumberMatcher
        self._region = region

    def find(self, text: str) -> Iterator[Match]:
        for match in self._matcher(text, self._region):
            yield Match(match.start, match.end, "PHONE")


def finders_of(rules: MaskingRules) -> tuple[Finder, ...]:
    """The finders of the rules, in order: what one has found, the next does not see.

    Raises SettingsError.
    """
    own = [OwnPattern(kind, pattern) for kind, pattern in rules.patterns.items()]
    for each in own:
        compiled(each.pattern)
    by_rule: dict[str, Callable[[], tuple[Finder, ...]]] = {
        "url_secret": lambda: (UrlSecrets(),),
        "iban": lambda: (Ibans(),),
        "card": lambda: (Cards(),),
        "email": lambda: (Pattern("EMAIL", EMAIL),),
        "ip": lambda: (Pattern("IP", IPV6, is_ip), Pattern("IP", IPV4, is_ip)),
        "phone": lambda: (Phones(rules.phone_region),),
    }
    finders = [finder for rule, make in by_rule.items() if rule in rules.rules for finder in make()]
    return (*own, *finders, *map(plugged_in, rules.finders))


def plugged_in(name: str) -> Finder:
    """The object of "module:object"; raises SettingsError."""
    module, _, attribute = name.partition(":")
    try:
        finder = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise SettingsError(f"masking: the finder {name} cannot be imported: {error}") from None
    if not callable(getattr(finder, "find", None)):
        raise SettingsError(f"masking: the finder {name} has no method `find`")
    return finder  # type: ignore[no-any-return]


def checked(matches: Iterable[Match], length: int) -> Iterator[Match]:
    """The matches of a plugged-in finder that lie within the text."""
    for each in matches:
        if 0 <= each.start < each.end <= length and KIND.fullmatch(each.kind):
            yield each
