"""The model classes of which it is proved that rows of one call do not disturb each other.

A class and not a model_type: BART's `ForCausalLM` has the model_type of its translator, and a
forward that takes no positions. What is not named here runs alone.
"""

from __future__ import annotations

from typing import Any

# Those through which tests/parity goes, padded and in flight.
PROVED_CLASSES = frozenset(
    {
        "BartForConditionalGeneration", "MarianMTModel", "M2M100ForConditionalGeneration",
        "MBartForConditionalGeneration", "MT5ForConditionalGeneration",
        "PegasusForConditionalGeneration", "T5ForConditionalGeneration",
        "GPT2LMHeadModel", "GPTNeoXForCausalLM", "LlamaForCausalLM", "MistralForCausalLM",
        "OPTForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM",
    }
)  # fmt: skip


def why_not_shared(model: Any) -> str | None:
    """Why requests may not share a call of this model; None where that is proved."""
    name = type(model).__name__
    if name not in PROVED_CLASSES:
        return f"{name} ({model.config.model_type}) is not among the proved families"
    if type(model).__module__.split(".")[0] != "transformers":
        return "it brings code of its own"
    return length_bound_rope(model.config)


def length_bound_rope(config: Any) -> str | None:
    """Whether rotary frequencies follow the longest row of a step, and stay so after it."""
    rope = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    if rope.get("rope_type", "default") in ("dynamic", "longrope"):
        return "its rotary positions depend on the length"
    return None
