"""Fusing: parts of a model in whose place comes what does the same in fewer passes.

Each kind is tried on random rows first, and left as it is where something else comes out.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from engine.cpu.optional import compiled

log = logging.getLogger(__name__)

Make = Callable[[Any], nn.Module]  # of the module that is replaced

NORMS = frozenset({"LlamaRMSNorm", "MistralRMSNorm", "Qwen2RMSNorm", "Qwen3RMSNorm", "T5LayerNorm"})
GATED = frozenset({"LlamaMLP", "MistralMLP", "Qwen2MLP", "Qwen3MLP"})
SILU = frozenset({"SiLU", "SiLUActivation"})
NUM_TRIED = 3  # rows


def fuse(model: Any) -> int:
    """Replace what can be; returns how many modules. model: float32 on a CPU"""
    makes: dict[type, Make | None] = {}  # by the kind that is replaced
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
    rotary = compiled("kernels.rotary_embedding")
    if rotary is not None:
        rotary.install(model)
    return num_fused


def make_for(module: Any) -> Make | None:
    """What makes one in place of such a module; None if there is nothing better."""
    make, width = None, 64
    if type(module).__name__ == "NewGELUActivation":
        make = tanh_gelu
    elif type(module).__name__ in NORMS and module.weight.dtype == torch.float32:
        (width,) = module.weight.shape
        make = getattr(compiled("kernels.rms_norm"), "RMSNorm", None)
    elif type(module).__name__ in GATED and type(module.act_fn).__name__ in SILU:
        width = module.gate_proj.in_features
        make = getattr(compiled("kernels.activation"), "SiluAndMulMLP", None)
    if make is None:
        return None
    make = getattr(make, "like", make)
    rows = torch.randn((NUM_TRIED, width), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        if torch.allclose(module(rows), make(module)(rows), rtol=1e-5, atol=1e-6):
            return make
    log.warning("not fused: it does something else", extra={"kind": type(module).__name__})
    return None


def tanh_gelu(module: nn.Module) -> nn.Module:
    return nn.GELU(approximate="tanh")
