"""Filters on the signals of a result's quality."""

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import isfinite
from typing import Any

from sqlalchemy import ColumnElement

from db.models import Result
from db.outcome import SIGNALS
from db.reading.storable import can_be_kept

COMPARISONS: Mapping[str, Callable[[Any, Any], ColumnElement[bool]]] = {
    "<=": operator.le,
    ">=": operator.ge,
    "<": operator.lt,
    ">": operator.gt,
    "=": operator.eq,
}


@dataclass(frozen=True, slots=True)
class SignalFilter:
    """A condition on one signal of a result; results without that signal are left out."""

    name: str  # one of `db.outcome.SIGNALS`
    comparison: str  # one of COMPARISONS
    value: float | str

    @classmethod
    def parse(cls, text: str) -> "SignalFilter":
        """Read `length_ratio<0.3` or `detected_language=en`; raises ValueError with the fault."""
        comparison = next((each for each in COMPARISONS if each in text), None)
        if comparison is None:
            raise ValueError(f"{text!r} must be NAME<VALUE, with one of {' '.join(COMPARISONS)}")
        name, value = (each.strip() for each in text.split(comparison, 1))
        if name not in SIGNALS:
            raise ValueError(f"{name!r} is no signal; there are {', '.join(SIGNALS)}")
        if name == "detected_language":
            if comparison != "=" or not can_be_kept(value):
                raise ValueError("detected_language can only be = a code such as en")
            return cls(name, comparison, value)
        try:
            return cls(name, comparison, _number(value))
        except ValueError:
            raise ValueError(f"{value!r} is no number, as {name} is") from None

    @property
    def condition(self) -> ColumnElement[bool]:
        return COMPARISONS[self.comparison](getattr(Result, self.name), self.value)


def _number(text: str) -> float:
    value = float(text)
    if not isfinite(value):
        raise ValueError(text)
    return value
