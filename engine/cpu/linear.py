"""Packed linear layers: weights laid out once for this CPU's matrix products.

A plain product of a few rows with a large matrix spends most of its time reading the matrix in the
wrong order. The packed product is two to five times as fast, with the same arithmetic. oneDNN's is
here; ours, which is faster for few rows, is in `packed_gemm.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from engine.cpu.merged_linear import LinearSlice, MergedLinear, concatenate, mergeable_children
from engine.cpu.self_test import agrees, kernel_module

ROWS_HINT = 16  # the number of rows for which oneDNN chooses its layout


class MakeLinear(Protocol):
    """The constructor of a packed linear layer."""

    MIN_WEIGHTS: int
    """The smallest module worth packing, in weights; below it a plain product is as fast."""

    def __call__(self, weight: Tensor, bias: Tensor | None, /) -> nn.Module:
        """weight: (out, in) float32; bias: (out,)"""


class PackedLinear(nn.Module):
    """A linear layer whose weights are in oneDNN's own layout."""

    MIN_WEIGHTS: ClassVar[int] = 64 * 1024

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        """weight: (out, in) float32; bias: (out,)"""
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self.bias = bias
        # Some models look at the type of their weights. The numbers are in `packed` only.
        self.weight = weight.new_empty(0)
        self.packed = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), ROWS_HINT)

    def forward(self, x: Tensor) -> Tensor:
        """x: (..., in) float32; returns (..., out)"""
        refuse_width(x, self.in_features)
        return torch.ops.mkldnn._linear_pointwise(x, self.packed, self.bias, "none", [], "")  # type: ignore[no-any-return]  # an op has no types


def refuse_width(x: Tensor, in_features: int) -> None:
    """Raise ValueError for rows of a wrong width: compiled products would read past their end."""
    if x.shape[-1] != in_features:
        raise ValueError(f"rows of {x.shape[-1]} for a product of {in_features} inputs")


def fastest_linear() -> MakeLinear:
    """Return the class of float32 layers that multiplies fastest on this processor."""
    packed_gemm = kernel_module("packed_gemm")
    if packed_gemm is None:
        return PackedLinear
    ours: MakeLinear = packed_gemm.PackedGemmLinear
    draw = torch.Generator().manual_seed(0)
    weight, bias, rows = (torch.randn(size, generator=draw) for size in ((37, 50), (37,), (11, 50)))

    def compiled() -> list[Tensor]:
        return [ours(weight, bias)(rows)]

    def plain() -> list[Tensor]:
        return [nn.functional.linear(rows, weight, bias)]

    return ours if agrees("packed gemm", compiled, plain) else PackedLinear


def is_of_onednn(module: nn.Module) -> bool:
    """Return whether the module's weights are in oneDNN's layout, rounded or not."""
    return bool(getattr(getattr(module, "packed", None), "is_mkldnn", False))


def plain_linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    """Return a torch linear layer, for modules too small to pack. weight: (out, in)"""
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias is not None)
    linear.weight = nn.Parameter(weight, requires_grad=False)
    if bias is not None:
        linear.bias = nn.Parameter(bias, requires_grad=False)
    return linear


def can_pack(model: Any) -> bool:
    """Return whether oneDNN can pack the model: float32 on a CPU, in a torch built with oneDNN."""
    return (
        model.device.type == "cpu"
        and model.dtype == torch.float32
        and torch.backends.mkldnn.is_available()
        and hasattr(torch.ops.mkldnn, "_reorder_linear_weight")
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    )


def pack(model: Any, make: MakeLinear, min_weights: int | None = None) -> int:
    """Replace the linear modules of a model by packed ones; returns how many were replaced.

    min_weights: the size of the smallest module to replace; None: the default of `make`
    """
    if min_weights is None:
        min_weights = make.MIN_WEIGHTS
    num_packed = 0
    with torch.no_grad():
        for path, module in list(model.named_modules()):
            for names in mergeable_children(module, path):
                linears = [getattr(module, each) for each in names]
                if sum(each.weight.numel() for each in linears) >= min_weights:
                    merge(module, names, make)
                    num_packed += len(names)
                else:
                    merge(module, names, plain_linear)
            for name, child in list(module.named_children()):
                weight = linear_weight(child)
                if weight is None or weight.numel() < min_weights:
                    continue
                bias = None if child.bias is None else child.bias.detach().clone()
                setattr(module, name, make(weight.detach(), bias))
                num_packed += 1
    copy_unpacked(model)
    return num_packed


def merge(
    module: nn.Module,
    names: tuple[str, ...],
    make: Callable[[Tensor, Tensor | None], nn.Module],
) -> None:
    """Replace several linear children of a module by slices of one packed layer."""
    linears = [getattr(module, each) for each in names]
    merged = MergedLinear(make(*concatenate(linears)), len(names))
    first_output = 0
    for name, linear in zip(names, linears, strict=True):
        setattr(module, name, LinearSlice(merged, first_output, linear.weight.detach()))
        first_output += linear.out_features


def copy_unpacked(model: Any) -> None:
    """Copy the tensors that were not packed.

    A checkpoint's tensors are views of its file: any that remained would keep the whole file in
    memory.
    """
    with torch.no_grad():
        for parameter in model.parameters():
            # The same parameter object, for several modules may share it.
            parameter.data = parameter.data.clone(memory_format=torch.contiguous_format)
        for module in model.modules():
            for name, buffer in list(module.named_buffers(recurse=False)):
                setattr(module, name, buffer.clone())  # a buffer may be a view of another one


def linear_weight(module: nn.Module) -> Any:
    """Return a linear module's weight, (out, in); None for any other module."""
    if type(module) is nn.Linear:
        return module.weight
    if type(module) is Conv1D:  # GPT-2 keeps its weights transposed
        return module.weight.t()
    return None
