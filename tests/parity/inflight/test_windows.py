"""Layers with a window keep no more than it needs, and every answer is the one alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf

from engine.backends.router import RouterBackend
from engine.checkpoint.loader import Checkpoint
from engine.kv_cache import paged
from engine.kv_cache.layer_group import BUCKET_TOKENS, max_columns
from engine.kv_cache.paged import PAGE_TOKENS, PagedKVCache
from engine.protocol.request import Request
from engine.protocol.sampling_params import SamplingParams
from engine.runners import causal
from engine.runners.step_executor import FusedExecutor
from tests import checkpoints
from tests.checkpoints.proved_at_load import GQA, unlisted
from tests.parity.trials.alone import Alone
from tests.parity.trials.coming_and_going import break_when, let_come_and_go
from tests.parity.trials.joining import spec_of
from tests.running.engines import Bench

WINDOW = 24
LONG = {**GQA, "head_dim": 16, "sliding_window": WINDOW, "max_position_embeddings": 1024}
FIVE_TO_ONE = {**LONG, "num_hidden_layers": 6, "query_pre_attn_scalar": 16}
BUILDERS = {
    "gemma3": unlisted(hf.Gemma3TextConfig, **FIVE_TO_ONE),
    "mistral": unlisted(hf.MistralConfig, **LONG),
}
WAYS = ("compiled", "plain", "paged")
SLICE_TOKENS = 96

# Lengths of prompts, and settings. Those of one length begin alike.
PROMPTS = (5, 20, 90, 200, 200, 333, 333, 520)
SETTINGS: tuple[dict[str, Any], ...] = (
    {"max_new_tokens": 80, "min_new_tokens": 80, "do_sample": False},
    {"max_new_tokens": 70, "min_new_tokens": 70, "num_beams": 3, "do_sample": False},
    {"max_new_tokens": 75, "min_new_tokens": 75, "do_sample": True, "seed": 5},
    {"max_new_tokens": 9, "do_sample": False, "repetition_penalty": 1.4},
)


@pytest.fixture(autouse=True)
def _small_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (causal, paged):
        monkeypatch.setattr(module, "SLICE_TOKENS", SLICE_TOKENS)


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    def make(kind: str) -> Path:
        folder = tmp_path_factory.mktemp(kind)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            BUILDERS[kind](folder)
        return folder

    return cache(make)


@pytest.fixture(scope="module")
def asked_of(folder_of: Callable[[str], Path]) -> Callable[[str], list[Any]]:
    """Requests with the answers that they get alone."""

    def make(kind: str) -> list[Any]:
        alone = Alone(kind, folder_of(kind))
        words = " ".join(checkpoints.sentences(60))
        ids = alone.tokenizer(words, add_special_tokens=False)["input_ids"]
        asked = []
        for at, num_tokens in enumerate(PROMPTS):
            text = alone.tokenizer.decode(ids[:num_tokens]) + f" {at}"
            how = SETTINGS[at % len(SETTINGS)]
            request = Request(id=at, task="generate", text=text, params=SamplingParams(**how))
            asked.append((request, alone.generate(text, **how)))
        return asked

    return cache(make)


@pytest.fixture(scope="module")
def bench_of(folder_of: Callable[[str], Path]) -> Callable[..., Bench]:
    def make(kind: str, way: str, **settings: Any) -> Bench:
        settings = {"cpu_kernels": way == "compiled", "max_cache_tokens": 8192, **settings}
        spec = spec_of(folder_of(kind), **settings)
        is_paged = way == "paged"
        engine = RouterBackend(spec, Checkpoint.load(spec), poisoned=True, is_paged=is_paged)
        bench = Bench(engine, spec)
        bench.scheduler.slice_size.decode_seconds = 0.1
        bench.scheduler.slice_size.token_seconds = 0.1 / 40  # slices of 40 tokens
        bench.scheduler.learn = lambda plan, seconds: None  # type: ignore[method-assign]
        bench.scheduler.limits = replace(bench.scheduler.limits, max_admitted_tokens=60)
        return bench

    return make


def watch(bench: Bench, window: int = WINDOW) -> list[int]:
    """Let each step be followed by a look at what is kept; returns the tokens that were left."""
    left = []
    advance = bench.advance
    running = bench.loop.engine.in_flight.running_sequences

    def watched() -> Any:
        plan = advance()
        for each in running.values():
            is_long = len(each.sequence.prompt_ids) > SLICE_TOKENS
            look = look_at_pages if hasattr(each.cache, "owned") else look_at_columns
            left.append(look(each.cache, window, is_long))
        return plan

    bench.advance = watched  # type: ignore[method-assign]
    return left


def look_at_columns(cache: Any, window: int, is_long: bool) -> int:
    (group,) = (each for each in cache.groups if each.window == window)
    most = max_columns(window)
    if is_long:  # until the second token: wide enough to read a slice
        most = max(most, window + SLICE_TOKENS + 2 * BUCKET_TOKENS)
    assert group.capacity <= most
    return int(group.first)


def look_at_pages(cache: Any, window: int, is_long: bool) -> int:
    most = paged.max_tokens_kept(window) // PAGE_TOKENS + 1
    for group, owned in zip(cache.kv_cache.groups, cache.owned, strict=True):
        if group.window is not None:
            assert group.window == window
            assert len(owned) <= cache.num_rows * most
    return int(cache.num_left)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", BUILDERS)
def test_sequences_that_cross_windows_answer_as_alone(
    kind: str, way: str, asked_of: Callable[[str], Any], bench_of: Callable[..., Bench]
) -> None:
    """Beside others that join, leave, are read in slices and share their beginnings."""
    bench, asked = bench_of(kind, way, max_sequences=9), asked_of(kind)
    is_fused = isinstance(bench.loop.engine.in_flight.runner.executor, FusedExecutor)
    assert is_fused == (way == "compiled")
    left = watch(bench)
    everyone = [(at % 3 * 7, at, None) for at in range(len(asked))]
    let_come_and_go(bench, asked, everyone)
    again = [(4, at, 11 if at == 2 else None) for at in reversed(range(len(asked)))]
    let_come_and_go(bench, asked, again)
    assert max(left) > 400
    assert bench.progress.num_found_tokens > 500
    assert any(plan.reading and plan.running for plan in bench.plans)
    bench.loop.engine.check([])


@pytest.mark.parametrize("way", ["plain", "paged"])
def test_windows_let_more_sequences_run_at_the_same_budget(
    way: str, bench_of: Callable[..., Bench]
) -> None:
    """A row takes what its layers keep, and the budget holds for what is allocated, too."""
    num_places, num_tokens, num_new = 3_300, 700, 30
    bench = bench_of("gemma3", way, max_cache_tokens=num_places, prefix_caching=False)
    bench.scheduler.limits = replace(bench.scheduler.limits, max_admitted_tokens=512)
    tokenizer = bench.loop.engine.checkpoint.tokenizer
    words = " ".join(checkpoints.sentences(60))
    text = tokenizer.decode(tokenizer(words)["input_ids"][:num_tokens])
    how = SamplingParams(max_new_tokens=num_new, min_new_tokens=num_new, do_sample=False)
    bench.submit(*(Request(id=at, task="generate", text=text, params=how) for at in range(20)))
    kv_cache = bench.loop.engine.in_flight.runner.kv_cache
    running = bench.loop.engine.in_flight.running_sequences
    most_rows = most_bytes = 0
    while bench.advance() is not None:
        caches = [each.cache for each in running.values() if each.cache.length > num_tokens + 2]
        num_bytes = sum(map(num_bytes_of, caches))
        most_rows, most_bytes = max(most_rows, len(caches)), max(most_bytes, num_bytes)
    assert all(each.failure is None for each in bench.collect())
    assert most_rows > 2 * (num_places // (num_tokens + num_new))
    # Columns are added by the bucket, in every layer.
    rounding = most_rows * BUCKET_TOKENS
    assert most_bytes <= (num_places + rounding) * kv_cache.shape.bytes_per_token
    if isinstance(kv_cache, PagedKVCache):  # there are no more pages than the budget has
        rounding = 2 * kv_cache.max_rows * PAGE_TOKENS * kv_cache.shape.num_layers
        num_tokens = num_places * kv_cache.shape.num_layers + rounding
        assert (kv_cache.num_pages - 1) * PAGE_TOKENS <= num_tokens + PAGE_TOKENS


def num_bytes_of(cache: Any) -> int:
    if not hasattr(cache, "owned"):
        return sum(group.kv.nbytes for group in cache.groups)
    kv = cache.kv_cache.kv
    return len(cache.pages) * PAGE_TOKENS * int(kv[:, 0].nbytes)


@pytest.mark.parametrize("way", WAYS)
def test_a_step_that_failed_after_columns_were_left_is_run_again(
    way: str, asked_of: Callable[[str], Any], bench_of: Callable[..., Bench]
) -> None:
    bench, asked = bench_of("gemma3", way), asked_of("gemma3")[:4]
    left = watch(bench)
    failing = {"prefill": [1, 3], "decode": [2, 30, 41]}  # which calls
    for name, calls in failing.items():
        break_when(bench, name, failing_at(calls))
    let_come_and_go(bench, asked, [(0, at, None) for at in range(len(asked))])
    assert max(left) > 100


def failing_at(calls: list[int]) -> Callable[[Any], Exception | None]:
    numbers = count()
    return lambda ids: RuntimeError("once") if len(ids) > 1 and next(numbers) in calls else None


@pytest.mark.parametrize("way", WAYS)
def test_a_decoder_beside_an_encoder_keeps_what_its_windows_need(way: str, tmp_path: Path) -> None:
    folder = checkpoints.build("t5gemma", tmp_path / "t5gemma")
    alone = Alone("t5gemma", folder)
    settings: tuple[dict[str, Any], ...] = (
        {"max_new_tokens": 150, "min_new_tokens": 150, "do_sample": False},
        {"max_new_tokens": 90, "min_new_tokens": 90, "num_beams": 3, "do_sample": False},
    )
    asked = [
        (Request(id=at, task="generate", text=text, params=SamplingParams(**how)),
         alone.generate(text, **how))
        for at, (text, how) in enumerate(zip(checkpoints.sentences(4), settings * 2, strict=True))
    ]  # fmt: skip
    spec = spec_of(folder, cpu_kernels=way == "compiled", max_cache_tokens=4096)
    engine = RouterBackend(spec, Checkpoint.load(spec), poisoned=True, is_paged=way == "paged")
    bench = Bench(engine, spec)
    left = watch(bench, window=12)
    let_come_and_go(bench, asked, [(3 * at, at, None) for at in range(4)])
    assert max(left) == 64  # a page, and a bucket
