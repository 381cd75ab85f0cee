"""The settings of a checkpoint's generation configuration that the in-flight backend supports.

If a checkpoint sets any other, the requests of the tasks that it affects run by `model.generate`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from engine.backends.generate import GenerateBackend
from engine.checkpoint.generation_config import EXACT_CACHES
from engine.protocol.request import Request
from engine.protocol.task_names import TaskName
from engine.sampling.resolve_params import SETTINGS

# The settings of a generation configuration that are supported in flight, or by code that both
# backends share.
SUPPORTED = frozenset(SETTINGS) | {
    "bad_words_ids", "bos_token_id", "decoder_start_token_id", "eos_token_id",
    "forced_bos_token_id", "forced_eos_token_id", "max_length", "min_length", "pad_token_id",
    "prefix", "stop_strings",
    # Supported through logits processors of `transformers`, which each request has for itself.
    "begin_suppress_tokens", "encoder_no_repeat_ngram_size", "encoder_repetition_penalty",
    "epsilon_cutoff", "eta_cutoff", "exponential_decay_length_penalty", "min_p",
    "remove_invalid_values", "renormalize_logits", "sequence_bias", "suppress_tokens", "top_h",
    "typical_p",
}  # fmt: skip
INERT = frozenset(
    {
        "_from_model_config", "transformers_version", "use_cache", "output_attentions",
        "output_hidden_states", "output_logits", "output_scores", "return_dict_in_generate",
        "num_assistant_tokens", "num_assistant_tokens_schedule", "assistant_confidence_threshold",
        "assistant_lookbehind", "target_lookbehind", "is_assistant",
        "disable_compile", "prefill_chunk_size", "low_memory", "cache_config",
    }
)  # fmt: skip
# Settings without effect at these values.
NEUTRAL: dict[str, Any] = {
    "diversity_penalty": 0.0,
    "guidance_scale": 1.0,
    "num_beam_groups": 1,
    "token_healing": False,
}
TASKS: tuple[TaskName, ...] = ("generate", "summarize", "translate", "chat")


def unsupported_settings(own: Mapping[str, Any]) -> list[str]:
    """The names of a checkpoint's settings that only `generate` supports."""
    return sorted(name for name, value in own.items() if not is_supported(name, value))


def is_supported(name: str, value: Any) -> bool:
    if value is None or name in SUPPORTED or name in INERT:
        return True
    if name == "cache_implementation":
        return value in EXACT_CACHES
    return name in NEUTRAL and bool(value == NEUTRAL[name])


def reason_of(
    exact: GenerateBackend, how_proved: str = "proved to answer as model.generate does"
) -> str:
    """The reason for the choice of backend; names the settings that send tasks to `generate`."""
    kept_out: dict[str, list[str]] = {}
    for task in TASKS:
        names = ", ".join(unsupported_settings(exact.text.own_settings(Request(id=0, task=task))))
        if names:
            kept_out.setdefault(names, []).append(task)
    if not kept_out:
        return how_proved
    said = "; ".join(f"{names} ({', '.join(tasks)})" for names, tasks in kept_out.items())
    return f"but by model.generate, for its generation configuration sets {said}"
