"""TextProcessor: turns a request into a sequence, and a completion into an output.

All backends that run a checkpoint use it, and so agree: it builds prompts, tokenizes, resolves
parameters, cuts answers at their ends and detokenizes.
"""

from __future__ import annotations

import copy
import secrets
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from typing import Any, Protocol

from engine.core.completion import Completion, GeneratedTokens
from engine.core.sequence import Sequence
from engine.errors import EmptyPrompt, PromptTooLong, TextTooLong, TokenOutOfRange
from engine.protocol.engine_spec import EngineSpec
from engine.protocol.output import Choice, FinishReason, Measurement, Output
from engine.protocol.request import Request
from engine.sampling.resolve_params import AnswerLimits, ResolvedParams, max_prompt_tokens, resolve
from engine.text.characters import sanitize
from engine.text.detokenizer import text_of
from engine.text.grammars import Grammars
from engine.text.prompts import Prompt, Prompts
from engine.text.reasoning import ThoughtSplitter
from engine.text.stop_strings import TokenTexts, cut_at_stop, stop_position
from engine.text.token_lengths import no_pause


class TokenLimits(Protocol):
    """The limits of a checkpoint in tokens; None: unlimited."""

    @property
    def max_prompt_tokens(self) -> int | None: ...

    @property
    def max_answer_context_tokens(self) -> int | None: ...  # decoder-only: prompt included


class TextCheckpoint(Protocol):
    """The parts of a checkpoint that text processing needs; no weights."""

    @property
    def config(self) -> Any: ...

    @property
    def tokenizer(self) -> Any: ...

    @property
    def generation_config(self) -> Any: ...

    @property
    def own(self) -> Mapping[str, Any]: ...  # what the generation configuration sets

    @property
    def num_ids(self) -> int: ...  # rows of the input embedding

    @property
    def limits(self) -> TokenLimits: ...

    @property
    def eos_token_ids(self) -> Collection[int]: ...


class TextProcessor:
    """Converts between text and token ids for one checkpoint.

    `encode` is called by the tokenizer thread, `answer` by the loop, `decode` by the writer.
    """

    def __init__(
        self,
        spec: EngineSpec,
        checkpoint: TextCheckpoint,
        max_step_tokens: int | None,
        follows_grammars: bool = False,
    ) -> None:
        """max_step_tokens:  the most prompt tokens of one step, as sized
        follows_grammars: whether the backend applies grammar masks
        """
        self.follows_grammars = follows_grammars
        self.spec = spec
        self.checkpoint = checkpoint
        self.max_step_tokens = max_step_tokens
        self.is_encoder_decoder: bool = checkpoint.config.is_encoder_decoder
        self.token_texts = TokenTexts(
            checkpoint.tokenizer, goes_on_from_prompt=not self.is_encoder_decoder
        )
        self.grammars = Grammars(
            checkpoint.tokenizer, self.token_texts, checkpoint.num_ids, checkpoint.eos_token_ids
        )
        self.thoughts = ThoughtSplitter(checkpoint.tokenizer)
        # Three threads use a tokenizer: this one changes its source language as it encodes,
        # and a tokenizer must not be changed while another thread reads it.
        self.prompts = Prompts(
            spec,
            checkpoint.config,
            copy.deepcopy(checkpoint.tokenizer),
            checkpoint.generation_config.decoder_start_token_id,
            *self._prompt_bound(max_step_tokens),
        )

    def _prompt_bound(self, max_step_tokens: int | None) -> tuple[int | None, str]:
        """The longest prompt in tokens, and the remedy for a longer one."""
        most, remedy = self.checkpoint.limits.max_prompt_tokens, "shorten or split the text"
        if max_step_tokens is not None and (most is None or max_step_tokens < most):
            return max_step_tokens, "shorten the text, or raise max_step_tokens of the model"
        return most, remedy

    def encode(self, request: Request, between_slices: Callable[[], None] = no_pause) -> Sequence:
        """Return the request as a waiting sequence. Raises RequestError.

        The backend sets its scheduling fields. between_slices: see `Prompts.encode`
        """
        prompt = self.prompts.encode(request, between_slices)
        num_tokens = len(prompt.token_ids)
        self._refuse_unreadable(prompt)
        limits = self.checkpoint.limits
        if limits.max_prompt_tokens is not None and num_tokens > limits.max_prompt_tokens:
            raise PromptTooLong(num_tokens, limits.max_prompt_tokens, "shorten or split the text")
        answer_limits = AnswerLimits(
            num_before=1 if self.is_encoder_decoder else num_tokens,
            max_context_tokens=limits.max_answer_context_tokens,
            max_new_tokens=self.spec.max_new_tokens,
        )
        own = self.own_settings(request)
        settings = resolve(request.params, own, answer_limits, fresh_seed=secrets.randbits(32))
        grammar = None
        if self.follows_grammars and request.json_schema is not None:
            mark = self.thoughts.mark_to_come(prompt.token_ids)
            grammar = self.grammars.of(request.json_schema, mark, between_slices)
        # An encoder reads a prompt once; a decoder-only model reads it for every row.
        num_prefills = 1 if self.is_encoder_decoder else settings.num_rows
        return Sequence(
            request=request,
            prompt_ids=prompt.token_ids,
            settings=settings,
            num_rows=settings.num_rows,
            num_prefill_tokens=num_tokens * num_prefills,
            forced_bos_token_id=prompt.forced_bos_token_id,
            decoder_start_token_id=prompt.decoder_start_token_id,
            grammar=grammar,
        )

    def measure(
        self,
        request: Request,
        max_cached_prompt: Callable[[ResolvedParams], int] | None,
        between_slices: Callable[[], None] = no_pause,
    ) -> Measurement:
        """Count the tokens of the prompts of `measured_texts` or `measured_messages`.

        The result also has the longest prompt that fits. Raises RequestError.

        max_cached_prompt: for a backend with a KV cache: the longest prompt that fits into it with
                           its answers; else None
        """
        limits = self.checkpoint.limits
        answer_limits = AnswerLimits(
            num_before=1,
            max_context_tokens=limits.max_answer_context_tokens,
            max_new_tokens=self.spec.max_new_tokens,
        )
        settings = resolve(request.params, self.own_settings(request), answer_limits, fresh_seed=0)
        assert self.max_step_tokens is not None
        num_prefills = 1 if self.is_encoder_decoder else settings.num_rows
        bounds = [limits.max_prompt_tokens, self.max_step_tokens // num_prefills]
        if not self.is_encoder_decoder:
            bounds.append(max_prompt_tokens(request.params, settings, answer_limits))
        if max_cached_prompt is not None:
            bounds.append(max_cached_prompt(settings))
        return Measurement(
            num_tokens=tuple(
                self._num_tokens(prompt, between_slices)
                for prompt in (
                    *(replace(request, text=each) for each in request.measured_texts),
                    *(replace(request, messages=each) for each in request.measured_messages),
                )
            ),
            max_prompt_tokens=max(min(each for each in bounds if each is not None), 0),
            max_new_tokens=settings.max_new_tokens,
        )

    def _num_tokens(self, request: Request, between_slices: Callable[[], None]) -> int:
        """The number of tokens of the prompt; any number above the limit if it is too long."""
        try:
            return len(self.prompts.encode(request, between_slices).token_ids)
        except EmptyPrompt:
            return 0
        except TextTooLong as error:
            return max(error.num_tokens, error.max_tokens + 1)
        except PromptTooLong as error:
            return error.num_tokens

    def own_settings(self, request: Request) -> Mapping[str, Any]:
        """The checkpoint's decoding settings for this request that are not None.

        `task_specific_params` of the task override the generation configuration.
        """
        return {**self.checkpoint.own, **self.prompts.params_of(request)}

    def answer(self, sequence: Sequence, row: list[int], stopped_at: int | None) -> GeneratedTokens:
        """The new tokens of one returned row, cut at its end.

        row:        new token ids, which may be padded
        stopped_at: the number of tokens up to a stop string; None: there was none
        """
        max_tokens = sequence.settings.max_new_tokens
        eos = self.checkpoint.eos_token_ids
        end = next((at + 1 for at, token in enumerate(row) if token in eos), None)
        ends = [each for each in (end, stopped_at) if each is not None and each <= max_tokens]
        if not ends:
            return GeneratedTokens(tuple(row[:max_tokens]), "length")
        num_tokens = min(ends)
        # A model that is forced to end at the limit did not finish by itself.
        forced = self.checkpoint.generation_config.forced_eos_token_id is not None
        reason: FinishReason = "length" if forced and num_tokens == max_tokens else "stop"
        return GeneratedTokens(tuple(row[:num_tokens]), reason)

    def decode(self, completion: Completion) -> Output:
        """Turn a completion with answers into an output."""
        sequence = completion.sequence
        settings = sequence.settings.to_json()
        if (version := self.prompts.version_of(sequence.request)) is not None:
            settings["prompt_version"] = version
        if sequence.grammar is not None:
            settings["is_constrained"] = True
        switches = {**self.spec.chat_template_kwargs, **sequence.request.chat_template_kwargs}
        if switches and self.prompts.is_rendered(sequence.request):
            settings["chat_template_kwargs"] = switches
        return Output(
            request_id=sequence.id,
            choices=tuple(self._choice(sequence, each) for each in completion.answers),
            prompt_tokens=len(sequence.prompt_ids),
            settings=settings,
        )

    def _refuse_unreadable(self, prompt: Prompt) -> None:
        """Raise for an id beyond the embedding, which would end the whole process on a GPU."""
        num_ids = self.checkpoint.num_ids
        starts = (prompt.forced_bos_token_id, prompt.decoder_start_token_id)
        for id_ in (*prompt.token_ids, *(each for each in starts if each is not None)):
            if not 0 <= id_ < num_ids:
                raise TokenOutOfRange(id_, num_ids)

    def _choice(self, sequence: Sequence, answer: GeneratedTokens) -> Choice:
        token_ids = list(answer.token_ids)
        thought = None
        if not self.is_encoder_decoder:
            is_rendered = self.prompts.is_rendered(sequence.request)
            thought = self.thoughts.thought(sequence.prompt_ids, token_ids, is_rendered)
        if thought is not None:
            token_ids = token_ids[thought.num_tokens :]
        text = sanitize(text_of(self.checkpoint.tokenizer, token_ids))
        stops = sequence.settings.stop
        if stop_position(text, stops) is not None:
            text = cut_at_stop(text, stops)
        elif stops and answer.finish_reason == "stop":
            # Of special tokens, which are not in the text, or begun in the prompt.
            num_thought = 0 if thought is None else thought.num_tokens
            new_ids = list(answer.token_ids)
            before = self.token_texts.before_stop(sequence, new_ids, num_thought)
            text = text if before is None else sanitize(before)
        if thought is not None:
            text = sanitize(thought.rest) + text
        if not self.is_encoder_decoder and self.prompts.is_rendered(sequence.request):
            text = self.thoughts.unwrapped(text)
        # A continuation begins where its prompt ended, perhaps with a space.
        if sequence.request.task != "generate" or thought is not None:
            text = text.strip()
        choice = Choice(text, answer.finish_reason, len(answer.token_ids), answer.token_ids)
        if thought is None or thought.text is None:
            return choice
        reasoning = cut_at_stop(sanitize(thought.text), stops).rstrip()
        return replace(choice, reasoning=reasoning, reasoning_tokens=thought.num_tokens)
