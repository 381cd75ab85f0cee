"""Quantization formats: how a configuration names them, and the code that unpacks each.

Weights are unpacked to exactly the float32 numbers that they stand for: an integer of at most eight
bits times a scale in half precision is exact in float32, so nothing is rounded again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from engine.quantization import bitsandbytes, compressed_tensors, fp8, integers, mxfp4


class Unreadable(Exception):
    """The reason that quantized weights cannot be unpacked here, in words."""


# Unpacks the weight of this name if its companion tensors exist; else returns None.
Unpack = Callable[[str, Mapping[str, Tensor], Mapping[str, Any]], tuple[str, Tensor] | None]


@dataclass(frozen=True, slots=True)
class Format:
    name: str
    unpack: Unpack
    companions: tuple[str, ...]  # name suffixes of tensors that only accompany a weight
    settings: Mapping[str, Any]  # of the configuration

    def weights(self, packed: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor, bool]]:
        """Yield the name and value of every weight of a checkpoint, and whether it was quantized.

        Raises Unreadable.
        """
        for name in packed:
            if name.endswith(self.companions):
                continue
            try:
                unpacked = self.unpack(name, packed, self.settings)
            except (KeyError, IndexError, RuntimeError, TypeError, ValueError) as error:
                raise Unreadable(f"{name} is not packed as {self.name} says: {error}") from error
            if unpacked is None:
                weight = packed[name]
                if lacks_scale(name, weight):
                    raise Unreadable(f"{name} holds numbers of {weight.dtype} without a scale")
                yield name, weight, False
            else:
                yield *unpacked, True


def lacks_scale(name: str, weight: Tensor) -> bool:
    """Whether a tensor that no format has unpacked holds quantized numbers, which need a scale."""
    if weight.dtype in fp8.FP8:
        return True
    is_integer = weight.dtype in (torch.int8, torch.uint8, torch.int32)
    return is_integer and name.endswith((".weight", ".weight_packed"))


UNPACKED: dict[str, tuple[Unpack, tuple[str, ...]]] = {
    "gptq": (integers.gptq, integers.COMPANIONS),
    "awq": (integers.awq, integers.COMPANIONS),
    "bitsandbytes": (bitsandbytes.unpack, bitsandbytes.COMPANIONS),
    "compressed-tensors": (compressed_tensors.unpack, compressed_tensors.COMPANIONS),
    "fp8": (fp8.unpack, fp8.COMPANIONS),
    "mxfp8": (fp8.unpack, fp8.COMPANIONS),
    "fbgemm_fp8": (fp8.unpack, fp8.COMPANIONS),
    "mxfp4": (mxfp4.unpack, mxfp4.COMPANIONS),
}
# What to install so that `transformers` runs a format itself.
PACKAGES = {
    "gptq": "gptqmodel optimum",
    "awq": "gptqmodel accelerate",
    "bitsandbytes": "bitsandbytes accelerate",
    "compressed-tensors": "compressed-tensors accelerate",
    "fp8": "accelerate kernels",
    "mxfp8": "accelerate kernels",
    "fbgemm_fp8": "fbgemm-gpu accelerate",
    "mxfp4": "accelerate kernels triton",
    "aqlm": "aqlm accelerate",
    "auto-round": "auto-round",
    "bitnet": "accelerate",
    "eetq": "eetq accelerate",
    "fp_quant": "fp_quant",
    "higgs": "flute-kernel accelerate",
    "hqq": "hqq accelerate",
    "quanto": "optimum-quanto accelerate",
    "quark": "amd-quark accelerate",
    "spqr": "spqr_quant accelerate",
    "torchao": "torchao accelerate",
    "vptq": "vptq accelerate",
}
# The packings of auto-round that are those of other formats.
AUTO_ROUND = {"auto_round:auto_gptq": "gptq", "auto_round:auto_awq": "awq"}


def settings_of(config: Any) -> dict[str, Any] | None:
    """The quantization settings of a configuration; None if it has none."""
    for each in (config, config.get_text_config(decoder=True)):
        settings = getattr(each, "quantization_config", None)
        if settings is not None:
            return dict(settings if isinstance(settings, dict) else settings.to_dict())
    return None


def looks_packed(names: Iterable[str]) -> bool:
    """Whether tensors that a model does not know belong to quantized weights."""
    companions = tuple(each for _, endings in UNPACKED.values() for each in endings)
    return any(
        name.endswith((".qweight", ".weight_packed", "_blocks", *companions)) for name in names
    )


def method_of(settings: Mapping[str, Any]) -> str:
    method = settings.get("quant_method")
    if method is None and (settings.get("load_in_4bit") or settings.get("load_in_8bit")):
        method = "bitsandbytes"
    return str(getattr(method, "value", method))


def format_of(settings: Mapping[str, Any]) -> Format:
    """The format that the settings name. Raises Unreadable."""
    method = method_of(settings)
    if method == "auto-round":
        method = AUTO_ROUND.get(str(settings.get("packing_format")), method)
    if method not in UNPACKED:
        raise Unreadable(f"{method} is a format that is not unpacked here")
    unpack, companions = UNPACKED[method]
    reason = why_not(method, settings)
    if reason is not None:
        raise Unreadable(reason)
    return Format(method, unpack, companions, settings)


def why_not(method: str, settings: Mapping[str, Any]) -> str | None:
    """The part of a format that is not supported here, in words; None if all is."""
    if method in integers.VERSIONS:
        known, version = integers.VERSIONS[method], integers.version_of(settings)
        if version is not None and version not in known:
            return f"{method} of version {version!r} is laid out otherwise than {known[0]}"
        bits = settings.get("bits", settings.get("w_bit", 4))
        if bits not in integers.BITS:
            return f"{method} of {bits} bits is not unpacked here"
    if method == "compressed-tensors":
        return compressed_tensors.why_not(settings)
    return None
