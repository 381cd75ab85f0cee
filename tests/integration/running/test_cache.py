"""The content cache of a whole worker: what was computed once is not computed again."""

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event, func, select, update

from cli.estimate import Estimate, estimated
from db.clock import seconds_from_now
from db.models import CacheEntry, Job
from db.outcome import FinishedRequest, Outcome
from db.queries.jobs.cancel_retry import cancel_jobs
from db.session import Database
from db.upkeep import erasure
from db.upkeep.erasure import Person
from tasks.configuration.catalog import Catalog, Model
from tasks.contracts.contract import Contract
from tasks.generate import GenerateContract
from tasks.submit import submit_contract
from tasks.summarize import SummarizeContract
from tasks.translate import TranslateContract
from tests.running.producers import FAKE
from tests.running.serving import serving
from tests.running.workers import PATIENCE_SECONDS, Cluster, on_sqlite, until
from tests.samples.jobs import answer, claim, insert_job
from worker.cache.settings import CacheSettings
from worker.cache.upkeep import CacheUpkeep
from worker.committer import Committer
from worker.settings import Settings

PAGE_HEADER = "Harbour report, confidential."
WORDS = "The tide came in and the boats went out with it again today."


def generate(text: str, **fields: Any) -> GenerateContract:
    return GenerateContract.parse({"text": text, "max_new_tokens": 6, **fields})


def batch_of(number: int, **fields: Any) -> list[GenerateContract]:
    return [generate(f"number {each} of the night", **fields) for each in range(number)]


def num_entries(database: Database) -> int:
    with database.read() as session:
        return session.scalar(select(func.count()).select_from(CacheEntry)) or 0


@contextmanager
def statements_on_the_cache(database: Database) -> Iterator[list[str]]:
    """The verb of each statement about `cache_entries` that jobs cause."""
    seen: list[str] = []

    def note(_connection: object, _cursor: object, statement: str, *_: object) -> None:
        is_upkeep = threading.current_thread().name == "cache-upkeep"
        if "cache_entries" in statement and not is_upkeep:
            seen.append(statement.split(maxsplit=1)[0])

    event.listen(database.engine, "before_cursor_execute", note)
    try:
        yield seen
    finally:
        event.remove(database.engine, "before_cursor_execute", note)


def test_a_repeated_batch_makes_no_model_calls(producer: Cluster) -> None:
    with serving(producer) as first:
        with statements_on_the_cache(producer.database) as statements:
            one = first.run(batch_of(64))
        assert first.num_computed == 64
        assert statements.count("SELECT") == 1
        assert statements.count("INSERT") <= 3, "a commit takes them along"
    assert num_entries(producer.database) == 64
    # Another worker, which knows nothing but the database.
    with serving(producer) as second:
        with statements_on_the_cache(producer.database) as statements:
            other = second.run(batch_of(64))
        assert second.num_computed == 0
        assert statements == ["SELECT"], "of a message, not of a request"
        assert second.outputs(other) == second.outputs(one)
        again, before = second.details(other[0]), second.details(one[0])
        assert (before.job.cached_parts, again.job.cached_parts) == (0, 1)
        assert again.provenance is not None
        assert again.provenance["cached_parts"] == {"num_parts": 1, "cached": [[1, 1]]}
        assert before.provenance is not None
        assert "cached_parts" not in before.provenance
        assert again.provenance["settings"] == before.provenance["settings"]
        assert again.job.prompt_tokens == before.job.prompt_tokens


@on_sqlite
def test_equal_jobs_at_once_are_computed_once_and_each_has_its_result(producer: Cluster) -> None:
    with serving(producer, fake_step_seconds=0.01) as worker:
        jobs = worker.run([generate("the same for all")] * 40)
        assert worker.num_computed == 1
        assert len(set(worker.outputs(jobs))) == 1
        assert sum(worker.details(each).job.cached_parts or 0 for each in jobs) == 39
        one = submit_contract(generate("the same for all"))
        settled = threading.Event()
        worker.worker.deliver([one.id], settled.set)
        assert settled.wait(PATIENCE_SECONDS)
        assert worker.num_computed == 1


@on_sqlite
def test_a_request_that_crashes_the_engine_is_blamed_and_so_is_each_equal_one(
    producer: Cluster,
) -> None:
    with serving(producer, fake_crash_on="fatal") as worker:
        jobs = worker.run([generate("fatal word")] * 2 + batch_of(4))
        codes = [worker.details(each).job.error for each in jobs]
    assert [each.code if each else None for each in codes] == ["engine_crash"] * 2 + [None] * 4


@on_sqlite
def test_a_job_without_cache_neither_reads_nor_adds_entries(producer: Cluster) -> None:
    with serving(producer) as worker:
        worker.run(batch_of(3, use_cache=False))
        assert num_entries(producer.database) == 0
        worker.run(batch_of(3))
        jobs = worker.run(batch_of(3, use_cache=False))
        assert worker.num_computed == 9
        assert [worker.details(each).job.cached_parts for each in jobs] == [0, 0, 0]
        assert worker.details(jobs[0]).contract["use_cache"] is False


@on_sqlite
def test_the_cache_can_be_switched_off(producer: Cluster) -> None:
    with serving(producer, CacheSettings(enabled=False)) as worker:
        with statements_on_the_cache(producer.database) as statements:
            worker.run([generate("the same")] * 3)
            worker.run([generate("the same")] * 3)
        assert worker.num_computed == 6
        assert statements == []


@on_sqlite
@pytest.mark.parametrize("shared", [False, True])
def test_tenants_see_each_others_entries_only_where_the_configuration_says_so(
    producer: Cluster, shared: bool
) -> None:
    both = [generate("of two tenants", tenant=each) for each in ("one", "two")]
    with serving(producer, CacheSettings(shared_between_tenants=shared)) as worker:
        worker.run(both)
        assert worker.num_computed == (1 if shared else 2)
    with serving(producer, CacheSettings(shared_between_tenants=shared)) as worker:
        worker.run([*both, generate("of two tenants", tenant="three")])
        assert worker.num_computed == (0 if shared else 1)


@on_sqlite
def test_a_sample_without_a_seed_is_never_cached_and_one_with_a_seed_is(
    producer: Cluster,
) -> None:
    drawn, seeded = {"temperature": 0.9}, {"temperature": 0.9, "seed": 5}
    with serving(producer) as worker:
        worker.run([generate("draw", **drawn)] * 3)
        assert (worker.num_computed, num_entries(producer.database)) == (3, 0)
        worker.run([generate("draw", **seeded)] * 3)
        assert (worker.num_computed, num_entries(producer.database)) == (4, 1)
    with serving(producer) as worker:
        worker.run([generate("draw", **drawn), generate("draw", **seeded)])
        assert worker.num_computed == 1


@on_sqlite
def test_another_revision_of_the_model_computes_anew(producer: Cluster) -> None:
    for revision, num_computed in (("one", 5), ("one", 0), ("two", 5), ("one", 0)):
        with serving(producer, revision=revision) as worker:
            worker.run(batch_of(5))
            assert worker.num_computed == num_computed


def test_an_answer_past_its_time_is_computed_again_and_forgotten(producer: Cluster) -> None:
    database = producer.database
    with serving(producer) as worker:
        worker.run(batch_of(3))
    with database.write() as session:
        session.execute(update(CacheEntry).values(created_at=seconds_from_now(-7200)))
    hour = CacheSettings(ttl_seconds=3600)
    with serving(producer, hour) as worker:
        worker.run(batch_of(2))
        assert worker.num_computed == 2
        until(lambda: num_entries(database) == 2, "the third is forgotten")
    with serving(producer, hour) as worker:
        worker.run(batch_of(2))
        assert worker.num_computed == 0, "computed again, they are new"


def test_the_least_recently_used_entries_are_removed_beyond_the_bound(producer: Cluster) -> None:
    database = producer.database
    with serving(producer) as worker:
        worker.run(batch_of(20))
    with database.write() as session:
        session.execute(update(CacheEntry).values(used_at=seconds_from_now(-7200)))
    size = database_bytes(database) // 20
    with serving(producer) as worker:
        worker.run(batch_of(5))  # of the twenty, used again
        worker.worker._cache_upkeep.tick()
    small = CacheSettings(max_size=f"{8 * size}B")
    with serving(producer, small) as worker:
        until(lambda: database_bytes(database) <= 8 * size, "within its bound")
        assert num_entries(database) >= 5
        worker.run(batch_of(5))
        assert worker.num_computed == 0
        worker.run([generate(f"new {number}") for number in range(40)])
        until(lambda: database_bytes(database) <= 8 * size, "within its bound again")


def database_bytes(database: Database) -> int:
    with database.read() as session:
        return session.scalar(select(func.sum(CacheEntry.num_bytes))) or 0


def test_two_workers_that_trim_at_once_remove_no_more_than_the_excess(producer: Cluster) -> None:
    database = producer.database
    with serving(producer) as worker:
        worker.run(batch_of(30))
        size = database_bytes(database) // 30
        settings = CacheSettings(max_size=f"{10 * size}B")
        worker.worker._cache.settings = settings
        upkeeps = [
            CacheUpkeep(database, f"owner {number}", worker.worker._cache, lambda: 0)
            for number in range(4)
        ]
        threads = [threading.Thread(target=each.tick) for each in upkeeps]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert 8 <= num_entries(database) <= 11
    assert database_bytes(database) <= 10 * size


@on_sqlite
def test_an_entry_that_cannot_be_read_is_computed_again(producer: Cluster) -> None:
    with serving(producer) as worker:
        worker.run(batch_of(2))
    with producer.database.write() as session:
        session.execute(update(CacheEntry).values(output=b'{"choices": 5'))
    with serving(producer) as worker:
        worker.run(batch_of(2))
        assert worker.num_computed == 2


CONTEXT = 40
REPORT = "\n\n".join(
    " ".join(f"Sentence {line} of part {part} is here." for line in range(9)) for part in range(20)
)


def test_a_repeated_document_makes_no_model_calls_and_reports_it(producer: Cluster) -> None:
    report = SummarizeContract.parse(
        {"text": REPORT, "strategy": "map_reduce", "max_new_tokens": 8}
    )
    with serving(producer, max_input_tokens=CONTEXT) as worker:
        (one,) = worker.run([report])
        num_computed = worker.num_computed
        first = worker.details(one)
        assert first.coverage is not None
        assert num_computed > first.coverage["parts"] > 20
    with serving(producer, max_input_tokens=CONTEXT) as worker:
        (other,) = worker.run([report])
        assert worker.num_computed == 0
        again = worker.details(other)
    assert again.job.output == first.job.output
    assert again.coverage == first.coverage
    assert again.job.cached_parts == num_computed
    assert again.provenance is not None
    assert again.provenance["cached_parts"] == {
        "num_parts": num_computed,
        "cached": [[1, num_computed]],
    }


@on_sqlite
def test_equal_parts_of_a_document_are_computed_once(producer: Cluster) -> None:
    """A header on each of forty pages, each page as long as a part."""
    body = " ".join(f"word{number}" for number in range(CONTEXT - 4))
    pages = [f"{PAGE_HEADER}\n\n{body} page{number % 4}" for number in range(40)]
    contract = {"text": "\n\n".join(pages), "strategy": "map_reduce", "max_new_tokens": 4}
    with serving(producer, max_input_tokens=CONTEXT, fake_step_seconds=0.001) as worker:
        (job_id,) = worker.run([SummarizeContract.parse(contract)])
        details = worker.details(job_id)
        assert details.coverage is not None
        num_asked = details.provenance["cached_parts"]["num_parts"]  # type: ignore[index]
        assert num_asked >= details.coverage["parts"] >= 40
        assert details.job.cached_parts == num_asked - worker.num_computed
        assert worker.num_computed <= 4 + 4 + num_asked - details.coverage["parts"]


@on_sqlite
def test_documents_share_the_sentences_that_they_have_in_common(producer: Cluster) -> None:
    def letter(name: str) -> TranslateContract:
        text = f"Dear {name}, {WORDS}\n\n{WORDS} We wait.\n\n{PAGE_HEADER}"
        return TranslateContract.parse(
            {"text": text, "source_language": "en", "target_language": "fr"}
        )

    with serving(producer) as worker:
        letters = worker.run([letter(name) for name in ("Ada", "Bea", "Cleo")])
        # Three greetings; the sentence that all share, once; two more, once.
        assert worker.num_computed == 3 + 3
        reports = [worker.details(each).job.cached_parts for each in letters]
        assert sum(each or 0 for each in reports) == 2 * 3


def test_erasing_a_person_empties_their_tenants_cache(producer: Cluster) -> None:
    """The tenant's entries go, which are only a cache, and other tenants' stay."""
    database = producer.database
    hers = {"tenant": "one", "metadata": {"patient": "seven"}}
    with serving(producer) as worker:
        worker.run([generate("of hers", **hers), generate("of another", tenant="two")])
        assert num_entries(database) == 2
        erasure.erase(database, Person(metadata={"patient": "seven"}))
        with database.read() as session:
            assert session.scalars(select(CacheEntry.tenant)).all() == ["two"]


def test_an_answer_to_a_job_that_was_cancelled_is_not_kept(producer: Cluster) -> None:
    """Its text may have been erased while the model read it."""
    database = producer.database
    fences = claim(database, [insert_job(database), insert_job(database)])
    finished = [
        FinishedRequest(fence, number.to_bytes(32, "big"), "default", b"{}")
        for number, fence in enumerate(fences)
    ]
    with database.write() as session:
        session.execute(cancel_jobs(Job.id == fences[0].job_id))
    committer = Committer(database, Settings(), lambda outcomes: None)
    committer.start()
    for each in finished:
        committer.remember(each)
    for fence in fences:
        committer.put(Outcome.succeeded(fence, answer()))
    committer.stop()
    with database.read() as session:
        assert session.scalars(select(CacheEntry.key)).all() == [finished[1].key]


# --- what an estimate says of it ----------------------------------------------------------------


def estimate_of(producer: Cluster, contracts: Sequence[Contract], **model: Any) -> Estimate:
    made = Model(alias="fake", **{**FAKE, "max_input_tokens": CONTEXT, **model})
    catalog = Catalog(path=Path("tidemill.toml"), models={"fake": made}, worker={})
    return estimated(producer.database, catalog, contracts)


def cached(estimate: Estimate) -> tuple[int | None, int | None]:
    said = estimate.as_json
    return said["cached_documents"], said["cached_parts"]


def test_an_estimate_says_what_the_cache_has_already(producer: Cluster) -> None:
    def night(first: int, **fields: Any) -> list[Contract]:
        """Long reports, a short one, letters and prompts: each in four parts of its own."""
        return [
            *(
                SummarizeContract.parse({"text": f"Page {page}. {REPORT}", **fields})
                for page in range(first, first + 4)
            ),
            *(
                SummarizeContract.parse({"text": f"{WORDS} {page}.", **fields})
                for page in range(first, first + 4)
            ),
            *(
                TranslateContract.parse(
                    {
                        "text": f"Dear {'abcdefgh'[page]}, {WORDS}\n\nPage {page} is here.",
                        "source_language": "en",
                        "target_language": "fr",
                        **fields,
                    }
                )
                for page in range(first, first + 4)
            ),
            *(generate(f"Prompt {page}", **fields) for page in range(first, first + 4)),
        ]

    some = {"max_new_tokens": 8}
    with serving(producer, max_input_tokens=CONTEXT) as worker:
        assert cached(estimate_of(producer, night(0, **some))) == (0, 0)
        worker.run(night(0, **some))
        num_parts = worker.num_computed
        again = estimate_of(producer, night(0, **some))
        num_documents, num_cached = cached(again)
        assert num_documents == 16
        assert num_cached is not None
        assert num_cached >= num_parts, "equal parts count each time"
        assert again.seconds == 0.0

        assert cached(estimate_of(producer, night(0, max_new_tokens=9))) == (0, 0)
        assert cached(estimate_of(producer, night(0, **some, tenant="press"))) == (0, 0)
        assert cached(estimate_of(producer, night(0, **some, use_cache=False))) == (0, 0)
        assert cached(estimate_of(producer, night(0, **some), dtype="bfloat16")) == (0, 0)
        half = estimate_of(producer, [*night(2, **some)])
        assert half.as_json["cached_documents"] == 8
        assert half.seconds is not None
        assert half.seconds > 0
    with serving(producer, max_input_tokens=CONTEXT) as worker:
        worker.run(night(0, **some))
        assert worker.num_computed == 0, "as it said"


@on_sqlite
def test_an_estimate_counts_the_sentences_that_a_new_letter_has_in_common(
    producer: Cluster,
) -> None:
    languages = {"source_language": "en", "target_language": "fr"}
    old = TranslateContract.parse({"text": f"{WORDS} We wait.", **languages})
    new = TranslateContract.parse({"text": f"{WORDS} We go.", **languages})
    with serving(producer, max_input_tokens=CONTEXT) as worker:
        worker.run([old])
        assert cached(estimate_of(producer, [new])) == (0, 1)
        assert cached(estimate_of(producer, [old, new])) == (1, 3)


@on_sqlite
def test_removed_entries_do_not_count_in_an_estimate(producer: Cluster) -> None:
    report = SummarizeContract.parse({"text": REPORT, "max_new_tokens": 8})
    with serving(producer, max_input_tokens=CONTEXT) as worker:
        worker.run([report])
        _, num_parts = cached(estimate_of(producer, [report]))
        assert num_parts
        with producer.database.write() as session:
            entry = session.scalars(select(CacheEntry).where(CacheEntry.num_bytes < 400)).first()
            session.delete(entry)
        assert cached(estimate_of(producer, [report])) == (0, num_parts - 1)
        with producer.database.write() as session:
            session.execute(update(CacheEntry).values(created_at=seconds_from_now(-40 * 86400)))
        assert cached(estimate_of(producer, [report])) == (0, 0)
