"""Answers that follow a schema: alone or in company, in flight or by `generate`."""

from __future__ import annotations

import json
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from engine.errors import SchemaTooComplex, UnsupportedParameter
from engine.protocol.output import Output
from engine.protocol.request import ChatTurn, Request
from engine.protocol.sampling_params import SamplingParams
from engine.text import grammars
from tests.checkpoints import sentences

PERSON: dict[str, Any] = {
    "type": "object",
    "properties": {
        "age": {"type": "integer", "minimum": 0, "maximum": 99},
        "kind": {"enum": ["keeper", "miller"]},
        "ok": {"type": "boolean"},
        "note": {"type": "string", "maxLength": 6},
    },
    "required": ["age", "kind", "ok", "note"],
    "additionalProperties": False,
}
LIST: dict[str, Any] = {
    "type": "array",
    "items": {"type": "integer", "maximum": 9, "minimum": 0},
    "minItems": 2,
    "maxItems": 3,
}
WAYS = {
    "greedy": SamplingParams(max_new_tokens=90, do_sample=False),
    "sampled": SamplingParams(max_new_tokens=90, temperature=1.0, top_k=3, seed=5),
    "several": SamplingParams(max_new_tokens=90, temperature=1.0, seed=6, num_return_sequences=3),
    "beams": SamplingParams(
        max_new_tokens=90, do_sample=False, num_beams=3, num_return_sequences=2
    ),
    "penalized": SamplingParams(max_new_tokens=90, do_sample=False, repetition_penalty=1.3),
}
KINDS = ["gpt2", "llama", "qwen2"]  # bytes, sentencepiece with bytes to fall back to, chat


def requests(kind: str, schema: dict[str, Any] | None, at: int) -> list[Request]:
    """A request for each way, with the same schema, or with none."""
    text = sentences(6)[at % 6]
    made = []
    for number, params in enumerate(WAYS.values()):
        prompt: dict[str, Any] = {"task": "generate", "text": text}
        if kind == "qwen2":
            prompt = {"task": "chat", "messages": (ChatTurn("user", text),)}
        made.append(Request(id=100 * at + number, params=params, json_schema=schema, **prompt))
    return made


def texts(output: Output) -> list[str]:
    assert output.failure is None, output.failure
    return [each.text for each in output.choices]


@pytest.mark.parametrize("kind", KINDS)
def test_answers_match_their_schema_and_a_batch_changes_none(kind: str, bench_of) -> None:
    bench = bench_of(kind)
    constrained = [*requests(kind, PERSON, 1), *requests(kind, LIST, 2)]
    plain = requests(kind, None, 3)

    alone = {}
    for request in (*constrained, *plain):
        fresh = Request(**{**fields(request), "id": request.id + 10_000})
        alone[request.id] = texts(bench.answers([fresh])[fresh.id])
    again = {
        each.id: Request(**{**fields(each), "id": each.id + 20_000})
        for each in (*constrained, *plain)
    }
    together = bench.answers(again.values())
    for id_, request in again.items():
        assert texts(together[request.id]) == alone[id_]
    for request in constrained:
        for text in alone[request.id]:
            Draft202012Validator(request.json_schema).validate(json.loads(text))
    assert together[again[constrained[0].id].id].settings["is_constrained"] is True
    assert "is_constrained" not in together[again[plain[0].id].id].settings
    assert len({text for request in constrained for text in alone[request.id]}) > 4


def fields(request: Request) -> dict[str, Any]:
    return {
        name: getattr(request, name)
        for name in ("task", "text", "messages", "params", "json_schema")
    }


@pytest.mark.parametrize("kind", ["gpt2", "qwen2"])
def test_a_masked_answer_is_that_of_generate_with_only_these_tokens_allowed(
    kind: str, bench_of
) -> None:
    """Told which tokens the grammar allows, the library's own search comes to the same."""
    bench = bench_of(kind)
    request = requests(kind, PERSON, 1)[0]
    output = bench.answers([request])[request.id]
    engine = getattr(bench.loop.engine, "exact", bench.loop.engine)
    sequence = engine.encode(Request(**{**fields(request), "id": 7}))
    grammar = sequence.grammar
    num_before = len(sequence.prompt_ids)

    def allowed(_: int, ids: Any) -> list[int]:
        matcher = grammar.fresh()
        for token in ids[num_before:].tolist():
            matcher.consume_token(token)
        mask = matcher.compute_bitmask()
        return [at for at in range(engine.checkpoint.num_ids) if mask[at // 8] >> (at % 8) & 1]

    input_ids, attention_mask = engine.padded((sequence,))
    rows = engine.model.generate(
        input_ids,
        attention_mask=attention_mask,
        generation_config=engine.generation_config((sequence,)),
        prefix_allowed_tokens_fn=allowed,
    )
    new_ids = rows[0, num_before:].tolist()
    assert list(output.choices[0].token_ids) == new_ids


def test_a_vocabulary_without_braces_gets_no_mask(bench_of) -> None:
    bench = bench_of("t5")
    request = Request(id=1, task="generate", text="mill", json_schema=PERSON)
    output = bench.answers([request])[1]
    assert output.failure is None
    assert "is_constrained" not in output.settings


def test_an_answer_is_json_even_where_a_mask_cannot_express_the_schema(bench_of) -> None:
    bench = bench_of("gpt2")
    schema = {"type": "string", "pattern": "^(?=.*a).{3,5}$"}  # it looks ahead
    params = SamplingParams(max_new_tokens=200, do_sample=False)
    request = Request(id=1, task="generate", text="mill", params=params, json_schema=schema)
    output = bench.answers([request])[1]
    assert output.settings["is_constrained"] is True


def encode(bench: Any, schema: dict[str, Any]) -> Any:
    request = Request(id=1, task="generate", text="mill", json_schema=schema)
    return bench.loop.engine.encode(request)


def test_a_schema_that_nothing_matches_is_refused(bench_of) -> None:
    with pytest.raises(UnsupportedParameter, match="nothing can match it"):
        encode(bench_of("gpt2"), {"allOf": [{"type": "integer"}, {"type": "string"}]})


def bombs() -> dict[str, dict[str, Any]]:
    defs: dict[str, Any] = {
        f"d{at}": {
            "anyOf": [{"$ref": f"#/$defs/d{at + 1}"}, {"items": {"$ref": f"#/$defs/d{at + 1}"}}]
        }
        for at in range(60)
    }
    names = [f"p{at}" for at in range(1000)]
    return {
        "alternatives": {"$defs": {**defs, "d60": {"type": "integer"}}, "$ref": "#/$defs/d0"},
        "pattern": {"type": "string", "pattern": "^((a{1,100}){1,100}){1,100}$"},
        "pattern of alternatives": {"type": "string", "pattern": "(.*a){20}.*b.{500}"},
        "many names": {
            "properties": {name: {"type": "string"} for name in names},
            "required": names,
        },
        "long": {"type": "array", "minItems": 10**9, "items": {"type": "integer"}},
        "values": {"enum": [f"value {at}" for at in range(4000)]},
    }


@pytest.mark.parametrize("bomb", bombs())
def test_a_schema_that_is_a_bomb_ends_in_an_answer_or_a_typed_error(bomb: str, bench_of) -> None:
    bench = bench_of("gpt2")
    params = SamplingParams(max_new_tokens=20, do_sample=False)
    request = Request(id=1, task="generate", text="mill", params=params, json_schema=bombs()[bomb])
    output = bench.answers([request])[1]
    assert output.failure is None or output.failure.code == "schema_too_complex"
    after = Request(id=2, task="generate", text="mill", params=params)
    assert bench.answers([after])[2].failure is None


def test_a_schema_that_takes_too_long_is_given_up(
    bench_of, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = bench_of("gpt2")
    monkeypatch.setattr(grammars, "COMPILE_SECONDS", 0.0)
    monkeypatch.setattr(grammars, "POLL_SECONDS", 0.0)
    schema = bombs()["many names"]
    with pytest.raises(SchemaTooComplex):
        encode(bench, {**schema, "title": "compiled by nobody before"})


def test_a_model_thinks_before_it_is_held_to_its_answer(bench_of) -> None:
    """Its template opens a thought, and one of its tokens closes it."""
    bench = bench_of("qwen2", max_new_tokens=90)
    engine = getattr(bench.loop.engine, "exact", bench.loop.engine)
    prompts, thoughts = engine.text.prompts, engine.text.thoughts
    prompts.tokenizer.chat_template = "{{ messages[0]['content'] }}<think>"
    request = Request(
        id=1,
        task="chat",
        messages=(ChatTurn("user", "mill"),),
        json_schema=LIST,
        params=SamplingParams(do_sample=False, max_new_tokens=90),
    )
    plain = bench.answers([Request(**{**fields(request), "json_schema": None, "id": 2})])[2]
    third = plain.choices[0].token_ids[2]
    mark = engine.text.token_texts.of(third).decode()
    thoughts.own = (("<think>", mark),)
    output = bench.answers([request])[1]
    (choice,) = output.choices
    num_thought = plain.choices[0].token_ids.index(third) + 1
    assert choice.token_ids[:num_thought] == plain.choices[0].token_ids[:num_thought]
    assert choice.reasoning_tokens == num_thought
    Draft202012Validator(LIST).validate(json.loads(choice.text))


def test_an_engine_without_the_grammar_library_uses_no_mask(
    bench_of, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grammars, "llguidance", None)
    assert encode(bench_of("gpt2"), PERSON).grammar is None
