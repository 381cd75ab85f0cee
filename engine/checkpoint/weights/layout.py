"""Packs the weights of a model for this machine's matrix products, and checks its logits after.

Some models do more with a linear module than call it: they read its `weight`, or change it. So the
logits of a few tokens are compared before and after; if they differ, the model is loaded again and
left unpacked.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList

from engine.checkpoint.model_state import Freshness
from engine.cpu.fusion import fuse
from engine.cpu.linear import MakeLinear, can_pack, fastest_linear, pack
from engine.cpu.quantized_linear import (
    HalfLinear,
    Int8Linear,
    PlainInt8Linear,
    has_bfloat16_products,
)
from engine.cpu.self_test import kernels_enabled
from engine.errors import Unloadable
from engine.logging import error_location
from engine.protocol.engine_spec import EngineSpec

log = logging.getLogger(__name__)

ROUNDED: dict[str, MakeLinear] = {"int8": Int8Linear, "bfloat16": HalfLinear}
PLAIN_ROUNDED: dict[str, MakeLinear] = {"int8": PlainInt8Linear, "bfloat16": HalfLinear}
# How far the logits may be from those before, relative to these. Sums in another order are off
# by 1e-6. On a tiny GPT-2, rounded weights that are right were off by 0.01, int8 weights that
# were laid out transposed by 0.54; logits that have nothing to do with each other are by 1.4.
# So 0.3: far above what rounding does, and clearly below the least of the faults.
MAX_DISTANCE = {"none": 1e-3, "int8": 0.3, "bfloat16": 0.3}
NUM_ROWS, NUM_PROMPT_TOKENS, NUM_STEPS = 2, 7, 3


class ForcedToken(LogitsProcessor):
    """A logits processor that forces one token at every step, so that two runs compare."""

    def __init__(self, token_id: int) -> None:
        self.token_id = token_id

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        forced = torch.full_like(scores, -torch.inf)
        forced[:, self.token_id] = 0.0
        return forced


def lay_out(model: Any, spec: EngineSpec, reload: Callable[[], Any]) -> None:
    """Pack the weights, rounded if the spec asks for it. Raises Unloadable.

    reload: loads the model again. A model is never in memory twice
    """
    if not can_pack(model):
        if spec.quantization == "none":
            return
        raise Unloadable(
            f"model {spec.alias!r} asks for quantization = {spec.quantization!r}, which is for "
            f"float32 on a CPU with oneDNN; this is {model.dtype} on {model.device}"
        )
    if spec.quantization == "bfloat16" and not has_bfloat16_products():
        raise Unloadable(
            f"model {spec.alias!r} asks for quantization = 'bfloat16', and this processor has "
            "neither AVX-512 nor AVX-NE-CONVERT to multiply bfloat16 with; "
            'use quantization = "int8" or "none"'
        )
    make = linear_layers_for(spec)
    if make is None:
        return
    before = attempt(model)
    if before is not None:
        try:
            if kernels_enabled(spec.cpu_kernels):
                fuse(model)
            pack(model, make)
        except Exception as error:
            log.warning("laying out failed", extra={"error": error_location(error)})
            after = None
        else:
            after = attempt(model)
        if after is not None and distance_of(before, after) <= MAX_DISTANCE[spec.quantization]:
            return
    if spec.quantization != "none":
        raise Unloadable(
            f"model {spec.alias!r} asks for quantization = {spec.quantization!r}, and a "
            f"{model.config.model_type} model does not answer with weights laid out so; "
            'use quantization = "none"'
        )
    log.warning("not laid out: it answers otherwise", extra={"model_type": model.config.model_type})
    if before is not None:
        renew(model, reload)


def linear_layers_for(spec: EngineSpec) -> MakeLinear | None:
    """Return the class of the model's linear layers; None for torch's own."""
    compiled = kernels_enabled(spec.cpu_kernels)
    if spec.quantization != "none":
        return (ROUNDED if compiled else PLAIN_ROUNDED)[spec.quantization]
    return fastest_linear() if compiled else None


def renew(model: Any, reload: Callable[[], Any]) -> None:
    """Reload the model into the same object, to which others hold references."""
    vars(model).clear()  # first, or both would be in memory
    vars(model).update(vars(reload()))


def attempt(model: Any) -> Tensor | None:
    """Return the logits of the probe; None if the model raises. The model's state is restored."""
    fresh = Freshness(model)
    try:
        return probe(model)
    except Exception as error:
        log.warning("the probe failed", extra={"error": error_location(error)})
        return None
    finally:
        with torch.inference_mode():
            fresh.restore()


def probe(model: Any) -> Tensor:
    """Return (steps, rows, vocab): logits of a prompt and of single tokens after it.

    It calls `generate`, which handles what each architecture caches between steps.
    """
    num_ids = model.get_input_embeddings().weight.shape[0]
    ids = torch.arange(1, NUM_ROWS * NUM_PROMPT_TOKENS + 1) * 37 % num_ids
    ids = ids.view(NUM_ROWS, NUM_PROMPT_TOKENS).to(model.device)
    token_id = 11 % num_ids
    with torch.inference_mode(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        output = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            generation_config=GenerationConfig(
                max_new_tokens=NUM_STEPS,
                do_sample=False,
                pad_token_id=0,
                decoder_start_token_id=token_id if model.config.is_encoder_decoder else None,
                return_dict_in_generate=True,
                output_logits=True,
            ),
            logits_processor=LogitsProcessorList([ForcedToken(token_id)]),
        )
    return torch.stack(output.logits).float()


def distance_of(before: Tensor, after: Tensor) -> float:
    """The relative distance of two sets of logits; infinite if shapes or infinities differ."""
    finite = torch.isfinite(before)
    if before.shape != after.shape or not torch.equal(finite, torch.isfinite(after)):
        return float("inf")
    expected, found = before[finite], after[finite]
    return float((found - expected).norm() / expected.norm().clamp_min(1e-6))
