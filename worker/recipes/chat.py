"""The chat recipe: one request with the whole dialogue, or with as much of it as fits."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from engine.protocol.output import Output
from engine.protocol.request import ChatTurn, Request
from worker.attempts.dialogue import Dialogue, Messages, messages_of, num_characters, split_system
from worker.errors import PreviousJobGone
from worker.recipes.json_answer import (
    Ask,
    RefusedAnswer,
    answered,
    request_to_mend,
    schema_of,
)
from worker.recipes.recipe import Asking, Steps, Work


def chat(work: Work) -> Steps:
    own = messages_of(work.contract)
    dialogue: Dialogue | None = work.contract.get("dialogue")
    if dialogue is None:
        return (yield from answered(work, _asking(work, own)))
    if dialogue.is_broken:
        raise PreviousJobGone
    system, own = split_system(own)
    before = system or dialogue.system
    num_left_out = yield from _num_left_out(work, before, dialogue.turns, own)
    turns = dialogue.turns[num_left_out:]
    answer = yield from answered(
        work,
        _asking(work, _messages(before, turns, own)),
        dialogue=_report(work, dialogue, num_left_out),
    )
    return replace(
        answer,
        left_out_characters=dialogue.characters_unread
        + num_characters(dialogue.turns[:num_left_out]),
    )


def _num_left_out(
    work: Work, system: Messages, turns: tuple[Messages, ...], own: Messages
) -> Asking[int]:
    """The number of oldest turns to leave out, so that there is room for the answer.

    Found by bisection, since a prompt never grows with fewer turns. If it is too long even without
    any, the engine refuses it and says by how much.
    """
    least, most = 0, len(turns)
    num = 0  # most dialogues fit whole
    while least < most:
        prompt = _messages(system, turns[num:], own)
        (output,) = yield (_request(work, measured_messages=(prompt,)),)
        if _fits(output):
            most = num
        else:
            least = num + 1
        num = (least + most) // 2
    return least


def _fits(output: Output) -> bool:
    assert output.measurement is not None
    (num_tokens,) = output.measurement.num_tokens
    return num_tokens <= output.measurement.max_prompt_tokens


def _messages(system: Messages, turns: tuple[Messages, ...], own: Messages) -> Messages:
    return (*system, *(message for turn in turns for message in turn), *own)


def _asking(work: Work, messages: Messages) -> Ask:
    def ask(refused: Sequence[RefusedAnswer]) -> Request:
        mended = list(messages)
        for each in refused[-1:]:  # the last alone: a prompt has little room
            mended.append(ChatTurn("assistant", each.text))
            mended.append(ChatTurn("user", request_to_mend(work, each)))
        return _request(work, messages=tuple(mended), json_schema=schema_of(work))

    return ask


def _request(work: Work, **prompt: Any) -> Request:
    return work.request(task="chat", **prompt)


def _report(work: Work, dialogue: Dialogue, num_left_out: int) -> dict[str, Any]:
    return {
        "previous_job_id": work.contract["previous_job_id"],
        "turns": len(dialogue.turns) + dialogue.num_unread,
        "turns_left_out": num_left_out + dialogue.num_unread,
    }
