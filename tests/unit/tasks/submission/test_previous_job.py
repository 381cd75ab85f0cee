"""A chat continues a chat of its own tenant that has its answer, and no other job."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
from kombu.transport import memory

from db.clock import seconds_from_now
from db.outcome import Outcome
from db.queries.jobs import completion
from db.session import Database
from db.states import JobState
from tasks import chat, generate, submit_batch
from tasks.chat import ChatContract
from tasks.errors import (
    ContractError,
    PreviousJobUnfinished,
    PreviousJobUnusable,
    Refused,
    UnknownPreviousJob,
)
from tasks.submission.message import submit_message
from tests.running.producers import FAKE, producing, write_config
from tests.samples.jobs import answer, claim, job, payload, set_columns, states
from worker.committer import result_row

ASKED = [{"role": "user", "content": "and now?"}]


@pytest.fixture(autouse=True)
def _producing(database: Database, tmp_path: Path) -> Iterator[None]:
    memory.Channel.queues.clear()
    models = {"one": FAKE, "two": FAKE, "mute": {**FAKE, "tasks": ["generate"]}}
    config = write_config(tmp_path / "tidemill.toml", models)
    with producing(database.url.render_as_string(hide_password=False), "memory://", config):
        yield


def answered(database: Database, **fields: Any) -> UUID:
    """A chat that has succeeded."""
    submitted = chat.submit(messages=ASKED, **fields).id
    (fence,) = claim(database, [submitted])
    with database.write() as session:
        completion.succeed_attempts(session, "one", [(submitted, fence.attempt)]).all()
        rows = [result_row(Outcome.succeeded(fence, answer("yes")))]
        session.execute(completion.insert_results(), rows)
    return submitted


def test_a_chat_is_kept_with_the_id_of_its_previous_job(database: Database) -> None:
    first = answered(database)
    second = chat.submit(messages=ASKED, previous_job_id=str(first)).id
    kept = payload(database, second)
    assert kept.previous_job_id == first
    assert kept.contract == {"messages": ASKED, "previous_job_id": str(first)}
    assert payload(database, first).previous_job_id is None
    again = chat.submit(messages=ASKED, previous_job_id=first, idempotency_key="k")
    assert (
        chat.submit(messages=ASKED, previous_job_id=str(first), idempotency_key="k").id == again.id
    )


def test_a_dialogue_stays_with_its_model_unless_it_names_another(database: Database) -> None:
    first = answered(database, model="two")
    assert job(database, chat.submit(messages=ASKED, previous_job_id=first).id).model == "two"
    named = chat.submit(messages=ASKED, previous_job_id=first, model="one")
    assert job(database, named.id).model == "one"
    set_columns(database, [first], model="no longer there")
    assert job(database, chat.submit(messages=ASKED, previous_job_id=first).id).model == "one"


def test_an_unknown_job_and_that_of_another_tenant_are_refused_alike(database: Database) -> None:
    theirs, unknown = answered(database, tenant="others"), uuid4()
    says = []
    for job_id in (theirs, unknown):
        with pytest.raises(UnknownPreviousJob) as refused:
            chat.submit(messages=ASKED, previous_job_id=job_id)
        says.append(str(refused.value).replace(str(job_id), "ID"))
    assert says[0] == says[1] == "previous_job_id: the tenant 'default' has no job ID"
    assert refused.value.code == "unknown_previous_job"
    assert chat.submit(messages=ASKED, previous_job_id=theirs, tenant="others").is_new


@pytest.mark.parametrize("state", [JobState.QUEUED, JobState.RUNNING])
def test_a_job_without_its_answer_is_refused_for_now(database: Database, state: JobState) -> None:
    first = chat.submit(messages=ASKED).id
    set_columns(database, [first], state=state)
    with pytest.raises(PreviousJobUnfinished, match=f"is still {state}; submit what follows"):
        chat.submit(messages=ASKED, previous_job_id=first)
    assert states(database) == {state: 1}


@pytest.mark.parametrize("state", [JobState.FAILED, JobState.CANCELLED, JobState.EXPIRED])
def test_a_job_that_will_have_no_answer_is_refused(database: Database, state: JobState) -> None:
    first = chat.submit(messages=ASKED).id
    set_columns(database, [first], state=state)
    with pytest.raises(PreviousJobUnusable, match=f"it is {state}, so it has no answer"):
        chat.submit(messages=ASKED, previous_job_id=first)


def test_a_job_that_has_lost_its_text_is_refused(database: Database) -> None:
    first = answered(database)
    set_columns(database, [first], pruned_at=seconds_from_now(0))
    with pytest.raises(PreviousJobUnusable, match="its text has been deleted"):
        chat.submit(messages=ASKED, previous_job_id=first)


def test_a_job_that_is_no_chat_is_refused(database: Database) -> None:
    other = generate.submit(text="once").id
    with pytest.raises(PreviousJobUnusable, match="it is a generate job; only a chat"):
        chat.submit(messages=ASKED, previous_job_id=other)


@pytest.mark.parametrize("wrong", ["", "yesterday's", 7, True, ["x"], "\ud83d", "a\x00b", None])
def test_an_invalid_id_is_refused_without_being_quoted(wrong: Any) -> None:
    if wrong is None:
        assert ChatContract.parse({"messages": ASKED, "previous_job_id": None})
        return
    with pytest.raises(ContractError, match="previous_job_id") as refused:
        ChatContract.parse({"messages": ASKED, "previous_job_id": wrong})
    assert "yesterday" not in str(refused.value)


def test_a_message_that_continues_no_job_is_kept_as_a_failed_one(database: Database) -> None:
    fields = {"messages": ASKED, "previous_job_id": str(uuid4())}
    job_id = UUID(submit_message(ChatContract, fields, str(uuid4())))
    row = job(database, job_id)
    assert (row.state, row.error_code) == ("failed", "unknown_previous_job")


def test_a_message_that_names_itself_continues_nothing(database: Database) -> None:
    own = uuid4()
    submit_message(ChatContract, {"messages": ASKED, "previous_job_id": str(own)}, str(own))
    assert job(database, own).error_code == "unknown_previous_job"


def test_a_batch_may_continue_jobs_and_is_refused_at_the_first_that_it_cannot(
    database: Database,
) -> None:
    first = answered(database, model="two")
    going_on = ChatContract.parse({"messages": ASKED, "previous_job_id": str(first)})
    submit_batch([going_on, going_on], name="replies")
    assert states(database) == {"succeeded": 1, "queued": 2}
    wrong = going_on.model_copy(update={"previous_job_id": uuid4()})
    with pytest.raises(Refused, match="has no job"):
        submit_batch([wrong], name="others")
