"""What a model thinks is kept apart and counted for every task, and its template is switched."""

from dataclasses import replace
from itertools import count
from typing import Any
from uuid import uuid4

import pytest

from db.outcome import Answer
from engine.protocol.output import Choice, Output
from engine.protocol.request import Request
from tests.samples.model_cards import FAKE_CARD
from worker.recipes import RECIPES
from worker.recipes.recipe import Work

CARD = replace(FAKE_CARD, max_context_tokens=512)
SWITCHES = {"enable_thinking": True}
CONTRACTS: dict[str, dict[str, Any]] = {
    "generate": {"text": "The mill"},
    "summarize": {"text": "The mill turns. The boat waits."},
    "translate": {
        "text": "The mill turns. The boat waits.", "source_language": "en", "target_language": "fr"
    },
    "chat": {"messages": [{"role": "user", "content": "The mill?"}]},
}  # fmt: skip


def thoughtful(request: Request) -> Output:
    choice = Choice("Une réponse.", "stop", 9, reasoning="hm", reasoning_tokens=4)
    return Output(request_id=request.id, choices=(choice,), prompt_tokens=7)


def run(task: str, **more: Any) -> tuple[Answer, list[Request]]:
    work = Work(uuid4(), task, CONTRACTS[task] | more, CARD, count(1))
    steps = RECIPES[task](work)
    asked: list[Request] = []
    step = next(steps)
    while True:
        requests = list(step)
        asked += requests
        try:
            step = steps.send(tuple(map(thoughtful, requests)))
        except StopIteration as end:
            return end.value, asked


@pytest.mark.parametrize("task", CONTRACTS)
def test_tokens_of_thought_are_counted_and_apart(task: str) -> None:
    answer, asked = run(task)
    assert "hm" not in answer.output
    assert answer.reasoning_tokens == 4 * len(asked)
    assert answer.completion_tokens == 9 * len(asked)
    assert answer.reasoning == ("hm" if len(asked) == 1 else None)


@pytest.mark.parametrize("task", ["summarize", "translate", "chat"])
def test_every_request_has_the_switches_of_its_job(task: str) -> None:
    _, asked = run(task, chat_template_kwargs=SWITCHES)
    assert asked
    assert [each.chat_template_kwargs for each in asked] == [SWITCHES] * len(asked)
    _, asked = run(task)
    assert [each.chat_template_kwargs for each in asked] == [{}] * len(asked)
