"""Packing: linear modules whose weights are laid out once for this CPU's products.

A plain product of a few rows with a large matrix spends most of its time in re-reading it
in the wrong order. The packed one is two to five times as fast, and the same arithmetic.
oneDNN's is here, for where ours (`panels.py`) cannot be compiled.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from engine.cpu.file_pages import release_tensor_pages
from engine.cpu.merged_linear import MergedLinear, Part, groups_of, joined
from engine.cpu.optional import compiled

ROWS_HINT = 16  # for which number of rows oneDNN chooses its layout
PIECE_ROWS = 4096  # of an embedding: some megabytes


class MakeLinear(Protocol):
    MIN_WEIGHTS: int
    """Of a module; below it a plain product is as fast."""

    def __call__(self, weight: Tensor, bias: Tensor | None, /) -> nn.Module:
        """weight: (out, in)"""


class PackedLinear(nn.Module):
    MIN_WEIGHTS: ClassVar[int] = 64 * 1024

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        """weight: (out, in) float32"""
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self.bias = bias
        # Some models look at the type of their weights. The numbers are in `packed` only.
        self.weight = weight.new_empty(0)
        self.packed = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), ROWS_HINT)

    def forward(self, x: Tensor) -> Tensor:
        refuse_width(x, self.in_features)
        return torch.ops.mkldnn._linear_pointwise(x, self.packed, self.bias, "none", [], "")  # type: ignore[no-any-return]  # an op has no types

    def plus(self, x: Tensor, others: Tensor) -> Tensor:
        """others + forward(x), written once."""
        refuse_width(x, self.in_features)
        return torch.ops.mkldnn._linear_pointwise.binary(  # type: ignore[no-any-return]  # as above
            x, others, self.packed, self.bias, "add"
        )


def refuse_width(x: Tensor, in_features: int) -> None:
    """Compiled products read as much of a row as they were made for, whatever it holds."""
    if x.shape[-1] != in_features:
        raise ValueError(f"rows of {x.shape[-1]} for a product of {in_features} inputs")


def best() -> MakeLinear:
    """What multiplies quickest here."""
    panels = compiled("packed_gemm")
    return PackedLinear if panels is None else panels.PackedGemmLinear


def is_of_onednn(module: nn.Module) -> bool:
    """Whether it keeps its weights as oneDNN laid them out, rounded or not."""
    return bool(getattr(getattr(module, "packed", None), "is_mkldnn", False))


def plain(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    """As it was, for what is too small."""
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias is not None)
    linear.weight = nn.Parameter(weight, requires_grad=False)
    if bias is not None:
        linear.bias = nn.Parameter(bias, requires_grad=False)
    return linear


def can_pack(model: Any) -> bool:
    return (
        model.device.type == "cpu"
        and model.dtype == torch.float32
        and torch.backends.mkldnn.is_available()
        and hasattr(torch.ops.mkldnn, "_reorder_linear_weight")
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    )


def pack(model: Any, make: MakeLinear, min_weights: int | None = None) -> int:
    """Replace the linear modules of a model; returns how many.

    min_weights: of a module, if not as many as are worth it
    """
    if min_weights is None:
        min_weights = make.MIN_WEIGHTS
    num_packed = 0
    with torch.no_grad():
        for path, module in list(model.named_modules()):
            for names in groups_of(module, path):
                linears = [getattr(module, each) for each in names]
                if sum(each.weight.numel() for each in linears) >= min_weights:
                    pack_together(module, names, make)
                    num_packed += len(names)
                else:
                    pack_together(module, names, plain)
            for name, child in list(module.named_children()):
                weight = linear_weight(child)
                if weight is None or weight.numel() < min_weights:
                    continue
                bias = None if child.bias is None else child.bias.detach().clone()
                setattr(module, name, make(weight.detach(), bias))
                release_tensor_pages(
                    weight
                )  # or the model would be in memory twice before the last
                num_packed += 1
    leave_file(model)
    return num_packed


def pack_together(
    module: nn.Module,
    names: tuple[str, ...],
    make: Callable[[Tensor, Tensor | None], nn.Module],
) -> None:
    """Pack several linear children as one."""
    linears = [getattr(module, each) for each in names]
    product = MergedLinear(make(*joined(linears)), len(names))
    first = 0
    for name, linear in zip(names, linears, strict=True):
        setattr(module, name, Part(product, first, linear.weight.detach()))
        release_tensor_pages(linear.weight)
        first += linear.out_features


def leave_file(model: Any) -> None:
    """Copy what is not packed: the tensors of a checkpoint are views of its file, and the last
    of them would hold all of it in memory."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.data = moved(parameter.data)  # the same object, for several may share it
        for module in model.modules():
            for name, buffer in list(module.named_buffers(recurse=False)):
                setattr(module, name, buffer.clone())  # another one: it may be a view of its own


def moved(read: Tensor) -> Tensor:
    """A copy, made in pieces: an embedding that is read as a whole is in memory twice."""
    copied = torch.empty_like(read, memory_format=torch.contiguous_format)
    for piece, place in zip(read.split(PIECE_ROWS), copied.split(PIECE_ROWS), strict=True):
        place.copy_(piece)
        release_tensor_pages(piece)
    return copied


def linear_weight(module: nn.Module) -> Any:
    """(out, in), or None if it is not a linear module."""
    if type(module) is nn.Linear:
        return module.weight
    if type(module) is Conv1D:  # GPT-2 keeps them the other way round
        return module.weight.t()
    return None
