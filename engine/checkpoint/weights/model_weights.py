"""Model weights: loads a checkpoint's model for text alone, with every weight from its files.

A model with a weight that no file has would answer with noise, so it is refused by name. Quantized
weights are unpacked on a CPU; on a GPU `transformers` runs them with kernels made for them.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers.models.auto.auto_factory import _get_model_class

from engine.checkpoint.parts import first_sentence, loaded
from engine.checkpoint.text_part import (
    NoTextPart,
    auto_map,
    is_emptied,
    multimodal_class,
    saved_alone,
    text_part,
    without_other_parts,
)
from engine.checkpoint.weights.check import named, not_finite, why_not_whole
from engine.errors import Unloadable
from engine.protocol.engine_spec import EngineSpec
from engine.quantization.files import TensorFiles
from engine.quantization.formats import (
    PACKAGES,
    Format,
    Unreadable,
    format_of,
    looks_packed,
    method_of,
    settings_of,
)

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class LoadedModel:
    model: Any
    note: str | None  # how its weights differ from those in the files; None: they do not


class ModelWeights:
    """Loads the model of one checkpoint, as often as `load` is called."""

    def __init__(
        self,
        spec: EngineSpec,
        config: Any,
        tokenizer: Any,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.spec = spec
        self.config = config
        self.tokenizer = tokenizer
        self.dtype = dtype
        self.device = device
        self.name = f"the checkpoint {spec.checkpoint!r} of model {spec.alias!r}"
        self.arguments = {
            "revision": spec.revision,
            "trust_remote_code": spec.trust_remote_code,
            "dtype": dtype,
        }

    def load(self) -> LoadedModel:
        """Load the model that answers text onto its device. Raises Unloadable."""
        config, notes = self.config, []
        with_others, own_class = multimodal_class(config), saved_alone(config)
        if with_others is not None:
            own_class = without_other_parts(with_others)
        elif own_class is None and not is_language_model(config):
            raise Unloadable(
                f"{self.name} is a {config.model_type} model, which has no text part that writes; "
                "use one of a language model"
            )
        settings = settings_of(config)
        if settings is None:
            load = (own_class or auto_class(config)).from_pretrained
            model = self.whole(load, self.arguments).to(self.device)
        else:
            model, note = self.packed(settings, own_class)
            notes.append(note)
        if not model.can_generate():
            raise Unloadable(
                f"{self.name} is a {config.model_type} model, which cannot generate text"
            )
        model.eval()
        if with_others is not None:
            model = self.text_part(model)
            notes.insert(0, f"the text part of a {config.model_type} model")
        return LoadedModel(model, "; ".join(notes) or None)

    def text_part(self, model: Any) -> Any:
        try:
            return text_part(model, *text_and_mark_ids(self.config, self.tokenizer, model))
        except NoTextPart as reason:
            raise Unloadable(
                f"{self.name} is a multimodal {self.config.model_type} model of which no part "
                f"answers text alone: {reason}; use a checkpoint of a language model"
            ) from reason

    def packed(self, settings: Mapping[str, Any], own_class: Any) -> tuple[Any, str]:
        """Load a model that keeps its weights quantized.

        Returns it and a description of the format.
        """
        method = method_of(settings)
        if method not in PACKAGES:
            raise Unloadable(
                f"the weights of {self.name} are packed by {method}, which transformers does not "
                "read; use a checkpoint of another format, or one that is not packed"
            )
        reason = None
        if self.device.type == "cpu":
            try:
                return self.unpacked(format_of(settings), own_class)
            except Unreadable as unreadable:
                reason = str(unreadable)
        load = (own_class or auto_class(self.config)).from_pretrained
        try:
            model = self.whole(load, {**self.arguments, "device_map": {"": self.device}})
        except Unloadable as error:
            if str(error).count("is not whole"):
                raise
            cause = first_sentence(error.__cause__ or error)  # type: ignore[arg-type]
            remedy = f"install what runs them (pip install {PACKAGES[method]})"
            if self.device.type != "cpu":
                remedy += ', or use device = "cpu", where most formats are unpacked'
            raise Unloadable(
                f"the weights of {self.name} are packed by {method} and cannot be run on "
                f"{self.device.type}: {reason or cause}; {remedy}, or use a checkpoint that is "
                "not packed"
            ) from error
        return model, f"packed by {method}, run by transformers' own kernels"

    def unpacked(self, format_: Format, own_class: Any) -> tuple[Any, str]:
        """Load a model with its weights unpacked to floats. Raises Unreadable and Unloadable."""
        config = without_packing(self.config)
        if auto_map(config).get(auto_class(config).__name__) is not None:
            raise Unreadable("it brings code of its own, whose weights are not unpacked here")
        model_class = own_class or _get_model_class(config, auto_class(config)._model_mapping)
        if model_class.config_class is type(config.get_text_config()):
            config = config.get_text_config()
        weights: dict[str, Tensor] = {}
        num_packed = num_rounded = 0
        for name, weight, was_packed in format_.weights(self.files()):
            weights[name] = weight.to(self.dtype) if weight.is_floating_point() else weight
            if was_packed:
                num_packed += 1
                num_rounded += not torch.equal(weights[name].float(), weight)

        def load(place: str, **arguments: Any) -> Any:
            arguments.pop("trust_remote_code")
            model, info = model_class.from_pretrained(
                None, config=config, state_dict=weights, **arguments
            )
            read_generation_config(model, place, self.spec.revision)
            return model, info

        model = self.whole(load, self.arguments)
        name = str(self.dtype).removeprefix("torch.")
        note = f"{num_packed} weights unpacked from {format_.name} to {name}"
        twice = [f"{num_rounded} rounded again to {name}"] if num_rounded else []
        if self.spec.quantization != "none":
            twice.append(f"then rounded to {self.spec.quantization}")
        if twice:
            log.warning("weights are rounded twice", extra={"alias": self.spec.alias, "how": twice})
        return model, ", ".join([note, *twice])

    def files(self) -> TensorFiles:
        files: TensorFiles = loaded(
            self.spec, "weights", lambda where: TensorFiles(where, self.spec.revision), {}
        )
        return files

    def whole(self, load: Callable[..., Any], arguments: Mapping[str, Any]) -> Any:
        """Load a model, and raise Unloadable unless every weight came from the checkpoint."""
        # With this option it reports all mismatched shapes instead of raising at the first.
        options = {**arguments, "output_loading_info": True, "ignore_mismatched_sizes": True}
        model, info = loaded(self.spec, "weights", load, options)
        extra = {name for name in info["unexpected_keys"] if not is_emptied(model, name)}
        reason = why_not_whole(model, {**info, "unexpected_keys": extra})
        if reason is None and (spoiled := not_finite(model)):
            reason = (
                f"{len(spoiled)} of the model's weights hold NaN or infinity ({named(spoiled)})"
            )
        if reason is not None and looks_packed(info["unexpected_keys"]):
            raise Unloadable(
                f"the weights of {self.name} are packed, and its config.json does not say how: "
                "it has no quantization_config of that format; add the one that it was packed "
                "with, or use a checkpoint that is not packed"
            )
        if reason is not None:
            raise Unloadable(
                f"{self.name} is not whole: {reason}; "
                "save it again with save_pretrained from the model that its config.json describes"
            )
        return model


def auto_class(config: Any) -> Any:
    if config.is_encoder_decoder:
        return transformers.AutoModelForSeq2SeqLM
    return transformers.AutoModelForCausalLM


def is_language_model(config: Any) -> bool:
    """Whether the library, or the checkpoint itself, has a class that generates text for it."""
    auto = auto_class(config)
    return type(config) in auto._model_mapping or auto.__name__ in auto_map(config)


def without_packing(config: Any) -> Any:
    config = copy.deepcopy(config)
    for each in (config, config.get_text_config(decoder=True)):
        if hasattr(each, "quantization_config"):
            del each.quantization_config
    return config


def read_generation_config(model: Any, place: str, revision: str | None) -> None:
    """Load the generation configuration as `from_pretrained` does for a model with its own name."""
    settings = {"cache_dir": None, "force_download": False, "proxies": None, "token": None}
    model.adjust_generation_fn(
        None, False, None, place, **settings, local_files_only=False, revision=revision,
        subfolder="", trust_remote_code=False,
    )  # fmt: skip


def text_and_mark_ids(config: Any, tokenizer: Any, model: Any) -> tuple[list[int], list[int]]:
    """Return token ids of plain text, and those that stand for an image or a sound."""
    num_ids = int(model.get_input_embeddings().weight.shape[0])
    ends = {"pad_token_id", "bos_token_id", "eos_token_id"}
    marks = {
        value
        for name, value in config.to_dict().items()
        if name.endswith(("_token_id", "_token_index")) and name not in ends
        if isinstance(value, int) and 0 <= value < num_ids
    }
    special = {*tokenizer.all_special_ids, *marks}
    plain = [each for each in range(min(num_ids, len(tokenizer))) if each not in special]
    return plain or [0], sorted(marks)
