"""A prompt that is read in slices leaves the same cache as one that is read at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import transformers as hf

from engine.attention.hf_plugin import install as install_attention
from engine.attention.selection import contiguous_kv_cache
from engine.attention.torch_backend import TorchAttentionBackend
from engine.cpu.attention_backend import CpuAttentionBackend
from engine.kv_cache.paged import PagedKVCache
from engine.kv_cache.planning.kv_shape import probe_kv_shape
from engine.runners.causal import CausalRunner
from engine.runners.step_executor import FusedExecutor
from tests.unit.engine.cpu.llamas import kv_cache_of, laid_out, model_of, sequence

PROMPT = [(7 * each + each // 9) % 97 for each in range(150)]
OTHER = [(5 * each) % 97 for each in range(33)]


@pytest.fixture(autouse=True)
def _inference() -> Iterator[None]:
    with torch.inference_mode():
        yield


def gpt2() -> Any:
    torch.manual_seed(3)
    config = hf.GPT2Config(vocab_size=97, n_positions=256, n_embd=64, n_layer=2, n_head=4)
    return hf.GPT2LMHeadModel(config).eval()


def gemma2() -> Any:
    """Gemma 2: windows in every second layer, far shorter than the prompt, and soft caps."""
    torch.manual_seed(4)
    config = hf.Gemma2Config(
        vocab_size=97, hidden_size=64, intermediate_size=128, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, head_dim=16, sliding_window=12,
        attn_logit_softcapping=2.0, query_pre_attn_scalar=16, max_position_embeddings=256,
    )  # fmt: skip
    return hf.Gemma2ForCausalLM(config).eval()


def gpt_oss() -> Any:
    """gpt-oss: windows, attention sinks and experts."""
    torch.manual_seed(5)
    config = hf.GptOssConfig(
        vocab_size=97, hidden_size=64, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, head_dim=16, sliding_window=12,
        num_local_experts=4, num_experts_per_tok=2, max_position_embeddings=256,
    )  # fmt: skip
    return hf.GptOssForCausalLM(config).eval()


def mistral() -> Any:
    """Mistral: a window in every layer."""
    torch.manual_seed(6)
    config = hf.MistralConfig(
        vocab_size=97, hidden_size=64, intermediate_size=128, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, sliding_window=12,
        max_position_embeddings=256,
    )  # fmt: skip
    return hf.MistralForCausalLM(config).eval()


def fused(model: Any) -> CausalRunner:
    runner = CausalRunner(laid_out(model), kv_cache_of(model))
    assert isinstance(runner.executor, FusedExecutor)
    return runner


def compiled(model: Any) -> CausalRunner:
    install_attention(model)
    runner = CausalRunner(model, kv_cache_of(model))
    assert isinstance(runner.attention, CpuAttentionBackend)
    return runner


def plain(model: Any) -> CausalRunner:
    install_attention(model)
    kv_cache = contiguous_kv_cache(probe_kv_shape(model), poisoned=True, cpu_kernels=False)
    runner = CausalRunner(model, kv_cache)
    assert isinstance(runner.attention, TorchAttentionBackend)
    return runner


def paged(model: Any) -> CausalRunner:
    install_attention(model)
    return CausalRunner(model, PagedKVCache(probe_kv_shape(model), 8, 2000, poisoned=True))


WAYS: dict[str, Callable[[], CausalRunner]] = {
    "fused": lambda: fused(model_of("llama")),
    "compiled": lambda: compiled(model_of("qwen3")),
    "compiled, absolute": lambda: compiled(gpt2()),
    "plain": lambda: plain(model_of("qwen3")),
    "paged": lambda: paged(model_of("llama")),
    "paged, absolute": lambda: paged(gpt2()),
    "compiled, windows": lambda: compiled(mistral()),
    "compiled, soft caps": lambda: compiled(gemma2()),
    "compiled, sinks": lambda: compiled(gpt_oss()),
    "plain, windows": lambda: plain(mistral()),
    "plain, soft caps": lambda: plain(gemma2()),
    "paged, windows": lambda: paged(mistral()),
    "paged, soft caps": lambda: paged(gemma2()),
    "paged, sinks": lambda: paged(gpt_oss()),
}


def continued(runner: CausalRunner, ends: list[int], num_rows: int) -> list[torch.Tensor]:
    """The logits after PROMPT, and after one more token of each row.

    PROMPT is read up to each of `ends` in turn; another prompt joins beside the second slice.
    """
    begun: dict[int, Any] = {}
    other = None
    for at, end in enumerate(ends):
        one = sequence(PROMPT, num_rows, num_read_tokens=end)
        if at == 1:
            (cache, other), logits = runner.prefill([one, sequence(OTHER)], begun)
        elif other is not None:
            mixed = runner.prefill_and_decode([one], [other], [5] * other.num_rows, begun)
            if mixed is None:  # on a GPU
                runner.decode([other], [5] * other.num_rows)
                (cache,), logits = runner.prefill([one], begun)
            else:
                (cache,), logits = mixed[0], mixed[1][other.num_rows :]
            other.commit_token()
        else:
            (cache,), logits = runner.prefill([one], begun)
        begun = {len(PROMPT): cache}
        assert cache.length == end
    return [logits[0].clone(), runner.decode([cache], list(range(num_rows))).clone()]


@pytest.mark.parametrize("num_rows", [1, 3])
@pytest.mark.parametrize("ends", [[64, 128, 150], [1, 2, 37, 149, 150], [70, 150]])
@pytest.mark.parametrize("way", WAYS)
def test_slices_of_a_prompt_leave_what_the_whole_leaves(
    way: str, ends: list[int], num_rows: int
) -> None:
    runner = WAYS[way]()
    whole, sliced = continued(runner, [150], num_rows), continued(runner, ends, num_rows)
    for one, other in zip(whole, sliced, strict=True):
        assert one.isfinite().all()
        if way == "fused":  # a row's bits do not depend on other rows
            assert torch.equal(one, other)
        else:
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_a_slice_that_was_read_before_a_step_failed_is_read_again() -> None:
    runner = WAYS["fused"]()
    (cache,), first = runner.prefill([sequence(PROMPT, 1)])
    (same,), again = runner.prefill([sequence(PROMPT, 1)], {len(PROMPT): cache})
    assert same is cache
    assert cache.length == len(PROMPT)
    assert torch.equal(first, again)
