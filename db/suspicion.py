"""Suspicions: reasons that a result may be wrong, derived from its signals."""

from enum import StrEnum
from typing import Any, Protocol


class Suspicion(StrEnum):
    """A reason to check a result; `jobs` store them as codes separated by spaces."""

    EMPTY = "empty"
    CUT_BY_LENGTH = "cut_by_length"
    TOO_SHORT = "too_short"
    TOO_LONG = "too_long"
    REPETITION = "repetition"
    WRONG_LANGUAGE = "wrong_language"
    UNTRANSLATED = "untranslated"
    PLACEHOLDERS_MISSED = "placeholders_missed"
    TERMS_MISSED = "terms_missed"
    REFUSED = "refused"


class HasSignals(Protocol):
    """A stored result, or an answer that is not yet written."""

    @property
    def length_ratio(self) -> float | None: ...
    @property
    def repetition(self) -> float | None: ...
    @property
    def detected_language(self) -> str | None: ...
    @property
    def untranslated_share(self) -> float | None: ...
    @property
    def num_empty_parts(self) -> int | None: ...
    @property
    def num_cut_parts(self) -> int | None: ...
    @property
    def num_missed_placeholders(self) -> int | None: ...
    @property
    def num_missed_terms(self) -> int | None: ...


def in_words(suspicion: Suspicion, signals: HasSignals) -> str:
    """The reason with its figure, in words."""

    def share(value: float | None) -> str:
        return f"{value or 0:.2f}"

    def num(value: int | None, noun: str) -> str:
        return f"{value or 0} {noun}{'' if value == 1 else 's'}"

    sentences: dict[Suspicion, Any] = {
        Suspicion.EMPTY: lambda: f"{num(signals.num_empty_parts, 'empty answer')}",
        Suspicion.CUT_BY_LENGTH: lambda: f"{num(signals.num_cut_parts, 'answer')} cut by length",
        Suspicion.TOO_SHORT: lambda: f"{share(signals.length_ratio)} of the source's length",
        Suspicion.TOO_LONG: lambda: f"{share(signals.length_ratio)} of the source's length",
        Suspicion.REPETITION: lambda: f"{share(signals.repetition)} of a stretch is repetition",
        Suspicion.WRONG_LANGUAGE: lambda: f"seems to be in {signals.detected_language}",
        Suspicion.UNTRANSLATED: lambda: f"{share(signals.untranslated_share)} left untranslated",
        Suspicion.PLACEHOLDERS_MISSED: lambda: num(
            signals.num_missed_placeholders, "missed placeholder"
        ),
        Suspicion.TERMS_MISSED: lambda: num(signals.num_missed_terms, "missed glossary term"),
        Suspicion.REFUSED: lambda: "begins as a refusal",
    }
    sentence: str = sentences[suspicion]()
    return sentence
