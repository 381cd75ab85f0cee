"""Small models like LLaMA, packed and fused as in an engine, and steps with them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
import transformers as hf

from engine.attention.hf_plugin import install as install_attention
from engine.attention.selection import contiguous_kv_cache
from engine.cpu.fusion import fuse
from engine.cpu.linear import MakeLinear, pack
from engine.cpu.packed_gemm import PackedGemmLinear
from engine.kv_cache.contiguous import ContiguousKVCache
from engine.kv_cache.planning.kv_shape import probe_kv_shape
from engine.runners.causal import CausalRunner

HEAD_SIZE = 16
CONFIGS = {
    "llama": hf.LlamaConfig,
    "mistral": hf.MistralConfig,
    "qwen2": hf.Qwen2Config,  # has biases
    "qwen3": hf.Qwen3Config,  # normalizes queries and keys
    "phi3": hf.Phi3Config,  # published with merged layers
    "gemma": hf.GemmaConfig,  # scales its embedding, adds one to the weights of norms
    "gemma2": hf.Gemma2Config,  # windows, soft caps, and four norms in a layer
    "gemma3": hf.Gemma3TextConfig,  # two kinds of rotary embeddings
    "mixtral": hf.MixtralConfig,  # two of four experts for each row
    "qwen3_moe": hf.Qwen3MoeConfig,  # one layer of experts, whose weights do not add up to one
    "cohere": hf.CohereConfig,  # another kind of layer
}

OFFSET_NORMS = ("gemma", "gemma2", "gemma3")  # norms that add one to their weights
# Windows are shorter than most prompts.
OWN: dict[str, dict[str, Any]] = {
    "gemma2": {"sliding_window": 20, "query_pre_attn_scalar": 9, "attn_logit_softcapping": 0.5,
               "final_logit_softcapping": 0.7},
    "gemma3": {"sliding_window": 20, "query_pre_attn_scalar": 9,
               "layer_types": ["sliding_attention", "full_attention"]},
    "mixtral": {"sliding_window": None, "num_local_experts": 4},
    "qwen3_moe": {"sliding_window": None, "num_experts": 9, "num_experts_per_tok": 3,
                  "moe_intermediate_size": 40, "mlp_only_layers": [0]},
}  # fmt: skip


def model_of(kind: str, head_size: int = HEAD_SIZE, key_heads: int = 2) -> Any:
    torch.manual_seed(7)
    config = CONFIGS[kind](
        vocab_size=97,
        hidden_size=4 * head_size,
        intermediate_size=88,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=key_heads,
        head_dim=head_size,
        pad_token_id=None,
        **OWN.get(kind, {"sliding_window": None}),
    )
    model = hf.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for name, each in model.named_parameters():
            if name.endswith("bias"):
                each.normal_()
            if name.endswith("norm.weight") and kind in OFFSET_NORMS:
                each.normal_(0.0, 0.3)
            elif name.endswith(("q_norm.weight", "k_norm.weight")):
                each.normal_(1.0, 0.3)
    return model


def laid_out(model: Any, make: MakeLinear | None = None, min_weights: int = 0) -> Any:
    install_attention(model)
    fuse(model)
    pack(model, make or PackedGemmLinear, min_weights)
    return model


def kv_cache_of(model: Any) -> ContiguousKVCache:
    return contiguous_kv_cache(probe_kv_shape(model), poisoned=True)


def logits_in_flight(runner: CausalRunner, prompts: list[list[int]]) -> torch.Tensor:
    """(requested, vocab): the first prompt is computed, two join, and all take a step."""
    first, *others = [sequence(each) for each in prompts]
    caches, _ = runner.prefill([first])
    mixed = runner.prefill_and_decode(others, caches, [11] * first.num_rows)
    assert mixed is not None
    caches[0].commit_token()
    caches += mixed[0]
    rows = [token for cache in caches for token in [13] * cache.num_rows]
    return torch.cat([mixed[1].clone(), runner.decode(caches, rows)])


def sequence(
    prompt: list[int], num_rows: int | None = None, num_read_tokens: int | None = None
) -> Any:
    """num_rows: None: one or two, depending on the prompt"""
    return SimpleNamespace(
        id=len(prompt),
        prompt_ids=tuple(prompt),
        num_rows=num_rows or len(prompt) % 2 + 1,
        settings=SimpleNamespace(max_new_tokens=8),
        num_read_tokens=num_read_tokens,
        blocks=None,
    )
