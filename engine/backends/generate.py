"""GenerateBackend: `model.generate` over requests of like length and equal settings.

In float32 every answer is, token for token, what `model.generate` gives for that request
alone. What decides that is the group of a sequence: only those that cannot disturb each
other share one call. A step runs a group from its beginning to its end.
"""

from __future__ import annotations

import copy
import logging
import math
import secrets
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from transformers import LogitsProcessorList, StoppingCriteriaList

from engine.backends.loader import Checkpoint
from engine.backends.model_state import Freshness
from engine.backends.proved_families import why_not_shared
from engine.core.completion import Answer, Completion
from engine.core.scheduler import StepPlan
from engine.core.sequence import Sequence
from engine.device_errors import is_beyond_repair, is_out_of_memory, release_memory
from engine.errors import (
    EngineBroken,
    GenerationFailed,
    OutOfMemory,
    PromptTooLong,
    TokenOutOfRange,
)
from engine.kv_cache.free_memory import free_bytes
from engine.logging import error_location
from engine.protocol.engine_spec import EngineSpec
from engine.protocol.limits import AS_CONFIGURED, Machine, sized
from engine.protocol.messages import Choice, ModelCard, Output, Request
from engine.sampling.logits_processors import (
    LOOKS_AT_THE_PROMPT,
    PerRequestSampler,
    take_sampling_processors,
)
from engine.sampling.resolve_params import Room, Settings, resolve
from engine.sampling.stopping_criteria import PerRequestStops
from engine.text.characters import sanitize
from engine.text.detokenizer import text_of
from engine.text.prompts import Prompt, Prompts
from engine.text.stop_strings import TokenTexts, cut_at_stop, stop_position

log = logging.getLogger(__name__)

# Settings of a checkpoint's own that look at the row so far, with the value at which they do
# nothing. In a decoder-only model the row begins with the prompt, so that its padding would show,
# as it would to LOOKS_AT_THE_PROMPT. The row of an encoder-decoder is never padded in front.
LOOKS_AT_THE_ROW: dict[str, Any] = {
    "bad_words_ids": None,
    "sequence_bias": None,
    "exponential_decay_length_penalty": None,
    "begin_suppress_tokens": None,
}
# Those by which one row of a call depends on the others or on a state of its own.
RUNS_ALONE: dict[str, Any] = {
    "guidance_scale": 1.0,
    "watermarking_config": None,
    "max_time": None,
    "prompt_lookup_num_tokens": None,
    "token_healing": False,
}


@dataclass(frozen=True, slots=True)
class Group:
    """What sequences have in common that share a call."""

    settings: Settings  # without what may differ from row to row
    length_class: Hashable
    forced_bos_token_id: int | None
    decoder_start_token_id: int | None
    alone: int | None  # the id of a request that shares with nobody


class GenerateBackend:
    def __init__(
        self, spec: EngineSpec, checkpoint: Checkpoint, reason: str = AS_CONFIGURED
    ) -> None:
        """reason: why not in flight"""
        device = checkpoint.model.device
        machine = Machine(device.type, free_bytes(device), checkpoint.card.max_context_tokens)
        self.sized = sized(spec, machine, "exact", reason)
        self.spec = spec
        self.checkpoint = checkpoint
        self.model = checkpoint.model
        self.why_alone = why_not_shared(self.model)
        # What runs alone may also leave something on the model for the next request.
        self.freshness = None if self.why_alone is None else Freshness(self.model)
        why_one_by_one = None if self.why_alone is None else f"one by one: {self.why_alone}"
        self._card: ModelCard = replace(checkpoint.card, engine_reason=why_one_by_one)
        self.max_rows: int | None = None  # of one call, once memory was too small for more
        self.is_encoder_decoder: bool = checkpoint.config.is_encoder_decoder
        start_id = checkpoint.generation_config.decoder_start_token_id
        self.token_texts = TokenTexts(
            checkpoint.tokenizer, goes_on_from_prompt=not self.is_encoder_decoder
        )
        # Three threads use a tokenizer: this one changes its source language as it encodes,
        # and a tokenizer must not be changed while another thread reads it.
        self.prompts = Prompts(
            spec,
            checkpoint.config,
            copy.deepcopy(checkpoint.tokenizer),
            start_id,
            checkpoint.limits.max_prompt_tokens,
        )

    @classmethod
    def load(cls, spec: EngineSpec) -> GenerateBackend:
        """Raises Unloadable."""
        return cls(spec, Checkpoint.load(spec))

    @property
    def card(self) -> ModelCard:
        return self._card

    def encode(self, request: Request) -> Sequence:
        prompt = self.prompts.encode(request)
        num_tokens = len(prompt.token_ids)
        self._refuse_unreadable(prompt)
        limits = self.checkpoint.limits
        if limits.max_prompt_tokens is not None and num_tokens > limits.max_prompt_tokens:
            raise PromptTooLong(num_tokens, limits.max_prompt_tokens, "shorten or split the text")
        own = self.own_settings(request)
        room = Room(
            num_before=1 if self.is_encoder_decoder else num_tokens,
            max_context_tokens=limits.max_answer_context_tokens,
            max_new_tokens=self.spec.max_new_tokens,
        )
        settings = resolve(request.params, own, room, fresh_seed=secrets.randbits(32))
        # An encoder reads a prompt once; a decoder-only model reads it for every row.
        num_prefills = 1 if self.is_encoder_decoder else settings.num_rows
        return Sequence(
            request=request,
            prompt_ids=prompt.token_ids,
            settings=settings,
            num_rows=settings.num_rows,
            num_prefill_tokens=num_tokens * num_prefills,
            group=self._group(request, settings, own, prompt),
            forced_bos_token_id=prompt.forced_bos_token_id,
            decoder_start_token_id=prompt.decoder_start_token_id,
            runs_to_end=True,
        )

    def own_settings(self, request: Request) -> Mapping[str, Any]:
        """What the checkpoint says about decoding this request, without what it leaves open;
        more of some tasks and pairs of languages (`task_specific_params`)."""
        return {**self.checkpoint.own, **self.prompts.params_of(request)}

    def run(self, plan: StepPlan) -> list[Completion | None]:
        assert not plan.running, "a group is run to its end in the step in which it joins"
        return list(self._run_blaming(plan.admitted))

    def drop(self, sequences: Iterable[Sequence]) -> None:
        """Nothing is kept between steps."""

    def decode(self, completion: Completion) -> Output:
        sequence = completion.sequence
        settings = sequence.settings.to_json()
        if sequence.request.chat_template_kwargs:
            settings["chat_template_kwargs"] = dict(sequence.request.chat_template_kwargs)
        return Output(
            request_id=sequence.id,
            choices=tuple(self._choice(sequence, each) for each in completion.answers),
            prompt_tokens=len(sequence.prompt_ids),
            settings=settings,
        )

    def _refuse_unreadable(self, prompt: Prompt) -> None:
        """On a GPU an id beyond the embedding ends the process, not the request."""
        num_ids = self.checkpoint.num_ids
        told = (prompt.forced_bos_token_id, prompt.decoder_start_token_id)
        for id_ in (*prompt.token_ids, *(each for each in told if each is not None)):
            if not 0 <= id_ < num_ids:
                raise TokenOutOfRange(id_, num_ids)

    def _group(self, request: Request, settings: Settings, own: Any, prompt: Prompt) -> Group:
        shared = replace(settings, seed=None, stop=())
        alone = None if self.why_alone is None else request.id
        if settings.num_beams > 1:
            # Beams of one request draw from one stream and stop as one, which a call that
            # serves several cannot give each of them.
            if settings.do_sample or settings.stop:
                alone = request.id
        elif own.get("forced_eos_token_id") is None:
            shared = replace(shared, max_new_tokens=0)  # each row stops at its own
        if differs(own, RUNS_ALONE):
            alone = request.id
        pads = self.why_alone is None
        if differs(own, LOOKS_AT_THE_PROMPT):
            pads = False
        if not self.is_encoder_decoder and (
            differs(own, LOOKS_AT_THE_ROW)
            or settings.repetition_penalty != 1.0
            or settings.no_repeat_ngram_size > 0
        ):
            pads = False
        return Group(
            settings=shared,
            length_class=length_class(len(prompt.token_ids)) if pads else len(prompt.token_ids),
            forced_bos_token_id=prompt.forced_bos_token_id,
            decoder_start_token_id=prompt.decoder_start_token_id,
            alone=alone,
        )

    def _run_blaming(self, sequences: tuple[Sequence, ...]) -> list[Completion]:
        """Run a group; if it fails, its parts, so that only the culprit is blamed."""
        try:
            return self._generate(sequences)
        except Exception as error:
            if is_beyond_repair(error):
                raise EngineBroken(f"the device failed: {type(error).__name__}") from error
            out_of_memory = is_out_of_memory(error)
            if len(sequences) == 1:
                (one,) = sequences
                if out_of_memory:
                    failure = OutOfMemory(one.num_rows, len(one.prompt_ids))
                    return [Completion.failed(one, failure)]
                log.error("request failed", extra={"error": error_location(error)})
                return [Completion.failed(one, GenerationFailed(error, "generating"))]
            log.warning(
                "group failed and is run in parts",
                extra={"error": error_location(error), "num_sequences": len(sequences)},
            )
        # Out of the except clause, which would keep the failed call's tensors alive.
        if out_of_memory:
            release_memory(self.model.device)
            self.max_rows = max(sum(each.num_rows for each in sequences) // 2, 1)
        size = max(len(sequences) // 2, 1) if out_of_memory else 1
        parts = [sequences[at : at + size] for at in range(0, len(sequences), size)]
        return [completion for part in parts for completion in self._run_blaming(part)]

    def _generate(self, sequences: tuple[Sequence, ...]) -> list[Completion]:
        first = sequences[0]
        settings = first.settings
        assert isinstance(first.group, Group)
        draws_here = settings.do_sample and first.group.alone is None
        config = self.generation_config(sequences)
        input_ids, attention_mask = self._padded(sequences)
        num_before = 1 if self.is_encoder_decoder else input_ids.shape[1]
        stops = PerRequestStops(
            sequences, num_before, self.token_texts, is_beam_search=first.settings.num_beams > 1
        )
        processors = LogitsProcessorList()
        if draws_here:
            processors = take_sampling_processors(self.model, config)
            processors.append(PerRequestSampler(sequences, self.model.device))
            # `generate` still draws, but from what the sampler left: one token.
        with torch.inference_mode(), torch.random.fork_rng(self._random_devices()):
            if settings.do_sample:
                torch.manual_seed(settings.seed)
            if self.freshness is not None:
                self.freshness.restore()
            rows = self.model.generate(
                input_ids,
                attention_mask=attention_mask,
                generation_config=config,
                logits_processor=processors,
                stopping_criteria=StoppingCriteriaList([stops]),
            )
        rows = rows[:, num_before:].tolist()
        completions, at = [], 0
        for sequence in sequences:
            num_answers = sequence.settings.num_return_sequences
            answers = tuple(
                self.answer(sequence, rows[each], stops.ended_at(each, rows[each]))
                for each in range(at, at + num_answers)
            )
            completions.append(Completion(sequence, answers))
            at += num_answers
        return completions

    def generation_config(self, sequences: tuple[Sequence, ...]) -> Any:
        """Complete: nothing in it is left for `generate` to fill in."""
        first = sequences[0]
        config = copy.copy(self.checkpoint.generation_config)  # nothing within it is changed
        settings = first.settings.to_json()
        for name in ("seed", "stop"):
            settings.pop(name, None)
        neutral = Settings(max_new_tokens=1).to_json()
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

    def _padded(self, sequences: tuple[Sequence, ...]) -> tuple[torch.Tensor, torch.Tensor]:
        """(requests, longest prompt) int64: token ids, and 1 where there is one.

        A decoder goes on from its last column, so it is padded on the left.
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

    def answer(self, sequence: Sequence, row: list[int], stopped_at: int | None) -> Answer:
        """The new tokens of one row, without what followed its end."""
        settings = sequence.settings
        max_tokens = settings.max_new_tokens
        eos = self.checkpoint.eos_token_ids
        end = next((at + 1 for at, token in enumerate(row) if token in eos), None)
        ends = [each for each in (end, stopped_at) if each is not None and each <= max_tokens]
        if not ends:
            return Answer(tuple(row[:max_tokens]), "length")
        num_tokens = min(ends)
        # A model that is made to say its end at the limit did not come to one.
        forced = self.checkpoint.generation_config.forced_eos_token_id is not None
        reason = "length" if forced and num_tokens == max_tokens else "stop"
        return Answer(tuple(row[:num_tokens]), reason)  # type: ignore[arg-type]  # one of the two

    def _choice(self, sequence: Sequence, answer: Answer) -> Choice:
        text = sanitize(text_of(self.checkpoint.tokenizer, list(answer.token_ids)))
        stops = sequence.settings.stop
        if stop_position(text, stops) is not None:
            text = cut_at_stop(text, stops)
        elif stops and answer.finish_reason == "stop":
            # Of special tokens, which are not in the text, or begun in the prompt.
            before = self.token_texts.before_stop(sequence, list(answer.token_ids))
            text = text if before is None else sanitize(before)
        # A continuation begins where its prompt ended, perhaps with a space.
        text = text if sequence.request.task == "generate" else text.strip()
        return Choice(text, answer.finish_reason, len(answer.token_ids), answer.token_ids)

    def _random_devices(self) -> list[torch.device]:
        return [self.model.device] if self.model.device.type == "cuda" else []


def length_class(num_tokens: int) -> tuple[str, int]:
    """Lengths within a factor of about 1.4 share one, so that little is computed on padding."""
    return ("about", int(2 * math.log2(num_tokens)))


def differs(own: Any, neutral: dict[str, Any]) -> bool:
    """Whether the checkpoint sets one of these to something."""
    return any(own.get(name, value) not in (value, None) for name, value in neutral.items())
