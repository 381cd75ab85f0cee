"""Masked jobs through a whole run: the model would fail at what it must not see."""

import pytest
from sqlalchemy import select

from db import JobState
from db.models import Result
from tasks import chat, generate, summarize, translate
from tests.workers import Cluster, on_sqlite

EMAIL = "ada@mail.example"
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
