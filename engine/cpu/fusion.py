"""Fused modules take the place of a model's own parts, and do the same in fewer passes.

Each kind is tried on random rows first (`self_test`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from engine.cpu.self_test import agrees, kernel_module

Make = Callable[[Any], nn.Module]  # makes a fused module of the one that it replaces

NORMS = frozenset({"LlamaRMSNorm", "MistralRMSNorm", "Qwen2RMSNorm", "Qwen3RMSNorm", "T5LayerNorm"})
MLPS = frozenset({"LlamaMLP", "MistralMLP", "Qwen2MLP", "Qwen3MLP"})
SILU = frozenset({"SiLU", "SiLUActivation"})
NUM_TEST_ROWS = 3
TOLERANCE = 1e-5


def fuse(model: Any) -> int:
    """Replace what can be replaced; returns how many modules were. model: float32 on a CPU"""
    makes: dict[type, Make | None] = {}  # by the class that is replaced
    num_fused = 0
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            kind = type(child)
            if kind not in makes:
                makes[kind] = make_for(child)
            make = makes[kind]
            if make is not None:
                setattr(module, name, make(child))
                num_fused += 1
    return num_fused


def make_for(module: Any) -> Make | None:
    """Return what makes a fused module of such a one; None to leave it as it is."""
    make, width = None, 64
    if type(module).__name__ == "NewGELUActivation":
        make = tanh_gelu
    elif type(module).__name__ in NORMS and module.weight.dtype == torch.float32:
        (width,) = module.weight.shape
        make = getattr(kernel_module("kernels.rms_norm"), "RMSNorm", None)
    elif type(module).__name__ in MLPS and type(module.act_fn).__name__ in SILU:
        width = module.gate_proj.in_features
        make = getattr(kernel_module("kernels.activation"), "SiluAndMulMLP", None)
    if make is None:
        return None
    make = getattr(make, "like", make)
    rows = torch.randn((NUM_TEST_ROWS, width), generator=torch.Generator().manual_seed(0))
    is_same = agrees(
        type(module).__name__, lambda: [make(module)(rows)], lambda: [module(rows)], TOLERANCE
    )
    return make if is_same else None


def tanh_gelu(module: nn.Module) -> nn.Module:
    return nn.GELU(approximate="tanh")
