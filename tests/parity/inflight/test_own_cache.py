"""By a model's own attention and cache: what is kept of a row, and who shares a pass."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from engine.backends.loader import load
from engine.backends.router import RouterBackend
from engine.checkpoint.loader import Checkpoint
from engine.kv_cache.own_cache import joined_layers
from engine.kv_cache.own_cache.joined_layers import LayerContent
from engine.kv_cache.planning.row_size import RowSize
from engine.proof.self_proof import prove
from engine.protocol.sampling_params import SamplingParams
from engine.runners.own_cache import OwnCacheRunner
from tests.parity.trials.alone import Alone
from tests.parity.trials.joining import SETTINGS, let_join, requests, spec_of
from tests.running.engines import Bench


@pytest.mark.usefixtures("proved_once")
@pytest.mark.parametrize("kind", ["gptj", "falcon_h1", "qwen3_5", "mamba"])
def test_a_step_that_fails_can_be_run_again(kind, folder_of, monkeypatch):
    """A model that raises after some of its layers have stored the newest token."""
    monkeypatch.setattr(joined_layers, "SPARE_COLUMNS", 3)
    spec = spec_of(folder_of(kind))
    bench = Bench(load(spec), spec)
    expected = let_join(bench, requests())
    engine = load(spec)
    bench, model, calls = Bench(engine, spec), engine.checkpoint.model, [0]

    def fail(*_):
        calls[0] += 1
        if calls[0] % 5 == 0 and len(engine.in_flight.running_sequences) > 1:
            raise ValueError("now and then")

    # Fails a step of several, never the same one run alone.
    whole = engine.in_flight.runner._decode

    def decode(caches, tokens):
        hook = model.lm_head.register_forward_hook(fail) if len(caches) > 1 else None
        try:
            return whole(caches, tokens)
        finally:
            if hook is not None:
                hook.remove()

    engine.in_flight.runner._decode = decode
    found = let_join(bench, requests())
    assert calls[0] > 5
    assert {id_: each.choices for id_, each in found.items()} == {
        id_: each.choices for id_, each in expected.items()
    }


def test_keys_that_a_window_has_left_are_dropped(folder_of, monkeypatch):
    monkeypatch.setattr(joined_layers, "SPARE_COLUMNS", 4)
    spec = spec_of(folder_of("gemma2"))
    engine = RouterBackend(spec, Checkpoint.load(spec), by_own_cache=True)
    bench = Bench(engine, spec)
    params = SamplingParams(max_new_tokens=40, min_new_tokens=40, do_sample=False)
    asked = [replace(each, params=params) for each in requests()]
    bench.submit(*asked[:5])
    most: dict[bool, int] = {False: 0, True: 0}
    while bench.advance() is not None:
        for rows in engine.in_flight.runner.kv_cache.joined:
            for layer in rows.layers:
                num = layer.buffers[0].shape[2]
                most[layer.is_sliding] = max(most[layer.is_sliding], num)
    assert 12 <= most[True] <= 12 - 1 + 4
    assert most[False] > 60
    alone = Alone("gemma2", folder_of("gemma2"))
    outputs = {each.request_id: each for each in bench.collect()}
    for each in asked[:5]:
        (expected,) = alone.generate(
            each.text, max_new_tokens=40, min_new_tokens=40, do_sample=False
        )
        assert list(outputs[each.id].choices[0].token_ids) == expected


@pytest.mark.usefixtures("proved_once")
def test_a_state_counts_in_the_cache_however_short_the_row(folder_of):
    keys = torch.zeros(1, 2, 1, 8)  # 64 bytes of a token in one layer
    states = {("recurrent", 0): torch.zeros(1, 1000)}
    full, windowed = LayerContent((keys, keys)), LayerContent((keys, keys), window=6)
    assert RowSize.of([full, full]).num_places(7) == 7
    hybrid = RowSize.of([full, LayerContent(states=states)])
    assert hybrid.place_bytes == 128
    assert hybrid.num_places(7) == 7 + 32  # 4000 bytes are 31.25 places
    assert RowSize.of([LayerContent(states=states)]).num_places(10_000) == 1
    bound = 6 + joined_layers.SPARE_COLUMNS
    assert RowSize.of([full, windowed]).num_places(1000) == (1000 + bound) / 2
    engine = load(spec_of(folder_of("qwen3_5")))
    sequence = engine.encode(requests()[0])
    num_tokens = len(sequence.prompt_ids) + sequence.settings.max_new_tokens
    assert sequence.num_cache_tokens == engine.row_size.num_places(num_tokens) > num_tokens


def test_much_longer_rows_take_a_pass_of_their_own(folder_of, monkeypatch):
    monkeypatch.setattr("engine.runners.own_cache.NO_MATTER", 16)
    widths = []
    whole = OwnCacheRunner._decode

    def decode(runner, caches, tokens):
        widths.append(sorted(each.length for each in caches))
        return whole(runner, caches, tokens)

    monkeypatch.setattr(OwnCacheRunner, "_decode", decode)
    engine = load(spec_of(folder_of("gptj")))
    assert isinstance(engine, RouterBackend)
    assert {each[-1] > 16 for each in widths} == {True, False}
    assert all(each[0] > 16 or each[-1] <= 16 for each in widths)


# Prompts that are computed in one pass


def test_prompts_of_like_length_are_computed_in_one_pass(folder_of, monkeypatch):
    monkeypatch.setattr("engine.runners.own_cache.FEW_TOKENS", 6)
    groups = []
    whole = OwnCacheRunner._prefill_padded

    def prefill_padded(runner, sequences):
        groups.append([len(each.prompt_ids) for each in sequences])
        return whole(runner, sequences)

    monkeypatch.setattr(OwnCacheRunner, "_prefill_padded", prefill_padded)
    spec = spec_of(folder_of("gemma2"), max_sequences=16)
    engine = RouterBackend(spec, Checkpoint.load(spec), by_own_cache=True)
    assert engine.in_flight.runner.pads_prompts
    prove(engine.exact, engine.in_flight.runner, engine.has_beams)
    assert any(len(set(each)) > 1 for each in groups)  # the proof has padded ones
    groups.clear()
    bench = Bench(engine, spec)
    outputs = bench.answers(requests())
    assert sum(map(len, groups)) > 8
    for each in groups:
        padding = sum(max(each) - length for length in each)
        assert padding <= max(6, sum(each) / 4)
    alone = Alone("gemma2", folder_of("gemma2"))
    for each in requests():
        expected = alone.generate(each.text, **SETTINGS[each.id % len(SETTINGS)])
        assert [list(choice.token_ids) for choice in outputs[each.id].choices] == expected


@pytest.mark.usefixtures("proved_once")
@pytest.mark.parametrize("kind", ["qwen3_5", "mamba", "llama4"])
def test_a_recurrence_sees_no_padding(kind, folder_of):
    assert not load(spec_of(folder_of(kind))).in_flight.runner.pads_prompts
