"""The proof finds faults of the steps in flight."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import pytest
import torch

from engine.attention.forward_context import DecoderContext
from engine.attention.hf_plugin import uninstall
from engine.attention.paged_backend import PagedAttentionBackend
from engine.backends.generate import GenerateBackend
from engine.backends.loader import load
from engine.backends.router import RouterBackend
from engine.checkpoint.loader import Checkpoint
from engine.checkpoint.weights.layout import lay_out
from engine.errors import Unloadable
from engine.kv_cache.own_cache import joined
from engine.kv_cache.own_cache.joined import JoinedRows
from engine.kv_cache.own_cache.joined_layers import LayerContent, SpareLayer, StateLayer
from engine.kv_cache.paged import PagedKVCache
from engine.proof import answered_alone, self_proof
from engine.proof.disproved import Disproved
from engine.proof.self_proof import prove
from engine.runners import captured_step, selection, step_executor
from engine.runners.causal import CausalRunner
from engine.runners.seq2seq import Seq2SeqRunner
from engine.runners.step_executor import row_lengths
from tests.parity.trials.faults import break_it, roll_rows
from tests.parity.trials.joining import spec_of

FAULTS = ["mask", "padding", "length", "rows", "reorder", "encoder", "window", "processors"]
FAULTS += ["shuffled", "left"]


@pytest.fixture(scope="module", autouse=True)
def _answered_once():
    """The answers of `generate` to the trials do not depend on the fault, and are computed once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(self_proof, "answered_alone", cache(answered_alone.answered_alone))
        yield


@pytest.fixture(scope="module")
def exact_of(folder_of):
    """`generate` with its loaded model, by the ways to load and to run it."""

    @cache
    def make(kind, *way, has_low_caps=False, **settings):
        spec = spec_of(folder_of(kind), **settings)
        checkpoint = Checkpoint.load(spec)
        for module in checkpoint.model.modules() if has_low_caps else ():
            if getattr(module, "attn_logit_softcapping", None) is not None:
                module.attn_logit_softcapping = 2.0  # such small weights never reach 50
        exact = GenerateBackend(spec, checkpoint)
        lay_out(checkpoint.model, spec, checkpoint.reload)
        return exact

    return make


@pytest.fixture
def engine_of(exact_of):
    """An engine that runs a kind in flight without a proof, in a way that a proof may try."""
    engines = []

    def make(kind, *, by_own_cache=False, is_paged=None, is_slow=False, **how):
        exact = exact_of(kind, by_own_cache, is_paged, is_slow, **how)
        engines.append(RouterBackend(
            exact.spec, exact.checkpoint, poisoned=True, exact=exact,
            by_own_cache=by_own_cache, is_paged=is_paged,
        ))  # fmt: skip
        return engines[-1]

    yield make
    for each in engines:
        uninstall(each.checkpoint.model)


@pytest.mark.parametrize("kind", ["gemma2", "bloom", "t5gemma", "blenderbot"])
@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_in_flight_is_caught(kind, fault, engine_of, monkeypatch):
    assert_caught(kind, fault, engine_of(kind, by_own_cache=True), monkeypatch)


@pytest.mark.parametrize("kind", ["gemma2", "t5gemma"])
@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_of_a_slow_model_is_caught_with_fewer_passes(kind, fault, engine_of, monkeypatch):
    monkeypatch.setattr(answered_alone, "SLOW_PASS_SECONDS", 0.0)
    engine = engine_of(kind, by_own_cache=True, is_slow=True)
    assert_caught(kind, fault, engine, monkeypatch)


def assert_caught(kind, fault, engine, monkeypatch) -> None:
    """Each fault breaks one property that a step needs."""
    applies = {
        "encoder": kind in ("t5gemma", "blenderbot"),
        "window": kind in ("gemma2", "t5gemma"),
    }
    if not applies.get(fault, True):
        fault = "rows"
    break_it(fault, engine, monkeypatch)
    with pytest.raises(Disproved):
        prove(engine.exact, engine.in_flight.runner, engine.has_beams)


@pytest.mark.parametrize("kind", ["gemma2", "gpt_oss", "mixtral", "t5gemma"])
@pytest.mark.parametrize("fault", ["window", "softcap", "sinks", "scale", "position", "prompts"])
@pytest.mark.parametrize("cpu_kernels", [True, False])
def test_a_fault_in_the_fast_way_is_caught(kind, fault, cpu_kernels, engine_of, monkeypatch):
    """Each fault hides one argument of an attention call, in the steps or in the prompts."""
    windowed, capped = ("gemma2", "gpt_oss", "t5gemma"), ("gemma2", "t5gemma")
    has = {"window": windowed, "softcap": capped, "sinks": ("gpt_oss",)}
    if (
        fault == "prompts"
    ):  # a fused step, for heads as wide as vector registers, cannot have this fault
        monkeypatch.setattr(selection, "kernel_module", lambda name: None)
    engine = engine_of(kind, cpu_kernels=cpu_kernels, has_low_caps=True)
    runner = engine.in_flight.runner
    assert isinstance(runner, CausalRunner | Seq2SeqRunner)
    if fault == "position":
        for executors in (step_executor, captured_step):
            monkeypatch.setattr(executors, "row_lengths", lengths_one_off_in_company)
    elif fault == "prompts":  # the next prompt sees the first one
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
    if kind in has.get(fault, [kind]):
        with pytest.raises(Disproved):
            prove(engine.exact, runner, engine.has_beams)
    else:
        prove(engine.exact, runner, engine.has_beams)


def lengths_one_off_in_company(caches):
    lengths = row_lengths(caches)
    return [each + (len(lengths) > 1) for each in lengths]


def joined_spans(spans):
    """Treat a prompt and the next as one span."""
    if len(spans) < 2:
        return spans
    return ((spans[0][0], spans[1][1]), *spans[2:])


@pytest.mark.parametrize("kind", ["phi3", "gemma2", "gpt_oss", "qwen3_moe", "t5gemma"])
@pytest.mark.parametrize("fault", [None, "window"])
def test_pages_know_windows_soft_caps_and_sinks_too(kind, fault, engine_of, monkeypatch):
    engine = engine_of(kind, is_paged=True, max_sequences=4, max_cache_tokens=4_096)
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
def test_a_fault_of_a_state_is_caught(kind, fault, engine_of, monkeypatch):
    """A recurrent layer has no mask that would hide another row's state."""
    whole = StateLayer.content
    if fault == "stale":  # the result of a step is dropped
        monkeypatch.setattr(
            StateLayer, "settle", lambda layer, num: setattr(layer, "num_counted", num)
        )
    elif fault == "late":  # when the batch changes, the last token is dropped
        monkeypatch.setattr(StateLayer, "content", lambda layer, rows, columns: LayerContent(
            states={name: each[rows] for name, each in layer.counted.items()}
        ))  # fmt: skip
    elif fault == "lost":  # when the batch changes, a state is reset
        monkeypatch.setattr(StateLayer, "content", lambda *given: LayerContent(
            states={name: each * 0 for name, each in whole(*given).states.items()}
        ))  # fmt: skip
    elif fault == "rows":  # rows get each other's states
        hold = StateLayer.hold_states

        def hold_states(layer, states, num_columns):
            hold(layer, {name: each.roll(1, dims=0) for name, each in states.items()}, num_columns)

        monkeypatch.setattr(StateLayer, "hold_states", hold_states)
    else:  # beams keep the states of others
        monkeypatch.setattr(StateLayer, "content", lambda *given: LayerContent(
            states={name: each.clone() for name, each in whole(*given).states.items()}
        ))  # fmt: skip
    engine = engine_of(kind, by_own_cache=True)
    with pytest.raises(Disproved, match=r"than by model\.generate"):
        prove(engine.exact, engine.in_flight.runner, engine.has_beams)


@pytest.mark.parametrize("num_columns", [-1, 1])
def test_a_window_that_is_off_by_one_is_caught(num_columns, engine_of, monkeypatch):
    whole = SpareLayer.first_seen
    monkeypatch.setattr(
        SpareLayer, "first_seen",
        lambda layer, num: max(whole(layer, num) + (num_columns if layer.window else 0), 0),
    )  # fmt: skip
    engine = engine_of("gemma3", by_own_cache=True)
    with pytest.raises(Disproved):
        prove(engine.exact, engine.in_flight.runner, engine.has_beams)


def test_a_fault_shows_in_half_precision_too(engine_of, monkeypatch):
    monkeypatch.setattr(joined, "POISON", 3.0)
    engine = engine_of("olmo2", by_own_cache=True, dtype="bfloat16")
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
