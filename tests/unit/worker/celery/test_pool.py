"""EnginePool keeps Celery's promises for a message: each callback once, and no state left
behind."""

import threading
from collections.abc import Callable, Iterable
from typing import Any
from uuid import UUID, uuid4

import pytest
from kombu.utils.json import dumps

from tasks.queues import RUN_JOBS
from tests.running.workers import PATIENCE_SECONDS
from worker.celery.pool import EnginePool
from worker.delivery import Delivery


class Worker:
    """Takes deliveries and lets the test settle their jobs."""

    def __init__(self) -> None:
        self.deliveries: list[Delivery] = []
        self.released: list[Delivery] = []

    def deliver(self, job_ids: Iterable[UUID], on_settled: Callable[[], None]) -> Delivery:
        self.deliveries.append(Delivery(job_ids, on_settled))
        return self.deliveries[-1]

    def release(self, delivery: Delivery) -> None:
        self.released.append(delivery)


@pytest.fixture
def pool() -> EnginePool:
    it = EnginePool(4)
    it.worker = Worker()  # type: ignore[assignment]
    return it


def apply(pool: EnginePool, said: list[str], timeout: float | None) -> Any:
    body = dumps([[[str(uuid4())]], {}, {}])
    return pool.on_apply(
        None,
        (RUN_JOBS, str(uuid4()), {}, body, "application/json", "utf-8"),
        callback=lambda _: said.append("done"),
        error_callback=lambda _: said.append("rejected"),
        timeout_callback=lambda *_: said.append("timed out"),
        timeout=timeout,
    )


def settle(delivery: Delivery) -> None:
    delivery.settle(delivery.job_ids)


def timers() -> list[threading.Timer]:
    return [each for each in threading.enumerate() if isinstance(each, threading.Timer)]


@pytest.mark.parametrize("ends", ["settled", "terminated"])
def test_a_message_that_has_ended_leaves_no_thread_though_its_time_limit_is_far_away(
    pool: EnginePool, ends: str
) -> None:
    said: list[str] = []
    handles = [apply(pool, said, timeout=3600) for _ in range(20)]
    started = timers()
    assert len(started) == 20
    for handle, delivery in zip(handles, pool.worker.deliveries, strict=True):  # type: ignore[attr-defined]
        if ends == "settled":
            settle(delivery)
        else:
            handle.terminate()
    for timer in started:
        timer.join(PATIENCE_SECONDS)
    assert timers() == []
    assert said == ["done" if ends == "settled" else "rejected"] * 20
    assert pool._handles == set()


def test_a_message_past_its_time_limit_is_released_and_ends_once(pool: EnginePool) -> None:
    said: list[str] = []
    handle = apply(pool, said, timeout=0.01)
    for timer in timers():
        timer.join(PATIENCE_SECONDS)
    (delivery,) = pool.worker.deliveries  # type: ignore[attr-defined]
    assert pool.worker.released == [delivery]  # type: ignore[attr-defined]
    settle(delivery)
    handle.terminate()
    assert said == ["timed out"]
