"""Languages: maps a user's language code to the checkpoint's name for the language.

Only the same language in the same script matches, never a related one.

A user writes `fr`, `zh-TW` or the checkpoint's own code. Checkpoints write `fr` (M2M100),
`fra_Latn` (NLLB), `fr_XX` (mBART) or `>>fra<<` (Marian), and T5 expects `French`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache

import langcodes
from langcodes.data_dicts import LANGUAGE_ALPHA3, LANGUAGE_ALPHA3_BIBLIOGRAPHIC

from engine.errors import UnknownLanguage

# What a macrolanguage (ISO 639-3) stands for where nothing more is said: a checkpoint that
# has the one is met by a user who writes the other. The rest of its languages are others.
USUAL_MEMBER = {
    "ara": "arb", "aym": "ayr", "aze": "azj", "ber": "taq", "din": "dik", "est": "ekk",
    "fas": "pes", "ful": "fuv", "grn": "gug", "kau": "knc", "kur": "kmr",
    "lav": "lvs", "mlg": "plt", "mon": "khk", "msa": "zsm", "nep": "npi", "nor": "nob",
    "ori": "ory", "orm": "gaz", "pus": "pbt", "que": "quy", "sqi": "als", "srd": "src",
    "swa": "swh", "uzb": "uzn", "yid": "ydd", "zho": "cmn", "fil": "tgl",
}  # fmt: skip
MACROLANGUAGE = {member: macro for macro, member in USUAL_MEMBER.items()}
# Withdrawn and informal codes, as BCP 47 reads them today.
REPLACED = {"iw": "he", "in": "id", "ji": "yi", "jw": "jv", "mo": "ro"}
SERBO_CROATIAN = frozenset({"sh", "hbs"})  # written in Latin letters, as BCP 47 has it
# Spoken where: a region may name a language of its own.
LANGUAGE_OF_REGION = {
    ("arb", "EG"): "arz", ("arb", "MA"): "ary", ("arb", "TN"): "aeb", ("arb", "IQ"): "acm",
    ("arb", "YE"): "acq", ("arb", "JO"): "ajp", ("arb", "PS"): "ajp", ("arb", "SY"): "apc",
    ("arb", "LB"): "apc", ("arb", "SA"): "ars", ("pes", "AF"): "prs",
}  # fmt: skip
HAS_DIALECTS = frozenset({"arb"})  # a region that is not listed above is some other dialect
WHOLE_WORLD = frozenset({"001", "XX"})
SAME_SCRIPT = {"Kore": "Hang", "Hrkt": "Jpan"}
# Usual scripts that the library's table does not have, or has for another member.
USUAL_SCRIPT = {"pbt": "Arab", "ary": "Arab", "knc": "Latn", "taq": "Latn", "kor": "Hang"}
# BCP 47 knows the languages that have two letters by those alone: `fr`, not `fra` or `fre`.
TWO_LETTERS = {
    **{three: two for two, three in LANGUAGE_ALPHA3_BIBLIOGRAPHIC.items()},
    **{
        three: two
        for two, three in LANGUAGE_ALPHA3.items()
        if len(two) == 2 and two not in REPLACED
    },
}


@dataclass(frozen=True, slots=True)
class Tag:
    """A parsed language code: ISO 639-3, with script and region if given."""

    language: str
    script: str | None
    region: str | None
    usual_script: str | None  # of the language in its region
    is_macrolanguage: bool

    @classmethod
    def read(cls, code: str) -> Tag | None:
        """Parse a code; None if it is not a language."""
        bare = standard_tag(code)
        first, _, rest = bare.partition("-")
        first = first.lower()
        extended, _, others = rest.partition("-")
        if len(extended) == 3 and extended.isalpha():  # `zh-yue`: BCP 47 prefers `yue`
            first, rest = extended.lower(), others
        script = "Latn" if first in SERBO_CROATIAN else None
        first = "sr" if script else TWO_LETTERS.get(first, REPLACED.get(first, first))
        try:
            parsed = langcodes.Language.get(f"{first}-{rest}" if rest else first, normalize=False)
            if not parsed.is_valid():
                return None
            language = parsed.to_alpha3()
        except (ValueError, LookupError):
            return None
        macro = language in USUAL_MEMBER
        language = USUAL_MEMBER.get(language, language)
        script = parsed.script or script
        region = None if parsed.territory in WHOLE_WORLD else parsed.territory
        own = LANGUAGE_OF_REGION.get((language, region or ""))
        if own is not None:
            language, region, macro = own, None, False
        usual = USUAL_SCRIPT.get(language) or parsed.maximize().script
        return cls(
            language,
            SAME_SCRIPT.get(script, script) if script else None,
            region,
            SAME_SCRIPT.get(usual, usual) if usual else None,
            macro,
        )

    @property
    def written(self) -> str | None:
        return self.script or self.usual_script


class Languages:
    """The languages of a checkpoint, restricted to `allowed` (users' codes) if given."""

    def __init__(self, own: Iterable[str], allowed: Iterable[str] = ()) -> None:
        self.own: Mapping[str, str] = {standard_tag(code): code for code in own}
        self.codes = frozenset(self.own.values())
        self.allowed = {standard_tag(code): code for code in allowed}

    def own_code(self, name: str, language: str | None) -> str:
        """The checkpoint's code for a user's code. Raises UnknownLanguage.

        name: the request's parameter, for the error
        """
        if language is None or not self._is_allowed(language):
            raise UnknownLanguage(name, language, self.known)
        if language in self.codes:
            return language
        tag = closest(language, tuple(self.own))
        if tag is None:
            raise UnknownLanguage(name, language, self._near(language) or self.known)
        return self.own[tag]

    def english_name(self, name: str, language: str | None) -> str:
        """A language's English name, as `French` for `fr`. Raises UnknownLanguage."""
        if language is None or not self._is_allowed(language) or not is_language(language):
            raise UnknownLanguage(name, language, self.known or ("any ISO 639 code",))
        return langcodes.Language.get(standard_tag(language)).display_name("en")

    def _near(self, language: str) -> list[str]:
        """The codes of the same language in other scripts, or of its dialects."""
        wanted_tag = Tag.read(language)
        if wanted_tag is None:
            return []
        families = {family(wanted_tag.language)}
        return [
            code
            for tag, code in self.own.items()
            if (own := Tag.read(tag)) is not None and family(own.language) in families
        ]

    @property
    def known(self) -> frozenset[str]:
        return frozenset(self.allowed.values()) or self.codes

    def _is_allowed(self, language: str) -> bool:
        return not self.allowed or closest(language, tuple(self.allowed)) is not None


def standard_tag(code: str) -> str:
    """Normalise a code: `fra-Latn` for `fra_Latn`, `fr` for `fr_XX`, `fra` for `>>fra<<`."""
    bare = code.strip("<>_")
    return re.sub(r"_XX$", "", bare).replace("_", "-")


def short_tag(code: str) -> str:
    """Shorten a code to its language: `fr` for `fra_Latn`, in two letters where possible."""
    first = standard_tag(code).partition("-")[0].lower()
    return TWO_LETTERS.get(first, REPLACED.get(first, first))


@lru_cache(maxsize=4096)
def is_language(code: str) -> bool:
    return Tag.read(code) is not None


@lru_cache(maxsize=4096)
def closest(language: str, tags: tuple[str, ...]) -> str | None:
    """The tag of the same language in the same script; None if there is none.

    Equal strings match first, since checkpoints have codes that no standard knows.
    """
    as_written = standard_tag(language).lower()
    for tag in tags:
        if tag.lower() == as_written:
            return tag
    wanted_tag = Tag.read(language)
    if wanted_tag is None:
        return None
    matches = [(tag, own) for tag in tags if (own := Tag.read(tag)) and is_same(wanted_tag, own)]
    return best_of(wanted_tag, matches)


def is_same(tag: Tag, own: Tag) -> bool:
    if own.language == tag.language:
        return True
    # A checkpoint that does not tell dialects apart has one word for all of them.
    return own.is_macrolanguage and tag.language in DIALECTS.get(own.language, ())


DIALECTS: dict[str, frozenset[str]] = {
    "arb": frozenset(
        new for (language, _), new in LANGUAGE_OF_REGION.items() if language == "arb"
    ),
}  # fmt: skip


def best_of(wanted_tag: Tag, matches: list[tuple[str, Tag]]) -> str | None:
    """The match with the same script and then the same region; None if it is ambiguous."""
    if any(own.language == wanted_tag.language for _, own in matches):
        matches = [each for each in matches if each[1].language == wanted_tag.language]
    in_script = [each for each in matches if each[1].written == wanted_tag.written]
    if in_script:
        matches = in_script
    elif wanted_tag.script is not None or len(matches) > 1 or implies_script(wanted_tag):
        return None
    if wanted_tag.region is None:
        # `pt` is `pt_XX` before it is `pt_PT`.
        matches.sort(key=lambda each: each[1].region is not None)
        return matches[0][0] if matches else None
    exact = [tag for tag, own in matches if own.region == wanted_tag.region]
    if exact:
        return exact[0]
    if wanted_tag.language in HAS_DIALECTS:
        matches = [each for each in matches if each[1].is_macrolanguage]
    general = [tag for tag, own in matches if own.region is None]
    if general:
        return general[0]
    # A region in a checkpoint's code is often no more than where the language comes from.
    return next((tag for tag, own in matches if is_home(own) and not is_plural(own)), None)


def implies_script(tag: Tag) -> bool:
    """Whether the region implies another script than the language's usual one."""
    bare = Tag.read(MACROLANGUAGE.get(tag.language, tag.language))
    return tag.region is not None and bare is not None and bare.written != tag.written


def is_home(tag: Tag) -> bool:
    likely = langcodes.Language.get(MACROLANGUAGE.get(tag.language, tag.language)).maximize()
    return likely.territory == tag.region or (tag.language, tag.region) in HOMES


# Where a checkpoint's `en_GB` or `pt_PT` says which of two standards it writes.
PLURICENTRIC = frozenset({"por"})
HOMES = frozenset({("eng", "GB"), ("arb", "AR")})


def is_plural(tag: Tag) -> bool:
    return tag.language in PLURICENTRIC


def family(language: str) -> str:
    """The macrolanguage of a dialect, or else the language itself."""
    for macro, members in DIALECTS.items():
        if language in members:
            return macro
    return language
