"""Decoder-only families that are not listed and are proved at load."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import transformers as hf

from tests.checkpoints.decoder_only import llama_like
from tests.checkpoints.encoder_decoders import bart, marian, mbart, pegasus
from tests.checkpoints.saving import POSITIONS, WIDTH, borrowed, save
from tests.checkpoints.tokenizers import byte_level


def unlisted(config_type: Any, **own: Any) -> Callable[[Path], None]:
    """A decoder-only family that is not listed, with GPT-2's tokenizer."""

    def write(folder: Path) -> None:
        vocab, merges = byte_level(["<|endoftext|>"])
        tokenizer = hf.GPT2Tokenizer(vocab=vocab, merges=merges)
        ends = {"bos_token_id": tokenizer.eos_token_id, "eos_token_id": tokenizer.eos_token_id}
        config = config_type(**{**llama_like(tokenizer), "pad_token_id": None, **own, **ends})
        save(folder, tokenizer, hf.AutoModelForCausalLM.from_config(config))

    return write


GQA = {"num_key_value_heads": 2}

WINDOWED = {**GQA, "head_dim": 8, "sliding_window": 12}

SHARED_KEYS = {
    **WINDOWED, "num_hidden_layers": 4, "num_kv_shared_layers": 2,
    "hidden_size_per_layer_input": 8, "layer_types": ["sliding_attention", "full_attention"] * 2,
}  # fmt: skip

EXPERTS = {
    **GQA, "num_local_experts": 4, "num_experts": 4, "num_experts_per_tok": 2,
    "moe_intermediate_size": WIDTH, "shared_expert_intermediate_size": WIDTH,
}  # fmt: skip

LATENT = {
    "q_lora_rank": 8, "kv_lora_rank": 8, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8,
    "v_head_dim": 8, "head_dim": 8, "n_routed_experts": 4, "num_experts_per_tok": 2,
    "moe_intermediate_size": WIDTH, "first_k_dense_replace": 1, "n_shared_experts": 1,
    "n_group": 1, "topk_group": 1, "num_key_value_heads": 4,
}  # fmt: skip

JAMBA = {
    "num_hidden_layers": 4, "attn_layer_period": 2, "attn_layer_offset": 1,
    "expert_layer_period": 2, "num_experts": 2, "mamba_dt_rank": 4, "use_mamba_kernels": False,
}  # fmt: skip

# Recurrent layers.
MAMBA = {"state_size": 4, "time_step_rank": 4}

MAMBA_2 = {
    "mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_state": 4, "mamba_n_groups": 1,
    "mamba_chunk_size": 8,
}  # fmt: skip

DELTA_NET = {
    "num_hidden_layers": 4, "linear_num_key_heads": 2, "linear_num_value_heads": 4,
    "linear_key_head_dim": 8, "linear_value_head_dim": 8, "head_dim": 8,
}  # fmt: skip

LONGCAT = {
    "num_layers": 1, "num_hidden_layers": 2, "ffn_hidden_size": 2 * WIDTH,
    "expert_ffn_hidden_size": WIDTH, "n_routed_experts": 4, "zero_expert_num": 1, "moe_topk": 2,
    "q_lora_rank": 8, "kv_lora_rank": 8, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8,
    "v_head_dim": 8, "head_dim": 8,
}  # fmt: skip


def as_decoder(folder: Path, write: Callable[[Path], None], model_class: Any) -> None:
    """The decoder of an encoder-decoder alone, as its `...ForCausalLM`."""
    with borrowed(write, folder) as (tokenizer, config):
        config.is_encoder_decoder, config.is_decoder = False, True
        save(folder, tokenizer, model_class(config))


def bart_decoder(folder: Path) -> None:
    as_decoder(folder, bart, hf.BartForCausalLM)


def mbart_decoder(folder: Path) -> None:
    as_decoder(folder, mbart, hf.MBartForCausalLM)


def marian_decoder(folder: Path) -> None:
    as_decoder(folder, marian, hf.MarianForCausalLM)


def pegasus_decoder(folder: Path) -> None:
    as_decoder(folder, pegasus, hf.PegasusForCausalLM)


# Families that are not listed and are proved at load, one per line. Windows are shorter than most
# prompts.
UNLISTED: dict[str, Callable[[Path], None]] = {
    "bloom": unlisted(hf.BloomConfig, n_layer=2, n_head=4),
    "mpt": unlisted(hf.MptConfig, d_model=WIDTH, n_layers=2, n_heads=4, max_seq_len=POSITIONS),
    "falcon": unlisted(hf.FalconConfig),
    "falcon_alibi": unlisted(hf.FalconConfig, alibi=True, multi_query=False),
    "gpt_bigcode": unlisted(hf.GPTBigCodeConfig, n_embd=WIDTH, n_layer=2, n_head=4),
    "gptj": unlisted(
        hf.GPTJConfig, n_embd=WIDTH, n_layer=2, n_head=4, n_positions=POSITIONS, rotary_dim=8
    ),
    "gemma": unlisted(hf.GemmaConfig, **GQA, head_dim=8),
    "gemma2": unlisted(hf.Gemma2Config, **WINDOWED, query_pre_attn_scalar=8),
    "gemma3": unlisted(hf.Gemma3TextConfig, **WINDOWED, query_pre_attn_scalar=8),
    "phi": unlisted(hf.PhiConfig),
    "phi3": unlisted(hf.Phi3Config, **GQA, sliding_window=12),
    # Without windows and with heads as wide as vector registers, for the fused step.
    "phi3_full": unlisted(hf.Phi3Config, **GQA, hidden_size=2 * WIDTH, sliding_window=None),
    "stablelm": unlisted(hf.StableLmConfig, **GQA),
    "olmo": unlisted(hf.OlmoConfig, **GQA),
    "olmo2": unlisted(hf.Olmo2Config, **GQA),
    "olmo3": unlisted(hf.Olmo3Config, **GQA, sliding_window=12),
    "granite": unlisted(hf.GraniteConfig, **GQA),
    "smollm3": unlisted(hf.SmolLM3Config, **GQA),
    "glm4": unlisted(hf.Glm4Config, **GQA, head_dim=8),
    "cohere": unlisted(hf.CohereConfig, **GQA),
    "cohere2": unlisted(hf.Cohere2Config, **WINDOWED),
    "starcoder2": unlisted(hf.Starcoder2Config, **GQA, sliding_window=12),
    # Heads as wide as vector registers, as the fused step requires.
    "gemma2_wide": unlisted(
        hf.Gemma2Config, **{**WINDOWED, "head_dim": 16}, query_pre_attn_scalar=8
    ),
    "gemma3_wide": unlisted(
        hf.Gemma3TextConfig, **{**WINDOWED, "head_dim": 16}, query_pre_attn_scalar=8
    ),
    "mistral_window": unlisted(hf.MistralConfig, **{**WINDOWED, "head_dim": 16}),
    "qwen2_window": unlisted(
        hf.Qwen2Config, **GQA, use_sliding_window=True, sliding_window=12, max_window_layers=1
    ),
    "mixtral": unlisted(hf.MixtralConfig, **EXPERTS),
    "mixtral_wide": unlisted(hf.MixtralConfig, **EXPERTS, head_dim=16),  # by the fused step
    "qwen3_moe": unlisted(hf.Qwen3MoeConfig, **EXPERTS, head_dim=8),
    "qwen3_moe_wide": unlisted(hf.Qwen3MoeConfig, **EXPERTS, head_dim=16),  # by the fused step
    "gpt_oss": unlisted(hf.GptOssConfig, **EXPERTS, head_dim=8, sliding_window=12),
    "deepseek_v2": unlisted(hf.DeepseekV2Config, **LATENT),
    "deepseek_v3": unlisted(hf.DeepseekV3Config, **LATENT),
    "longcat": unlisted(hf.LongcatFlashConfig, **LONGCAT),
    "mamba": unlisted(hf.MambaConfig, **MAMBA),
    "falcon_mamba": unlisted(hf.FalconMambaConfig, **MAMBA),
    "mamba2": unlisted(
        hf.Mamba2Config, state_size=4, num_heads=8, head_dim=8, n_groups=1, chunk_size=8
    ),
    "jamba": unlisted(hf.JambaConfig, **GQA, **JAMBA),
    "bamba": unlisted(hf.BambaConfig, **GQA, **MAMBA_2, attn_layer_indices=[1]),
    "granite_hybrid": unlisted(
        hf.GraniteMoeHybridConfig, **EXPERTS, **MAMBA_2, shared_intermediate_size=WIDTH,
        layer_types=["linear_attention", "full_attention"],
    ),
    "falcon_h1": unlisted(hf.FalconH1Config, **GQA, **MAMBA_2, mamba_d_ssm=64),
    "zamba": unlisted(
        hf.ZambaConfig, num_hidden_layers=4, attn_layer_period=2, attn_layer_offset=1,
        mamba_d_state=4, mamba_dt_rank=4, attention_head_dim=16, num_key_value_heads=4,
        use_mamba_kernels=False,
    ),
    "zamba2": unlisted(
        hf.Zamba2Config, num_hidden_layers=3, mamba_d_state=4, n_mamba_heads=4, chunk_size=8,
        layers_block_type=["linear_attention", "hybrid", "linear_attention"],
        use_mamba_kernels=False, num_key_value_heads=4,
    ),
    "nemotron_h": unlisted(
        hf.NemotronHConfig, **GQA, head_dim=8, ssm_state_size=4, mamba_num_heads=8,
        mamba_head_dim=8, n_groups=1, chunk_size=8, use_mamba_kernels=False,
        layers_block_type=["linear_attention", "mlp", "full_attention", "mlp"],
    ),
    "lfm2": unlisted(hf.Lfm2Config, **GQA, layer_types=["conv", "full_attention"]),
    "lfm2_moe": unlisted(
        hf.Lfm2MoeConfig, **EXPERTS, layer_types=["conv", "full_attention"], num_dense_layers=1
    ),
    "qwen3_next": unlisted(hf.Qwen3NextConfig, **EXPERTS, **DELTA_NET),
    "qwen3_5": unlisted(hf.Qwen3_5TextConfig, **GQA, **DELTA_NET),
    "qwen3_5_moe": unlisted(hf.Qwen3_5MoeTextConfig, **EXPERTS, **DELTA_NET),
    "olmo_hybrid": unlisted(hf.OlmoHybridConfig, **GQA, **DELTA_NET),
    "llama4": unlisted(
        hf.Llama4TextConfig, **EXPERTS, head_dim=8, num_hidden_layers=4, attention_chunk_size=12,
        floor_scale=8, intermediate_size_mlp=2 * WIDTH,
        layer_types=["chunked_attention", "full_attention"] * 2, no_rope_layers=[1, 0] * 2,
    ),
    # Layers that reuse the keys of other layers.
    "gemma4": unlisted(
        hf.Gemma4TextConfig, **SHARED_KEYS, global_head_dim=8, vocab_size_per_layer_input=381
    ),
    "gemma3n": unlisted(
        hf.Gemma3nTextConfig, **SHARED_KEYS, vocab_size_per_layer_input=381, laurel_rank=8,
        altup_num_inputs=2, activation_sparsity_pattern=[0.0] * 4,
    ),
    "zaya": unlisted(
        hf.ZayaConfig, **{**EXPERTS, "num_experts_per_tok": 1}, head_dim=8, router_hidden_size=16
    ),
    "lfm3": unlisted(
        hf.Lfm3Config, **WINDOWED, num_hidden_layers=3,
        layer_types=["conv", "sliding_attention", "full_attention"],
    ),
    "kimi_linear": unlisted(
        hf.KimiLinearConfig, **{**LATENT, "q_lora_rank": None}, num_experts=4,
        num_experts_per_token=2, linear_head_dim=8, linear_num_heads=4, model_max_length=POSITIONS,
        layer_types=["linear_attention", "full_attention"], mlp_layer_types=["dense", "sparse"],
    ),
    "bart_decoder": bart_decoder,
    "mbart_decoder": mbart_decoder,
    "marian_decoder": marian_decoder,
    "pegasus_decoder": pegasus_decoder,
}  # fmt: skip

# Recurrent states in a form of their own, which `generate` does not reorder with the beams.
STATES_OF_THEIR_OWN: dict[str, Callable[[Path], None]] = {
    "xlstm": unlisted(hf.xLSTMConfig, hidden_size=128, num_heads=4, num_blocks=2),
    "minimax": unlisted(
        hf.MiniMaxConfig, **EXPERTS, head_dim=8, block_size=8,
        layer_types=["linear_attention", "full_attention"],
    ),
    "recurrent_gemma": unlisted(
        hf.RecurrentGemmaConfig, **GQA, num_hidden_layers=3, lru_width=WIDTH,
        attention_window_size=12,
    ),
}  # fmt: skip
