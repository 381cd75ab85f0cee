"""CTranslate2Backend: greedy answers of T5 and Marian by CTranslate2, in float32 or int8.

It is an optional extra, for its int8 on old CPUs. It decodes by static batches: a group runs to
completion in the step that admits it, and finished rows leave the batch. Whatever is not known to
be exact with CTranslate2 is refused by name: at load if the checkpoint decides it, else for the
request.

Token ids go in and come out. The model is converted with a vocabulary of `t0`, `t1`, ..., so the
library's tokenizers are not used.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import ctranslate2
import torch
from ctranslate2.converters import transformers as converters

from engine.backends.greedy_only import not_attended_to, refuse_unless_greedy, with_forced_end
from engine.backends.run_to_completion import RunToCompletionBackend
from engine.checkpoint.loader import Checkpoint
from engine.core.completion import Completion
from engine.core.sequence import Sequence
from engine.errors import Unloadable
from engine.proof.proved_families import why_not_proved
from engine.protocol.engine_spec import EngineSpec
from engine.protocol.limits import AS_CONFIGURED, Machine, sized
from engine.protocol.model_card import ModelCard
from engine.protocol.request import Request
from engine.sampling.resolve_params import SETTINGS
from engine.text.processor import TextProcessor
from engine.text.token_lengths import no_pause

log = logging.getLogger(__name__)

PROVED = ("marian", "t5")
COMPUTE_TYPES = {"none": "float32", "int8": "int8"}
# What a checkpoint's own generation configuration may say beside what is inert or neutral.
SUPPORTED = frozenset(SETTINGS) | {
    "bad_words_ids", "bos_token_id", "decoder_start_token_id", "eos_token_id",
    "forced_eos_token_id", "max_length", "min_length", "pad_token_id", "prefix",
}  # fmt: skip


class CTranslate2Backend(RunToCompletionBackend):
    ACTIVITY = "generating by CTranslate2"

    def __init__(self, spec: EngineSpec, checkpoint: Checkpoint) -> None:
        """Take the model out of the checkpoint and convert it. Raises Unloadable."""
        reason = why_not(spec, checkpoint)
        if reason is not None:
            raise Unloadable(
                f'model {spec.alias!r} cannot run by CTranslate2: {reason}; use engine = "auto"'
            )
        self.checkpoint = checkpoint
        # It keeps no state between steps, so its limits do not depend on free memory.
        machine = Machine("cpu", 0, checkpoint.card.max_context_tokens)
        self.sized = sized(spec, machine, "ctranslate2", AS_CONFIGURED)
        text = TextProcessor(spec, checkpoint, self.sized.spec.max_step_tokens)
        super().__init__(text, torch.device("cpu"))
        self.translator = translator_of(checkpoint, self.sized.spec)
        self.end_ids = sorted(checkpoint.eos_token_ids)
        # The library holds a copy of the weights, and one is enough.
        checkpoint.model = None
        self.card: ModelCard = replace(
            checkpoint.card,
            engine="ctranslate2",
            versions={**checkpoint.card.versions, "ctranslate2": ctranslate2.__version__},
        )

    @classmethod
    def load(cls, spec: EngineSpec) -> CTranslate2Backend:
        """Load the checkpoint and convert it. Raises Unloadable."""
        return cls(spec, Checkpoint.load(spec))

    def encode(self, request: Request, between_slices: Callable[[], None] = no_pause) -> Sequence:
        sequence = self.text.encode(request, between_slices)
        refuse_unless_greedy(sequence.settings, "CTranslate2")
        # Rows of one call must be equal in this alone.
        sequence.runs_to_completion = True
        sequence.batch_key = ("ctranslate2", sequence.settings.min_new_tokens)
        return sequence

    def run_together(self, sequences: list[Sequence]) -> list[Completion | None]:
        limits = [each.settings.max_new_tokens for each in sequences]
        results = self.translator.translate_batch(
            [[word(id_) for id_ in each.prompt_ids] for each in sequences],
            beam_size=1,
            max_input_length=0,  # prompts are within limits already
            max_decoding_length=max(limits),
            min_decoding_length=sequences[0].settings.min_new_tokens,
            end_token=self.end_ids,
            return_end_token=True,
            # The library has one limit for all rows; a row leaves the batch at its own.
            callback=lambda step: step.step + 1 >= limits[step.batch_id],
        )
        forced = self.checkpoint.generation_config.forced_eos_token_id
        completions: list[Completion | None] = []
        for sequence, result in zip(sequences, results, strict=True):
            row = [int(each[1:]) for each in result.hypotheses[0]]
            row = with_forced_end(row, sequence.settings.max_new_tokens, forced)
            answer = self.text.answer(sequence, row, None)
            completions.append(Completion(sequence, (answer,)))
        return completions


def why_not(spec: EngineSpec, checkpoint: Checkpoint) -> str | None:
    """The reason that greedy answers may not be exact; None if they are known to be."""
    config, own = checkpoint.config, checkpoint.generation_config
    if config.model_type not in PROVED:
        return f"{config.model_type} is not among the proved families ({', '.join(PROVED)})"
    if (reason := why_not_proved(checkpoint.model)) is not None:
        return reason
    if checkpoint.card.device != "cpu" or checkpoint.card.dtype != "float32":
        return (
            "it is proved in float32 on a CPU; "
            f"this is {checkpoint.card.dtype} on {checkpoint.card.device}"
        )
    if spec.quantization not in COMPUTE_TYPES:
        return f"quantization = {spec.quantization!r} is not among {', '.join(COMPUTE_TYPES)}"
    if not checkpoint.eos_token_ids:
        return "it has no end token"
    ignored = not_attended_to(own.to_dict(), SUPPORTED)
    if ignored is not None:
        return f"its own {ignored} is not attended to there"
    pad_id = config.pad_token_id
    if own.bad_words_ids and own.bad_words_ids != [[pad_id]]:
        return "it has bad words other than its padding"
    if config.model_type == "t5":
        return "it has bad words" if own.bad_words_ids else None
    if own.decoder_start_token_id != pad_id or pad_id != config.vocab_size - 1:
        return "its decoder does not start from the padding, or that is not the last token"
    if checkpoint.model.get_decoder().get_input_embeddings().weight[pad_id].any():
        return "its decoder does not start from zeros"
    return None


def translator_of(checkpoint: Checkpoint, spec: EngineSpec) -> Any:
    """Return the translator that `checkpoint.model` is converted to. Raises Unloadable."""
    compute_type = COMPUTE_TYPES[spec.quantization]
    with tempfile.TemporaryDirectory(prefix="tidemill-") as folder:
        Converter(checkpoint).convert(
            folder, quantization=None if compute_type == "float32" else compute_type, force=True
        )
        return ctranslate2.Translator(
            folder,
            device="cpu",
            compute_type=compute_type,
            intra_threads=spec.threads or torch.get_num_threads(),
            inter_threads=1,
        )


def word(token_id: int) -> str:
    return f"t{token_id}"


class Converter(converters.TransformersConverter):
    """Converts a model that is already in memory."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        super().__init__(checkpoint.card.checkpoint)
        self.checkpoint = checkpoint

    def _load(self) -> Any:
        # The converter's loader for a path would load the model again, and use its tokenizer.
        loader = converters._MODEL_LOADERS[type(self.checkpoint.config).__name__]
        with torch.no_grad():
            return loader(self.checkpoint.model, ConverterTokenizer.of(self.checkpoint))


@dataclass(frozen=True, slots=True)
class ConverterTokenizer:
    """A stand-in for a tokenizer, with only the attributes that a converter reads."""

    num_words: int
    pad_token: str
    eos_token: str
    bos_token: str
    unk_token: str
    drops_padding: bool

    @classmethod
    def of(cls, checkpoint: Checkpoint) -> ConverterTokenizer:
        config = checkpoint.config
        unknown = getattr(checkpoint.tokenizer, "unk_token_id", None)
        return cls(
            num_words=config.vocab_size,
            pad_token=word(config.pad_token_id),
            eos_token=word(min(checkpoint.eos_token_ids)),
            bos_token=word(config.pad_token_id),
            unk_token=word(0 if unknown is None else unknown),
            drops_padding=config.model_type == "marian",
        )

    def get_vocab(self) -> dict[str, int]:
        words = {word(each): each for each in range(self.num_words)}
        if self.drops_padding:
            # The converter drops a last word with this name: the decoder then starts from zeros.
            del words[self.pad_token]
            words["<pad>"] = self.num_words - 1
        return words

    def convert_ids_to_tokens(self, token_id: int) -> str:
        return word(token_id)
