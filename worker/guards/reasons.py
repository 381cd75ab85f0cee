"""Suspicions: compares the signals of an answer with the settings.

Pure except for the language detector.
"""

from dataclasses import replace
from typing import Any

from db.outcome import Signals
from db.suspicion import Suspicion
from worker.documents.languages import detect, detectable
from worker.guards.measures import (
    MAX_CHARACTERS,
    has_words_to_translate,
    is_left_as_it_was,
    length_of,
    repetition_of,
)
from worker.guards.refusals import is_refusal
from worker.guards.settings import GuardSettings

SAMPLE_CHARACTERS = 600  # of a text whose language is looked at
# If the source is repetitive too, the answer must exceed it by this much.
MORE_REPETITION = 0.2
MIN_CONFIDENCE = 0.8  # in a language, before it is called the wrong one
# Languages so similar that a short text does not distinguish them.
ALIKE = ({"hr", "sr", "bs", "sh"}, {"id", "ms"}, {"no", "da"}, {"cs", "sk"}, {"gl", "pt"})


def measured(
    settings: GuardSettings, source: str, answer: str, signals: Signals, **counts: int
) -> Signals:
    """Complete the signals by measuring these texts; given signals stay."""
    num_before, num_after = length_of(source), length_of(answer)
    changes: dict[str, Any] = {**counts}
    if signals.length_ratio is None and num_before:
        changes["length_ratio"] = round(num_after / num_before, 4)
    if signals.repetition is None:
        changes["repetition"] = round(repetition_of(answer), 4)
    if settings.language and num_after >= settings.min_letters:
        changes["detected_language"] = detected(answer)
    return replace(signals, **changes)


def detected(text: str) -> str | None:
    """The language of a text if it is certain, in two letters."""
    guess = detect(_sample(text))
    return guess.language if guess.confidence >= MIN_CONFIDENCE else None


def suspicions(
    settings: GuardSettings, source: str, answer: str, signals: Signals, language: str | None = None
) -> tuple[Suspicion, ...]:
    """The suspicions of an answer, in the order of `Suspicion`."""
    is_judged = length_of(source) >= settings.min_letters
    ratio, repetition = signals.length_ratio, signals.repetition or 0.0
    is_empty = (signals.num_empty_parts or 0) > settings.max_empty_parts
    reasons = {
        Suspicion.EMPTY: is_empty,
        Suspicion.CUT_BY_LENGTH: (signals.num_cut_parts or 0) > settings.max_cut_parts,
        Suspicion.TOO_SHORT: is_judged and ratio is not None and ratio < settings.min_length_ratio,
        Suspicion.TOO_LONG: is_judged and ratio is not None and ratio > settings.max_length_ratio,
        Suspicion.REPETITION: repetition > settings.max_repetition
        and repetition > repetition_of(source) + MORE_REPETITION,
        Suspicion.WRONG_LANGUAGE: _is_wrong_language(settings, source, signals, language),
        Suspicion.UNTRANSLATED: is_judged
        and (signals.untranslated_share or 0.0) > settings.max_untranslated,
        Suspicion.PLACEHOLDERS_MISSED: (signals.num_missed_placeholders or 0)
        > settings.max_missed_placeholders,
        Suspicion.TERMS_MISSED: (signals.num_missed_terms or 0) > settings.max_missed_terms,
        Suspicion.REFUSED: settings.refusals
        and is_refusal(answer, settings.refusal_phrases)
        # A translation of one is none.
        and not is_refusal(source, settings.refusal_phrases),
    }
    return tuple(each for each, is_found in reasons.items() if is_found)


def untranslated(source: str, translation: str) -> tuple[int, int]:
    """The letters of a sentence that stayed unchanged, and all its letters that count."""
    if not has_words_to_translate(source):
        return 0, 0
    length = length_of(source)
    return (length if is_left_as_it_was(source, translation) else 0), length


def are_quick(settings: GuardSettings, source: str, answer: str) -> bool:
    """Whether the checks take only microseconds, so that no other thread is needed."""
    if len(source) + len(answer) > MAX_CHARACTERS // 20:
        return False
    return not settings.language or length_of(answer) < settings.min_letters


def _is_wrong_language(
    settings: GuardSettings, source: str, signals: Signals, language: str | None
) -> bool:
    seems = signals.detected_language
    if seems is None:
        return False
    expected = language
    if expected is None and length_of(source) >= settings.min_letters:
        expected = detected(source)
    if expected is None or expected == seems or expected not in detectable():
        return False
    return not any({expected, seems} <= group for group in ALIKE)


def _sample(text: str) -> str:
    """The middle of a text, which represents it best."""
    start = max((len(text) - SAMPLE_CHARACTERS) // 2, 0)
    return text[start : start + SAMPLE_CHARACTERS]
