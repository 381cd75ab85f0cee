"""Rotary frequencies that depend on the length, and the context that scaling makes."""

from __future__ import annotations

import json
import shutil

import pytest

from engine.backends.generate import GenerateBackend
from engine.backends.loader import load
from engine.backends.router import RouterBackend
from engine.protocol.request import Request
from engine.protocol.sampling_params import SamplingParams
from engine.runners.own_cache import OwnCacheRunner
from tests import checkpoints
from tests.parity.trials.alone import Alone
from tests.parity.trials.joining import let_join, spec_of
from tests.running.engines import Bench


@pytest.mark.parametrize(
    ("kind", "switch", "has_far_side"),
    [("phi3_longrope", 64, True), ("llama_longrope", 64, True), ("llama_dynamic", 256, False)],
)
def test_a_request_on_one_side_of_the_rotary_switch_runs_in_flight(
    kind, switch, has_far_side, folder_of
):
    """Others run by `generate`; none changes what another is answered."""
    settings = {"max_new_tokens": 9, "min_new_tokens": 9, "do_sample": False}
    spec = spec_of(folder_of(kind), engine="inflight", max_sequences=8)
    engine = load(spec)
    engine.in_flight.runner.kv_cache.poisoned = True
    tokenizer = Alone(kind, folder_of(kind)).tokenizer
    ids = tokenizer(" ".join(checkpoints.sentences(80, seed=4)), add_special_tokens=False)
    ids = ids["input_ids"]
    # Before the switch, beyond it and across it, in turn.
    lengths = [switch - 30, switch + 20, switch - 4, 5, switch + 7, switch - 8, 12, switch + 40]
    asked = [
        Request(
            id=at, task="generate", text=tokenizer.decode(ids[at * 9 : at * 9 + num_tokens]),
            params=SamplingParams(**settings, num_beams=1 + 2 * (at % 3 == 0)),
        )
        for at, num_tokens in enumerate([*lengths, *lengths])
    ]  # fmt: skip
    kinds = set()
    for each in asked:
        sequence = engine.encode(each)
        num_tokens = len(sequence.prompt_ids)
        is_near, is_far = num_tokens + 9 <= switch, num_tokens > switch
        kinds.add((is_near, is_far))
        assert sequence.runs_to_completion == (not is_near and not (is_far and has_far_side))
    assert len(kinds) == 3
    bench = Bench(engine, spec)
    outputs = let_join(bench, list(asked))
    assert 4 < bench.progress.num_in_flight < len(asked)
    loaded = Alone(kind, folder_of(kind))
    for each in asked:
        expected = loaded.afresh().generate(each.text, **settings, num_beams=each.params.num_beams)
        assert outputs[each.id].failure is None
        assert [list(choice.token_ids) for choice in outputs[each.id].choices] == expected


@pytest.mark.parametrize("kind", ["phi3_longrope", "llama_longrope"])
def test_sides_of_the_rotary_switch_that_mix_are_caught(kind, folder_of, monkeypatch):
    monkeypatch.setattr(OwnCacheRunner, "_side_of", lambda runner, num_tokens: 0)
    engine = load(spec_of(folder_of(kind)))
    assert isinstance(engine, GenerateBackend)
    assert "where rounding is at most" in engine.card.engine_reason


def test_rows_at_other_temperatures_that_mix_are_caught(folder_of, monkeypatch):
    monkeypatch.setattr(OwnCacheRunner, "_side_of", lambda runner, num_tokens: 0)
    assert isinstance(load(spec_of(folder_of("llama4"))), GenerateBackend)


# Context is what rotary scaling makes of it


@pytest.mark.parametrize(
    ("kind", "num_tokens", "backend"),
    [("llama_yarn", 140, RouterBackend), ("llama_dynamic", 400, RouterBackend)],
)
def test_a_text_beyond_the_positions_is_answered_as_generate_answers_it(
    kind, num_tokens, backend, folder_of
):
    spec = spec_of(folder_of(kind))
    engine = load(spec)
    assert isinstance(engine, backend)
    bench = Bench(engine, spec)
    alone = Alone(kind, folder_of(kind))
    text = " ".join(checkpoints.sentences(60, seed=9))
    ids = alone.tokenizer(text)["input_ids"][:num_tokens]
    text = alone.tokenizer.decode(ids, skip_special_tokens=True)
    params = SamplingParams(max_new_tokens=6, min_new_tokens=6, do_sample=False)
    asked = [
        Request(id=at, task="generate", text=each, params=params)
        for at, each in enumerate([text, *checkpoints.sentences(3), text])
    ]
    outputs = bench.answers(asked)
    assert outputs[0].failure is None
    assert outputs[0].prompt_tokens > alone.model.config.max_position_embeddings
    for each in asked:
        (expected,) = alone.afresh().generate(
            each.text, max_new_tokens=6, min_new_tokens=6, do_sample=False
        )
        assert list(outputs[each.id].choices[0].token_ids) == expected
    limit = engine.checkpoint.limits.max_answer_context_tokens
    too_long = Request(id=9, task="generate", text=text * limit, params=params)
    assert bench.answers([too_long])[9].failure.code == "prompt_too_long"


@pytest.mark.parametrize("kind", ["mistral", "qwen3"])
def test_a_window_as_wide_as_the_context_is_none(kind, folder_of, tmp_path):
    """It runs as a listed one, up to the end of its context."""
    folder = shutil.copytree(folder_of(kind), tmp_path / kind)
    path = folder / "config.json"
    config = json.loads(path.read_text())
    num_positions = config["max_position_embeddings"]
    config |= {"sliding_window": num_positions, "use_sliding_window": True, "max_window_layers": 0}
    config.pop("layer_types", None)
    path.write_text(json.dumps(config))
    spec = spec_of(folder)
    engine = load(spec)
    assert isinstance(engine, RouterBackend)
    assert "at load" not in engine.card.engine_reason
    alone = Alone(kind, folder)
    ids = alone.tokenizer(" ".join(checkpoints.sentences(60, seed=9)))["input_ids"]
    texts = [
        alone.tokenizer.decode(ids[: num_positions - 20], skip_special_tokens=True),
        *checkpoints.sentences(3),
    ]
    params = SamplingParams(max_new_tokens=9, min_new_tokens=9, do_sample=False)
    asked = [
        Request(id=at, task="generate", text=text, params=params) for at, text in enumerate(texts)
    ]
    outputs = Bench(engine, spec).answers(asked)
    assert outputs[0].prompt_tokens > num_positions - 40
    for each in asked:
        (expected,) = alone.generate(each.text, max_new_tokens=9, min_new_tokens=9, do_sample=False)
        assert list(outputs[each.id].choices[0].token_ids) == expected
