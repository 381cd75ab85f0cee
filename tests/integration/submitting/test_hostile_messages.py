"""Whatever anybody puts into our lists: the worker lives, others are served, nothing is lost."""

import json
from datetime import UTC, datetime
from typing import Any
from uuid import UUID, uuid4

import psutil
import pytest
import redis
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import func, select

from db import JobState
from db.models import Job, QuarantinedMessage
from tasks import generate
from tasks.quarantine import Reason, job_id_of, keep
from tests.running.workers import PATIENCE_SECONDS, Cluster, WorkerProcess, on_sqlite, until
from tests.samples.hostile import CANARY, ENTRIES, PATHS, dumped, envelope
from worker.celery.envelope import Malformed
from worker.quarantine import message_of

QUEUES = ("celery", "tidemill.fake.interactive", "tidemill.fake.bulk")


def client_of(cluster: Cluster) -> redis.Redis:
    return redis.Redis.from_url(cluster.redis_url)


def quarantined(cluster: Cluster) -> list[QuarantinedMessage]:
    with cluster.database.read() as session:
        return list(session.scalars(select(QuarantinedMessage).order_by(QuarantinedMessage.id)))


def num_accounted_for(cluster: Cluster) -> int:
    """Messages in the quarantine, and jobs that are of none of those."""
    set_aside = QuarantinedMessage.job_id
    with cluster.database.read() as session:
        num_set_aside = session.scalar(select(func.count()).select_from(QuarantinedMessage)) or 0
        num_jobs = session.scalar(
            select(func.count())
            .select_from(Job)
            .where(Job.id.not_in(select(set_aside).where(set_aside.is_not(None))))
        )
    return num_set_aside + (num_jobs or 0)


def serves(worker: WorkerProcess) -> None:
    """A good job is done, by the same process."""
    assert generate.submit(text="a b c").wait(PATIENCE_SECONDS).state == JobState.SUCCEEDED
    assert worker.process.poll() is None, worker.log
    assert worker.log.count(" ready.") == 1


@on_sqlite
@pytest.mark.parametrize("pool", [(), ("-P", "threads", "-c", "8")], ids=["ours", "threads"])
def test_every_hostile_message_is_kept_and_delays_no_other(
    producer: Cluster, pool: tuple[str, ...]
) -> None:
    with producer.worker(*pool, "--loglevel", "DEBUG") as worker:
        with client_of(producer) as client:
            for number, make in enumerate(ENTRIES.values()):
                client.lpush(QUEUES[number % 3], make())
            serves(worker)
            until(lambda: num_accounted_for(producer) >= len(ENTRIES) + 1, "all are kept")
            until(lambda: not client.exists("unacked", *QUEUES), "nothing is unacked")
        serves(worker)
    assert num_accounted_for(producer) == len(ENTRIES) + 2
    assert CANARY not in worker.log
    assert "Traceback" not in worker.log


@on_sqlite
def test_garbage_in_kombus_own_keys_ends_no_worker(producer: Cluster) -> None:
    """Entries of `unacked` that are none, keys of another type, bindings, broadcasts."""
    with client_of(producer) as client:
        number = producer.redis_url.rpartition("/")[2]
        for tag, entry in {
            CANARY: CANARY.encode(),
            "two": json.dumps([envelope(), "", ""]).encode(),
            "three": json.dumps([{"headers": [CANARY]}, "", "celery"]).encode(),
            "good": json.dumps([envelope(), "", "celery"]).encode(),
        }.items():
            client.hset("unacked", tag, entry)
            client.zadd("unacked_index", {tag: 1})
        client.set("celery", CANARY)
        client.hset("tidemill.fake.bulk", CANARY, CANARY)
        client.set("_kombu.binding.celery", CANARY)
        client.sadd("_kombu.binding.reply.celery.pidbox", CANARY, b"\xff")
        client.set("unacked_mutex", CANARY)
        with producer.worker() as worker:
            serves(worker)
            for key in ("celery", "tidemill.fake.interactive", "unacked", "unacked_index"):
                client.delete(key)
                client.set(key, CANARY)
                serves(worker)
            for text in (CANARY, "[" * 100_000, "{}", json.dumps(envelope()), "5"):
                client.publish(f"/{number}.celery.pidbox", text)
            serves(worker)
            until(lambda: len(quarantined(producer)) >= 10, "all are set aside")
            until(lambda: JobState.QUEUED not in producer.states(), "what was good is run")
    reasons = [message.reason for message in quarantined(producer)]
    assert reasons.count("wrong_type") == 7
    assert reasons.count("not_an_envelope") + reasons.count("bad_headers") == 3
    assert CANARY not in worker.log


@on_sqlite
def test_garbage_pushed_before_a_worker_starts_does_not_end_it(producer: Cluster) -> None:
    with client_of(producer) as client:
        for make in list(ENTRIES.values())[:60]:
            client.lpush("celery", make())
        with producer.worker() as worker:
            serves(worker)
            until(lambda: num_accounted_for(producer) == 61, "all are kept")
            with producer.worker() as another:
                serves(another)


@on_sqlite
def test_a_message_is_found_with_its_reason_and_its_job(producer: Cluster) -> None:
    job_id = str(uuid4())
    with client_of(producer) as client, producer.worker() as worker:
        client.lpush("celery", dumped(envelope([[], [CANARY], {}], message_id=job_id)))
        client.lpush("celery", dumped(envelope([[CANARY], {}, {}], message_id="order 7")))
        for text in ("one", "one", "another"):
            if text == "another":  # those that are read together are taken in any order
                producer.wait_until_finished(3)
            client.lpush("celery", dumped(envelope([[], {"text": text}, {}], message_id="order 8")))
        until(lambda: len(quarantined(producer)) == 2, "two are set aside")
        row = producer.job(UUID(job_id))
        assert (row.state, row.error_code, row.task) == (
            JobState.FAILED,
            "bad_arguments",
            "generate",
        )
        assert row.finished_at is not None
        told = producer.tidemill("messages", "--json").json
        assert [each["reason"] for each in told] == ["id_conflict", "bad_arguments"]
        assert told[1]["job_id"] == job_id
        assert told[1]["is_whole"]
        raw = producer.tidemill("messages", "--raw", told[1]["id"]).out
        assert json.loads(raw)["headers"]["id"] == job_id
        of_two = str(job_id_of("order 8"))
        shown = producer.tidemill("show", of_two)
        assert "a job with other contents has the same id (id_conflict)" in shown.err
        assert f"`tidemill messages {told[0]['id']}`" in shown.err
        assert producer.tidemill("show", of_two, "--json").json["messages"] == [
            {"id": told[0]["id"], "reason": "id_conflict"}
        ]
        assert "2 set aside" in producer.tidemill("status").out
        assert producer.tidemill("messages", "--delete").status == 0
        assert quarantined(producer) == []
    assert CANARY not in worker.log


@on_sqlite
def test_an_eta_waits_in_the_database_and_what_is_late_or_revoked_is_kept_as_that(
    producer: Cluster,
) -> None:
    late, later, revoked = (str(uuid4()) for _ in range(3))
    with client_of(producer) as client, producer.worker() as worker:
        from tests.integration.monitoring.test_celery_tools import operator

        with operator(producer) as app:
            app.control.revoke(revoked, reply=True, timeout=PATIENCE_SECONDS, limit=1)
        for message_id, headers in (
            (late, {"expires": "2001-01-01T00:00:00"}),
            (later, {"eta": "2999-01-01T00:00:00+00:00"}),
            (revoked, {}),
        ):
            client.lpush("celery", dumped(envelope(message_id=message_id, headers=headers)))
        until(lambda: len(producer.states()) == 3, "all are kept")
        until(lambda: producer.job(UUID(late)).state == JobState.EXPIRED, "it is late")
        assert producer.job(UUID(revoked)).state == JobState.CANCELLED
        row = producer.job(UUID(later))
        assert row.state == JobState.QUEUED
        assert row.not_before is not None
        assert row.not_before.year == 2999
        until(lambda: not client.exists("unacked"), "no message waits in the worker")
        serves(worker)


def set_aside(cluster: Cluster, entry: bytes, queue: str = "celery") -> str:
    """A message in the quarantine as a worker sets it aside that could not take it; its id."""
    headers = json.loads(entry)["headers"]
    fault = Malformed(Reason.UNEXPECTED, headers["id"], headers["task"], headers["origin"])
    message = message_of(fault, queue, entry)
    with cluster.database.write() as session:
        keep(session, [message])
    return str(message.id)


def test_a_message_that_is_put_back_becomes_its_job_and_begins_at_its_eta(
    producer: Cluster,
) -> None:
    """Though a failed job stands under its id, which says that it was set aside."""
    now_id, later_id = str(uuid4()), str(uuid4())
    eta = "2999-01-01T00:00:00+02:00"
    entries = [
        dumped(envelope(message_id=now_id)),
        dumped(envelope(message_id=later_id, headers={"eta": eta})),
    ]
    ids = [set_aside(producer, entry) for entry in entries]
    assert producer.states() == {JobState.FAILED: 2}
    for id_, entry in zip(ids, entries, strict=True):
        assert producer.tidemill("messages", "--raw", id_).out.encode() == entry
    done = producer.tidemill("messages", "--requeue", *ids)
    assert "2 messages put back" in done.out + done.err
    with client_of(producer) as client:
        assert client.lrange("celery", 0, -1) == entries[::-1]
        with producer.worker():
            producer.wait_for(JobState.SUCCEEDED, 1)
            until(lambda: producer.states().get(JobState.QUEUED) == 1, "the other waits")
    assert producer.job(UUID(now_id)).state == JobState.SUCCEEDED
    later = producer.job(UUID(later_id))
    assert later.not_before == datetime(2998, 12, 31, 22, tzinfo=UTC)
    assert quarantined(producer) == []


@on_sqlite
def test_a_message_that_cannot_be_requeued_stays_in_the_quarantine(producer: Cluster) -> None:
    begun = str(uuid4())
    producer.redis_url = "redis://127.0.0.1:1/0"
    unacked = set_aside(producer, dumped(envelope()), queue="unacked")
    done = producer.tidemill("messages", "--requeue", unacked)
    assert done.status == 1
    assert "it cannot be put back" in done.out + done.err
    kept = set_aside(producer, dumped(envelope(message_id=begun)))
    done = producer.tidemill("messages", "--requeue", kept)
    assert done.status != 0
    assert "they are still kept" in done.out + done.err
    assert "Traceback" not in done.err
    assert {str(each.id) for each in quarantined(producer)} == {unacked, kept}


@on_sqlite
def test_the_log_does_not_grow_while_the_database_is_away(producer: Cluster) -> None:
    from sqlalchemy import text

    short_hold = ("--include", "tests.integration.submitting.short_hold")
    with (
        client_of(producer) as client,
        producer.worker("--loglevel", "DEBUG", *short_hold) as worker,
    ):
        serves(worker)
        with producer.database.write() as session:
            session.execute(text("ALTER TABLE payloads RENAME TO payloads_away"))
        for _ in range(200):
            client.lpush("celery", dumped(envelope()))
        until(lambda: "cannot keep jobs" in worker.log, "it is said")
        client.lpush("celery", b"no JSON")
        until(lambda: len(quarantined(producer)) == 1, "garbage is set aside meanwhile")
        with producer.database.write() as session:
            session.execute(text("ALTER TABLE payloads_away RENAME TO payloads"))
        until(lambda: producer.states().get(JobState.SUCCEEDED) == 201, "all are run")
        until(lambda: "jobs are kept again" in worker.log, "that it is over is said")
    assert worker.log.count("cannot keep jobs") == 1
    assert "Traceback" not in worker.log
    assert CANARY not in worker.log


ANYTHING = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=20)
    | st.datetimes().map(str),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=8,
)
SPOILT = st.builds(
    lambda changes: _spoilt(changes),
    st.lists(st.tuples(st.sampled_from(PATHS), ANYTHING), min_size=1, max_size=4),
)
STRANGE = (
    st.binary(max_size=200)
    | ANYTHING.map(dumped)
    | ANYTHING.map(lambda body: dumped(envelope([body])))
    | st.lists(ANYTHING, max_size=4).map(lambda body: dumped(envelope(body or [[]])))
    | SPOILT
)


def _spoilt(changes: list[tuple[tuple[str, ...], Any]]) -> bytes:
    made: Any = envelope()
    for names, value in changes:
        inner = made
        for name in names[:-1]:
            inner = inner.get(name) if isinstance(inner, dict) else None
        if isinstance(inner, dict):
            inner[names[-1]] = value
    return dumped(made)


@on_sqlite
def test_any_entry_that_is_pushed_is_kept_and_the_worker_goes_on(producer: Cluster) -> None:
    pushed: list[int] = []
    with client_of(producer) as client, producer.worker() as worker:

        @settings(max_examples=25)
        @given(st.lists(STRANGE, min_size=10, max_size=30))
        def push(entries: list[bytes]) -> None:
            pushed.append(len(entries))
            for number, entry in enumerate(entries):
                client.lpush(QUEUES[number % 3], entry)
            serves(worker)
            until(
                lambda: not client.exists(*QUEUES, "unacked", "tidemill:quarantine"),
                "all are taken",
            )
            assert psutil.pid_exists(worker.pid)

        push()
        until(lambda: num_named(producer) >= sum(pushed) + len(pushed), "nothing is lost")
    assert CANARY not in worker.log
    assert "Traceback" not in worker.log


def num_named(cluster: Cluster) -> int:
    """A message whose id was that of another, and whose contents too, is the same job."""
    return num_accounted_for(cluster)
