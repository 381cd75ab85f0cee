"""Refuses a checkpoint at load for generation settings that cannot be served, by their names.

`generate` would raise on every request instead.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from transformers import GenerationConfig

# The cache implementation does not change the tokens, unless it rounds keys and values.
EXACT_CACHES = ("dynamic", "dynamic_full", "static", "offloaded", "offloaded_static", "hybrid")
# Settings that `transformers` moved out of `generate`, or that need more than a checkpoint: their
# neutral values, and what they are.
NOT_RUN: dict[str, tuple[tuple[Any, ...], str]] = {
    "penalty_alpha": ((0, 0.0), "contrastive search"),
    "num_beam_groups": ((0, 1), "group beam search"),
    "diversity_penalty": ((0, 0.0), "group beam search"),
    "constraints": ((), "constrained beam search"),
    "force_words_ids": ((), "constrained beam search"),
    "dola_layers": ((), "DoLa decoding"),
    "token_healing": ((False,), "token healing"),
    "use_mtp": ((False,), "decoding with a second model"),
    "assistant_early_exit": ((), "decoding with a second model"),
    "compile_config": ((), "a compilation of its own"),
    # Another cache is slower or faster and says the same; this one rounds what it keeps, and
    # "paged" is another way to generate.
    "cache_implementation": (EXACT_CACHES, "a cache that is not known to be exact"),
}
FED = ("decoder_start_token_id", "bos_token_id", "pad_token_id")  # the model reads these
CHOSEN = (
    "eos_token_id", "forced_bos_token_id", "forced_eos_token_id", "bad_words_ids",
    "suppress_tokens", "begin_suppress_tokens",
)  # fmt: skip
PAIRED = ("sequence_bias",)  # pairs of ids and a number that is no id
NUM_TRIED = 8  # tokens, for a trial construction of processors
NONE = ("pad_token_id", -1)  # how older configurations write that there is no such token


def why_not_run(own: Mapping[str, Any], num_ids: int) -> str | None:
    """The reason that a setting cannot be served, in one sentence; None if all can.

    num_ids: the number of rows of the embedding
    """
    for name, (neutral, what) in NOT_RUN.items():
        value = own.get(name)
        if value is not None and value not in neutral:
            return f"it asks for {name} = {value!r} ({what}), which this engine does not run"
    for name in (*FED, *CHOSEN, *PAIRED):
        value = own.get(name)
        ids = numbers(value) if name not in PAIRED else paired_ids(value)
        for id_ in ids:
            if not 0 <= id_ < num_ids and (name, id_) != NONE:
                return f"its {name} is {id_}, and the model has the token ids 0 to {num_ids - 1}"
    return None


def why_no_start(own: Mapping[str, Any]) -> str | None:
    """The reason that a decoder has no start token; None if it has one."""
    for name in ("decoder_start_token_id", "bos_token_id"):
        value = own.get(name)
        if isinstance(value, int):
            return None
        if value is not None:
            return f"its {name} is {value!r}, and a decoder starts from one token"
    return "it sets neither decoder_start_token_id nor bos_token_id, so its decoder has no start"


def why_not_made(model: Any, settings: Mapping[str, Any]) -> str | None:
    """The reason that `transformers` cannot build the logits processors; None if it can."""
    for name, value in settings.items():
        config = GenerationConfig()
        # A request may sample although the checkpoint does not, and may set these three.
        config.do_sample = name not in ("temperature", "top_k", "top_p")
        config.max_length = NUM_TRIED
        config._eos_token_tensor = torch.zeros(1, dtype=torch.long)
        setattr(config, name, value)
        try:
            model._get_logits_processor(
                config,
                input_ids_seq_length=1,
                encoder_input_ids=torch.zeros(1, 1, dtype=torch.long),
                device="cpu",
            )
        except Exception as error:
            said = " ".join(str(error).split())[:160]
            return f"its {name} cannot be used ({type(error).__name__}: {said})"
    return None


def numbers(value: Any) -> Iterator[int]:
    """Yield the token ids in a value, however deeply nested in lists."""
    if isinstance(value, int):
        yield value
    elif isinstance(value, list | tuple):
        for each in value:
            yield from numbers(each)


def paired_ids(value: Any) -> Iterator[int]:
    """Yield the token ids of `[[[5, 7], -2.0], ...]` or `{(5, 7): -2.0}`."""
    for pair in value.items() if isinstance(value, Mapping) else value or ():
        if isinstance(pair, list | tuple) and pair:
            yield from numbers(pair[0])
