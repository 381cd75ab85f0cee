"""The progress bar of a batch on a terminal."""

import io
from datetime import timedelta

import pytest
from sqlalchemy import update

from cli.output.progress import watch
from cli.output.terminal import Screen
from db.models import Batch, Job
from db.reading.batches import find_batches
from db.session import Database
from tasks.configuration import settings
from tests.samples.jobs import answer, insert_batch, insert_job, succeed


def test_a_batch_took_the_time_from_its_start_to_its_last_job_whenever_it_is_watched(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(settings, "database", lambda: database)
    batch_id = insert_batch(database)
    for _ in range(2):
        succeed(database, insert_job(database, batch_id=batch_id), answer())
    [batch] = find_batches(batch_id, database=database)
    with database.write() as session:
        session.execute(update(Batch).values(closed_at=batch.created_at))
        ended = update(Job).values(finished_at=batch.created_at + timedelta(seconds=7384))
        session.execute(ended)
    [batch] = find_batches(batch_id, database=database)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("FORCE_COLOR", "1")  # Rich then treats any file as a terminal
    console = Screen(width=120)
    console.file = io.StringIO()

    watch(batch, console=console)

    assert "2:03:04" in console.file.getvalue()
