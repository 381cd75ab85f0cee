"""GenerateBackend: `model.generate` over requests of similar length and equal settings.

In float32 every answer is token for token what `model.generate` gives for the request alone. The
batch key ensures that: only sequences that cannot affect each other share a call. A step runs the
sequences of a call to completion.
"""

from __future__ import annotations

import contextlib
import copy
import logging
import math
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from transformers import LogitsProcessorList, StoppingCriteriaList

from engine.backends.run_to_completion import RunToCompletionBackend
from engine.checkpoint.loader import Checkpoint
from engine.checkpoint.model_state import Freshness
from engine.core.completion import Completion
from engine.core.sequence import Sequence
from engine.errors import UnsupportedParameter
from engine.kv_cache.planning.free_memory import free_bytes
from engine.proof.batch_probe import ProbedAnswers, is_tried, why_not_batched
from engine.proof.proved_families import why_not_proved
from engine.protocol.engine_spec import EngineSpec
from engine.protocol.limits import AS_CONFIGURED, Machine, sized
from engine.protocol.model_card import ModelCard
from engine.protocol.request import Request
from engine.sampling.grammar_processor import GrammarProcessor
from engine.sampling.logits_processors import (
    LOOKS_AT_THE_PROMPT,
    PerRequestSampler,
    take_sampling_processors,
)
from engine.sampling.resolve_params import ResolvedParams
from engine.sampling.seeded import seeded
from engine.sampling.stopping_criteria import PerRequestStops
from engine.text.processor import TextProcessor
from engine.text.token_lengths import no_pause

log = logging.getLogger(__name__)

# A checkpoint's settings that depend on the earlier tokens of the row, with their neutral values.
# In a decoder-only model the row begins with the prompt, so these settings, like
# LOOKS_AT_THE_PROMPT, would see its padding. The row of an encoder-decoder is never padded in
# front.
LOOKS_AT_THE_ROW: dict[str, Any] = {
    "bad_words_ids": None,
    "sequence_bias": None,
    "exponential_decay_length_penalty": None,
    "begin_suppress_tokens": None,
}
# Settings that make a row depend on other rows of the call or on state.
RUNS_ALONE: dict[str, Any] = {
    "guidance_scale": 1.0,
    "watermarking_config": None,
    "max_time": None,
    "prompt_lookup_num_tokens": None,
    "token_healing": False,
}


@dataclass(frozen=True, slots=True)
class BatchKey:
    """The settings that the sequences of one call have in common."""

    settings: ResolvedParams  # without settings that may differ from row to row
    length_class: Hashable
    forced_bos_token_id: int | None
    decoder_start_token_id: int | None
    alone: int | None  # the id of a request that may not share a call


@dataclass(frozen=True, slots=True)
class Sharing:
    """The verdict of an earlier probe: whether requests may share a call."""

    why_alone: str | None  # None: they may


class GenerateBackend(RunToCompletionBackend):
    def __init__(
        self,
        spec: EngineSpec,
        checkpoint: Checkpoint,
        reason: str = AS_CONFIGURED,
        sharing: Sharing | None = None,
    ) -> None:
        """reason:  why the checkpoint does not run in flight
        sharing: None: the probe runs now, unless the model is of a proved family
        """
        device = checkpoint.model.device
        machine = Machine(device.type, free_bytes(device), checkpoint.card.max_context_tokens)
        self.sized = sized(spec, machine, "exact", reason)
        max_step_tokens = self.sized.spec.max_step_tokens
        text = TextProcessor(spec, checkpoint, max_step_tokens, follows_grammars=True)
        super().__init__(text, device)
        self.spec = spec
        self.checkpoint = checkpoint
        self.model = checkpoint.model
        self.is_encoder_decoder: bool = checkpoint.config.is_encoder_decoder
        self.freshness: Freshness | None = None  # if requests run one by one
        self.probed = ProbedAnswers(self.kept_apart())
        self.why_alone: str | None = None  # why its requests may not share a call
        self._card: ModelCard = checkpoint.card
        why_not = why_not_proved(self.model)
        if why_not is not None:
            self._try_batches(why_not if reason == AS_CONFIGURED else reason, sharing)

    def _try_batches(self, why_not: str, sharing: Sharing | None) -> None:
        """Probe whether requests that share a call get the same answers, and allow sharing if so.

        why_not: why the model is not of a proved family
        """
        # A request that runs alone may also change the model for the next one.
        freshness = Freshness(self.model)
        self.why_alone = why_not_batched(self, freshness) if sharing is None else sharing.why_alone
        if self.why_alone is None:
            tried = "in batches, which were tried at load"
            reason = f"{tried if is_tried(self) else 'in batches'}; {why_not}"
            log.info("batches change no answer", extra={"alias": self.spec.alias})
        else:
            self.freshness = freshness
            reason = f"one by one: {self.why_alone}; {why_not}"
            log.warning(
                "requests run one by one",
                extra={"alias": self.spec.alias, "reason": self.why_alone},
            )
        self._card = replace(self._card, engine_reason=reason)

    def kept_apart(self) -> dict[str, Any]:
        """The settings that forbid sharing a call or padding, each with its neutral value."""
        return {**LOOKS_AT_THE_PROMPT, **LOOKS_AT_THE_ROW, **RUNS_ALONE}

    @classmethod
    def load(cls, spec: EngineSpec) -> GenerateBackend:
        """Load the checkpoint. Raises Unloadable."""
        return cls(spec, Checkpoint.load(spec))

    @property
    def card(self) -> ModelCard:
        return self._card

    def encode(self, request: Request, between_slices: Callable[[], None] = no_pause) -> Sequence:
        sequence = self.text.encode(request, between_slices)
        sequence.batch_key = self._batch_key(sequence)
        sequence.runs_to_completion = True
        return sequence

    def _batch_key(self, sequence: Sequence) -> BatchKey:
        request, settings = sequence.request, sequence.settings
        own = self.text.own_settings(request)
        shared = replace(settings, seed=None, stop=())
        alone = None if self.why_alone is None else request.id
        if settings.num_beams > 1:
            # Beams of one request draw from one random stream and stop together, which a call of
            # several requests cannot do for each.
            if settings.do_sample or settings.stop:
                alone = request.id
        elif own.get("forced_eos_token_id") is None:
            shared = replace(shared, max_new_tokens=0)  # each row stops at its own
        if differs(own, RUNS_ALONE):
            alone = request.id
        num_tokens, pads = len(sequence.prompt_ids), self.why_alone is None
        if differs(own, LOOKS_AT_THE_PROMPT):
            pads = False
        if not self.is_encoder_decoder and (
            differs(own, LOOKS_AT_THE_ROW)
            or settings.repetition_penalty != 1.0
            or settings.no_repeat_ngram_size > 0
        ):
            pads = False
        return BatchKey(
            settings=shared,
            length_class=length_class(num_tokens) if pads else num_tokens,
            forced_bos_token_id=sequence.forced_bos_token_id,
            decoder_start_token_id=sequence.decoder_start_token_id,
            alone=alone,
        )

    def run_together(self, sequences: list[Sequence]) -> list[Completion | None]:
        first = sequences[0]
        settings = first.settings
        assert isinstance(first.batch_key, BatchKey)
        draws_here = settings.do_sample and first.batch_key.alone is None
        group = tuple(sequences)
        config = self.generation_config(group)
        input_ids, attention_mask = self.padded(group)
        num_before = 1 if self.is_encoder_decoder else input_ids.shape[1]
        stops = PerRequestStops(
            group,
            num_before,
            self.text.token_texts,
            is_beam_search=first.settings.num_beams > 1,
        )
        processors = LogitsProcessorList()
        if any(each.grammar is not None for each in sequences):
            processors.append(GrammarProcessor(group, num_before))
        if draws_here:
            processors.extend(take_sampling_processors(self.model, config))
            processors.append(PerRequestSampler(group, self.model.device))
            # `generate` still samples, but the sampler has left only one token.
        with torch.inference_mode(), seeded(self.model.device, settings.seed):
            if self.freshness is not None:
                self.freshness.restore()
            with refusing_beams_by_name(settings):
                rows = self.model.generate(
                    input_ids,
                    attention_mask=attention_mask,
                    generation_config=config,
                    logits_processor=processors,
                    stopping_criteria=StoppingCriteriaList([stops]),
                )
        rows = rows[:, num_before:].tolist()
        completions: list[Completion | None] = []
        at = 0
        for sequence in sequences:
            num_answers = sequence.settings.num_return_sequences
            answers = tuple(
                self.text.answer(sequence, rows[each], stops.ended_at(each, rows[each]))
                for each in range(at, at + num_answers)
            )
            completions.append(Completion(sequence, answers))
            at += num_answers
        return completions

    def generation_config(self, sequences: tuple[Sequence, ...]) -> Any:
        """Return a complete generation configuration: `generate` has no defaults to fill in."""
        first = sequences[0]
        config = copy.copy(self.checkpoint.generation_config)  # nothing within it is changed
        settings = first.settings.to_json()
        for name in ("seed", "stop"):
            settings.pop(name, None)
        neutral = ResolvedParams(max_new_tokens=1).to_json()
        for name, value in {**neutral, **settings}.items():
            setattr(config, name, value)
        config.max_new_tokens = max(each.settings.max_new_tokens for each in sequences)
        config.max_length = None
        config.min_length = 0
        config.stop_strings = None  # ours stop by row
        config.pad_token_id = self.checkpoint.pad_token_id
        config.eos_token_id = sorted(self.checkpoint.eos_token_ids) or None
        config.return_dict_in_generate = False
        if first.forced_bos_token_id is not None:
            config.forced_bos_token_id = first.forced_bos_token_id
        if first.decoder_start_token_id is not None:
            config.decoder_start_token_id = first.decoder_start_token_id
        return config

    def padded(self, sequences: tuple[Sequence, ...]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the token ids and attention mask of the prompts: (requests, longest) int64.

        Prompts of a decoder-only model are padded on the left, since it continues the last column.
        """
        width = max(len(each.prompt_ids) for each in sequences)
        pad_id = self.checkpoint.pad_token_id
        ids, mask = [], []
        for sequence in sequences:
            num_pads = width - len(sequence.prompt_ids)
            pads, ones = [pad_id] * num_pads, [1] * len(sequence.prompt_ids)
            if self.is_encoder_decoder:
                ids.append([*sequence.prompt_ids, *pads])
                mask.append(ones + [0] * num_pads)
            else:
                ids.append([*pads, *sequence.prompt_ids])
                mask.append([0] * num_pads + ones)
        device = self.model.device
        return torch.tensor(ids, device=device), torch.tensor(mask, device=device)


@contextlib.contextmanager
def refusing_beams_by_name(settings: ResolvedParams) -> Iterator[None]:
    """Raise UnsupportedParameter where `generate` reports that a cache has no beam search."""
    try:
        yield
    except ValueError as error:
        if settings.num_beams > 1 and "cannot use beam search" in str(error):
            reason = "this model keeps states that beams cannot exchange; leave it out"
            raise UnsupportedParameter("num_beams", reason) from error
        raise


def length_class(num_tokens: int) -> tuple[str, int]:
    """Group lengths within a factor of about 1.4, so that a call computes little padding."""
    return ("about", int(2 * math.log2(num_tokens)))


def differs(own: Any, neutral: dict[str, Any]) -> bool:
    """Whether the checkpoint sets any of these to other than its neutral value."""
    return any(own.get(name, value) not in (value, None) for name, value in neutral.items())
