"""RunToCompletionBackend: a step runs the sequences that it admits to completion."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from typing import ClassVar

import torch

from engine.backends.blame import Blame
from engine.core.completion import Completion
from engine.core.scheduler import StepPlan
from engine.core.sequence import Sequence
from engine.errors import InvariantBroken
from engine.protocol.output import Measurement, Output
from engine.protocol.request import Request
from engine.text.processor import TextProcessor
from engine.text.token_lengths import no_pause


class RunToCompletionBackend(ABC):
    """Base class of the backends that keep no state between steps."""

    ACTIVITY: ClassVar[str] = "generating"  # in the error of a request that failed

    def __init__(self, text: TextProcessor, device: torch.device) -> None:
        self.text = text
        self.blame = Blame(device)

    @property
    def max_rows(self) -> int | None:
        """The most rows of one call, after memory ran out; None: as the limits allow."""
        return self.blame.max_rows

    @abstractmethod
    def run_together(self, sequences: list[Sequence]) -> list[Completion | None]:
        """Run sequences of one batch key in one call. If it raises, the culprit is searched for."""

    def measure(
        self, request: Request, between_slices: Callable[[], None] = no_pause
    ) -> Measurement:
        return self.text.measure(request, None, between_slices)

    def run(self, plan: StepPlan) -> list[Completion | None]:
        assert not plan.running, "a group is run to its end in the step in which it joins"
        return self.blame.run(list(plan.admitted), self.run_together, self.ACTIVITY)

    def drop(self, sequences: Iterable[Sequence]) -> None:  # noqa: B027  # for every subclass
        """Do nothing: no cache is kept between steps."""

    def check(self, running: Iterable[Sequence]) -> None:
        """Raise InvariantBroken if sequences run between steps, where nothing is kept."""
        if ids := sorted(each.id for each in running):
            raise InvariantBroken(f"{ids} run between steps, but a group is run to its end")

    def decode(self, completion: Completion) -> Output:
        return self.text.decode(completion)
