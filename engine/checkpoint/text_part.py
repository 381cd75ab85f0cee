"""TextPart: only the language model of a multimodal checkpoint.

The checkpoint's own class is built without its vision and audio modules: they are emptied before
weights are read, so that none of their weights comes into memory. The rest answers text. Where the
library has a class for the language model alone, or only an output layer is missing, that simpler
model is used instead, since it runs like any text model. It must first give the same logits.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    GenerationConfig,
    GenerationMixin,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
)
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_MULTIMODAL_LM_MAPPING,
)

from engine.errors import in_words
from engine.logging import error_location

log = logging.getLogger(__name__)

PROBE_TOKENS, PROBE_STEPS = 7, 3
# Rounding differences between two forms of the same model; a missing factor or cap is far above.
MAX_OFF, MAX_OFF_HALF = 1e-4, 0.05


class NoTextPart(Exception):
    """The reason that a checkpoint cannot answer text alone, in words."""


def multimodal_class(config: Any) -> type[PreTrainedModel] | None:
    """The class of a checkpoint that takes images or sound besides text; None for others."""
    if config.is_encoder_decoder or type(config) not in MODEL_FOR_MULTIMODAL_LM_MAPPING:
        return None
    if auto_map(config).get("AutoModelForCausalLM") is not None or saved_alone(config) is not None:
        return None
    model_class = MODEL_FOR_MULTIMODAL_LM_MAPPING[type(config)]
    return model_class if isinstance(model_class, type) else None


def saved_alone(config: Any) -> type[PreTrainedModel] | None:
    """The class of a text model that was saved with the configuration of the multimodal one."""
    text_config = config.get_text_config(decoder=True)
    alone = None if text_config is config else text_class(text_config)
    return alone if alone is not None and config.architectures == [alone.__name__] else None


def auto_map(config: Any) -> Mapping[str, Any]:
    return getattr(config, "auto_map", None) or {}


def text_class(text_config: Any) -> type[PreTrainedModel] | None:
    """The library's class for a language model with this configuration."""
    if type(text_config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        return None
    model_class = MODEL_FOR_CAUSAL_LM_MAPPING[type(text_config)]
    return model_class if isinstance(model_class, type) else None


def without_other_parts(model_class: type[PreTrainedModel]) -> type[PreTrainedModel]:
    """Return a subclass that keeps only the modules for text and lists the others in `emptied`."""

    def __init__(self: Any, config: Any, *args: Any, **more: Any) -> None:
        model_class.__init__(self, config, *args, **more)
        self.emptied = empty_other_parts(self)

    # The same class name and module, by which the library finds its mapping of older weight names.
    own = {"__init__": __init__, "__module__": model_class.__module__}
    return type(model_class.__name__, (model_class,), own)


def empty_other_parts(model: Any) -> tuple[str, ...]:
    """Empty the modules that text does not pass through. Returns their names."""
    kept = [model.get_decoder(), model.get_input_embeddings(), model.get_output_embeddings()]
    kept_ids = {id(each) for each in kept if each is not None}
    return () if id(model) in kept_ids else tuple(_empty_beside(model, kept_ids, ""))


def _empty_beside(module: nn.Module, kept: set[int], prefix: str) -> Iterator[str]:
    """Empty the modules beside those that are kept. module: an ancestor of a kept module"""
    for name, child in module.named_children():
        if id(child) in kept:
            yield from _empty_within(child, f"{prefix}{name}.")
        elif any(id(each) in kept for each in child.modules()):
            yield from _empty_beside(child, kept, f"{prefix}{name}.")
        else:
            _empty(child)
            yield prefix + name


def _empty_within(decoder: nn.Module, prefix: str) -> Iterator[str]:
    """Empty the vision and audio models within a decoder, where some keep them."""
    own = getattr(decoder, "config", None)
    for name, child in list(decoder.named_modules()):
        if isinstance(child, PreTrainedModel) and type(child.config) is not type(own):
            _empty(child)
            yield prefix + name


def _empty(module: nn.Module) -> None:
    # It stays where it was: models look at settings of their other parts.
    for part in (module._parameters, module._buffers, module._modules):
        part.clear()
    vars(module)["_is_hf_initialized"] = True  # else it would be initialized


def fill_emptied(model: Any) -> None:
    """Give an emptied module a parameter of size 0, since some models look up its device."""
    for name in model.emptied:
        part = model.get_submodule(name)
        if isinstance(part, PreTrainedModel):
            nothing = torch.empty(0, device=model.device, dtype=model.dtype)
            part.register_parameter("nothing", nn.Parameter(nothing, requires_grad=False))


def is_emptied(model: Any, name: str) -> bool:
    """Whether a weight of a checkpoint belongs to an emptied module."""
    return any(name.startswith(f"{each}.") for each in getattr(model, "emptied", ()))


def text_part(whole: Any, plain_ids: list[int], mark_ids: list[int]) -> Any:
    """The simplest model with the logits of `whole` for text. Raises NoTextPart.

    whole:     the loaded model, with its other parts emptied
    plain_ids: token ids of plain text
    mark_ids:  token ids that stand for images or sound; a text may contain one by chance
    """
    fill_emptied(whole)
    ids = plain_ids[:: max(len(plain_ids) // PROBE_TOKENS, 1)][:PROBE_TOKENS]
    try:
        expected = [logits_of(whole, ids)]
    except Exception as error:
        raise NoTextPart(f"without its other parts it raises {in_words(error)}") from error
    prompts = [ids]
    if mark_ids:
        marked = [*mark_ids[:PROBE_STEPS], *ids]
        with contextlib.suppress(Exception):  # many models refuse such a token without its image
            expected.append(logits_of(whole, marked))
            prompts.append(marked)
    for find in (text_model_inside, text_model_around, text_with_head):
        try:
            simpler = find(whole)
            logits = [] if simpler is None else [logits_of(simpler, each) for each in prompts]
        except Exception as error:
            log.info("no text model of its own", extra={"error": error_location(error)})
            continue
        if simpler is not None and all(map(close, expected, logits)):
            simpler.generation_config = whole.generation_config
            return simpler.eval()
    return whole


# Models that share the weights of the whole; None where there is none.


def text_model_inside(whole: Any) -> Any | None:
    """The library's text model that is a module of the whole; None if there is none."""
    alone = text_class(whole.get_decoder().config)
    inside = (each for each in whole.modules() if each is not whole and type(each) is alone)
    return None if alone is None else next(inside, None)


def text_model_around(whole: Any) -> Any | None:
    """The library's text model, built around the decoder of the whole; None if it has none."""
    decoder = whole.get_decoder()
    alone: Any = text_class(decoder.config)
    if alone is None:
        return None
    with torch.device("meta"):
        model = alone(decoder.config)
    if type(getattr(model, model.base_model_prefix, None)) is not type(decoder):
        return None
    setattr(model, model.base_model_prefix, decoder)
    model.set_output_embeddings(whole.get_output_embeddings())
    left = [*model.parameters(), *model.buffers()]
    return None if any(each.is_meta for each in left) else model


def text_with_head(whole: Any) -> Any | None:
    """The decoder of the whole together with its output layer; None if it has no such parts."""
    decoder, head = whole.get_decoder(), whole.get_output_embeddings()
    if head is None or decoder is whole or text_class(decoder.config) is not None:
        return None
    return TextWithHead(decoder, head)


def close(expected: Tensor, logits: Tensor) -> bool:
    finite = torch.isfinite(expected)
    if expected.shape != logits.shape or not torch.equal(finite, torch.isfinite(logits)):
        return False
    bound = MAX_OFF if expected.dtype == torch.float32 else MAX_OFF_HALF
    before, after = expected[finite].float(), logits[finite].float()
    spread = (before - before.mean()).norm().clamp_min(1e-6)
    return float((after - before).norm() / spread) <= bound


class Dictated(LogitsProcessor):
    """A logits processor that forces a fixed sequence of tokens."""

    def __init__(self, token_ids: list[int], num_before: int) -> None:
        self.token_ids, self.num_before = token_ids, num_before

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        forced = torch.full_like(scores, -torch.inf)
        forced[:, self.token_ids[input_ids.shape[1] - self.num_before]] = 0.0
        return forced


@torch.inference_mode()
def logits_of(model: Any, ids: list[int]) -> Tensor:
    """Return (steps, 2, vocab): logits of two prompts, one padded, and of the next tokens.

    The tokens are forced: those of the first prompt again.
    """
    input_ids = torch.tensor([ids, ids[::-1]], device=model.device)
    mask = torch.ones_like(input_ids)
    mask[1, : len(ids) // 3] = 0
    output = model.generate(
        input_ids,
        attention_mask=mask,
        generation_config=GenerationConfig(
            max_new_tokens=PROBE_STEPS, min_new_tokens=PROBE_STEPS, do_sample=False,
            pad_token_id=ids[-1], return_dict_in_generate=True, output_logits=True,
        ),
        logits_processor=LogitsProcessorList([Dictated(ids * PROBE_STEPS, len(ids))]),
    )  # fmt: skip
    logits: Tensor = torch.stack(output.logits)
    return logits


class TextWithHead(PreTrainedModel, GenerationMixin):
    """A decoder and an output layer as a causal model, for decoders without one in the library."""

    base_model_prefix = "model"
    _supports_sdpa = True
    _supports_attention_backend = True

    def __init__(self, decoder: Any, head: nn.Module) -> None:
        super().__init__(decoder.config)
        self.model = decoder
        self.lm_head: nn.Module = head

    @classmethod
    def _can_set_experts_implementation(cls) -> bool:
        return True  # the decoder is as the whole has set it

    def get_output_embeddings(self) -> nn.Module:
        head: nn.Module = self.lm_head
        return head

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Any = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        **more: Any,
    ) -> Any:
        output = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            **more,
        )
        states = output.last_hidden_state
        if isinstance(logits_to_keep, int):
            states = states[:, -logits_to_keep:] if logits_to_keep else states
        else:
            states = states[:, logits_to_keep]
        return CausalLMOutputWithPast(
            logits=self.lm_head(states), past_key_values=output.past_key_values
        )
