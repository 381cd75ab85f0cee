"""`tidemill prune`, and the nightly pass of a real worker."""

import json

from sqlalchemy import update

from db.clock import seconds_from_now
from db.models import Job, Leadership
from db.session import Database
from db.states import JobState
from tests.running.commands import CommandLine
from tests.running.workers import Cluster, until
from tests.samples.jobs import insert_job
from worker.dispatcher.nightly_pass import NIGHTLY

RETENTION = """
[retention]
payloads = "30d"
outputs = "90d"
"""


def configure(stored: CommandLine, text: str) -> None:
    config = stored.folder / "tidemill.toml"
    config.write_text(config.read_text() + text)


def database_of(stored: CommandLine) -> Database:
    return Database(stored.environment["TIDEMILL_DATABASE_URL"])


def finish_long_ago(stored: CommandLine) -> None:
    database = database_of(stored)
    with database.write() as session:
        session.execute(
            update(Job).values(
                state=JobState.FAILED,
                error_code="engine_crash",
                finished_at=seconds_from_now(-31 * 86_400),
            )
        )
    database.close()


def test_old_texts_are_pruned_and_reported_as_pruned(stored: CommandLine) -> None:
    configure(stored, RETENTION)
    stored.write("a.jsonl", {"text": "the canary sings", "custom_id": "1"}, {"text": "y"})
    assert stored("submit", "summarize", "--file", "a.jsonl", "--batch", "b").status == 0
    finish_long_ago(stored)

    dry = stored("prune", "--dry-run")
    assert (dry.status, dry.out) == (0, "would go: 2 payloads\n")
    assert stored("prune", "--dry-run", "--json").json["pruned"]["payloads"] == 2
    pruned = stored("prune", "--json").json
    assert pruned["dry_run"] is False
    assert {name: num for name, num in pruned["pruned"].items() if num} == {"payloads": 2}
    assert stored("prune").out == "nothing is old enough to go\n"

    listed = stored("results", "--state", "all", "--format", "jsonl", "--input")
    rows = [json.loads(line) for line in listed.out.splitlines()]
    assert [(row["state"], row["input"], row["custom_id"]) for row in rows] == [
        ("failed", None, "1"),
        ("failed", None, None),
    ]
    chosen = stored("results", "--state", "all", "--format", "csv", "--columns", "id,pruned_at")
    job_id, pruned_at = chosen.out.splitlines()[1].split(",")
    assert pruned_at
    shown = stored("show", job_id)
    assert "pruned" in shown.out
    assert "as old as [retention] allows" in shown.out
    assert stored("show", job_id, "--json").json["input_pruned_at"] == pruned_at
    retried = stored("retry", job_id)
    assert "its text was pruned, so there is nothing to run" in retried.out
    assert "0 jobs queued again" in stored("retry", "--batch", "b").out


def test_a_job_that_is_submitted_again_after_its_text_was_pruned_is_the_same_job(
    stored: CommandLine,
) -> None:
    configure(stored, '\n[retention]\npayloads = "0d"\n')
    arguments = ("submit", "generate", "x", "--run-key", "k", "--json")
    stored.write("a.jsonl", {"text": "x", "custom_id": "1"})
    arguments = ("submit", "generate", "--file", "a.jsonl", "--run-key", "k", "--json")
    assert stored(*arguments).json["num_new"] == 1
    finish_long_ago(stored)
    assert stored("prune", "--json").json["pruned"]["payloads"] == 1

    assert stored(*arguments).json["num_new"] == 0


def test_without_a_retention_table_nothing_is_pruned_and_prune_reports_it(
    stored: CommandLine,
) -> None:
    ended = stored("prune")
    assert ended.status == 0
    assert "has no [retention]: everything is kept" in ended.err


def test_a_bad_table_is_refused_in_words(stored: CommandLine) -> None:
    configure(stored, '\n[retention]\noutputs = "soon"\n')
    ended = stored("prune")
    assert ended.status == 1
    assert "retention.outputs is 'soon'" in ended.err


def test_the_leader_of_the_workers_prunes_at_night(cluster: Cluster) -> None:
    config = cluster.configure()
    config.write_text(config.read_text() + '\n[retention]\npayloads = "1d"\n')
    old = insert_job(
        cluster.database,
        state=JobState.CANCELLED,
        model="fake",
        finished_at=seconds_from_now(-2 * 86_400),
    )
    with cluster.database.write() as session:
        session.add(Leadership(name=NIGHTLY, leader="another", until=seconds_from_now(-1)))

    with cluster.worker() as worker:
        until(lambda: cluster.job(old).pruned_at, "a job that was pruned")
        until(lambda: "nightly pass" in worker.log, "a line in the log")
