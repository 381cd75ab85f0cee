"""Feeds requests to a server with continuous batching: all at once, or steadily."""

from __future__ import annotations

import itertools
import time
from typing import Protocol

from benchmarks.engine.job import Job, Measured


class Server(Protocol):
    """An engine that batches requests by itself."""

    def submit(self, numbers: list[int]) -> None:
        """Submit requests by their index in the workload; an index may be repeated."""

    def finished(self) -> list[tuple[int, list[int]]]:
        """Wait for finished requests; returns the index and the answer of each."""

    def cpu_seconds(self) -> float:
        """The CPU time since the engine's start."""

    def steps(self) -> tuple[int, int]:
        """The steps since the engine's start and the rows in them; zeros if unknown."""


def serve(server: Server, job: Job) -> Measured:
    return drain(server, job) if job.feed == "drain" else steady(server, job)


def drain(server: Server, job: Job) -> Measured:
    """Submit every request at the beginning; measure until the last is finished."""
    answers: dict[int, list[int]] = {}
    first_seconds = 0.0
    watch = Watch(server, job)
    server.submit(list(range(len(job.requests))))
    while len(answers) < len(job.requests):
        for number, tokens in server.finished():
            answers[number] = tokens
        first_seconds = first_seconds or watch.seconds()
    return watch.measured(answers, sum(map(len, answers.values())), len(answers), first_seconds)


def steady(server: Server, job: Job) -> Measured:
    """Submit another request for each finished one, so that `num_waiting` wait at all times.

    The clock starts when the first rows have been replaced, and runs until as many requests have
    finished as the workload has. So about equally many are half done at its start and at its end.
    """
    numbers = itertools.cycle(range(len(job.requests)))
    first_seconds = 0.0
    answers: dict[int, list[int]] = {}
    num_before = 2 * job.rows
    started = Watch(server, job)
    watch: Watch | None = None
    num_finished = num_tokens = num_counted = 0
    server.submit(list(itertools.islice(numbers, job.rows + job.num_waiting)))
    while num_counted < len(job.requests):
        done = server.finished()
        server.submit(list(itertools.islice(numbers, len(done))))
        first_seconds = first_seconds or started.seconds()
        answers.update(done)
        if watch is not None:
            num_counted += len(done)
            num_tokens += sum(len(tokens) for _, tokens in done)
        num_finished += len(done)
        if watch is None and num_finished >= num_before:
            watch = Watch(server, job)
    assert watch is not None
    return watch.measured(answers, num_tokens, num_counted, first_seconds)


class Watch:
    def __init__(self, server: Server, job: Job) -> None:
        self.server = server
        self.job = job
        self.steps_before = server.steps()
        self.cpu_seconds_before = server.cpu_seconds()
        self.started_at = time.perf_counter()

    def seconds(self) -> float:
        return time.perf_counter() - self.started_at

    def measured(
        self,
        answers: dict[int, list[int]],
        num_tokens: int,
        num_requests: int,
        first_seconds: float,
    ) -> Measured:
        for number, tokens in answers.items():
            assert len(tokens) == self.job.requests[number].num_new, (number, len(tokens))
        seconds = self.seconds()
        num_steps, num_rows = (
            now - before for now, before in zip(self.server.steps(), self.steps_before, strict=True)
        )
        room = num_steps * self.job.rows * self.job.beams
        return Measured(
            seconds=seconds,
            cpu_seconds=self.server.cpu_seconds() - self.cpu_seconds_before,
            num_tokens=num_tokens,
            num_requests=num_requests,
            first_seconds=first_seconds,
            # Rows are counted when they finish, so that a window may count a few too many.
            occupancy=min(num_rows / room, 1.0) if room else None,
            answers=answers,
        )
