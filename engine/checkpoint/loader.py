"""Checkpoint: the configuration, tokenizer, model and limits that a spec names.

Every fault is reported in a sentence that names the checkpoint and the remedy.
"""

from __future__ import annotations

import contextlib
import copy
import importlib.metadata
import json
import logging
import sys
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import huggingface_hub
import torch
import transformers
from transformers.utils.hub import LEGACY_PROCESSOR_CHAT_TEMPLATE_FILE, cached_file

from engine.checkpoint.context import RELATIVE_POSITIONS, context_tokens
from engine.checkpoint.folder import place, refuse_missing_files
from engine.checkpoint.generation_config import why_no_start, why_not_made, why_not_run
from engine.checkpoint.parts import files_of, loaded
from engine.checkpoint.tokenizer_kind import why_not_marked, why_unknown
from engine.checkpoint.weights.digests import folder_revision, licence_of, weight_digests
from engine.checkpoint.weights.model_weights import ModelWeights
from engine.errors import Unloadable
from engine.protocol.engine_spec import EngineSpec
from engine.protocol.model_card import ModelCard

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Limits:
    """A checkpoint's limits in tokens; None where it names none."""

    max_prompt_tokens: int | None
    max_answer_context_tokens: int | None  # decoder-only: prompt included


@dataclass
class Checkpoint:
    config: Any
    tokenizer: Any
    model: Any
    generation_config: Any  # the checkpoint's own, taken off the model: see `load`
    own: Mapping[str, Any]  # what it sets, as a plain mapping
    num_ids: int  # how many token ids the model can read
    limits: Limits
    card: ModelCard
    reload: Callable[[], Any]  # the same model from its files once more

    @classmethod
    def load(cls, spec: EngineSpec) -> Checkpoint:
        """Load the checkpoint that a spec names. Raises Unloadable."""
        huggingface_hub.logging.set_verbosity_error()
        transformers.logging.set_verbosity_error()
        transformers.utils.logging.disable_progress_bar()
        if spec.threads is not None:
            torch.set_num_threads(spec.threads)
        device = choose_device(spec, torch.cuda.device_count())
        if device.type == "cuda":
            # Calls without a device, as for a stream or a graph, then use this one.
            torch.cuda.set_device(device)
        source = {"revision": spec.revision, "trust_remote_code": spec.trust_remote_code}
        refuse_missing_files(spec)
        config = loaded(spec, "configuration", transformers.AutoConfig.from_pretrained, source)
        if config.is_encoder_decoder:
            refuse_tokenizer(spec, why_unknown(place(spec), spec.revision))
        tokenizer = loaded(spec, "tokenizer", transformers.AutoTokenizer.from_pretrained, source)
        if config.is_encoder_decoder:
            refuse_tokenizer(spec, why_not_marked(tokenizer))
        read_chat_template(spec, tokenizer)
        refuse_own_file(spec)
        dtype = choose_dtype(spec, config, device)
        folder = files_of(spec)
        published = config
        weights = ModelWeights(spec, published, tokenizer, dtype, device)
        # In parallel with loading, which reads the same files.
        with ThreadPoolExecutor(1, "digests") as digesting:
            digested = digesting.submit(weight_digests, folder)
            loaded_model = weights.load()
            weight_files = digested.result()
        model, config = loaded_model.model, loaded_model.model.config
        generation_config = copy.deepcopy(model.generation_config)
        # `generate` fills every unset setting from the model, so a request could not unset what the
        # checkpoint sets. We pass complete configurations instead.
        model.generation_config = transformers.GenerationConfig()
        own = {
            name: value for name, value in generation_config.to_dict().items() if value is not None
        }
        num_ids = int(model.get_input_embeddings().weight.shape[0])
        refuse_own(spec, config, own, num_ids)
        why_not = why_not_made(model, {name: getattr(generation_config, name) for name in own})
        if config.is_encoder_decoder and why_not is None:
            why_not = why_no_start(own)
        if why_not is not None:
            raise cannot_generate(spec, why_not)
        limits = limits_of(spec, config, tokenizer)

        def reload() -> Any:
            again = weights.load().model
            again.generation_config = transformers.GenerationConfig()
            return again

        card = ModelCard(
            alias=spec.alias,
            checkpoint=spec.checkpoint,
            revision=getattr(published, "_commit_hash", None)
            or folder_revision(folder, weight_files),
            family="seq2seq" if config.is_encoder_decoder else "causal",
            engine="exact",
            model_type=published.model_type,
            device=str(device),
            dtype=str(dtype).removeprefix("torch."),
            max_context_tokens=context_tokens(config, tokenizer, "encoder"),
            num_parameters=sum(each.numel() for each in model.parameters()),
            weight_files=weight_files,
            weights=loaded_model.note,
            licence=licence_of(folder),
            versions=versions(),
        )
        return cls(config, tokenizer, model, generation_config, own, num_ids, limits, card, reload)

    @property
    def eos_token_ids(self) -> frozenset[int]:
        ids = self.generation_config.eos_token_id
        if ids is None:
            ids = self.tokenizer.eos_token_id
        if ids is None:
            return frozenset()
        return frozenset([ids] if isinstance(ids, int) else ids)

    @property
    def pad_token_id(self) -> int:
        """The id that pads rows.

        Any id works: padding is masked in the input and cut from the output.
        """
        for id_ in (self.generation_config.pad_token_id, self.tokenizer.pad_token_id):
            # A tokenizer may have a pad token beyond the model's embedding.
            if id_ is not None and 0 <= id_ < self.num_ids:
                return int(id_)
        return min(self.eos_token_ids, default=0)


def refuse_tokenizer(spec: EngineSpec, reason: str | None) -> None:
    if reason is not None:
        raise Unloadable(
            f"the tokenizer of the checkpoint {spec.checkpoint!r} of model {spec.alias!r} "
            f"cannot be used: {reason}; use a checkpoint with a tokenizer of transformers"
        )


def read_chat_template(spec: EngineSpec, tokenizer: Any) -> None:
    """Read the template that an older multimodal checkpoint stores beside its tokenizer."""
    if getattr(tokenizer, "chat_template", None) is not None:
        return
    path = optional_file(spec, LEGACY_PROCESSOR_CHAT_TEMPLATE_FILE)
    if path is None:
        return
    read = loaded(spec, path.name, lambda _: json.loads(path.read_text("utf-8")), {})
    if isinstance(read, dict) and isinstance(read.get("chat_template"), str):
        tokenizer.chat_template = read["chat_template"]


def optional_file(spec: EngineSpec, name: str) -> Path | None:
    arguments = {
        "revision": spec.revision,
        "_raise_exceptions_for_missing_entries": False,
        "_raise_exceptions_for_connection_errors": False,
    }
    path = loaded(spec, name, partial(cached_file, filename=name), arguments)
    return None if path is None else Path(path)


def refuse_own_file(spec: EngineSpec) -> None:
    """Raise Unloadable for a generation_config.json that `transformers` cannot read."""
    name = transformers.utils.GENERATION_CONFIG_NAME
    path = optional_file(spec, name)
    if path is None:  # it has none, which is no fault
        return
    own = loaded(spec, name, lambda _: json.loads(path.read_text("utf-8")), {})
    reason = why_not_run(own, sys.maxsize) if isinstance(own, dict) else "it is no JSON object"
    if reason is not None:
        raise cannot_generate(spec, reason)


def cannot_generate(spec: EngineSpec, reason: str) -> Unloadable:
    return Unloadable(
        f"the checkpoint {spec.checkpoint!r} of model {spec.alias!r} cannot generate: "
        f"{reason}; change that in its generation_config.json or config.json"
    )


def refuse_own(spec: EngineSpec, config: Any, own: Mapping[str, Any], num_ids: int) -> None:
    by_task = getattr(config, "task_specific_params", None) or {}
    for settings in (own, *({**own, **each} for each in by_task.values())):
        reason = why_not_run(settings, num_ids)
        if reason is not None:
            raise cannot_generate(spec, reason)


def choose_device(spec: EngineSpec, num_gpus: int) -> torch.device:
    """Return the device of an engine process.

    Replicas of a model without a `device` share the GPUs.

    num_gpus: the GPUs that are visible to this process (CUDA_VISIBLE_DEVICES)
    """
    if spec.device == "cpu" or (spec.device == "auto" and not num_gpus):
        return torch.device("cpu")
    if spec.device in ("auto", "cuda") and num_gpus:
        return torch.device("cuda", spec.replica % num_gpus)
    device = torch.device(spec.device)
    if (device.index or 0) >= num_gpus:
        raise Unloadable(
            f"model {spec.alias!r} asks for device {spec.device!r}, and there are "
            f"{num_gpus} CUDA devices; use another or 'auto' in tidemill.toml"
        )
    return device


def choose_dtype(spec: EngineSpec, config: Any, device: torch.device) -> torch.dtype:
    if spec.dtype != "auto":
        return getattr(torch, spec.dtype)  # type: ignore[no-any-return]  # a name of DType
    if device.type == "cpu":
        return torch.float32
    own = getattr(config, "dtype", None)
    if own in (torch.float16, torch.bfloat16):
        return own  # type: ignore[no-any-return]  # one of the two
    return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16


def limits_of(spec: EngineSpec, config: Any, tokenizer: Any) -> Limits:
    encoder = context_tokens(config, tokenizer, "encoder")
    wanted = spec.max_input_tokens
    if config.is_encoder_decoder:
        decoder = context_tokens(config, tokenizer, "decoder")
        if wanted is not None and config.model_type in RELATIVE_POSITIONS:
            return Limits(wanted, decoder)
    else:
        decoder = encoder
        encoder = None if encoder is None else encoder - 1  # one token at least to answer
    bounds = [each for each in (encoder, wanted) if each is not None]
    return Limits(min(bounds, default=None), decoder)


def versions() -> dict[str, str]:
    by_library = {"torch": torch.__version__, "transformers": transformers.__version__}
    # A source tree that was not installed has no version.
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        by_library["tidemill"] = importlib.metadata.version("tidemill")
    return by_library
