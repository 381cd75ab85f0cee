"""Submitting keeps a job once, and publishes it once it is kept."""

import subprocess
import sys
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from uuid import UUID, uuid4

import pytest
from kombu.transport import memory

from db import JobState, find_results
from db.clock import seconds_from_now
from db.lane import Lane
from db.session import Database
from db.upkeep.pruning import prune
from db.upkeep.retention import Retention
from tasks import generate, submit_batch, summarize, translate
from tasks.contracts.contract import Contract
from tasks.errors import (
    DuplicateId,
    IdempotencyConflict,
    Refused,
    UnknownLanguagePair,
    UnknownModel,
)
from tasks.generate import GenerateContract
from tasks.submission.batch import CHUNK
from tasks.submission.message import submit_message
from tasks.summarize import SummarizeContract
from tests.running.producers import FAKE, producing, write_config
from tests.samples.jobs import job, payload, set_columns, states


@pytest.fixture(autouse=True)
def _producing(database: Database, tmp_path: Path) -> Iterator[None]:
    """This process is a producer, with a broker within itself."""
    memory.Channel.queues.clear()
    models = {"fake": FAKE, "pair": {**FAKE, "tasks": ["translate"], "languages": ["en>de"]}}
    models["fake"] = {**FAKE, "languages": ["en", "fr"]}
    config = write_config(tmp_path / "tidemill.toml", models)
    with producing(database.url.render_as_string(hide_password=False), "memory://", config):
        yield


def published() -> dict[str, int]:
    """How many messages lie in each queue."""
    return {name: queue.qsize() for name, queue in memory.Channel.queues.items() if queue.qsize()}


def test_a_submitted_job_is_kept_and_published(database: Database) -> None:
    submitted = generate.submit(
        text="a b c",
        custom_id="d1",
        tenant="press",
        priority=3,
        metadata={"day": "monday"},
        top_k=5,
    )
    assert submitted.is_new
    row = job(database, submitted.id)
    assert (row.task, row.model, row.state, row.lane) == (
        "generate",
        "fake",
        "queued",
        "interactive",
    )
    assert (row.custom_id, row.tenant, row.priority, row.num_characters) == ("d1", "press", 3, 5)
    assert row.published_at is not None
    kept = payload(database, submitted.id)
    assert (kept.contract, kept.metadata_) == ({"text": "a b c", "top_k": 5}, {"day": "monday"})
    assert published() == {"tidemill.fake.interactive": 1}


def test_a_job_can_ask_for_the_other_lane(database: Database) -> None:
    submitted = generate.submit(text="a", lane="bulk")
    assert job(database, submitted.id).lane == Lane.BULK
    assert published() == {"tidemill.fake.bulk": 1}


def test_the_same_key_is_the_same_job(database: Database) -> None:
    first = generate.submit(text="a b c", idempotency_key="k")
    again = generate.submit(text="a b c", idempotency_key="k")
    assert (again.id, again.is_new) == (first.id, False)
    assert states(database) == {"queued": 1}
    assert published() == {"tidemill.fake.interactive": 1}


@pytest.mark.parametrize("other", [{"text": "other"}, {"text": "a b c", "max_new_tokens": 4}])
def test_the_same_key_with_other_contents_is_refused(
    database: Database, other: dict[str, object]
) -> None:
    generate.submit(text="a b c", idempotency_key="k")
    with pytest.raises(IdempotencyConflict, match=r"'k' was used before.*use a new key"):
        generate.submit(**other, idempotency_key="k")
    with pytest.raises(IdempotencyConflict):
        summarize.submit(text="a b c", idempotency_key="k")
    assert states(database) == {"queued": 1}


def test_a_key_whose_job_s_text_was_pruned_is_known_all_the_same(database: Database) -> None:
    first = generate.submit(text="a b c", idempotency_key="k")
    set_columns(database, [first.id], state="cancelled", finished_at=seconds_from_now(-60))
    prune(database, Retention(for_all={"payloads": 0.0}))

    again = generate.submit(text="a b c", idempotency_key="k")

    assert (again.id, again.is_new) == (first.id, False)
    with pytest.raises(IdempotencyConflict):
        summarize.submit(text="a b c", idempotency_key="k")


def test_keys_are_a_tenants_own(database: Database) -> None:
    generate.submit(text="a", idempotency_key="k", tenant="one")
    assert generate.submit(text="b", idempotency_key="k", tenant="two").is_new


def test_a_refused_contract_leaves_no_row(database: Database) -> None:
    with pytest.raises(UnknownModel, match="there is no model 'none'; known models: fake, pair"):
        generate.submit(text="a", model="none")
    with pytest.raises(UnknownLanguagePair, match="'en' to 'xx'; known: en>fr, fr>en, en>de"):
        translate.submit(text="a", source_language="en", target_language="xx")
    with pytest.raises(Refused):
        generate.submit(text="")
    assert states(database) == {}
    assert published() == {}


def test_without_redis_a_job_is_kept(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CELERY_BROKER_URL", "redis://127.0.0.1:1/0")
    submitted = generate.submit(text="a b c")
    assert job(database, submitted.id).published_at is None
    assert submitted.find().state == JobState.QUEUED


# --- batches -------------------------------------------------------------------------------


def contracts(number: int, start: int = 0) -> Iterator[Contract]:
    return (SummarizeContract.parse({"text": f"text {n}"}) for n in range(start, start + number))


def test_a_batch_is_kept_and_left_to_the_dispatcher(database: Database) -> None:
    told: list[int] = []
    batch = submit_batch(
        contracts(CHUNK + 5), name="night", metadata={"a": "b"}, on_progress=told.append
    )
    assert (batch.num_new, batch.num_known) == (CHUNK + 5, 0)
    assert told == [CHUNK, CHUNK + 5]
    assert published() == {}
    found = list(find_results(batch="night", state=None, database=database))
    assert len(found) == CHUNK + 5
    assert {job(database, each.id).lane for each in found[:3]} == {Lane.BULK}


def test_a_batch_under_a_run_key_is_submitted_once(database: Database) -> None:
    first = submit_batch(contracts(10), name="night", run_key="night-1")
    again = submit_batch(contracts(10), name="night", run_key="night-1")
    assert (again.id, again.num_new, again.num_known) == (first.id, 0, 10)
    other = submit_batch(contracts(10), name="night", run_key="night-2")
    assert (other.num_new, other.id != first.id) == (10, True)
    assert states(database) == {"queued": 20}


class Broken(Exception):
    pass


def broken_after(number: int) -> Iterator[Contract]:
    yield from contracts(number)
    raise Broken


def test_a_batch_that_broke_in_the_middle_is_taken_up_again(database: Database) -> None:
    with pytest.raises(Broken):
        submit_batch(broken_after(2 * CHUNK + 7), name="night", run_key="night-1")
    assert states(database) == {"queued": 2 * CHUNK}, "whole chunks were kept"
    again = submit_batch(contracts(2 * CHUNK + 50), name="night", run_key="night-1")
    assert (again.num_new, again.num_known) == (50, 2 * CHUNK)
    found = list(find_results(batch="night-1", state=None, database=database))
    texts = {payload(database, each.id).contract["text"] for each in found[-60:]}
    assert len(found) == 2 * CHUNK + 50
    assert f"text {2 * CHUNK + 49}" in texts


def test_under_a_run_key_a_job_goes_by_its_custom_id_wherever_it_stands(
    database: Database,
) -> None:
    def named(*names: str) -> Iterator[Contract]:
        return (SummarizeContract.parse({"text": each, "custom_id": each}) for each in names)

    with pytest.raises(Broken):
        submit_batch(chain(named("a", "b"), broken_after(0)), name="n", run_key="n")
    first = submit_batch(named("a", "b"), name="m", run_key="m")
    assert (first.num_new, first.num_known) == (2, 0)
    batch = submit_batch(named("c", "b", "a"), name="n", run_key="n")
    assert batch.num_new + batch.num_known == 3
    assert sorted(
        each.custom_id or "" for each in find_results(batch="n", state=None, database=database)
    ) == ["a", "b", "c"]


def test_a_batch_stops_at_the_first_contract_that_no_model_can_do(database: Database) -> None:
    wrong = GenerateContract.parse({"text": "a", "model": "none"})
    with pytest.raises(UnknownModel):
        submit_batch(iter([*contracts(3), wrong]), name="night", run_key="night-1")
    again = submit_batch(contracts(4), name="night", run_key="night-1")
    assert again.num_new == 4


@pytest.mark.parametrize("run_key", [None, "night-1"])
def test_a_custom_id_stands_once_in_a_batch(database: Database, run_key: str | None) -> None:
    def named(*names: str | None, **more: str) -> Iterator[Contract]:
        return (SummarizeContract.parse({"text": "x", "custom_id": n, **more}) for n in names)

    with pytest.raises(DuplicateId, match=r"contract 4: custom_id: is that of contract 2 too"):
        submit_batch(named("a", "b", None, "b"), name="night", run_key=run_key)
    assert states(database) == {}
    # Of another tenant, or in another call, it is no duplicate.
    batch = submit_batch(
        chain(named("a", "b", None, None), named("a", tenant="other")), name="m", run_key=run_key
    )
    again = submit_batch(named("a", "b"), name="m", run_key=run_key)
    assert (batch.num_new, again.num_new) == (5, 2 if run_key is None else 0)


def test_jobs_of_a_batch_that_bring_their_own_keys_are_told_apart_by_those(
    database: Database,
) -> None:
    def keyed(*keys: str) -> Iterator[Contract]:
        fields = {"text": "x", "custom_id": "a"}
        return (SummarizeContract.parse({**fields, "idempotency_key": key}) for key in keys)

    assert submit_batch(keyed("1", "2"), name="n").num_new == 2
    with pytest.raises(DuplicateId) as raised:
        submit_batch(keyed("3", "4", "3"), name="n")
    assert (raised.value.code, raised.value.field) == ("duplicate_id", "idempotency_key")
    assert (raised.value.place, raised.value.first_place) == ("contract 3", "contract 1")
    assert states(database) == {"queued": 2}


def test_a_custom_id_is_never_the_number_of_another_job(database: Database) -> None:
    given = [{"text": "x", "custom_id": "2"}, {"text": "y"}]
    batch = submit_batch(map(SummarizeContract.parse, given), name="n", run_key="n")
    assert batch.num_new == 2


def test_a_batch_that_is_not_complete_stays_open(database: Database) -> None:
    first = submit_batch(contracts(3), name="n", run_key="n", is_complete=lambda: False)
    again = submit_batch(contracts(5), name="n", run_key="n")
    last = submit_batch(contracts(9), name="n", run_key="n")
    assert (first.num_new, again.num_new, last.num_new) == (3, 2, 0)


def test_a_million_ids_take_little_memory() -> None:
    """Of its own a process takes some 100 MB; a set of these ids would take as much again."""
    code = """
import resource
from tasks.submission.first_seen import FirstSeen
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
seen = FirstSeen()
for number in range(300_000):
    seen.require_new("custom_id", f"document-{number * 7919 % 300_007:030d}", f"line {number}")
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert int(ended.stdout) < 30_000


# --- messages ------------------------------------------------------------------------------


def test_a_message_is_the_job_of_its_id_however_often_it_comes(database: Database) -> None:
    message_id = str(uuid4())
    for _ in range(3):
        assert submit_message(GenerateContract, {"text": "a b"}, message_id) == message_id
    assert states(database) == {"queued": 1}
    assert job(database, UUID(message_id)).state == JobState.QUEUED


def test_a_message_whose_id_is_no_uuid_is_one_job_all_the_same(database: Database) -> None:
    ids = {submit_message(GenerateContract, {"text": "a b"}, "order 1742") for _ in range(2)}
    other = submit_message(GenerateContract, {"text": "a b"}, "order 1743")
    assert len(ids) == 1
    assert other not in ids
    assert states(database) == {"queued": 2}


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"text": "a", "custom_id": "a\x00b"},
        {"text": "a", "tenant": "half \ud83d"},
        {"text": "a", "tenant": 5, "custom_id": ["x"]},
        {"text": "a", "tenant": "t" * 1000, "custom_id": "c" * 1000},
        {"text": "a", "a field \x00 of theirs": 1},
        {"text": "a", "half \ud83d": 1},
        {"text": "a", "model": "none"},
        {"text": "a", "model": "half \ud83d"},
    ],
    ids=ascii,
)
def test_a_message_that_is_refused_is_kept_as_a_failed_job_whatever_it_holds(
    database: Database, fields: dict[str, object]
) -> None:
    message_id = str(uuid4())
    for _ in range(2):
        assert submit_message(GenerateContract, fields, message_id) == message_id
    row = job(database, UUID(message_id))
    assert row.state == JobState.FAILED
    assert row.error_code in ("invalid_contract", "unknown_model")
    assert row.error_message
    assert states(database) == {"failed": 1}
