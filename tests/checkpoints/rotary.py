"""Llamas and Phis whose rotary frequencies are scaled, or depend on the length."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import transformers as hf

from tests.checkpoints.decoder_only import save_llama
from tests.checkpoints.proved_at_load import GQA, unlisted


def longrope(num_tokens: int, num_frequencies: int) -> dict[str, Any]:
    """Its rotary frequencies change once a text is longer than num_tokens."""
    return {
        "rope_type": "longrope",
        "rope_theta": 1e4,
        "factor": 8.0,
        "original_max_position_embeddings": num_tokens,
        "short_factor": [1.0] * num_frequencies,
        "long_factor": [1.0 + each for each in range(num_frequencies)],
    }


def llama_dynamic(folder: Path) -> None:
    """Llama whose rotary frequencies grow beyond its positions."""
    rope = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0}
    save_llama(folder, hf.LlamaConfig, hf.LlamaForCausalLM, head_dim=16, rope_parameters=rope)


def llama_yarn(folder: Path) -> None:
    """Llama with YaRN as in Qwen's cards: the context is the factor times the original."""
    rope = {
        "rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0,
        "original_max_position_embeddings": 48,
    }  # fmt: skip
    own = {"rope_parameters": rope, "max_position_embeddings": 48}
    save_llama(folder, hf.LlamaConfig, hf.LlamaForCausalLM, head_dim=16, **own)


# Listed families whose context is longer than the positions in their configurations.
SCALED: dict[str, Callable[[Path], None]] = {"llama_yarn": llama_yarn}

# Their rotary frequencies change beyond 64 tokens, or depend on the length beyond POSITIONS.
SWITCHED: dict[str, Callable[[Path], None]] = {
    "phi3_longrope": unlisted(
        hf.Phi3Config, **GQA, original_max_position_embeddings=64, rope_parameters=longrope(64, 4)
    ),
    "llama_longrope": unlisted(hf.LlamaConfig, **GQA, rope_parameters=longrope(64, 4)),
    "llama_dynamic": llama_dynamic,
}
