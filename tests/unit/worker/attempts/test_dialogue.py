"""A dialogue is read from the database as its jobs were asked and answered."""

from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import delete

from db.clock import seconds_from_now
from db.models import Job, Payload, Result
from db.outcome import Fence, Outcome
from db.queries.jobs import submission
from db.session import Database
from db.states import JobState
from engine.protocol.request import ChatTurn
from tests.samples.jobs import answer, job_row, set_columns
from worker.attempts import dialogue
from worker.attempts.dialogue import Dialogue, messages_of, read_dialogue, turns_of, with_dialogues
from worker.committer import result_row

SYSTEM, USER, ASSISTANT = "system", "user", "assistant"


def said(*messages: tuple[str, str]) -> list[dict[str, str]]:
    return [{"role": role, "content": content} for role, content in messages]


def ended_chat(
    database: Database,
    previous: UUID | None,
    messages: list[dict[str, str]],
    output: str,
    state: JobState = JobState.SUCCEEDED,
) -> UUID:
    """A chat job that has its answer."""
    row = job_row(task="chat", state=state)
    contract: dict[str, Any] = {"messages": messages}
    if previous is not None:
        contract["previous_job_id"] = str(previous)
    payload = {"job_id": row["id"], "contract": contract, "metadata": {}}
    succeeded = Outcome.succeeded(Fence(row["id"], 1, "one"), answer(output))
    with database.write() as session:
        submission.insert_jobs(session, [row])
        session.execute(submission.insert_payloads(), [{**payload, "previous_job_id": previous}])
        session.add(Result(**result_row(succeeded)))
    return row["id"]


def read(database: Database, newest: UUID) -> Dialogue:
    with database.read() as session:
        return read_dialogue(session, newest)


def in_words(read: Dialogue) -> list[list[str]]:
    return [[message.content for message in turn] for turn in read.turns]


@pytest.fixture
def chain(database: Database) -> list[UUID]:
    """Three jobs, of which the first is two turns."""
    first = ended_chat(
        database,
        None,
        said((SYSTEM, "be brief"), (USER, "a"), (ASSISTANT, "A"), (USER, "b")),
        "B",
    )
    second = ended_chat(database, first, said((USER, "c")), "C")
    return [first, second, ended_chat(database, second, said((USER, "d")), "D")]


def test_the_whole_chain_is_read_in_the_order_in_which_it_was_said(
    database: Database, chain: list[UUID]
) -> None:
    whole = read(database, chain[-1])
    assert in_words(whole) == [["a", "A"], ["b", "B"], ["c", "C"], ["d", "D"]]
    assert whole.system == (ChatTurn(SYSTEM, "be brief"),)
    assert {turn[0].role for turn in whole.turns} == {USER}
    assert {turn[1].role for turn in whole.turns} == {ASSISTANT}
    assert (whole.num_unread, whole.is_broken) == (0, False)


def test_two_dialogues_may_go_on_from_one_job(database: Database, chain: list[UUID]) -> None:
    other = ended_chat(database, chain[0], said((USER, "x")), "X")
    assert in_words(read(database, other)) == [["a", "A"], ["b", "B"], ["x", "X"]]


def test_the_newest_system_turn_is_the_one_that_stays(
    database: Database, chain: list[UUID]
) -> None:
    newest = ended_chat(database, chain[-1], said((SYSTEM, "be long"), (USER, "e")), "E")
    whole = read(database, ended_chat(database, newest, said((USER, "f")), "F"))
    assert whole.system == (ChatTurn(SYSTEM, "be long"),)
    assert len(whole.turns) == 6


def test_a_dialogue_longer_than_any_prompt_is_counted_and_not_held(
    database: Database, chain: list[UUID], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dialogue, "MAX_CHARACTERS", 4)
    monkeypatch.setattr(dialogue, "JOBS_READ", 1)
    whole = read(database, chain[-1])
    assert in_words(whole) == [["c", "C"], ["d", "D"]]
    assert (whole.num_unread, whole.characters_unread) == (2, 4)
    assert whole.system == (ChatTurn(SYSTEM, "be brief"),), "though its own job was too long"


@pytest.mark.parametrize("gone", [0, 1, 2])
def test_a_dialogue_without_one_of_its_jobs_is_broken(
    database: Database, chain: list[UUID], gone: int
) -> None:
    with database.write() as session:
        for model in (Result, Payload):
            session.execute(delete(model).where(model.job_id == chain[gone]))
        session.execute(delete(Job).where(Job.id == chain[gone]))
    assert read(database, chain[-1]).is_broken


def test_a_dialogue_without_one_of_its_answers_is_broken(
    database: Database, chain: list[UUID]
) -> None:
    with database.write() as session:
        session.execute(delete(Result).where(Result.job_id == chain[1]))
    assert read(database, chain[-1]).is_broken
    pruned = ended_chat(database, None, said((USER, "a")), "A")
    set_columns(database, [pruned], pruned_at=seconds_from_now(0))
    assert read(database, pruned).is_broken
    failed = ended_chat(database, None, said((USER, "a")), "A", JobState.FAILED)
    assert read(database, failed).is_broken


def test_a_dialogue_is_read_only_for_jobs_that_continue_one(
    database: Database, chain: list[UUID]
) -> None:
    alone, going_on = UUID(int=1), UUID(int=2)
    contracts = {
        alone: {"messages": said((USER, "a"))},
        going_on: {"messages": said((USER, "e")), "previous_job_id": str(chain[-1])},
    }
    with database.read() as session:
        made = with_dialogues(session, contracts)
    assert made[alone] is contracts[alone]
    assert len(made[going_on]["dialogue"].turns) == 4
    assert "dialogue" not in contracts[going_on]


@pytest.mark.parametrize(
    ("messages", "turns"),
    [
        ([], []),
        ([(USER, "a"), (ASSISTANT, "A")], ["aA"]),
        ([(ASSISTANT, "hello"), (USER, "a"), (ASSISTANT, "A")], ["helloaA"]),
        ([(USER, "a"), (USER, "b"), (ASSISTANT, "A"), (USER, "c")], ["a", "bA", "c"]),
        ([(USER, "a"), (SYSTEM, "s"), (ASSISTANT, "A"), (USER, "b")], ["asA", "b"]),
        ([(ASSISTANT, "A")], ["A"]),
    ],
)
def test_turns_begin_with_a_user_and_cover_all_messages(
    messages: list[tuple[str, str]], turns: list[str]
) -> None:
    made = turns_of(messages_of({"messages": said(*messages)}))
    assert ["".join(each.content for each in turn) for turn in made] == turns
