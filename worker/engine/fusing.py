"""Fusing: parts of a model in whose place comes what does the same in fewer passes.

Each kind is tried on random rows first, and left as it is where something else comes out.
"""

from __future__ import annotations

import importlib
import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

log = logging.getLogger(__name__)

NORMS = frozenset({"LlamaRMSNorm", "Qwen2RMSNorm", "T5LayerNorm"})
NUM_TRIED = 3  # rows


def fuse(model: Any) -> int:
    """Replace what can be; returns how many. model: float32 on a CPU"""
    fused: dict[type, Callable[[Any], nn.Module] | None] = {}  # by the kind that is replaced
    num_fused = 0
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            kind = type(child)
            if kind not in fused:
                fused[kind] = fused_of(child, model.config.hidden_size)
            make = fused[kind]
            if make is not None:
                setattr(module, name, make(child))
                num_fused += 1
    return num_fused


def fused_of(module: Any, width: int) -> Callable[[Any], nn.Module] | None:
    """What makes one in place of such a module; None if there is nothing better."""
    make: Callable[[Any], nn.Module]
    if type(module).__name__ in NORMS:
        try:
            rms_norm = importlib.import_module("worker.engine.rms_norm")
        except (ImportError, AttributeError, OSError):
            return None  # nothing is compiled here, and `row_attention` says so
        make = rms_norm.RMSNorm.like
    elif type(module).__name__ == "NewGELUActivation":
        make = tanh_gelu
    else:
        return None
    rows = torch.randn(NUM_TRIED, width, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        if torch.allclose(module(rows), make(module)(rows), rtol=1e-5, atol=1e-6):
            return make
    log.warning("not fused: it does something else", extra={"kind": type(module).__name__})
    return None


def tanh_gelu(module: nn.Module) -> nn.Module:
    return nn.GELU(approximate="tanh")
