"""The model classes for which rows of one step are proved not to affect each other.

Classes are listed and not model types: BART's `ForCausalLM` has the model type of its translator,
but a forward that takes no positions. Only listed classes run in flight without a proof at load.
For `generate` the list only saves time: other models are probed at load (`batch_probe`).
"""

from __future__ import annotations

from typing import Any

from engine.checkpoint.context import hides

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


def is_listed(model: Any) -> bool:
    is_theirs = type(model).__module__.split(".")[0] == "transformers"
    return is_theirs and type(model).__name__ in PROVED_CLASSES


def why_not_proved(model: Any) -> str | None:
    """The reason that this model is not among the proved classes; None if it is."""
    name = type(model).__name__
    if name not in PROVED_CLASSES:
        return f"{name} ({model.config.model_type}) is not among the proved families"
    if not is_listed(model):
        return "it brings code of its own"
    return odd_attention(model.config)


def odd_attention(config: Any) -> str | None:
    """The attention setting that no test here covers, in words; None if there is none."""
    layer_types = getattr(config, "layer_types", None) or ()
    window = getattr(config, "sliding_window", None)
    # Mistral names no kinds of layers.
    kinds = set(layer_types) if layer_types else {"sliding_attention" if window else None}
    if window and not hides(window, config):
        kinds.discard("sliding_attention")
    if kinds - {"full_attention", None}:
        return "some of its layers look at a window only"
    if (rope := length_bound_rope(config)) is not None:
        return rope
    if getattr(config, "reorder_and_upcast_attn", False):
        return "its attention is computed in a way of its own"
    return None


def length_bound_rope(config: Any) -> str | None:
    """The reason that rotary frequencies depend on the longest row; None if they do not."""
    rope = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    # A model with several kinds of layers has one for each kind.
    ropes = [rope, *(each for each in rope.values() if isinstance(each, dict))]
    if any(each.get("rope_type", "default") in ("dynamic", "longrope") for each in ropes):
        return "its rotary positions depend on the length"
    return None
