"""Backend: the interface through which the loop runs a model.

A backend may compute one token of every sequence of a plan and return None for the sequences
that need more steps, or run a whole batch to completion in one step. The loop and the
scheduler do not distinguish the two.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Protocol

from engine.core.completion import Completion
from engine.core.scheduler import StepPlan
from engine.core.sequence import Sequence
from engine.protocol.limits import Sized
from engine.protocol.model_card import ModelCard
from engine.protocol.output import Measurement, Output
from engine.protocol.request import Request


class Backend(Protocol):
    @property
    def card(self) -> ModelCard:
        """The model card, which is recorded with every result."""

    @property
    def sized(self) -> Sized:
        """The spec with every limit chosen, and the reasons."""

    @property
    def max_rows(self) -> int | None:
        """The most rows of one step, after memory ran out; None: as the limits allow."""

    def encode(self, request: Request, between_slices: Callable[[], None] = ...) -> Sequence:
        """Turn a request into a sequence, on the tokenizer thread. Raises RequestError.

        between_slices: called now and then while a long text is tokenized. It may encode other
                        requests; an exception that it raises is not caught
        """

    def measure(self, request: Request, between_slices: Callable[[], None] = ...) -> Measurement:
        """Count the tokens of the prompts of its `measured_texts`, on the tokenizer thread.

        between_slices: as for `encode`. Raises RequestError.
        """

    def run(self, plan: StepPlan) -> list[Completion | None]:
        """Run one step. For each of `plan.sequences`, in order: its completion, or None if it
        needs more steps.

        A request that fails gets a completion with an error and does not affect the others.
        Raises EngineBroken when the process should end.
        """

    def drop(self, sequences: Iterable[Sequence]) -> None:
        """Free the state kept for cancelled sequences, some of which may never have run."""

    def check(self, running: Iterable[Sequence]) -> None:
        """Raise InvariantBroken if the backend holds state of other sequences than `running`."""

    def decode(self, completion: Completion) -> Output:
        """The output of a completion that has answers, on the writer thread."""
