"""Compiled attention gives what torch's gives, whatever the caches are."""

import logging
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from engine.attention.base import Scoring
from engine.attention.selection import attention_for, contiguous_kv_cache
from engine.attention.torch_backend import ContiguousAttentionBackend, TorchAttentionBackend
from engine.cpu import quantized_linear
from engine.cpu.attention_backend import CpuAttentionBackend
from engine.cpu.self_test import kernel_module
from engine.kv_cache.base import KVShape
from engine.kv_cache.contiguous import ContiguousKVCache, ContiguousSequenceCache

LAYERS, HEADS = 2, 2
# Those that are whole registers have code of their own.
SIZES = st.sampled_from([12, 16, 32, 48, 64, 128])

CACHES = st.lists(
    st.tuples(st.integers(0, 150), st.integers(1, 4)),  # columns, rows
    min_size=1,
    max_size=6,
)


def shape_of(size: int) -> KVShape:
    return KVShape(LAYERS, HEADS, size, torch.float32, torch.device("cpu"))


def caches_of(
    sizes: list[tuple[int, int]], attention: ContiguousAttentionBackend, draw: torch.Generator
) -> list[ContiguousSequenceCache]:
    caches, size = [], attention.shape.head_size
    for num_columns, num_rows in sizes:
        cache = attention.kv_cache.new_sequence(num_rows)
        cache.reserve(num_columns + 1)
        for layer in range(LAYERS):
            keys, values = torch.randn(2, HEADS, num_columns, size, generator=draw)
            cache.write_prompt(layer, keys, values)
        cache.commit_prompt(num_columns)
        crossed = torch.randn(LAYERS, 2, HEADS, num_columns + 1, size, generator=draw)
        cache.write_encoded(crossed)
        caches.append(cache)
    return caches


@given(
    sizes=CACHES, size=SIZES, group=st.sampled_from([1, 3]), has_bias=st.booleans(),
    windows=st.tuples(*[st.sampled_from([None, 1, 7, 40])] * LAYERS),
    softcap=st.sampled_from([None, 0.7]), has_sinks=st.booleans(), seed=st.integers(0, 99),
)  # fmt: skip
def test_the_kernel_computes_what_torch_does(
    sizes: list[tuple[int, int]],
    size: int,
    group: int,
    has_bias: bool,
    windows: tuple[int | None, ...],
    softcap: float | None,
    has_sinks: bool,
    seed: int,
) -> None:
    shape = shape_of(size)
    compiled = attention_for(contiguous_kv_cache(shape, poisoned=True), is_cross=False)
    assert isinstance(compiled, CpuAttentionBackend)
    by_torch = TorchAttentionBackend(ContiguousKVCache(shape, poisoned=True), is_cross=False)
    drawn = [
        caches_of(sizes, each, torch.Generator().manual_seed(seed)) for each in (compiled, by_torch)
    ]
    draw = torch.Generator().manual_seed(seed + 1)
    num_rows = sum(rows for _, rows in sizes)
    sinks = torch.randn(HEADS * group, generator=draw) if has_sinks else None
    scorings = [Scoring(0.3, each, softcap, sinks) for each in windows]
    compiled.windows = by_torch.windows = windows
    # No model has a bias beside those.
    if has_bias and group == 1 and softcap is None and not has_sinks:
        compiled.bias = by_torch.bias = torch.randn(HEADS, 200, generator=draw)
    # Several steps, between which rows of a cache change places, as beams do.
    for _ in range(3):
        places = [torch.randint(0, rows, (rows,), generator=draw) for _, rows in sizes]
        asked = torch.randn(LAYERS, num_rows, HEADS * group, 1, size, generator=draw)
        new = torch.randn(LAYERS, 2, num_rows, HEADS, 1, size, generator=draw)
        seen = []
        for attention, caches in zip((compiled, by_torch), drawn, strict=True):
            attention.prepare(caches)
            seen.append(
                [
                    attention.attend(each, asked[each], *new[each], scorings[each])
                    for each in range(LAYERS)
                ]
            )
            for cache, rows in zip(caches, places, strict=True):
                cache.commit_token()
                cache.reorder(rows)
        for one, other in zip(*seen, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


@given(sizes=CACHES, size=SIZES, seed=st.integers(0, 99))
def test_rows_of_a_request_read_the_same_prompt(
    sizes: list[tuple[int, int]], size: int, seed: int
) -> None:
    shape = shape_of(size)
    compiled = attention_for(contiguous_kv_cache(shape, poisoned=True), is_cross=True)
    assert isinstance(compiled, CpuAttentionBackend)
    draw = torch.Generator().manual_seed(seed)
    caches = caches_of(sizes, compiled, draw)
    query = torch.randn(sum(rows for _, rows in sizes), HEADS, 1, size, generator=draw)
    seen = []
    for attention in (
        compiled,
        TorchAttentionBackend(ContiguousKVCache(shape, poisoned=True), is_cross=True),
    ):
        attention.prepare(caches)
        seen.append(attention.attend(1, query, None, None, Scoring(1.0)))
    torch.testing.assert_close(*seen, rtol=1e-5, atol=1e-5)


def test_the_exponential_is_that_of_the_library_within_rounding() -> None:
    from engine.cpu.kernels.softmax import exp

    x = -np.geomspace(1e-7, 80, 20_000, dtype=np.float32)
    got = np.array([exp(each) for each in x], np.float64)
    assert np.max(np.abs(got / np.exp(x.astype(np.float64)) - 1)) < 3e-7
    assert exp(np.float32(0)) == 1


@given(
    rows=st.lists(
        st.lists(st.floats(-1e4, 1e4, width=32), min_size=7, max_size=7), min_size=1, max_size=5
    ),
    num_steps=st.sampled_from([quantized_linear.ALL_STEPS, quantized_linear.HALF_STEPS]),
)
def test_rows_are_rounded_by_themselves_within_half_a_step(
    rows: list[list[float]], num_steps: int
) -> None:
    given_ = torch.tensor(rows)
    for round_rows in (quantized_linear.compiled_rounding(), quantized_linear.round_rows):
        rounded, scales = round_rows(given_, num_steps)
        assert 1 <= int(rounded.min()) <= int(rounded.max()) <= 2 * num_steps + 1
        back = (rounded.float() - (num_steps + 1)) * scales
        assert torch.all((back - given_).abs() <= 0.502 * scales)
        alone = round_rows(given_[:1], num_steps)
        assert torch.equal(alone[0], rounded[:1])
        assert torch.equal(alone[1], scales[:1])


@pytest.mark.parametrize(
    "module", ["decode_attention", "prefill_attention", "quantize_rows", "rms_norm", "activation"]
)
def test_the_kernel_can_be_compiled_here(module: str) -> None:
    """Without it the answers are the same, later; no other test would notice."""
    assert kernel_module(f"kernels.{module}") is not None


@pytest.mark.parametrize("is_cross", [False, True])
def test_a_kernel_that_attends_wrongly_is_not_used(
    is_cross: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    shape = shape_of(32)
    whole = CpuAttentionBackend.attend

    def attend(attention: CpuAttentionBackend, *arguments: Any) -> torch.Tensor:
        return whole(attention, *arguments) * (1.01 if attention.is_cross == is_cross else 1)

    assert isinstance(attention_for(contiguous_kv_cache(shape), is_cross), CpuAttentionBackend)
    monkeypatch.setattr(CpuAttentionBackend, "attend", attend)
    with caplog.at_level(logging.WARNING):
        kv_cache = contiguous_kv_cache(shape)
    assert isinstance(attention_for(kv_cache, is_cross), TorchAttentionBackend)
    assert [each.message for each in caplog.records] == ["kernel disagrees with torch"]


@pytest.mark.parametrize("num_tokens", [1, 7, 8, 63, 64, 65, 300])
@pytest.mark.parametrize(
    ("size", "scoring"),
    [
        *[(size, Scoring(0.25)) for size in (16, 48, 64)],
        *[(16, Scoring(0.25, window=window, softcap=0.5)) for window in (1, 8, 40, 100, 299, 500)],
    ],
)
def test_a_prompt_is_written_and_attended_to_as_by_torch(
    size: int, scoring: Scoring, num_tokens: int
) -> None:
    heads = 4
    attention = attention_for(contiguous_kv_cache(shape_of(size), poisoned=True))
    assert isinstance(attention, CpuAttentionBackend)
    draw = torch.Generator().manual_seed(num_tokens)
    qkv = torch.randn(num_tokens, (heads + 2 * HEADS) * size, generator=draw)

    def attended(ends: list[int]) -> tuple[torch.Tensor, ContiguousSequenceCache]:
        """Read the prompt in slices that end there."""
        found, begin = torch.full((num_tokens, heads * size), torch.nan), 0
        cache = attention.kv_cache.new_sequence(1, num_tokens + 4)
        for end in ends:
            rows, out = qkv[begin:end], found[begin:end]
            ones, zeros = torch.ones(len(rows), size), torch.zeros(len(rows), size)
            attention.prepare([], [cache], ((0, len(rows)),))
            arguments = (
                *attention.first_arguments,
                *attention.prompts_table.of_layer(1),
                *attention.merged_arguments(
                    rows.data_ptr(), heads * size, ones.data_ptr(), zeros.data_ptr(), scoring,
                    out.data_ptr(),
                ),
            )  # fmt: skip
            num_threads = torch.get_num_threads()  # for which there is scratch memory
            attention.prefill_kernel.write_prompts(num_threads, *arguments)
            attention.prefill_kernel.attend_prompts(num_threads, *arguments)
            cache.commit_prompt(end)
            begin = end
        return found, cache

    found, cache = attended([num_tokens])
    query, key, value = (
        qkv.view(1, num_tokens, -1, size).transpose(1, 2).split([heads, HEADS, HEADS], dim=1)
    )
    scores = (query.unflatten(1, (HEADS, -1)) @ key[:, :, None].transpose(-1, -2)) * scoring.scale
    if scoring.softcap is not None:
        scores = scoring.softcap * torch.tanh(scores / scoring.softcap)
    back = torch.arange(num_tokens)[:, None] - torch.arange(num_tokens)
    is_seen = (back >= 0) & (back < (scoring.window or num_tokens))
    shares = scores.masked_fill(~is_seen, -torch.inf).softmax(-1)
    expected = (shares @ value[:, :, None]).flatten(1, 2)
    of_tokens = expected[0].transpose(0, 1).reshape(num_tokens, -1)
    torch.testing.assert_close(found, of_tokens, rtol=1e-5, atol=1e-5)
    assert torch.equal(cache.groups[0].kv[1, 0, 0, :, :num_tokens], key[0])
    assert torch.equal(cache.groups[0].kv[1, 1, 0, :, :num_tokens], value[0])
    in_slices, _ = attended(sorted({*range(17, num_tokens, 17), num_tokens}))
    assert torch.equal(in_slices, found)
