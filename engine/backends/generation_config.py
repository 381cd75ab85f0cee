"""What a checkpoint says of generation itself and cannot have: refused at load, by name.

`generate` would raise on every request instead.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

# Those that `transformers` moved out of `generate`, or that ask for more than a checkpoint:
# the values at which they do nothing, and what they are.
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
}
FED = ("decoder_start_token_id", "bos_token_id", "pad_token_id")  # the model reads these
CHOSEN = (
    "eos_token_id", "forced_bos_token_id", "forced_eos_token_id", "bad_words_ids",
    "suppress_tokens", "begin_suppress_tokens",
)  # fmt: skip
NONE = ("pad_token_id", -1)  # how older configurations write that there is no such token


def why_not_run(own: Mapping[str, Any], num_ids: int) -> str | None:
    """One sentence; None if all can be attended to. num_ids: that the embedding holds"""
    for name, (neutral, what) in NOT_RUN.items():
        value = own.get(name)
        if value is not None and value not in neutral:
            return f"it asks for {name} = {value!r} ({what}), which this engine does not run"
    for name in (*FED, *CHOSEN):
        for id_ in numbers(own.get(name)):
            if not 0 <= id_ < num_ids and (name, id_) != NONE:
                return f"its {name} is {id_}, and the model has the token ids 0 to {num_ids - 1}"
    return None


def numbers(value: Any) -> Iterator[int]:
    """Of token ids, however deep in lists."""
    if isinstance(value, int):
        yield value
    elif isinstance(value, list | tuple):
        for each in value:
            yield from numbers(each)
