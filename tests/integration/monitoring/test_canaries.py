"""Canaries run every night and raise an alarm if an answer differs from the expected one."""

import json
from datetime import datetime

import pytest
from sqlalchemy import func, select, update

from db.clock import seconds_from_now
from db.models import Job, Leadership
from db.upkeep.retention import Retention
from tasks.canaries import Canary, canaries_of, canary_outcomes, submit_canaries
from tasks.configuration import settings
from tasks.errors import Refused
from tests.running.commands import CommandLine
from tests.running.workers import PATIENCE_SECONDS, Cluster, on_sqlite, until
from tests.samples.jobs import answer, succeed
from worker.dispatcher.nightly_pass import NIGHTLY, NightlyPass

CANARIES = """
[[canaries]]
name = "right"
task = "generate"
text = "the mill"
max_new_tokens = 2
expected = "{right}"

[[canaries]]
name = "wrong"
task = "generate"
text = "the mill"
max_new_tokens = 2
expected = "something else"

[[canaries]]
name = "unsaid"
task = "generate"
text = "the mill"
max_new_tokens = 2
"""


@pytest.fixture
def command_line(producer: Cluster) -> CommandLine:
    return CommandLine(
        producer.folder,
        {
            "TIDEMILL_DATABASE_URL": producer.database_url,
            "TIDEMILL_REDIS_URL": producer.redis_url,
            "COLUMNS": "200",
        },
    )


def verdicts(command_line: CommandLine, *arguments: str) -> tuple[int, dict[str, str]]:
    ended = command_line("canaries", "--json", *arguments)
    assert ended.out, ended.err
    return ended.status, {each["name"]: each["verdict"] for each in json.loads(ended.out)}


@on_sqlite
def test_a_canary_without_its_model_is_missing_and_stops_no_other(producer: Cluster) -> None:
    """Its last answer was right, and must not be reported as right for ever."""

    def canaries(model: str) -> tuple[Canary, ...]:
        table = {"task": "generate", "text": "the mill", "expected": "said"}
        return canaries_of([{**table, "name": "a", "model": model}, {**table, "name": "b"}])

    def outcomes() -> dict[str, tuple[str, bool]]:
        found = canary_outcomes(canaries("fake"), producer.database)
        return {each.name: (each.verdict, each.is_alarming) for each in found}

    def finish_all() -> None:
        with producer.database.read() as session:
            job_ids = list(session.scalars(select(Job.id).where(Job.finished_at.is_(None))))
        for job_id in job_ids:
            succeed(producer.database, job_id, answer("said"))

    submit_canaries(canaries("fake"), "night 1")
    finish_all()
    assert outcomes() == {"a": ("same", False), "b": ("same", False)}
    with pytest.raises(Refused, match="no model 'gone'"):
        submit_canaries(canaries("gone"), "night 2")
    finish_all()
    assert outcomes() == {"a": ("missing", True), "b": ("same", False)}
    with producer.database.read() as session:
        assert session.scalar(select(func.count()).select_from(Job)) == 3
    submit_canaries(canaries("fake"), "night 3")  # not finished yet
    assert outcomes() == {"a": ("same", False), "b": ("same", False)}


@on_sqlite
def test_a_changed_answer_is_alarming_by_hand_and_at_night(
    producer: Cluster, command_line: CommandLine
) -> None:
    config = producer.folder / "tidemill.toml"
    text = config.read_text()
    with producer.worker():
        said = command_line(
            "submit", "generate", "the mill", "--param", "max_new_tokens=2", "--wait", "--json"
        )
        assert said.out, said.err
        config.write_text(text + CANARIES.format(right=json.loads(said.out)["output"]))
        assert verdicts(command_line)[1] == dict.fromkeys(("right", "wrong", "unsaid"), "unknown")
        status, first = verdicts(command_line, "--run")
        assert (status, first) == (1, {"right": "same", "wrong": "changed", "unsaid": "first"})

        settings.catalog.cache_clear()
        canaries = canaries_of(settings.catalog().canaries)
        database = producer.database
        nightly = NightlyPass(
            database, "test", Retention(), lambda: True, lambda: datetime(2026, 11, 29, 3), canaries
        )
        nightly.tick()
        with database.write() as session:
            due = update(Leadership).where(Leadership.name == NIGHTLY)
            session.execute(due.values(until=seconds_from_now(-1)))
        nightly.tick()
        until(
            lambda: (
                [each.verdict for each in canary_outcomes(canaries, database)]
                == ["same", "changed", "same"]
            ),
            "the night's answers",
            PATIENCE_SECONDS,
        )
