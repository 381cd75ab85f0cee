"""A dialogue that goes on: as many of its turns as leave room for the answer."""

from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import pytest

from db.outcome import Answer
from engine.protocol.engine_spec import EngineSpec
from engine.protocol.request import ChatTurn
from tests.running.attempts import CountingClient, Run
from worker.attempts.dialogue import Dialogue

CONTEXT = 32  # words of a prompt, to the fake engine


@pytest.fixture(scope="module")
def engine() -> Iterator[CountingClient]:
    spec = EngineSpec(alias="fake", checkpoint="fake", engine="fake", max_input_tokens=CONTEXT)
    client = CountingClient(spec)
    client.start()
    yield client
    client.stop()


@pytest.fixture
def client(engine: CountingClient) -> CountingClient:
    engine.asked, engine.most_held = [], 0
    return engine


def turns(*lengths: int) -> tuple[tuple[ChatTurn, ...], ...]:
    """Turns of so many words each, no two alike."""
    return tuple(
        (
            ChatTurn("user", " ".join(f"q{at}.{word}" for word in range(length - 1))),
            ChatTurn("assistant", f"a{at}"),
        )
        for at, length in enumerate(lengths)
    )


def chat(client: CountingClient, dialogue: Dialogue | None, *own: tuple[str, str]) -> Run:
    contract: dict[str, Any] = {
        "messages": [{"role": role, "content": content} for role, content in own],
        "max_new_tokens": 3,
    }
    if dialogue is not None:
        contract |= {"previous_job_id": str(uuid4()), "dialogue": dialogue}
    return Run(client, contract, task="chat")


def report(answer: Answer) -> tuple[int, int]:
    dialogue = answer.provenance["dialogue"]
    return dialogue["turns"], dialogue["turns_left_out"]


def test_a_chat_that_continues_nothing_is_one_request(client: CountingClient) -> None:
    answer = chat(client, None, ("user", "three words long")).answer()
    assert len(client.asked) == 1
    assert "dialogue" not in answer.provenance
    assert answer.left_out_characters is None


def test_a_dialogue_that_fits_is_sent_whole(client: CountingClient) -> None:
    dialogue = Dialogue((ChatTurn("system", "be brief"),), turns(4, 5))
    answer = chat(client, dialogue, ("user", "and now")).answer()
    (request,) = client.generated
    assert request.messages == (
        ChatTurn("system", "be brief"),
        *dialogue.turns[0],
        *dialogue.turns[1],
        ChatTurn("user", "and now"),
    )
    assert answer.prompt_tokens == 2 + 4 + 5 + 2
    assert report(answer) == (2, 0)
    assert answer.left_out_characters == 0


@pytest.mark.parametrize(
    "lengths", [(29,), (14, 14), (20, 20), (3,) * 20, (40, 3), (3, 40), (3, 40, 3), (2,) * 300]
)
def test_the_oldest_turns_go_until_the_rest_fits_and_no_longer(
    client: CountingClient, lengths: tuple[int, ...]
) -> None:
    dialogue = Dialogue((ChatTurn("system", "be brief"),), turns(*lengths))
    answer = chat(client, dialogue, ("user", "and now")).answer()
    # The most of the newest turns that fit beside the system's words and the job's own.
    num_kept = max(
        num for num in range(len(lengths) + 1) if sum(lengths[len(lengths) - num :]) <= 28
    )
    num_left_out = len(lengths) - num_kept
    (request,) = client.generated
    kept = [message for turn in dialogue.turns[num_left_out:] for message in turn]
    assert request.messages == (
        ChatTurn("system", "be brief"),
        *kept,
        ChatTurn("user", "and now"),
    )
    assert report(answer) == (len(lengths), num_left_out)
    gone = [message for turn in dialogue.turns[:num_left_out] for message in turn]
    assert answer.left_out_characters == sum(len(message.content) for message in gone)


def test_turns_that_were_not_read_count_as_left_out(client: CountingClient) -> None:
    dialogue = Dialogue((), turns(40, 4), num_unread=7, characters_unread=100)
    answer = chat(client, dialogue, ("user", "and now")).answer()
    assert report(answer) == (9, 8)
    gone = sum(len(message.content) for message in dialogue.turns[0])
    assert answer.left_out_characters == 100 + gone


def test_a_system_turn_of_ones_own_takes_the_place_of_the_dialogues(
    client: CountingClient,
) -> None:
    dialogue = Dialogue((ChatTurn("system", "be brief"),), turns(4))
    chat(client, dialogue, ("system", "be long"), ("user", "and now")).answer()
    (request,) = client.generated
    assert [each.content for each in request.messages if each.role == "system"] == ["be long"]
    assert request.messages[0].role == "system"


def test_the_jobs_own_messages_are_never_left_out(client: CountingClient) -> None:
    outcome = chat(client, Dialogue((), turns(4, 4)), ("user", "word " * 40)).start().wait()
    assert outcome.error_code == "prompt_too_long"


def test_a_dialogue_with_a_job_gone_fails_with_the_remedy(client: CountingClient) -> None:
    outcome = chat(client, Dialogue(is_broken=True), ("user", "and now")).start().wait()
    assert outcome.error_code == "previous_job_gone"
    assert "begin a new dialogue" in (outcome.error_message or "")
    assert client.asked == []


def test_a_thought_is_kept_apart(client: CountingClient) -> None:
    """The fake engine draws words from its prompt; one of these seeds thinks, then answers."""
    for seed in range(200):
        run = chat(client, None, ("user", "<think> </think> yes"))
        run.contract = {**run.contract, "max_new_tokens": 6, "temperature": 1.0, "seed": seed}
        answer = run.answer()
        if answer.reasoning is not None and answer.output:
            break
    assert answer.reasoning is not None
    assert answer.reasoning_tokens is not None
    assert 2 <= answer.reasoning_tokens < answer.completion_tokens
    assert not answer.output.startswith("<think>")
