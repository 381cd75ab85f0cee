"""PackedExperts: the experts of a mixture, each packed as a linear layer is.

Rows are grouped by expert, so that each multiplies its own at once. Which rows those are depends on
values; a captured step calls all of it as one function of ours.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from engine.cpu.captured_ops import captured_call
from engine.cpu.linear import MakeLinear, PackedLinear


class PackedExperts(nn.Module):
    """Takes the place of the experts of `transformers` that `use_experts_implementation` made."""

    def __init__(self, own: Any, make: MakeLinear) -> None:
        """own: `is_packable`; its weights are taken out of it"""
        super().__init__()
        self.gate: Any = own._apply_gate  # between the two layers of an expert
        self.gate_up = packed(own, "gate_up_proj", make)
        self.down = packed(own, "down_proj", make)

    def forward(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        """hidden_states: (rows, width) float32; top_k_index, top_k_weights: (rows, experts of each)

        returns: (rows, width)
        """
        out = torch.empty_like(hidden_states)
        captured_call(self._compute, hidden_states, top_k_index, top_k_weights, out)
        return out

    def _compute(self, rows: Tensor, index: Tensor, weights: Tensor, out: Tensor) -> None:
        """Write the weighted sum of each row's experts into `out`: (rows, width)."""
        top_k = index.shape[1]
        experts = index.reshape(-1).numpy()
        order = np.argsort(experts, kind="stable")
        counts = np.bincount(experts, minlength=len(self.gate_up))
        answers = rows.new_empty(len(experts), rows.shape[1])
        begin = 0
        for expert in counts.nonzero()[0].tolist():
            end = begin + int(counts[expert])
            places = torch.from_numpy(order[begin:end])
            inner = self.gate(self.gate_up[expert](rows[places // top_k]))
            answers[places] = self.down[expert](inner)
            begin = end
        # Summed in the order of a row's own experts, whatever rows come with it.
        answers = answers.view(*index.shape, -1) * weights[:, :, None].to(answers.dtype)
        torch.sum(answers, dim=1, out=out)


def packed(own: Any, name: str, make: MakeLinear) -> nn.ModuleList:
    """Return a layer for each expert of a weight that is taken out of the module."""
    weights: Tensor = getattr(own, name).detach()
    biases: Any = getattr(own, f"{name}_bias", None)
    layers = nn.ModuleList()
    for expert, weight in enumerate(weights):
        each = weight.t().contiguous() if own.is_transposed else weight
        layers.append(make(each, biases[expert].detach().clone() if own.has_bias else None))
    setattr(own, name, nn.Parameter(weights.new_empty(0), requires_grad=False))
    return layers


def is_packable(module: Any) -> bool:
    """Return whether a module is the experts of a mixture as `transformers` describes them."""
    weights = [getattr(module, name, None) for name in ("gate_up_proj", "down_proj")]
    return (
        all(isinstance(each, nn.Parameter) and each.dim() == 3 for each in weights)
        and getattr(module, "has_gate", False)
        and hasattr(module, "_apply_gate")
        and not getattr(module, "has_post_expert_norm", True)
        and not getattr(module, "_is_expert_parallel", True)
    )


def pack_experts(model: Any, make: MakeLinear) -> int:
    """Replace the experts of a model by packed ones; returns how many mixtures were replaced."""
    num_packed = 0
    if make is PackedLinear:  # an expert has another number of rows in every step
        return num_packed
    with torch.no_grad():
        for module in list(model.modules()):
            for name, child in list(module.named_children()):
                if is_packable(child):
                    setattr(module, name, PackedExperts(child, make))
                    num_packed += 1
    return num_packed
