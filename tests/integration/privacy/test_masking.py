"""Masked jobs through a whole run: the model would fail if it saw a masked text."""

from typing import Any

import pytest
from sqlalchemy import select, text

from db import JobState
from db.encryption.key_ring import KeyRing, new_key
from db.models import Result, Segment
from db.reading.job_details import find_details
from db.session import Database
from tasks import chat, generate, summarize, translate
from tests.running.commands import here
from tests.running.workers import TAKEN_UP_SOON, Cluster, on_sqlite, until
from worker.cache.segments import PLACEHOLDERS

EMAIL = "ada@mail.example"
NAMES = ("Bob", "Ada")
MASKING = """
[masking.tasks.translate]
rules = ["email"]

[masking.tasks.summarize]
rules = ["email"]

[masking.tenants.acme]
rules = ["email"]
finders = ["own_finder:names"]
"""
FINDER = """
from worker.masking.finders import Match


class Names:
    def find(self, text):
        at = text.find("Ada")
        return [Match(at, at + 3, "NAME")] if at >= 0 else []


names = Names()
"""


@on_sqlite
def test_the_model_sees_placeholders_and_the_user_does_not(producer: Cluster) -> None:
    config = producer.configure(
        fake_fail_on="@", worker={"retry_seconds": 0.05, "log_format": "json"}
    )
    config.write_text(config.read_text() + MASKING)
    (producer.folder / "own_finder.py").write_text(FINDER)
    with producer.worker(PYTHONPATH=f"{producer.environment['PYTHONPATH']}:{producer.folder}") as w:
        jobs = {
            "summarize": summarize.submit(text=f"{EMAIL} {EMAIL}", max_new_tokens=1),
            "translate": translate.submit(
                text=EMAIL, source_language="en", target_language="fr", max_new_tokens=1
            ),
            "of a tenant": generate.submit(text="Ada", tenant="acme", max_new_tokens=1),
            "of its chat": chat.submit(
                messages=[{"role": "user", "content": EMAIL}], tenant="acme", max_new_tokens=1
            ),
            "of another": generate.submit(text=EMAIL, max_new_tokens=1),
        }
        found = {name: job.wait(90) for name, job in jobs.items()}
    seen = found.pop("of another")
    assert (seen.state, seen.error and seen.error.code) == (JobState.FAILED, "generation_failed")
    for name, job in found.items():
        assert job.state is JobState.SUCCEEDED, (name, job.error)
    assert found["summarize"].output == EMAIL
    assert found["translate"].output == EMAIL
    assert found["of a tenant"].output == "Ada"
    assert "⟦" not in str(found["of its chat"].output)
    with producer.database.read() as session:
        of_tenant = Result.job_id == jobs["of a tenant"].id
        provenance = session.scalars(select(Result.provenance).where(of_tenant)).one()
    assert provenance["masking"] == {"masked": {"NAME": 1}, "lost": {}, "invented": {}}
    assert EMAIL not in w.log


@on_sqlite
def test_a_slow_masking_pattern_delays_no_other_job(producer: Cluster) -> None:
    """Masking must not run one job after the other where jobs are claimed, a second for each."""
    config = producer.configure()
    table = "[masking.tenants.acme]\npatterns = { SLOW = '(a|aa)+$' }\n"
    config.write_text(config.read_text() + table)
    slow = [generate.submit(text="a" * 60 + "b", tenant="acme") for _ in range(4)]
    others = [
        generate.submit(text="the mill", max_new_tokens=1),
        chat.submit(messages=[{"role": "user", "content": "the mill"}], max_new_tokens=1),
    ]
    with producer.worker():
        ended = [job.wait(90) for job in (*slow, *others)]
    codes = [job.error and job.error.code for job in ended]
    assert codes == ["masking_pattern_too_slow"] * 4 + [None] * 2
    times = [job.finished_at for job in ended]
    assert all(each is not None for each in times)
    assert max(times[4:]) < max(times[:4])


@on_sqlite
def test_waiting_for_another_jobs_patterns_takes_no_part_of_a_time_limit(producer: Cluster) -> None:
    """Four patterns take a second each, on the thread that masks the fifth job of the lane."""
    config = producer.configure()
    tables = (
        "[masking.tenants.slow]\npatterns = { SLOW = '(a|aa)+$' }\n"
        "[masking.tenants.quick]\npatterns = { K = 'K-[0-9]+' }\n"
    )
    config.write_text(config.read_text() + tables)
    slow = [generate.submit(text="a" * 60 + "b", tenant="slow") for _ in range(4)]
    quick = generate.submit(text="K-7", tenant="quick", max_new_tokens=1, time_limit_seconds=1)
    with producer.worker():
        ended = [job.wait(90) for job in (*slow, quick)]
    codes = [job.error and job.error.code for job in ended]
    assert codes == ["masking_pattern_too_slow"] * 4 + [None]


@on_sqlite
@pytest.mark.parametrize(
    "table", ['[masking]\nrules = ["emails"]\n', '[masking]\nfinders = ["no.where:x"]\n']
)
def test_a_worker_that_could_not_mask_does_not_start(producer: Cluster, table: str) -> None:
    config = producer.configure()
    config.write_text(config.read_text() + table)
    worker = producer.start_worker()
    assert worker.wait() != 0
    assert "masking" in worker.log
    assert "Traceback" not in worker.log


@on_sqlite
def test_masked_values_are_stored_encrypted_and_deleted_with_their_job(
    producer: Cluster,
) -> None:
    keys = new_key("k1")
    sealed = Database(producer.database.url, KeyRing.parse(keys, "it"))
    config = producer.configure(
        max_input_tokens=40,
        max_sequences=2,
        fake_step_seconds=0.05,
        worker=TAKEN_UP_SOON,
    )
    config.write_text(config.read_text() + '[masking]\npatterns = { NAME = "Ada" }\n')
    sentences = (f"{name} says in part {n} that all is well." for n in range(20) for name in NAMES)
    with producer.worker(TIDEMILL_KEYS=keys) as first:
        sent = {"text": " ".join(sentences), "source_language": "en", "target_language": "fr"}
        with here(producer.folder, {**producer.environment, "TIDEMILL_KEYS": keys}):
            job_id = translate.submit(**sent).id
        kept = until(lambda: placeholders(sealed), "the first part")
        first.kill()
    assert kept == {"⟦NAME_1⟧": "Ada"}
    with sealed.read() as session:
        statement = text("SELECT output FROM segments WHERE position = :position")
        raw = session.execute(statement, {"position": PLACEHOLDERS}).scalar()
    assert "tm1$k1$" in str(raw)
    assert "Ada" not in str(raw)

    fast = producer.configure(max_input_tokens=40, worker=TAKEN_UP_SOON).read_text()
    config.write_text(fast + '[masking]\npatterns = { NAME = "Bob|Ada" }\n')
    with producer.worker(TIDEMILL_KEYS=keys):
        producer.wait_for(JobState.SUCCEEDED)
    details = find_details(job_id, database=sealed)
    assert details is not None
    assert details.provenance["masking"]["masked"] == {"NAME": 2}
    assert details.job.output is not None
    assert "⟦" not in details.job.output
    assert {name for name in NAMES if name in details.job.output} == set(NAMES)
    assert placeholders(sealed) is None
    sealed.close()


def placeholders(database: Database) -> dict[str, Any] | None:
    with database.read() as session:
        return session.scalars(
            select(Segment.output).where(Segment.position == PLACEHOLDERS)
        ).first()
