"""Context: how many positions a configuration allows, and whether a window is narrower."""

from __future__ import annotations

from typing import Any

# Relative positions: a longer text is read less well, but it can be read.
RELATIVE_POSITIONS = frozenset({"t5", "mt5", "umt5", "longt5", "switch_transformers"})
UNLIMITED = 1_000_000  # tokenizers write "no limit" as a very large number


def context_tokens(config: Any, tokenizer: Any, side: str) -> int | None:
    """The number of positions of the encoder, the decoder or the only stack; None if unlimited."""
    text_config = config.get_text_config()
    if config.model_type in RELATIVE_POSITIONS:
        if side == "decoder":
            return None
        named = getattr(text_config, "n_positions", None) or tokenizer.model_max_length
        return named if named < UNLIMITED else None
    of_side = f"max_{side}_position_embeddings"
    for name in (of_side, "max_position_embeddings", "n_positions", "max_seq_len"):
        value = getattr(text_config, name, None)
        if isinstance(value, int) and value > 0:
            return max(value, scaled_context(text_config, value))
    return None


def scaled_context(text_config: Any, num_positions: int) -> int:
    """The context length that rotary scaling gives, from the positions that a configuration names.

    Many configurations name the scaled length already; Qwen's for YaRN names the original one.
    """
    rope = getattr(text_config, "rope_parameters", None) or {}
    factor = rope.get("factor")
    # One with parameters for each kind of layer names the scaled context.
    if rope.get("rope_type") not in ("yarn", "dynamic", "linear") or not factor:
        return num_positions
    return int(factor * (rope.get("original_max_position_embeddings") or num_positions))


def hides(window: int, config: Any) -> bool:
    """Whether an attention window hides any token. One as wide as the context hides none."""
    num_positions = None
    if config.model_type not in RELATIVE_POSITIONS:
        num_positions = context_tokens(config, None, "decoder")
    return num_positions is None or window < num_positions
