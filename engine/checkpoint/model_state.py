"""Freshness: finds and undoes the changes that a forward pass makes to a model.

BigBird switches itself to full attention at the first short text; rotary frequencies that grew with
the length stay grown. The next request must not see such changes.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedConfig

# Of the attributes that torch keeps on every module, a forward pass may change these three.
OF_TORCH = frozenset(vars(nn.Module())) - {"_modules", "_buffers", "_parameters"}
# The length of the last static cache: how much of it is masked has no say in an answer.
WITHOUT_A_SAY = frozenset({"_previous_max_cache_length"})


class ObjectState:
    """A snapshot of the attributes of a module or configuration, without the weights.

    It copies the content of attributes that can be changed in place.
    """

    def __init__(self, owner: Any) -> None:
        self.owner = owner
        self.attributes = dict(vars(owner))
        self.containers = [
            (name, each, each.copy())
            for name, each in self.attributes.items()
            if isinstance(each, dict | list | set) and name not in OF_TORCH
        ]
        self.tensors = [
            (name, each, each.clone())
            for name, each in {**self.attributes, **self.attributes.get("_buffers", {})}.items()
            if isinstance(each, Tensor)
        ]

    def restore(self) -> None:
        vars(self.owner).clear()
        vars(self.owner).update(self.attributes)
        for _, container, content in self.containers:
            container.clear()
            if isinstance(container, list):
                container.extend(content)
            else:
                container.update(content)
        for _, tensor, copy in self.tensors:
            tensor.copy_(copy)

    def changes(self) -> set[str]:
        """The names of the attributes that differ from the snapshot."""
        now = vars(self.owner)
        names: set[str] = self.attributes.keys() ^ now.keys()
        names |= {
            name
            for name, before in self.attributes.items()
            if name in now and not is_same(before, now[name])
        }
        names |= {
            name
            for name, container, content in self.containers
            if not is_same_content(content, container)
        }
        names |= {name for name, tensor, copy in self.tensors if not is_equal(tensor, copy)}
        return names - WITHOUT_A_SAY


class Freshness:
    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self._take()

    def restore(self) -> None:
        """Restore the model.

        Call it in inference mode: a forward pass may have left inference tensors.
        """
        if self._weights() != self.weights:
            # RWKV divides its weights at its first forward pass, and records that it did. The
            # snapshot has no copy of the weights, so the record must stay with them.
            self._take()
            return
        for each in self.states:
            each.restore()

    def changes(self) -> list[str]:
        """The attributes that differ from the snapshot, as `Module.attribute`; not the weights."""
        return sorted(
            f"{type(each.owner).__name__}.{name}" for each in self.states for name in each.changes()
        )

    def _take(self) -> None:
        # Our own layers keep buffers, but no state of a request.
        modules = [each for each in self.model.modules() if not is_ours(each)]
        configs = {
            id(each): each
            for owner in modules
            for each in (*vars(owner).values(), *vars(getattr(owner, "config", owner)).values())
            if isinstance(each, PreTrainedConfig)
        }
        self.states = [ObjectState(each) for each in (*modules, *configs.values())]
        self.weights = self._weights()

    def _weights(self) -> list[int]:
        """The number of in-place changes of each weight."""
        return [each._version for each in self.model.parameters() if not each.is_inference()]


def is_ours(module: nn.Module) -> bool:
    return type(module).__module__.partition(".")[0] == __name__.partition(".")[0]


def is_same(before: Any, now: Any) -> bool:
    if before is now:
        return True
    scalars = (bool, int, float, str, tuple)
    return type(before) is type(now) and isinstance(now, scalars) and bool(before == now)


def is_same_content(before: Any, now: Any) -> bool:
    if isinstance(now, set):
        return bool(before == now)
    if len(before) != len(now):
        return False
    if isinstance(now, dict):
        return all(name in now and is_same(each, now[name]) for name, each in before.items())
    return all(map(is_same, before, now))


def is_equal(tensor: Tensor, copy: Tensor) -> bool:
    """Whether two tensors are equal bit by bit, so that NaN equals NaN."""
    return tensor.shape == copy.shape and bool(((tensor == copy) | (tensor != tensor)).all())
