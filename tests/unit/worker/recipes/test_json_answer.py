"""Answers that have to be JSON, of an engine that cannot be held to it."""

from collections.abc import Iterator
from typing import Any

import pytest

from engine.protocol.engine_spec import EngineSpec
from tasks.configuration.masking import MaskingRules
from tests.running.attempts import CountingClient, Run
from worker.masking.finders import finders_of
from worker.masking.masker import Masker
from worker.recipes.json_answer import MAX_ASKED


@pytest.fixture(scope="module")
def engine() -> Iterator[CountingClient]:
    spec = EngineSpec(alias="fake", checkpoint="fake", engine="fake", max_input_tokens=64)
    client = CountingClient(spec)
    client.start()
    yield client
    client.stop()


@pytest.fixture
def client(engine: CountingClient) -> CountingClient:
    engine.asked, engine.most_held = [], 0
    return engine


def chat(client: CountingClient, content: str, **fields: Any) -> Run:
    messages = [{"role": "user", "content": content}]
    return Run(client, {"messages": messages, **fields}, task="chat")


def generate(client: CountingClient, text: str, **fields: Any) -> Run:
    return Run(client, {"text": text, **fields}, task="generate")


@pytest.mark.parametrize("run", [chat, generate])
@pytest.mark.parametrize("asked", [{"json_schema": {"type": "object"}}, {"json_object": True}])
def test_an_answer_that_is_valid_is_asked_for_once(
    client: CountingClient, run: Any, asked: dict[str, Any]
) -> None:
    answer = run(client, '{"a":1}', max_new_tokens=1, **asked).answer()
    assert (answer.output, answer.provenance["times_asked"]) == ('{"a":1}', 1)
    (request,) = client.asked
    assert request.json_schema == {"type": "object"}


@pytest.mark.parametrize("run", [chat, generate])
def test_an_invalid_answer_is_asked_for_again_with_the_reason(
    client: CountingClient, run: Any
) -> None:
    schema = {"type": "object", "required": ["a"]}
    outcome = run(client, "secret", max_new_tokens=1, json_schema=schema).start().wait()
    assert outcome.error_code == "answer_not_valid"
    assert f"({MAX_ASKED} times)" in (outcome.error_message or "")
    assert "raise max_new_tokens" in (outcome.error_message or "")
    assert "secret" not in (outcome.error_message or "")
    assert outcome.output is not None
    first, *later = client.asked
    assert len(later) == MAX_ASKED - 1
    for request in later:
        prompt = request.text or request.messages[-1].content
        assert "That was not valid: " in prompt
        assert '{"type": "object", "required": ["a"]}' in prompt
        assert "secret" in (request.text or request.messages[0].content)
    assert "it is no JSON" in (later[0].text or later[0].messages[-1].content)
    if first.messages:
        assert [each.role for each in later[-1].messages] == ["user", "assistant", "user"]


def test_an_invalid_answer_is_final_where_the_retry_prompt_does_not_fit(
    client: CountingClient,
) -> None:
    outcome = chat(client, "word " * 63, max_new_tokens=1, json_object=True).start().wait()
    assert (outcome.error_code, outcome.output) == ("answer_not_valid", "word")
    assert "(once)" in (outcome.error_message or "")


def test_a_too_long_prompt_fails_as_such_and_not_as_an_invalid_answer(
    client: CountingClient,
) -> None:
    outcome = chat(client, "word " * 80, json_object=True).start().wait()
    assert (outcome.error_code, outcome.output) == ("prompt_too_long", None)


def test_only_the_valid_ones_of_several_answers_are_kept(client: CountingClient) -> None:
    """Words are drawn from the prompt, so some of these are JSON and some are not."""
    fields = {"max_new_tokens": 1, "temperature": 1.0, "num_return_sequences": 12, "seed": 1}
    plain = chat(client, "{} no", **fields).answer()
    said = [plain.output, *plain.alternatives]
    assert {"{}", "no"} == set(said)
    answer = chat(client, "{} no", json_object=True, **fields).answer()
    assert [answer.output, *answer.alternatives] == ["{}"] * said.count("{}")


def test_an_answer_without_a_schema_reports_no_retries(client: CountingClient) -> None:
    for run in (chat, generate):
        answer = run(client, "anything", max_new_tokens=1, json_object=False).answer()
        assert "times_asked" not in answer.provenance
        assert client.asked[-1].json_schema is None


def test_the_refused_text_of_a_masked_job_is_the_users_own(client: CountingClient) -> None:
    masker = Masker(finders_of(MaskingRules(rules=frozenset({"email"}))))
    run = chat(client, "ann@example.org", max_new_tokens=1, json_object=True)
    run.masker = masker
    outcome = run.start().wait()
    assert outcome.error_code == "answer_not_valid"
    assert all("ann@" not in str(request.to_json()) for request in client.asked)
    assert outcome.output is not None
    assert "⟦" not in outcome.output
