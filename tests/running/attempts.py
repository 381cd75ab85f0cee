"""Attempts on a real engine process, from their start to their outcome."""

import itertools
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

from db.outcome import Answer, Fence, FinishedSegment, Outcome
from engine.protocol.engine_spec import EngineSpec
from engine.protocol.output import Output
from engine.protocol.request import Request
from tests.running.workers import PATIENCE_SECONDS
from worker.attempts.attempt import Attempt
from worker.cache.output_reader import RequestPage, StoredOutputs
from worker.engines.engine_client import EngineClient
from worker.masking.masker import Masker
from worker.recipes import Work
from worker.settings import Settings

JOB_ID = uuid4()


class CountingClient(EngineClient):
    """One that remembers what it was asked for, and how much of it at once."""

    def __init__(self, spec: EngineSpec) -> None:
        super().__init__(spec)
        self.asked: list[Request] = []
        self.most_held = 0

    def submit(self, requests: Iterable[Request], on_output: Callable[[Output], None]) -> None:
        requests = list(requests)
        self.asked += requests
        super().submit(requests, on_output)
        self.most_held = max(self.most_held, self.num_held)

    @property
    def generated(self) -> list[Request]:
        return [each for each in self.asked if not each.is_measured]


IDS = itertools.count(1)


@dataclass
class Pages:
    """The segments of an earlier attempt, and the pages in which they were read."""

    segments: Mapping[int, dict[str, Any]]
    read: list[range] = field(default_factory=list)

    def look_up(self, page: RequestPage) -> None:
        self.read.append(page.positions)
        kept = {each: self.segments[each] for each in page.positions if each in self.segments}
        page.on_read(StoredOutputs(kept))


@dataclass
class Run:
    """One attempt, from its start to its outcome."""

    client: EngineClient
    contract: Mapping[str, Any]
    segments: Mapping[int, dict[str, Any]] = field(default_factory=dict)
    is_interactive: bool = False
    task: str = "summarize"
    masker: Masker | None = None
    kept: dict[int, dict[str, Any]] = field(default_factory=dict)
    stop_after: int | None = None  # kept segments
    outcome: Outcome | None = None
    over: threading.Event = field(default_factory=threading.Event)

    def start(self) -> "Run":
        fence = Fence(JOB_ID, 2 if self.segments else 1, "one")
        work = Work(
            JOB_ID,
            self.task,
            dict(self.contract),
            self.client.card,
            IDS,
            self.is_interactive,
            masker=self.masker,
        )
        self.attempt = Attempt(
            fence,
            work,
            0,
            self.client,
            Settings(),
            None,
            self._end,
            self._keep,
            Pages(self.segments),
        )
        self.attempt.start()
        return self

    def _keep(self, segment: FinishedSegment) -> None:
        self.kept[segment.position] = segment.output
        if len(self.kept) == self.stop_after:
            self.attempt.release()

    def _end(self, outcome: Outcome) -> None:
        self.outcome = outcome
        self.over.set()

    def wait(self) -> Outcome:
        assert self.over.wait(PATIENCE_SECONDS)
        assert self.outcome is not None
        return self.outcome

    def answer(self) -> Answer:
        outcome = self.start().wait()
        assert outcome.answer is not None, outcome
        return outcome.answer
