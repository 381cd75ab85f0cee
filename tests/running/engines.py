"""Two ways to run an engine in a test: its parts in this process, or the real process."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from multiprocessing.connection import Connection

import pytest

from engine.core.backend import Backend
from engine.core.loop import Loop
from engine.core.request_tracker import RequestTracker
from engine.core.scheduler import Scheduler, StepLimits, StepPlan
from engine.core.threads.inbox import Inbox
from engine.core.threads.outbox import Outbox
from engine.core.threads.request_queue import RequestQueue
from engine.core.threads.tokenizer import TokenizerThread
from engine.core.threads.writer import Writer
from engine.protocol.engine_spec import EngineSpec
from engine.protocol.messages import (
    Cancel,
    Load,
    LoadFailed,
    Outputs,
    Ready,
    Run,
    Stop,
    from_bytes,
    to_bytes,
)
from engine.protocol.output import Output
from engine.protocol.progress import Progress
from engine.protocol.request import Request
from tests.forking.forked_children import fork_engine

PATIENCE_SECONDS = 90


needs_vllm = pytest.mark.skipif(
    find_spec("vllm") is None, reason="vLLM is not installed; `make vllm` runs these"
)


class Ids:
    """Ids of a process are never used twice."""

    def __init__(self) -> None:
        self.last = 0

    def __call__(self) -> int:
        self.last += 1
        return self.last


class Bench:
    """The parts of an engine process without its threads and its pipe: every move is the
    test's, and the loop's state is checked after each."""

    def __init__(self, engine: Backend, spec: EngineSpec) -> None:
        limits = StepLimits.of(engine.sized.spec)
        self.tracker = RequestTracker(spec.max_held)
        self.inbox = Inbox()
        self.outbox = Outbox()
        self.scheduler = Scheduler(limits)
        self.loop = Loop(engine, self.scheduler, self.inbox, self.outbox, self.tracker)
        self.tokenizer = TokenizerThread(
            engine, limits, self.tracker, RequestQueue(), self.inbox, self.outbox
        )
        self.writer = Writer(None, engine, self.tracker, self.outbox)  # type: ignore[arg-type]
        self.plans: list[StepPlan] = []
        self.progress = Progress()

    def submit(self, *requests: Request) -> None:
        self.tracker.open(each.id for each in requests)
        for request in requests:
            self.tokenizer.encode(request)

    def advance(self) -> StepPlan | None:
        plan = self.loop.advance()
        self.loop.check()
        if plan is not None:
            self.plans.append(plan)
        return plan

    def collect(self) -> list[Output]:
        """What was answered since the last time; does not wait."""
        self.outbox.close()
        waiting, self.progress = self.outbox.take() or ([], self.progress)
        outputs = [self.writer.output(each) for each in waiting]
        self.tracker.close(each.request_id for each in outputs)
        return outputs

    def finish(self) -> list[Output]:
        """Advance until there is nothing to do."""
        while self.advance() is not None:
            pass
        return self.collect()

    def answers(self, requests: Iterable[Request]) -> dict[int, Output]:
        """The outputs of requests that run in each other's company, by id."""
        self.submit(*requests)
        return {each.request_id: each for each in self.finish()}


class Child:
    """A real engine process, as its parent sees it.

    It is forked, unless it is to be started: for that, or because its engine cannot be forked.
    """

    def __init__(self, spec: EngineSpec, is_forked: bool = True) -> None:
        here, there = socket.socketpair()
        fd = there.fileno()
        self.process: subprocess.Popen[bytes]
        if is_forked and spec.engine != "vllm":
            self.process = fork_engine(spec, fd, stderr=subprocess.PIPE)
        else:
            command = [sys.executable, "-P", "-m", "engine", str(fd)]
            self.process = subprocess.Popen(command, pass_fds=[fd], stderr=subprocess.PIPE)
        there.close()
        self.pipe = Connection(here.detach())
        self.pipe.send_bytes(to_bytes(Load(spec)))
        self.greeting = self.receive()
        self.progress = Progress()

    @property
    def ready(self) -> Ready:
        assert isinstance(self.greeting, Ready), self.greeting
        return self.greeting

    @property
    def unloadable(self) -> LoadFailed:
        assert isinstance(self.greeting, LoadFailed), self.greeting
        return self.greeting

    def receive(self) -> object:
        assert self.pipe.poll(PATIENCE_SECONDS), "the engine process says nothing"
        return from_bytes(self.pipe.recv_bytes())

    def send(self, *requests: Request) -> None:
        self.pipe.send_bytes(to_bytes(Run(requests)))

    def cancel(self, *ids: int) -> None:
        self.pipe.send_bytes(to_bytes(Cancel(ids)))

    def stop(self) -> int:
        self.pipe.send_bytes(to_bytes(Stop()))
        return self.wait()

    def wait(self) -> int:
        return self.process.wait(PATIENCE_SECONDS)

    def receive_outputs(self) -> tuple[Output, ...]:
        """Those of one frame."""
        frame = self.receive()
        assert isinstance(frame, Outputs), frame
        self.progress = frame.progress
        return frame.outputs

    def collect(self, num_outputs: int) -> list[Output]:
        outputs: list[Output] = []
        while len(outputs) < num_outputs:
            outputs += self.receive_outputs()
        return outputs

    def close(self) -> None:
        """Whatever it is doing."""
        self.process.kill()
        self.wait()
        self.pipe.close()
        if self.process.stderr is not None:
            self.process.stderr.close()

    def answers(self, requests: Iterable[Request]) -> dict[int, Output]:
        sent = tuple(requests)
        self.send(*sent)
        return {each.request_id: each for each in self.collect(len(sent))}


@contextmanager
def child(spec: EngineSpec, is_forked: bool = True) -> Iterator[Child]:
    """A child that is gone afterwards, whatever the test did."""
    it = Child(spec, is_forked)
    try:
        yield it
    finally:
        it.close()
