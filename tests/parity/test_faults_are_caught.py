"""What is wrong in flight shows in the proof."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from engine.attention.forward_context import DecoderContext
from engine.attention.hf_plugin import uninstall
from engine.attention.paged_backend import PagedAttentionBackend
from engine.backends.generate import GenerateBackend
from engine.backends.loader import load
from engine.backends.router import RouterBackend
from engine.checkpoint.loader import Checkpoint
from engine.errors import Unloadable
from engine.kv_cache import joined
from engine.kv_cache.joined import JoinedRows
from engine.kv_cache.joined_layers import LayerContent, SpareLayer, StateLayer
from engine.kv_cache.paged import PagedKVCache
from engine.proof import answered_alone
from engine.proof.disproved import Disproved
from engine.proof.self_proof import prove
from engine.runners import captured_step, step_executor
from engine.runners.causal import CausalRunner
from engine.runners.seq2seq import Seq2SeqRunner
from engine.runners.step_executor import row_lengths
from tests.parity.faults import break_it, roll_rows
from tests.parity.joining import spec_of

FAULTS = ["mask", "padding", "length", "rows", "reorder", "encoder", "window", "processors"]
FAULTS += ["shuffled", "left"]


@pytest.mark.parametrize("kind", ["gemma2", "bloom", "t5gemma", "blenderbot"])
@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_in_flight_is_caught(kind, fault, folder_of, monkeypatch):
    assert_caught(kind, fault, folder_of(kind), monkeypatch)


@pytest.mark.parametrize("kind", ["gemma2", "t5gemma"])
@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_of_a_slow_model_is_caught_with_fewer_passes(kind, fault, folder_of, monkeypatch):
    monkeypatch.setattr(answered_alone, "SLOW_PASS_SECONDS", 0.0)
    assert_caught(kind, fault, folder_of(kind), monkeypatch)


def assert_caught(kind, fault, folder, monkeypatch) -> None:
    """Each breaks one thing that a step must get right."""
    applies = {
        "encoder": kind in ("t5gemma", "blenderbot"),
        "window": kind in ("gemma2", "t5gemma"),
    }
    spec = spec_of(folder)
    checkpoint = Checkpoint.load(spec)
    engine = RouterBackend(spec, checkpoint, poisoned=True, by_own_cache=True)
    if not applies.get(fault, True):
        fault = "rows"
    break_it(fault, engine, monkeypatch)
    with pytest.raises(Disproved):
        prove(engine.exact, engine.in_flight.runner, engine.has_beams)


@pytest.mark.parametrize("kind", ["gemma2", "gpt_oss", "mixtral", "t5gemma"])
@pytest.mark.parametrize("fault", ["window", "softcap", "sinks", "scale", "position", "prompts"])
@pytest.mark.parametrize("cpu_kernels", [True, False])
def test_a_fault_in_the_fast_way_is_caught(kind, fault, cpu_kernels, folder_of, monkeypatch):
    """Each hides one thing that a call of the attention says, in the steps or in the prompts."""
    windowed, capped = ("gemma2", "gpt_oss", "t5gemma"), ("gemma2", "t5gemma")
    has = {"window": windowed, "softcap": capped, "sinks": ("gpt_oss",)}
    spec = spec_of(folder_of(kind), cpu_kernels=cpu_kernels)
    checkpoint = Checkpoint.load(spec)
    for module in checkpoint.model.modules():
        if getattr(module, "attn_logit_softcapping", None) is not None:
            module.attn_logit_softcapping = 2.0  # of 50 no weights as small as these are near
    engine = RouterBackend(spec, checkpoint, poisoned=True)
    runner = engine.in_flight.runner
    assert isinstance(runner, CausalRunner | Seq2SeqRunner)
    if fault == "position":
        for executors in (step_executor, captured_step):
            monkeypatch.setattr(executors, "row_lengths", lengths_one_off_in_company)
    elif fault == "prompts":  # the first prompt of a row is seen by the next
        name = "_prefill_forward" if isinstance(runner, CausalRunner) else "_encode"
        whole = getattr(runner, name)
        monkeypatch.setattr(
            type(runner), name,
            lambda runner, batch: whole(replace(batch, spans=joined_spans(batch.spans))),
        )  # fmt: skip
    else:
        change = {"scale": 0.1} if fault == "scale" else {fault: None}
        whole_attend = DecoderContext.attend

        def attend(context, layer, query, key, value, scoring, bias):
            if layer == 1 or fault == "window":
                scoring = replace(scoring, **change)
            return whole_attend(context, layer, query, key, value, scoring, bias)

        monkeypatch.setattr(DecoderContext, "attend", attend)
    try:
        if kind in has.get(fault, [kind]):
            with pytest.raises(Disproved):
                prove(engine.exact, runner, engine.has_beams)
        else:
            prove(engine.exact, runner, engine.has_beams)
    finally:
        uninstall(engine.checkpoint.model)


def lengths_one_off_in_company(caches):
    lengths = row_lengths(caches)
    return [each + (len(lengths) > 1) for each in lengths]


def joined_spans(spans):
    """A prompt and the next as one."""
    if len(spans) < 2:
        return spans
    return ((spans[0][0], spans[1][1]), *spans[2:])


@pytest.mark.parametrize("kind", ["phi3", "gemma2", "gpt_oss", "qwen3_moe", "t5gemma"])
@pytest.mark.parametrize("fault", [None, "window"])
def test_pages_know_windows_soft_caps_and_sinks_too(kind, fault, folder_of, monkeypatch):
    spec = spec_of(folder_of(kind), max_sequences=4, max_cache_tokens=4_096)
    engine = RouterBackend(spec, Checkpoint.load(spec), poisoned=True, is_paged=True)
    assert isinstance(engine.in_flight.runner.kv_cache, PagedKVCache)
    if fault is not None:
        whole = PagedAttentionBackend.attend

        def attend(attention, layer, query, keys, values, scoring):
            return whole(attention, layer, query, keys, values, replace(scoring, window=None))

        monkeypatch.setattr(PagedAttentionBackend, "attend", attend)
    if fault is None or kind == "qwen3_moe":
        proof = prove(engine.exact, engine.in_flight.runner, engine.has_beams)
        assert proof.num_equal == proof.num_requests == 18
    else:
        with pytest.raises(Disproved):
            prove(engine.exact, engine.in_flight.runner, engine.has_beams)


@pytest.mark.parametrize("kind", ["mamba", "qwen3_5", "lfm2"])
@pytest.mark.parametrize("fault", ["stale", "late", "lost", "rows", "reorder"])
def test_a_fault_of_a_state_is_caught(kind, fault, folder_of, monkeypatch):
    """A recurrent layer has no mask that would hide another's state."""
    whole = StateLayer.content
    if fault == "stale":  # what a step has made is forgotten
        monkeypatch.setattr(
            StateLayer, "settle", lambda layer, num: setattr(layer, "num_counted", num)
        )
    elif fault == "late":  # where the company changes, the last token is forgotten
        monkeypatch.setattr(StateLayer, "content", lambda layer, rows, columns: LayerContent(
            states={name: each[rows] for name, each in layer.counted.items()}
        ))  # fmt: skip
    elif fault == "lost":  # where the company changes, a state begins anew
        monkeypatch.setattr(StateLayer, "content", lambda *given: LayerContent(
            states={name: each * 0 for name, each in whole(*given).states.items()}
        ))  # fmt: skip
    elif fault == "rows":  # rows have each other's states
        hold = StateLayer.hold_states

        def hold_states(layer, states, num_columns):
            hold(layer, {name: each.roll(1, dims=0) for name, each in states.items()}, num_columns)

        monkeypatch.setattr(StateLayer, "hold_states", hold_states)
    else:  # beams keep the states of others
        monkeypatch.setattr(StateLayer, "content", lambda *given: LayerContent(
            states={name: each.clone() for name, each in whole(*given).states.items()}
        ))  # fmt: skip
    spec = spec_of(folder_of(kind))
    engine = RouterBackend(spec, Checkpoint.load(spec), poisoned=True, by_own_cache=True)
    with pytest.raises(Disproved, match=r"than by model\.generate"):
        prove(engine.exact, engine.in_flight.runner, engine.has_beams)


@pytest.mark.parametrize("num_columns", [-1, 1])
def test_a_window_that_is_off_by_one_is_caught(num_columns, folder_of, monkeypatch):
    whole = SpareLayer.first_seen
    monkeypatch.setattr(
        SpareLayer, "first_seen",
        lambda layer, num: max(whole(layer, num) + (num_columns if layer.window else 0), 0),
    )  # fmt: skip
    spec = spec_of(folder_of("gemma3"))
    engine = RouterBackend(spec, Checkpoint.load(spec), poisoned=True, by_own_cache=True)
    with pytest.raises(Disproved):
        prove(engine.exact, engine.in_flight.runner, engine.has_beams)


def test_a_fault_shows_in_half_precision_too(folder_of, monkeypatch):
    monkeypatch.setattr(joined, "POISON", 3.0)
    spec = spec_of(folder_of("olmo2"), dtype="bfloat16")
    engine = RouterBackend(spec, Checkpoint.load(spec), poisoned=True, by_own_cache=True)
    break_it("mask", engine, monkeypatch)
    with pytest.raises(Disproved, match="where rounding is at most"):
        prove(engine.exact, engine.in_flight.runner, engine.has_beams)


def test_a_model_that_is_disproved_answers_by_generate_and_says_why(folder_of, monkeypatch, caplog):
    monkeypatch.setattr(JoinedRows, "mask", lambda rows: torch.ones(
        sum(each.num_rows for each in rows.caches), rows.num_columns() + 1, dtype=torch.int64
    ))  # fmt: skip
    monkeypatch.setattr(CausalRunner, "_decode_forward", roll_rows(CausalRunner._decode_forward))
    spec = spec_of(folder_of("phi"))
    engine = load(spec)
    assert isinstance(engine, GenerateBackend)
    assert "was not proved at load: rows that change" in engine.card.engine_reason
    assert engine.sized.reasons["engine"].endswith("0.0001)")
    assert "not in flight" in caplog.messages
    with pytest.raises(Unloadable, match="have other logits than by"):
        load(replace(spec, engine="inflight"))
