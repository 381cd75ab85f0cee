"""A delivery is settled once, when the last of its jobs is."""

import random
import threading
from uuid import uuid4

from worker.delivery import Delivery


def test_a_delivery_is_settled_with_its_last_job() -> None:
    settled: list[str] = []
    one, two = uuid4(), uuid4()
    delivery = Delivery([one, two], lambda: settled.append("now"))
    delivery.settle([one])
    assert (settled, delivery.unsettled) == ([], {two})
    delivery.settle([uuid4()])
    assert settled == []
    delivery.settle([two])
    assert (settled, delivery.unsettled) == (["now"], frozenset())


def test_settling_again_changes_nothing() -> None:
    settled: list[str] = []
    one = uuid4()
    delivery = Delivery([one], lambda: settled.append("now"))
    for _ in range(3):
        delivery.settle([one])
    assert settled == ["now"]


def test_a_job_that_a_message_names_twice_is_one() -> None:
    settled: list[str] = []
    one = uuid4()
    delivery = Delivery([one, one], lambda: settled.append("now"))
    assert delivery.job_ids == (one,)
    delivery.settle([one])
    assert settled == ["now"]


def test_a_delivery_settled_by_many_threads_calls_back_once() -> None:
    for _ in range(50):
        settled: list[str] = []
        ids = [uuid4() for _ in range(40)]
        delivery = Delivery(ids, lambda settled=settled: settled.append("now"))
        start = threading.Barrier(4)

        def settle(ids: list, delivery: Delivery = delivery, start=start) -> None:
            start.wait()
            for job_id in ids:
                delivery.settle([job_id])

        threads = [
            threading.Thread(target=settle, args=[random.sample(ids, len(ids))]) for _ in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert settled == ["now"]


def test_an_ack_that_fails_is_not_the_fault_of_the_thread_that_settles() -> None:
    def refuse() -> None:
        raise ConnectionError("the channel is closed")

    one = uuid4()
    delivery = Delivery([one], refuse)
    delivery.settle([one])
    assert delivery.unsettled == frozenset()
