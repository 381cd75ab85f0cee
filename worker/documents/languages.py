"""Detects the language of a text, and maps language codes to the splitters' short ones.

Libraries are loaded at first use.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from threading import Lock
from typing import Any

MIN_LETTERS = 20
MIN_CONFIDENCE = 0.5
# Below this confidence the text is in none of the possible languages.
MIN_SHARE = 0.1
MAX_CHARACTERS = 20_000  # the most to read of a text
NUM_CANDIDATES = 5
NO_LANGUAGE = "zxx"
# A Chinese or Japanese character carries as much information as some letters.
IDEOGRAPH = re.compile("[\u3040-\u30ff\u3400-\u9fff]")
IDEOGRAPH_LETTERS = 3  # besides itself
SAME = {"yue": "zh", "wuu": "zh", "nb": "no", "nn": "no", "pcm": "en"}

_one_at_a_time = Lock()


@dataclass(frozen=True, slots=True)
class Guess:
    """The likely language of a text; `language` is None if it is unknown."""

    language: str | None
    confidence: float  # among the languages that were asked about
    candidates: tuple[tuple[str, float], ...]  # the likeliest, best first
    num_letters: int


def detect(text: str, among: Iterable[str] = ()) -> Guess:
    """Guess the language of a text among the codes in `among`; without any, as ISO 639."""
    sample = text[:MAX_CHARACTERS]
    num_letters = sum(map(str.isalpha, sample)) + IDEOGRAPH_LETTERS * len(IDEOGRAPH.findall(sample))
    with _one_at_a_time:
        ranked: list[tuple[str, float]] = _identifier().rank(sample)
    everywhere: dict[str, float] = {}
    for language, share in ranked:
        if language != NO_LANGUAGE:
            code = short_code(language)
            everywhere[code] = everywhere.get(code, 0.0) + share
    shares = everywhere
    codes: dict[str, str] = {}
    for code in among:
        codes.setdefault(short_code(code), code)
    if codes:
        shares = {code: everywhere[short] for short, code in codes.items() if short in everywhere}
        if sum(shares.values()) < MIN_SHARE:
            return Guess(None, 0.0, _likeliest(everywhere), num_letters)
    candidates = _likeliest(shares)
    language, confidence = candidates[0]
    is_known = num_letters >= MIN_LETTERS and confidence >= MIN_CONFIDENCE
    return Guess(language if is_known else None, confidence, candidates, num_letters)


@cache
def detectable() -> frozenset[str]:
    """The languages that can be detected, by their short codes."""
    return frozenset(map(short_code, _identifier().labels)) - {NO_LANGUAGE}


def _likeliest(shares: dict[str, float]) -> tuple[tuple[str, float], ...]:
    total = sum(shares.values())
    best = sorted(shares.items(), key=lambda each: -each[1])[:NUM_CANDIDATES]
    return tuple((code, share / total) for code, share in best)


@cache
def _identifier() -> Any:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)


@cache
def short_code(code: str) -> str:
    """Shorten a code: `fr` for `fra_Latn` and `fr-CA`, `zh` for `yue`; else return it."""
    import langcodes

    from engine.text.languages import standard_tag

    try:
        language = langcodes.Language.get(standard_tag(code)).prefer_macrolanguage().language
    except (ValueError, LookupError):
        return code
    return SAME.get(language or code, language or code)
