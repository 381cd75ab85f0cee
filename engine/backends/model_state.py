"""Freshness: what a forward may leave on a model, put back as it was when loaded.

BigBird turns itself to full attention at the first short text; rotary frequencies that follow
the length stay grown. The next request must not see that.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

SCALARS = (bool, int, float, str, tuple, type(None))


@dataclass(frozen=True, slots=True)
class ModuleState:
    """One module: its submodules, its buffers with their values, and its plain attributes."""

    module: nn.Module
    submodules: dict[str, nn.Module | None]
    buffers: dict[str, tuple[Tensor | None, Tensor | None]]  # the tensor itself, and a copy
    tensors: dict[str, tuple[Tensor, Tensor]]  # those that are plain attributes, the same way
    scalars: dict[str, Any]

    @classmethod
    def of(cls, module: nn.Module) -> ModuleState:
        own = vars(module)
        return cls(
            module,
            dict(module._modules),
            {
                name: (each, None if each is None else each.clone())
                for name, each in module._buffers.items()
            },
            {name: (each, each.clone()) for name, each in own.items() if isinstance(each, Tensor)},
            {name: each for name, each in own.items() if isinstance(each, SCALARS)},
        )

    def restore(self) -> None:
        self.module._modules.clear()
        self.module._modules.update(self.submodules)
        self.module._buffers.clear()
        for name, (tensor, copy) in self.buffers.items():
            if tensor is not None and copy is not None:
                tensor.copy_(copy)
            self.module._buffers[name] = tensor
        for name, (tensor, copy) in self.tensors.items():
            tensor.copy_(copy)
            vars(self.module)[name] = tensor
        vars(self.module).update(self.scalars)


class Freshness:
    def __init__(self, model: nn.Module) -> None:
        self.states = [ModuleState.of(each) for each in model.modules()]

    def restore(self) -> None:
        """To be called in inference mode: a forward may have left tensors of that."""
        for each in self.states:
            each.restore()
