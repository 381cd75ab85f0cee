"""Checkpoint: configuration, tokenizer, model and limits of what a spec names.

Whatever is wrong with one is said in a sentence that names it and the remedy.
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
from transformers.utils.hub import cached_file

from engine.backends.checkpoint_weights import named, not_finite, why_not_whole
from engine.backends.generation_config import why_no_start, why_not_made, why_not_run
from engine.backends.tokenizer_kind import why_not_marked, why_unknown
from engine.backends.weight_files import folder_revision, licence_of, weight_digests
from engine.errors import Unloadable
from engine.protocol.engine_spec import EngineSpec
from engine.protocol.messages import ModelCard

log = logging.getLogger(__name__)

# Relative positions: a longer text is read less well, but it can be read.
RELATIVE_POSITIONS = frozenset({"t5", "mt5", "umt5", "longt5", "switch_transformers"})
TOKENIZER_FILES = ("tokenizer*", "vocab*", "*.model", "*.spm", "*.tiktoken")
UNLIMITED = 1_000_000  # tokenizers write "no limit" as a very large number


@dataclass(frozen=True, slots=True)
class Limits:
    """In tokens; None where the checkpoint names no limit."""

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
        """Raises Unloadable."""
        huggingface_hub.logging.set_verbosity_error()
        transformers.logging.set_verbosity_error()
        transformers.utils.logging.disable_progress_bar()
        if spec.threads is not None:
            torch.set_num_threads(spec.threads)
        device = choose_device(spec, torch.cuda.device_count())
        if device.type == "cuda":
            # What names no device, as a stream or a graph may, means this one.
            torch.cuda.set_device(device)
        source = {"revision": spec.revision, "trust_remote_code": spec.trust_remote_code}
        refuse_missing_files(spec)
        config = loaded(spec, "configuration", transformers.AutoConfig.from_pretrained, source)
        if config.is_encoder_decoder:
            refuse_tokenizer(spec, why_unknown(place(spec), spec.revision))
        tokenizer = loaded(spec, "tokenizer", transformers.AutoTokenizer.from_pretrained, source)
        if config.is_encoder_decoder:
            refuse_tokenizer(spec, why_not_marked(tokenizer))
        refuse_own_file(spec)
        dtype = choose_dtype(spec, config, device)
        auto = (
            transformers.AutoModelForSeq2SeqLM
            if config.is_encoder_decoder
            else transformers.AutoModelForCausalLM
        )
        arguments = {**source, "dtype": dtype}
        folder = files_of(spec)
        # Beside the loading, which waits for the same files.
        with ThreadPoolExecutor(1, "digests") as digesting:
            digested = digesting.submit(weight_digests, folder)
            model = whole(spec, auto.from_pretrained, arguments)
            weight_files = digested.result()
        if not model.can_generate():
            raise Unloadable(
                f"the checkpoint {spec.checkpoint!r} of model {spec.alias!r} is a "
                f"{config.model_type} model, which cannot generate text"
            )
        model = model.to(device).eval()
        generation_config = copy.deepcopy(model.generation_config)
        # `generate` fills every open setting from here, so that "not set" could not be said
        # of anything the checkpoint sets. What is passed to it is complete instead.
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
            again = whole(spec, auto.from_pretrained, arguments).to(device).eval()
            again.generation_config = transformers.GenerationConfig()
            return again

        card = ModelCard(
            alias=spec.alias,
            checkpoint=spec.checkpoint,
            revision=getattr(config, "_commit_hash", None) or folder_revision(folder, weight_files),
            family="seq2seq" if config.is_encoder_decoder else "causal",
            engine="exact",
            model_type=config.model_type,
            device=str(device),
            dtype=str(dtype).removeprefix("torch."),
            max_context_tokens=context_tokens(config, tokenizer, "encoder"),
            num_parameters=sum(each.numel() for each in model.parameters()),
            weight_files=weight_files,
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
        """Any token does: what stands there is masked on the way in and cut on the way out."""
        for id_ in (self.generation_config.pad_token_id, self.tokenizer.pad_token_id):
            # A tokenizer may have got one that the model was not widened for.
            if id_ is not None and 0 <= id_ < self.num_ids:
                return int(id_)
        return min(self.eos_token_ids, default=0)


def whole(spec: EngineSpec, load: Callable[..., Any], arguments: Mapping[str, Any]) -> Any:
    """A model of which every weight came from the checkpoint."""
    # Told to go on where a shape is another, it names all of them instead of raising.
    asked = {**arguments, "output_loading_info": True, "ignore_mismatched_sizes": True}
    model, info = loaded(spec, "weights", load, asked)
    reason = why_not_whole(model, info)
    if reason is None:
        spoiled = not_finite(model)
        if spoiled:
            reason = (
                f"{len(spoiled)} of the model's weights hold NaN or infinity ({named(spoiled)})"
            )
    if reason is not None:
        raise Unloadable(
            f"the checkpoint {spec.checkpoint!r} of model {spec.alias!r} is not whole: {reason}; "
            "save it again with save_pretrained from the model that its config.json describes"
        )
    return model


def refuse_tokenizer(spec: EngineSpec, reason: str | None) -> None:
    if reason is not None:
        raise Unloadable(
            f"the tokenizer of the checkpoint {spec.checkpoint!r} of model {spec.alias!r} "
            f"cannot be used: {reason}; use a checkpoint with a tokenizer of transformers"
        )


def refuse_own_file(spec: EngineSpec) -> None:
    """What a generation_config.json says that `transformers` would not even read."""
    arguments = {
        "revision": spec.revision,
        "_raise_exceptions_for_missing_entries": False,
        "_raise_exceptions_for_connection_errors": False,
    }
    name = transformers.utils.GENERATION_CONFIG_NAME
    path = loaded(spec, name, partial(cached_file, filename=name), arguments)
    if path is None:  # it has none, which is no fault
        return
    own = loaded(spec, name, lambda _: json.loads(Path(path).read_text("utf-8")), {})
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


def loaded(
    spec: EngineSpec, part: str, load: Callable[..., Any], arguments: Mapping[str, Any]
) -> Any:
    """One part of the checkpoint; what a library raises becomes a sentence."""
    try:
        return load(place(spec), **arguments)
    except Exception as error:
        raise Unloadable(why_not(spec, part, error)) from error


def why_not(spec: EngineSpec, part: str, error: Exception) -> str:
    name = f"the checkpoint {spec.checkpoint!r} of model {spec.alias!r}"
    if "trust_remote_code" in str(error):
        return (
            f"{name} brings code of its own; if you trust its author, "
            "set trust_remote_code = true for it in tidemill.toml"
        )
    if isinstance(error, ImportError):
        return f"{name} needs a package that is not installed: {first_sentence(error)}"
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return f"{name} does not fit into memory; use a smaller dtype or another device"
    if Path(place(spec)).is_dir():
        return (
            f"the {part} of {name} cannot be read ({first_sentence(error)}); "
            "the folder should be what save_pretrained writes"
        )
    if part == "configuration" and isinstance(error, OSError):
        return (
            f"{name} is neither a folder here nor reachable on the Hugging Face hub "
            f"({first_sentence(error)}); check the name in tidemill.toml"
        )
    return f"the {part} of {name} cannot be loaded ({first_sentence(error)})"


def first_sentence(error: Exception) -> str:
    """Libraries write essays; the beginning says what it was."""
    text = " ".join(str(error).split()) or type(error).__name__
    head, _, _ = text.partition(". ")
    return head[:240].rstrip(".")


def place(spec: EngineSpec) -> str:
    """A folder here, or else a name on the hub."""
    folder = Path(spec.checkpoint).expanduser()
    return str(folder) if folder.is_dir() else spec.checkpoint


def refuse_missing_files(spec: EngineSpec) -> None:
    """What is written as a path is a path: do not ask the hub for it. And a folder without
    a tokenizer is refused here, for `transformers` would make one that knows no word."""
    folder = Path(place(spec))
    name = f"the checkpoint {spec.checkpoint!r} of model {spec.alias!r}"
    if not folder.is_dir():
        if spec.checkpoint.startswith(("/", ".", "~")) or spec.checkpoint.count("/") > 1:
            raise Unloadable(f"{name} is not a folder here; check the path in tidemill.toml")
        return
    for part, patterns in (("config.json", ("config.json",)), ("a tokenizer", TOKENIZER_FILES)):
        if not any(path for pattern in patterns for path in folder.glob(pattern)):
            raise Unloadable(
                f"{name} is a folder without {part}; it should be what save_pretrained writes"
            )


def choose_device(spec: EngineSpec, num_gpus: int) -> torch.device:
    """num_gpus: those that this process may see (CUDA_VISIBLE_DEVICES)

    Replicas of a model that names no GPU take turns with them.
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


def context_tokens(config: Any, tokenizer: Any, side: str) -> int | None:
    """How many positions the encoder, the decoder or the only stack has."""
    text_config = config.get_text_config()
    if config.model_type in RELATIVE_POSITIONS:
        if side == "decoder":
            return None
        named = getattr(text_config, "n_positions", None) or tokenizer.model_max_length
        return named if named < UNLIMITED else None
    for name in (f"max_{side}_position_embeddings", "max_position_embeddings", "n_positions"):
        value = getattr(text_config, name, None)
        if isinstance(value, int) and value > 0:
            return max(value, scaled_context(text_config, value))
    return None


def scaled_context(text_config: Any, num_positions: int) -> int:
    """The context that rotary scaling makes of the positions that a configuration names.

    Many name it already; recipes as Qwen's for YaRN leave the original there.
    """
    rope = getattr(text_config, "rope_parameters", None) or {}
    factor = rope.get("factor")
    # One with parameters for each kind of layer names the scaled context.
    if rope.get("rope_type") not in ("yarn", "dynamic", "linear") or not factor:
        return num_positions
    return int(factor * (rope.get("original_max_position_embeddings") or num_positions))


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


def files_of(spec: EngineSpec) -> Path:
    """The folder that holds the checkpoint's files: its own, or the hub's snapshot."""
    folder = Path(place(spec))
    if folder.is_dir():
        return folder
    config = cached_file(spec.checkpoint, "config.json", revision=spec.revision)
    assert config is not None  # it was loaded a moment ago
    return Path(config).parent


def versions() -> dict[str, str]:
    found = {"torch": torch.__version__, "transformers": transformers.__version__}
    # A source tree that was not installed has no version.
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        found["tidemill"] = importlib.metadata.version("tidemill")
    return found
