"""How far a batch is, in tokens: long documents count for what they are."""

import pytest

from cli.output.batch_tokens import BatchTokens, Kind, RunningJob, TokensDone, tokens_done
from db.queries.jobs.segments import insert_segments
from db.session import Database
from engine.protocol.output import Choice, Output
from tasks.configuration import settings
from tests.samples.jobs import answer, claim, insert_batch, insert_job, succeed


def test_a_long_document_counts_for_what_it_is() -> None:
    short = Kind("m", "summarize", "succeeded", 99, 9_900, 4_950)
    long = Kind("m", "summarize", "queued", 1, 90_100, None)

    done = tokens_done([short, long])

    assert done == TokensDone(4_950 + 99, 4_950 + 99 + 45_050 + 1)


def test_what_is_not_done_is_guessed_by_its_own_model_and_task() -> None:
    kinds = [
        Kind("m", "summarize", "succeeded", 1, 100, 50),
        Kind("m", "generate", "succeeded", 1, 100, 400),
        Kind("m", "summarize", "running", 1, 100, None),
        Kind("m", "generate", "queued", 1, 100, None),
        Kind("other", "chat", "queued", 1, 100, None),  # as all the others together: 450 of 200
    ]
    assert tokens_done(kinds) == TokensDone(452, 452 + 51 + 401 + 226)


def test_failed_jobs_are_done_and_nothing_is_divided_by_nothing() -> None:
    assert tokens_done([]) == TokensDone(0, 0)
    assert tokens_done([Kind("m", "chat", "failed", 2, 0, None)]) == TokensDone(2, 2)
    assert tokens_done([Kind("m", "chat", "queued", 1, 400, None)]) == TokensDone(0, 101)


def test_a_batch_is_looked_at_once_a_second_and_at_its_end(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(settings, "database", lambda: database)
    batch_id = insert_batch(database)
    first = insert_job(database, batch_id=batch_id, num_characters=10)
    insert_job(database, batch_id=batch_id, num_characters=30)
    now = 0.0
    tokens = BatchTokens(batch_id, clock=lambda: now)
    assert tokens.at(False).finished == 0
    succeed(database, first, answer())  # 3 tokens in, 2 out

    assert tokens.at(False).finished == 0
    now = 1.0
    assert tokens.at(False) == TokensDone(6, 22)
    assert tokens.at(True) == TokensDone(22, 22)


def test_the_finished_parts_of_a_running_document_count_but_never_as_all_of_it() -> None:
    kinds = [
        Kind("m", "summarize", "succeeded", 1, 100, 50),
        Kind("m", "summarize", "running", 2, 2_000, None),
    ]
    half = RunningJob("m", "summarize", 1_000, 250)
    more = RunningJob("m", "summarize", 1_000, 900)
    assert tokens_done(kinds, [half]) == TokensDone(51 + 250, 51 + 1_002)
    assert tokens_done(kinds, [more]) == TokensDone(51 + 495, 51 + 1_002)


def test_a_single_long_document_moves_with_each_of_its_parts(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(settings, "database", lambda: database)
    batch_id = insert_batch(database)
    job_id = insert_job(database, batch_id=batch_id, num_characters=4_000)
    claim(database, [job_id])
    now = 0.0
    tokens = BatchTokens(batch_id, clock=lambda: now)
    seen = [tokens.at(False).finished]
    for position in range(3):
        output = Output(request_id=1, choices=(Choice("so", "stop", 20),), prompt_tokens=180)
        with database.write() as session:
            session.execute(
                insert_segments(session),
                [
                    {
                        "job_id": job_id,
                        "position": position,
                        "output": {"digest": "0", "output": output.to_json()},
                    }
                ],
            )
        now += 1.0
        seen.append(tokens.at(False).finished)

    assert seen == [0, 200, 400, 600]
    assert tokens.at(False).total == 1_001
