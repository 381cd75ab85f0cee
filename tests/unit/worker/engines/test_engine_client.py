"""The parent's end of a real engine process: every request is answered once, whatever happens."""

import itertools
import random
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field

import psutil
import pytest

from db.outcome import Outcome
from db.session import Database
from engine.protocol.engine_spec import EngineSpec
from engine.protocol.output import Output
from engine.protocol.request import Request
from engine.protocol.sampling_params import SamplingParams
from tests.running.workers import PATIENCE_SECONDS, assert_gone, until
from tests.samples.jobs import answer, claim, insert_jobs, job_row, refusing_commits, states
from worker.committer import Committer
from worker.engines.engine_client import EngineClient
from worker.errors import EngineUnusable
from worker.settings import Settings


@dataclass
class Answers:
    """Every output that came, in order."""

    outputs: list[Output] = field(default_factory=list)
    changed: threading.Condition = field(default_factory=threading.Condition)

    def add(self, output: Output) -> None:
        with self.changed:
            self.outputs.append(output)
            self.changed.notify_all()

    def wait_for(self, number: int) -> dict[int, Output]:
        """The outputs by request; each came once."""
        with self.changed:
            assert self.changed.wait_for(lambda: len(self.outputs) >= number, PATIENCE_SECONDS)
        by_id = {output.request_id: output for output in self.outputs}
        assert len(by_id) == len(self.outputs) == number
        return by_id


@contextmanager
def engine(**settings: object) -> Iterator[EngineClient]:
    client = EngineClient(EngineSpec(alias="f", checkpoint="fake", engine="fake", **settings))  # type: ignore[arg-type]
    client.start()
    try:
        yield client
    finally:
        client.stop()


def request(number: int, text: str = "a b c", **params: object) -> Request:
    return Request(id=number, task="generate", text=text, params=SamplingParams(**params))  # type: ignore[arg-type]


def test_every_request_gets_one_output() -> None:
    answers = Answers()
    with engine() as client:
        for start in range(0, 500, 50):
            client.submit([request(n) for n in range(start, start + 50)], answers.add)
            client.check()
        outputs = answers.wait_for(500)
        client.check()
        assert client.num_held == 0
    assert all(output.failure is None for output in outputs.values())


def test_a_cancelled_request_gets_its_output_at_once() -> None:
    answers = Answers()
    with engine(fake_step_seconds=0.01) as client:
        client.submit([request(1, max_new_tokens=100_000), request(2)], answers.add)
        client.cancel([1])
        outputs = answers.wait_for(2)
        client.check()
    assert [choice.finish_reason for choice in outputs[1].choices] == ["cancelled"]
    assert outputs[2].failure is None


def test_cancelling_what_is_not_held_changes_nothing() -> None:
    answers = Answers()
    with engine() as client:
        client.cancel([7])
        client.submit([request(7)], answers.add)
        assert answers.wait_for(1)[7].choices[0].finish_reason != "cancelled"
        client.cancel([7])
        client.check()


def test_only_the_request_that_ends_the_process_fails() -> None:
    answers = Answers()
    with engine(fake_crash_on="boom") as client:
        crowd = [request(n, "boom" if n == 23 else "a b c", max_new_tokens=3) for n in range(40)]
        client.submit(crowd, answers.add)
        outputs = answers.wait_for(40)
        client.check()
        assert client.num_restarts >= 1

        client.submit([request(99)], answers.add)
        assert answers.wait_for(41)[99].failure is None, "it goes on afterwards"
    failed = {id: output.failure.code for id, output in outputs.items() if output.failure}
    assert failed == {23: "engine_crash"}
    assert outputs[23].failure is not None
    assert not outputs[23].failure.retryable


def test_several_that_end_the_process_are_each_found() -> None:
    answers = Answers()
    culprits = {3, 4, 11}
    with engine(fake_crash_on="boom") as client:
        crowd = [request(n, "boom" if n in culprits else "a b") for n in range(16)]
        client.submit(crowd, answers.add)
        outputs = answers.wait_for(16)
        client.check()
    assert {id for id, output in outputs.items() if output.failure} == culprits


def test_requests_cancelled_while_the_process_restarts_are_answered() -> None:
    answers = Answers()
    with engine(fake_step_seconds=0.01) as client:
        client.submit([request(n, max_new_tokens=100_000) for n in range(4)], answers.add)
        until(lambda: client.progress.num_steps or client.num_held == 4, "they are held")
        psutil.Process(client.pid).kill()
        client.cancel(range(4))
        outputs = answers.wait_for(4)
        client.check()
    assert {choice.finish_reason for each in outputs.values() for choice in each.choices} == {
        "cancelled"
    }


def test_a_stopped_client_leaves_no_process_whatever_it_held() -> None:
    answers = Answers()
    with engine(fake_step_seconds=0.05) as client:
        process = psutil.Process(client.pid)
        client.submit([request(n, max_new_tokens=100_000) for n in range(8)], answers.add)
    assert_gone([process])
    client.stop()


def test_many_start_and_stop_at_once() -> None:
    def live(_: int) -> psutil.Process:
        answers = Answers()
        with engine() as client:
            client.submit([request(1)], answers.add)
            answers.wait_for(1)
            return psutil.Process(client.pid)

    with ThreadPoolExecutor(max_workers=4) as pool:
        assert_gone(pool.map(live, range(12)))


def test_a_model_that_cannot_be_loaded_is_named_and_leaves_no_process() -> None:
    spec = EngineSpec(alias="reports", checkpoint="./no-such-checkpoint", device="cpu")
    client = EngineClient(spec)
    with pytest.raises(EngineUnusable, match=r"no-such-checkpoint.*reports|reports.*no-such"):
        client.start()
    client.stop()
    assert client.pid is not None
    assert not psutil.pid_exists(client.pid)


def test_a_process_that_answers_nothing_for_too_long_is_ended_and_started_again() -> None:
    answers = Answers()
    with engine(fake_step_seconds=0.01) as client:
        client.submit([request(n, max_new_tokens=30) for n in (1, 2)], answers.add)
        client.kill_if_stalled(time.monotonic(), stall_seconds=600)
        assert client.num_restarts == 0, "it was heard of lately"

        # A look a moment that is later each time, until one finds that it holds something.
        moments = itertools.count(time.monotonic(), 601)

        def restarted() -> int:
            client.kill_if_stalled(next(moments), stall_seconds=600)
            return client.num_restarts

        until(restarted, "another process")
        outputs = answers.wait_for(2)
        client.check()
    assert all(output.failure is None for output in outputs.values())


def test_an_engine_is_not_blamed_for_the_time_that_its_outputs_take_here() -> None:
    """However long whoever gets an output keeps the reader, the process is well."""
    answers, is_kept, go_on = Answers(), threading.Event(), threading.Event()

    def keep_reader(output: Output) -> None:
        is_kept.set()
        assert go_on.wait(PATIENCE_SECONDS)
        answers.add(output)

    with engine(fake_step_seconds=0.01) as client:
        client.submit([request(1, max_new_tokens=1)], keep_reader)
        client.submit([request(2, max_new_tokens=50)], answers.add)
        assert is_kept.wait(PATIENCE_SECONDS)
        pid = client.pid
        for later in range(1, 4):
            client.kill_if_stalled(time.monotonic() + 601 * later, stall_seconds=600)
        go_on.set()
        outputs = answers.wait_for(2)
        assert (client.num_restarts, client.pid) == (0, pid)
    assert all(output.failure is None for output in outputs.values())


def test_an_engine_is_read_while_the_database_is_away_and_more_is_unwritten_than_may_be(
    database: Database,
) -> None:
    fences = claim(database, insert_jobs(database, (job_row() for _ in range(6))))
    written = threading.Event()
    committer = Committer(
        database,
        Settings(max_unwritten_outcomes=1, flush_seconds=0.001),
        lambda _: written.set(),
    )
    committer.start()
    with engine(fake_step_seconds=0.01) as client, refusing_commits(database):
        for number, fence in enumerate(fences):
            client.submit(
                [request(number, max_new_tokens=1 + number)],
                lambda _, fence=fence: committer.put(  # type: ignore[misc]
                    Outcome.succeeded(fence, answer())
                ),
            )
        until(lambda: committer.num_unwritten == len(fences), "every answer")
        client.kill_if_stalled(time.monotonic() + 601, stall_seconds=600)
        assert client.num_restarts == 0
    assert written.wait(PATIENCE_SECONDS)
    committer.stop()
    assert states(database) == {"succeeded": len(fences)}


def test_an_engine_at_a_long_answer_is_heard_of_before_it_is_there() -> None:
    """Or one that takes longer than an engine may be silent would never come to an end."""
    answers = Answers()
    with engine(fake_step_seconds=0.02) as client:
        client.submit([request(1, max_new_tokens=100_000)], answers.add)
        first = until(lambda: client.progress.num_steps, "steps")
        until(lambda: client.progress.num_steps > first, "more steps")
        assert answers.outputs == []
        client.cancel([1])
        answers.wait_for(1)


def test_parent_and_child_agree_about_every_request_under_stress() -> None:
    """Threads submit and cancel without pause, and the process dies now and then: the parent
    knows at any moment where each request is, and each is answered once."""
    answers, ids = Answers(), itertools.count()
    num_threads, num_groups, culprits = 4, 40, {137, 901}
    with engine(fake_crash_on="boom", fake_step_seconds=0.001, max_held=64) as client:
        over = threading.Event()

        def keep_busy(seed: int) -> None:
            chance = random.Random(seed)
            for _ in range(num_groups):
                group = [next(ids) for _ in range(chance.randrange(1, 16))]
                client.submit(
                    [
                        request(
                            each, "boom" if each in culprits else "a b c",
                            max_new_tokens=chance.choice([1, 3, 40]),
                        )
                        for each in group
                    ],
                    answers.add,
                )  # fmt: skip
                client.cancel(chance.sample(group, len(group) // 4))
                client.cancel([chance.randrange(2000)])

        def keep_checking() -> None:
            while not over.wait(0.005):
                client.check()

        with ThreadPoolExecutor(num_threads + 1) as pool:
            checking = pool.submit(keep_checking)
            for each in [pool.submit(keep_busy, seed) for seed in range(num_threads)]:
                each.result(PATIENCE_SECONDS)
            num_requests = next(ids)
            outputs = answers.wait_for(num_requests)
            over.set()
            checking.result(PATIENCE_SECONDS)
        client.check()
        assert client.num_held == 0
        assert client.num_restarts >= 1
        # What the child says of itself is what the parent thinks of it.
        client.submit([request(next(ids))], answers.add)
        answers.wait_for(num_requests + 1)
        until(lambda: client.progress.num_waiting + client.progress.num_running == 0, "idleness")
    failed = {id: output.failure.code for id, output in outputs.items() if output.failure}
    assert failed.keys() <= culprits, "only those at fault fail, unless they were cancelled before"
    assert set(failed.values()) <= {"engine_crash"}
