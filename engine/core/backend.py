"""Engine: what the loop needs of anything that runs a model.

An engine may compute one token of every sequence of a plan and return None for those
that need more steps, or run the whole group to its end in one step. The loop and the
scheduler do not know which.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from engine.core.completion import Completion
from engine.core.scheduler import StepPlan
from engine.core.sequence import Sequence
from engine.protocol.limits import Sized
from engine.protocol.messages import Measurement, ModelCard, Output, Request


class Engine(Protocol):
    @property
    def card(self) -> ModelCard: ...

    @property
    def sized(self) -> Sized: ...

    @property
    def max_rows(self) -> int | None:
        """Of one step, once memory was too small for what the limits allow."""

    def encode(self, request: Request) -> Sequence:
        """Off the loop. Raises RequestError."""

    def measure(self, request: Request) -> Measurement:
        """Count the prompts of its `measured_texts`, off the loop. Raises RequestError."""

    def run(self, plan: StepPlan) -> list[Completion | None]:
        """One step: how each of `plan.sequences` ended, or None where it goes on.

        A request that fails is a Completion with an error and leaves the others alone.
        Raises EngineBroken when the process should end.
        """

    def drop(self, sequences: Iterable[Sequence]) -> None:
        """Forget the rows of these: they were cancelled. Some may never have run."""

    def decode(self, completion: Completion) -> Output:
        """Off the loop. The completion has answers, not an error."""
