"""Where nobody proved that requests may share a call, company and order change no answer."""

from __future__ import annotations

import itertools
import re
from dataclasses import replace

import pytest
import torch

from engine.backends.generate import GenerateBackend
from engine.backends.loader import load
from engine.checkpoint.loader import Checkpoint
from engine.checkpoint.model_state import Freshness
from engine.errors import Unloadable
from engine.proof import batch_probe
from engine.protocol.engine_spec import EngineSpec
from engine.protocol.request import Request
from engine.protocol.sampling_params import SamplingParams
from tests import checkpoints
from tests.parity.trials.alone import Alone
from tests.parity.trials.joining import requests, spec_of
from tests.running.engines import Bench

GREEDY = {"max_new_tokens": 10, "min_new_tokens": 10, "do_sample": False}


# In flight these are others.
ALONE_BY_GENERATE = ("bart_decoder", "bigbird_pegasus")


@pytest.mark.parametrize(
    ("kind", "engine"),
    [
        *itertools.product(checkpoints.UNPROVED, ("auto", "exact")),
        *((kind, "exact") for kind in ALONE_BY_GENERATE),
    ],
)
def test_an_answer_is_that_of_a_model_loaded_afresh(kind, engine, folder_of):
    folder = folder_of(kind)
    spec = EngineSpec(alias="a", checkpoint=str(folder), device="cpu", engine=engine)
    backend = load(spec)
    assert isinstance(backend, GenerateBackend)
    assert "one by one" in backend.card.engine_reason
    bench = Bench(backend, spec)
    # Long after short, some of equal length, and some far beyond BigBird's full attention.
    long = [" ".join(checkpoints.sentences(6, seed=each)) for each in range(8)]
    texts = [*checkpoints.sentences(12), *(long if kind == "bigbird_pegasus" else ())]
    requests = [
        Request(id=at, task="generate", text=text, params=SamplingParams(**GREEDY))
        for at, text in enumerate([*texts, texts[1], texts[0], texts[1]])
    ]
    outputs = bench.answers(requests)
    answers = {each.choices[0].token_ids for each in outputs.values()}
    assert len(answers) > len(texts) / 2  # a model that says one thing would agree with all
    loaded = Alone(kind, folder)
    for each in requests:
        (expected,) = loaded.afresh().generate(each.text, **GREEDY)
        assert outputs[each.id].failure is None
        assert list(outputs[each.id].choices[0].token_ids) == expected
    assert {len(plan.sequences) for plan in bench.plans} == {1}
    assert bench.progress.num_by_generate == len(requests)
    if kind in ALONE_BY_GENERATE:
        return
    with pytest.raises(Unloadable, match="cannot run in flight"):
        load(replace(spec, engine="inflight"))


@pytest.mark.parametrize("kind", ["bloom", "gemma2", "gptj", "mixtral", "led"])
def test_an_unlisted_family_shares_calls_once_it_was_tried(kind, folder_of):
    folder = folder_of(kind)
    spec = EngineSpec(alias="a", checkpoint=str(folder), device="cpu", engine="exact")
    loaded = load(spec)
    assert isinstance(loaded, GenerateBackend)
    assert loaded.card.engine_reason.startswith("in batches, which were tried at load")
    bench = Bench(loaded, spec)
    requests = [
        Request(
            id=at, task="generate", text=text, params=SamplingParams(**GREEDY, num_beams=num_beams)
        )
        for at, (num_beams, text) in enumerate(
            itertools.product((1, 3), checkpoints.sentences(12, seed=5))
        )
    ]
    outputs = bench.answers(requests)
    alone = Alone(kind, folder)
    for each in requests:
        (expected,) = alone.generate(each.text, **GREEDY, num_beams=each.params.num_beams)
        assert outputs[each.id].failure is None
        assert list(outputs[each.id].choices[0].token_ids) == expected
    assert len({each.choices[0].token_ids for each in outputs.values()}) > 8
    assert len(bench.plans) < len(requests)
    assert max(len(plan.sequences) for plan in bench.plans) > 1


@pytest.mark.parametrize("kind", ["gemma2", "bart_decoder", "bigbird_pegasus", "nllb_moe"])
def test_the_probe_leaves_a_model_as_it_was(kind, folder_of):
    spec = EngineSpec(alias="a", checkpoint=str(folder_of(kind)), device="cpu")
    checkpoint = Checkpoint.load(spec)
    weights = {name: each.clone() for name, each in checkpoint.model.state_dict().items()}
    before, said = Freshness(checkpoint.model), str(checkpoint.model.config)
    GenerateBackend(spec, checkpoint)
    assert before.changes() == []
    assert str(checkpoint.model.config) == said
    for name, each in checkpoint.model.state_dict().items():
        assert torch.equal(each, weights[name])


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("bart_decoder", "logits are others in company"),
        ("bigbird_pegasus", "changed .BigBirdPegasus"),
        ("nllb_moe", "changed .NllbMoeTop2Router.expert_capacity|in company"),
        ("rwkv", "in company"),
    ],
)
def test_the_card_says_what_the_probe_found(kind, reason, folder_of):
    spec = EngineSpec(alias="a", checkpoint=str(folder_of(kind)), device="cpu", engine="exact")
    loaded = load(spec)
    assert re.search(reason, loaded.card.engine_reason)
    assert load(spec).card.engine_reason == loaded.card.engine_reason


@pytest.mark.parametrize("kind", ["bart_decoder", "nllb_moe", "rwkv"])
def test_rows_that_affect_each_other_are_detected_by_their_answers(kind, folder_of, monkeypatch):
    monkeypatch.setattr(Freshness, "changes", lambda _: [])
    spec = EngineSpec(alias="a", checkpoint=str(folder_of(kind)), device="cpu", engine="exact")
    assert "in company" in load(spec).card.engine_reason


def test_state_left_on_a_model_is_detected_even_with_equal_rows(folder_of):
    spec = EngineSpec(alias="a", checkpoint=str(folder_of("phi")), device="cpu")
    checkpoint = Checkpoint.load(spec)
    model = checkpoint.model
    model.register_forward_hook(lambda *_: setattr(model, "num_calls", 1))
    assert "(PhiForCausalLM.num_calls)" in GenerateBackend(spec, checkpoint).why_alone
    assert not hasattr(model, "num_calls")


def test_a_listed_family_is_not_tried(folder_of, monkeypatch):
    monkeypatch.setattr(batch_probe, "_try", lambda _: pytest.fail("it was tried"))
    spec = EngineSpec(alias="a", checkpoint=str(folder_of("gpt2")), device="cpu", engine="exact")
    assert load(spec).card.engine_reason is None


@pytest.mark.parametrize("kind", ["rwkv", "xlstm"])
def test_beams_of_states_that_cannot_change_places_are_refused_by_name(kind, folder_of):
    spec = spec_of(folder_of(kind))
    bench = Bench(load(spec), spec)
    asked = requests()[:4]
    outputs = bench.answers(asked)
    failures = {each.id: outputs[each.id].failure for each in asked}
    with_beams = [each.id for each in asked if each.params.num_beams]
    assert with_beams
    for id_, failure in failures.items():
        if id_ in with_beams:
            assert failure.code == "unsupported_parameter"
            assert failure.message.startswith("num_beams: ")
        else:
            assert failure is None
