"""Guards as their users have them: a worker with thresholds, and what the commands list."""

import dataclasses
import json

import pytest

from db.outcome import SIGNALS
from db.reading.results import find_job
from db.states import JobState
from tasks.chat import submit as chat
from tasks.generate import submit as generate
from tests.running.commands import CommandLine
from tests.running.workers import Cluster, on_sqlite
from tests.samples.jobs import answer, insert_job, succeed
from tests.unit.db.reading.test_results import SIGNALS as ODD

GUARDS = """
[guards]
max_repetition = 0.4

[guards.chat]
actions = { repetition = "fail" }
"""


@on_sqlite
def test_a_worker_flags_or_fails_as_its_configuration_says(producer: Cluster) -> None:
    path = producer.configure()
    path.write_text(path.read_text() + GUARDS)
    with producer.worker() as worker:
        flagged = generate(text="tide", max_new_tokens=12).id
        fine = generate(text="tide", max_new_tokens=2).id
        failed = chat(messages=[{"role": "user", "content": "tide"}], max_new_tokens=12).id
        producer.wait_until_finished(3)
        log = worker.log

    found = find_job(flagged, database=producer.database)
    assert found is not None
    assert (found.suspicions, found.num_empty_parts) == (("repetition",), 0)
    assert found.repetition is not None
    assert found.repetition > 0.4
    other = find_job(fine, database=producer.database)
    assert other is not None
    assert (other.suspicions, other.repetition, other.length_ratio) == ((), 0.0, 2.25)
    job = producer.job(failed)
    assert (job.state, job.error_code) == (JobState.FAILED, "quality_guard")
    assert "repetition (0." in (job.error_message or "")
    assert "tide tide" not in log


def test_suspicious_results_are_listed_with_reasons(stored: CommandLine) -> None:
    from db.session import Database

    database = Database(stored.environment["TIDEMILL_DATABASE_URL"])
    plain, odd = insert_job(database, custom_id="plain"), insert_job(database, custom_id="odd")
    succeed(database, plain, answer())
    succeed(database, odd, dataclasses.replace(answer(), signals=ODD))
    database.close()

    shown = stored("results", "--suspicious")
    # Each with its figure; how a cell is broken depends on the terminal.
    assert {"0.25", "0.80", "repetition"} <= set(shown.out.split())
    assert "plain" not in shown.out

    (line,) = stored("results", "--suspicious", "--json").out.splitlines()
    record = json.loads(line)
    assert record["suspicions"] == ["too_short", "repetition"]
    assert record["reasons"] == ["0.25 of the source's length", "0.80 of a stretch is repetition"]
    assert {name: record[name] for name in SIGNALS} == {
        name: getattr(ODD, name) for name in SIGNALS
    }
    assert [
        json.loads(each)["custom_id"]
        for each in stored("results", "--signal", "repetition>0.5", "--json").out.splitlines()
    ] == ["odd"]
    assert "no succeeded job matches" in stored("results", "--reason", "untranslated").out
    assert "suspicions" not in stored("results", "--json").out

    shown = stored("show", str(odd))
    assert "too_short (0.25 of the source's length); repetition" in shown.out
    assert stored("show", str(odd), "--json").json["suspicions"] == ["too_short", "repetition"]


@pytest.mark.parametrize(
    ("arguments", "fault"),
    [
        (("--signal", "mood>3"), "'mood' is no signal"),
        (("--reason", "sad"), "is not one of"),
        (("--json", "--format", "csv"), "is --format jsonl"),
    ],
)
def test_an_invalid_filter_is_refused(
    stored: CommandLine, arguments: tuple[str, ...], fault: str
) -> None:
    ended = stored("results", *arguments)
    assert ended.status == 2
    assert fault in " ".join(ended.err.split())
