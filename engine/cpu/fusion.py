"""Replaces modules of a model by fused ones, which do the same in fewer passes over memory.

Each kind is first tested on random rows (`self_test`).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from engine.cpu.self_test import agrees, kernel_module

Make = Callable[[Any], nn.Module]  # makes a fused module of the one that it replaces

NORMS = ("RMSNorm", "T5LayerNorm")  # the ends of their names; what they compute is tried
OFFSETS = (0.0, 1.0)  # that norms add to their weights
MLPS = frozenset(
    {"LlamaMLP", "MistralMLP", "Qwen2MLP", "Qwen3MLP", "Qwen3MoeMLP", "GemmaMLP", "Gemma2MLP",
     "Gemma3MLP", "T5GemmaMLP"}
)  # fmt: skip
MERGED_MLPS = frozenset({"Phi3MLP"})  # whose gate and up are one layer
NUM_TEST_ROWS = 3
TOLERANCE = 1e-5


def fuse(model: Any) -> int:
    """Replace every module that can be fused; returns how many were. model: float32 on a CPU"""
    # By the class that is replaced, and its parameters, which not all of a class may have.
    makes: dict[tuple[type, frozenset[str]], Make | None] = {}
    num_fused = 0
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            kind = (type(child), frozenset(name for name, _ in child.named_parameters()))
            if kind not in makes:
                makes[kind] = make_for(child)
            make = makes[kind]
            if make is not None:
                setattr(module, name, make(child))
                num_fused += 1
    return num_fused


def make_for(module: Any) -> Make | None:
    """Return the constructor of a fused module for this kind; None to leave the module as it is."""
    make: Make | None = None
    width, others = 64, ()
    if type(module).__name__ == "NewGELUActivation":
        make = tanh_gelu
    elif is_norm(module):
        (width,) = module.weight.shape
        make = norm_make(module)
    elif type(module).__name__ in MLPS:
        width = module.gate_proj.in_features
        make = gated_make(module.act_fn, "GatedMLP")
    elif type(module).__name__ in MERGED_MLPS:
        width = module.gate_up_proj.in_features
        make = gated_make(module.activation_fn, "MergedGatedMLP")
    elif (experts := kernel_module("packed_experts")) and experts.can_pack(module):
        make = experts.PackedExperts
        width, others = experts.trial_of(module, NUM_TEST_ROWS)
    if make is None:
        return None
    make = getattr(make, "like", make)
    rows = torch.randn((NUM_TEST_ROWS, width), generator=torch.Generator().manual_seed(0))
    is_same = agrees(
        type(module).__name__,
        lambda: [make(module)(rows, *others)],
        lambda: [module(rows, *others)],
        TOLERANCE,
    )
    return make if is_same else None


def gated_make(activation: Any, name: str) -> Make | None:
    """Return our MLP class by that name; None if it does not support the activation."""
    kernels = kernel_module("kernels.activation")
    if kernels is None or type(activation).__name__ not in kernels.KINDS:
        return None
    make: Make = getattr(kernels, name)
    return make


def is_norm(module: Any) -> bool:
    """Return whether the module is an RMS norm that is not ours."""
    weight = getattr(module, "weight", None)
    return (
        type(module).__name__.endswith(NORMS)
        and not type(module).__module__.startswith("engine.")
        and isinstance(weight, Tensor)
        and weight.dim() == 1
        and weight.dtype == torch.float32
        and isinstance(getattr(module, "variance_epsilon", getattr(module, "eps", None)), float)
    )


@torch.inference_mode()
def norm_make(module: Any) -> Make | None:
    """Return the constructor of our norm with the same weight offset; None if none agrees."""
    kernels = kernel_module("kernels.rms_norm")
    if kernels is None:
        return None
    (width,) = module.weight.shape
    rows = torch.randn((NUM_TEST_ROWS, width), generator=torch.Generator().manual_seed(0))
    scale = (rows.square().mean(-1, keepdim=True) + kernels.eps_of(module)).rsqrt()
    try:
        found = module(rows)
    except (TypeError, ValueError, RuntimeError):  # it reads more than rows
        return None
    for offset in OFFSETS:
        expected = rows * scale * (module.weight + offset)
        if torch.allclose(found, expected, rtol=TOLERANCE, atol=TOLERANCE):
            return partial(kernels.RMSNorm.like, offset=offset)
    return None


def tanh_gelu(module: nn.Module) -> nn.Module:
    return nn.GELU(approximate="tanh")
