"""Compares the weights in a checkpoint's files with the parameters of the model.

For a missing weight `transformers` uses random numbers, and it ignores surplus ones; it says so in
its log only. Such a model answers with noise, so it is refused by name.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any

import torch

MAX_NAMED = 3  # of each kind
# Tables that older versions wrote beside the weights, and that a model computes by itself.
COMPUTED = re.compile(r"(^|\.)((attn|attention)\.(masked_)?bias|position_ids|inv_freq)$")


def why_not_whole(model: Any, info: Mapping[str, Any]) -> str | None:
    """The missing or surplus weights in words; None if the files fit the model.

    info: the `output_loading_info` of `from_pretrained`, without the weights that the architecture
          ties or allows to be absent
    """
    # A computed table, for example of sines, and no learned weight.
    computed = {name for name, _ in model.named_buffers()}
    computed |= {name.removeprefix(f"{model.base_model_prefix}.") for name in computed}
    extra = {
        name for name in info["unexpected_keys"] if name not in computed and not is_computed(name)
    }
    kinds = {
        "lack": info["missing_keys"],
        "hold beyond the configuration": extra,
        "hold in another shape": {shaped(each) for each in info["mismatched_keys"]},
    }
    faults = [
        f"{verb} {len(names)} ({named(names)})" for verb, names in kinds.items() if len(names)
    ]
    if not faults and info["error_msgs"]:
        faults = [f"could not be read ({' '.join(str(info['error_msgs'][0]).split())[:240]})"]
    return f"of the model's weights its files {' and '.join(faults)}" if faults else None


def is_computed(name: str) -> bool:
    return COMPUTED.search(name) is not None


def shaped(mismatch: Any) -> str:
    name, of_file, of_model = mismatch
    return f"{name}: {list(of_file)} for {list(of_model)}"


def named(names: Collection[str]) -> str:
    listed = sorted(names)
    more = [f"{len(listed) - MAX_NAMED} more"] if len(listed) > MAX_NAMED else []
    return ", ".join(listed[:MAX_NAMED] + more)


@torch.no_grad()
def not_finite(model: Any) -> list[str]:
    """The names of parameters that contain NaN or infinity."""
    names = []
    for name, parameter in model.named_parameters():
        # One-byte types hold packed weights, whose bits are not numbers.
        if parameter.numel() and parameter.is_floating_point() and parameter.itemsize > 1:
            ends = torch.stack(torch.aminmax(parameter.detach()))
            if not bool(torch.isfinite(ends).all()):
                names.append(name)
    return names
