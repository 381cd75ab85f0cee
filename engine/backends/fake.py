"""FakeBackend: deterministic and torch-free, for tests and demonstrations of the queue.

Its tokens are the words of the prompt. An answer is words of the prompt, drawn by a
stable hash of the task, the text and the parameters that would change a real answer. It
has `max_new_tokens` words if the request says so, else 1 to 16. It computes one word of
every row in each step, so that sequences join and leave in flight.

Four settings of the spec, and nothing in a request alone, rehearse failures:
`fake_step_seconds` makes a step take time, `fake_fail_on` names a text whose request
fails in the middle of its group, `fake_out_of_memory_on` one for which there is no
memory, `fake_crash_on` one that kills the process.
"""

from __future__ import annotations

import os
import time
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace

from engine.core.completion import Completion, GeneratedTokens
from engine.core.scheduler import StepPlan
from engine.core.sequence import Sequence
from engine.errors import (
    EmptyPrompt,
    GenerationFailed,
    InvariantBroken,
    OutOfMemory,
    PromptTooLong,
    UnknownLanguage,
)
from engine.protocol.engine_spec import EngineSpec
from engine.protocol.limits import AS_CONFIGURED, Machine, sized
from engine.protocol.model_card import ModelCard
from engine.protocol.output import Choice, FinishReason, Measurement, Output
from engine.protocol.request import Request
from engine.sampling.resolve_params import AnswerLimits, ResolvedParams, resolve
from engine.text.characters import sanitize
from engine.text.reasoning import THINK
from engine.text.stop_strings import cut_at_stop, stop_position
from engine.text.token_lengths import no_pause

MAX_CONTEXT_TOKENS = 1_000_000
MAX_NATURAL_TOKENS = 16  # of an answer without a requested length
CRASH_STATUS = 86  # how the process ends on `fake_crash_on`


class FakeFailure(Exception):
    """The error of a request whose prompt contains `fake_fail_on`."""


class FakeBackend:
    def __init__(self, spec: EngineSpec) -> None:
        self.sized = sized(spec, Machine(device="cpu", free_bytes=0), "fake", AS_CONFIGURED)
        self.spec = spec
        self.card = ModelCard(
            alias=spec.alias,
            checkpoint=spec.checkpoint,
            revision=None,
            family="fake",
            engine="fake",
            model_type="fake",
            device="cpu",
            dtype="float32",
            max_context_tokens=spec.max_input_tokens or MAX_CONTEXT_TOKENS,
            num_parameters=0,
        )
        self.max_rows: int | None = None  # its steps need no memory
        self.rows: dict[int, list[FakeRow]] = {}  # of the sequences that run

    def encode(self, request: Request, between_slices: Callable[[], None] = no_pause) -> Sequence:
        words = prompt_words(request)
        if not words:
            raise EmptyPrompt()
        max_tokens = self.spec.max_input_tokens or MAX_CONTEXT_TOKENS
        if len(words) > max_tokens:
            raise PromptTooLong(len(words), max_tokens, "shorten it")
        for name in ("source_language", "target_language"):
            language = getattr(request, name)
            if language and not _is_among(language, self.spec.languages):
                raise UnknownLanguage(name, language, self.spec.languages)
        # The context is the spec's for prompts only: a fake answer may be of any length.
        limits = AnswerLimits(
            num_before=1, max_context_tokens=None, max_new_tokens=self.spec.max_new_tokens
        )
        settings = resolve(request.params, {}, limits, fresh_seed=0)
        return Sequence(
            request=request,
            prompt_ids=tuple(range(len(words))),
            settings=settings,
            num_rows=settings.num_rows,
            num_prefill_tokens=len(words),
            batch_key="fake",
        )

    def measure(
        self, request: Request, between_slices: Callable[[], None] = no_pause
    ) -> Measurement:
        assert self.sized.spec.max_step_tokens is not None
        max_tokens = self.spec.max_input_tokens or MAX_CONTEXT_TOKENS
        limits = AnswerLimits(
            num_before=1, max_context_tokens=None, max_new_tokens=self.spec.max_new_tokens
        )
        return Measurement(
            num_tokens=tuple(
                len(prompt_words(each))
                for each in (
                    *(replace(request, text=each) for each in request.measured_texts),
                    *(replace(request, messages=each) for each in request.measured_messages),
                )
            ),
            max_prompt_tokens=min(max_tokens, self.sized.spec.max_step_tokens),
            max_new_tokens=resolve(request.params, {}, limits, fresh_seed=0).max_new_tokens,
        )

    def run(self, plan: StepPlan) -> list[Completion | None]:
        if self.spec.fake_step_seconds:
            time.sleep(self.spec.fake_step_seconds)
        return [self._advance(each) for each in plan.running] + [
            self._join(each) for each in plan.admitted
        ]

    def drop(self, sequences: Iterable[Sequence]) -> None:
        for sequence in sequences:
            self.rows.pop(sequence.id, None)

    def check(self, running: Iterable[Sequence]) -> None:
        """Raise InvariantBroken unless exactly the sequences of `running` have rows."""
        ids = {each.id for each in running}
        if ids != self.rows.keys():
            raise InvariantBroken(f"rows of {sorted(self.rows)} are kept, but {sorted(ids)} run")

    def decode(self, completion: Completion) -> Output:
        sequence = completion.sequence
        words = prompt_words(sequence.request)
        return Output(
            request_id=sequence.id,
            choices=tuple(
                self._choice(each, words, sequence.settings.stop) for each in completion.answers
            ),
            prompt_tokens=len(sequence.prompt_ids),
            settings=sequence.settings.to_json(),
        )

    def _join(self, sequence: Sequence) -> Completion | None:
        if self._holds(sequence, self.spec.fake_crash_on):
            os._exit(CRASH_STATUS)
        if self._holds(sequence, self.spec.fake_fail_on):
            return Completion.failed(sequence, GenerationFailed(FakeFailure(), "generating"))
        if self._holds(sequence, self.spec.fake_out_of_memory_on):
            error = OutOfMemory(sequence.num_rows, len(sequence.prompt_ids))
            return Completion.failed(sequence, error)
        self.rows[sequence.id] = fake_rows(sequence)
        return self._advance(sequence)

    def _advance(self, sequence: Sequence) -> Completion | None:
        rows = self.rows[sequence.id]
        for row in rows:
            if row.finish_reason is None:
                row.advance(sequence.settings)
        if any(row.finish_reason is None for row in rows):
            return None
        del self.rows[sequence.id]
        return Completion(sequence, tuple(row.answer() for row in rows))

    def _choice(self, answer: GeneratedTokens, words: list[str], stop: tuple[str, ...]) -> Choice:
        token_ids, thought = answer.token_ids, None
        spoken_words = [words[each] for each in token_ids]
        if spoken_words[:1] == [THINK[0]]:
            num = spoken_words.index(THINK[1]) + 1 if THINK[1] in spoken_words else len(token_ids)
            thought = " ".join(word for word in spoken_words[:num] if word not in THINK)
            token_ids = token_ids[num:]
        choice = Choice(
            cut_at_stop(spoken(token_ids, words), stop),
            answer.finish_reason,
            len(answer.token_ids),
            answer.token_ids,
        )
        if thought is None:
            return choice
        num_tokens = len(answer.token_ids) - len(token_ids)
        return replace(choice, reasoning=thought, reasoning_tokens=num_tokens)

    @staticmethod
    def _holds(sequence: Sequence, text: str | None) -> bool:
        return text is not None and text in " ".join(prompt_words(sequence.request))


def prompt_words(request: Request) -> list[str]:
    """The tokens of a fake prompt."""
    if request.task == "chat":
        return [word for each in request.messages for word in sanitize(each.content).split()]
    words = [word for each in request.options.values() for word in sanitize(each).split()]
    return [*words, *sanitize(request.text or "").split()]


def spoken(token_ids: Iterable[int], words: list[str]) -> str:
    return " ".join(words[each] for each in token_ids)


@dataclass(slots=True)
class FakeRow:
    """One row: its whole answer, and the number of tokens it has so far."""

    words: list[str]
    state: int  # of the stream of words
    natural_tokens: int | None  # None: as many as the request asks for
    token_ids: list[int] = field(default_factory=list)
    finish_reason: FinishReason | None = None

    def advance(self, settings: ResolvedParams) -> None:
        """Generate the next word; set the finish reason if it is the last."""
        self.state = (self.state * 1103515245 + 12345) & 0x7FFFFFFF
        self.token_ids.append((self.state >> 8) % len(self.words))
        num_tokens = len(self.token_ids)
        stopped = settings.stop and stop_position(self.text(), settings.stop) is not None
        if stopped or num_tokens == self.natural_tokens:
            self.finish_reason = "stop"
        elif num_tokens == settings.max_new_tokens:
            self.finish_reason = "length"

    def text(self) -> str:
        return spoken(self.token_ids, self.words)

    def answer(self) -> GeneratedTokens:
        assert self.finish_reason is not None
        return GeneratedTokens(tuple(self.token_ids), self.finish_reason)


def _is_among(language: str, languages: tuple[str, ...]) -> bool:
    if not languages or language in languages:
        return True
    from engine.text.languages import closest  # only where a code is not as the spec has it

    return closest(language, languages) is not None


def fake_rows(sequence: Sequence) -> list[FakeRow]:
    """Return one row for each sequence to return."""
    request, settings = sequence.request, sequence.settings
    words = prompt_words(request)
    has_length = request.params.max_new_tokens is not None or request.params.max_length is not None
    rows = []
    for index in range(settings.num_return_sequences):
        state = _stable_hash(request, settings, words, index)
        natural = max(1 + state % MAX_NATURAL_TOKENS, settings.min_new_tokens)
        rows.append(FakeRow(words, state, None if has_length else natural))
    return rows


def _stable_hash(request: Request, settings: ResolvedParams, words: list[str], index: int) -> int:
    """Hash the request.

    Lengths and stop texts are left out: they cut an answer and do not change it.
    """
    fields = (
        request.task,
        request.source_language,
        request.target_language,
        settings.seed,
        settings.do_sample and (settings.temperature, settings.top_k, settings.top_p),
        settings.num_beams,
        settings.repetition_penalty,
        settings.no_repeat_ngram_size,
        index,
    )
    seed = zlib.crc32(repr(fields).encode("utf-8", "surrogatepass"))
    return zlib.crc32(" ".join(words).encode("utf-8", "surrogatepass"), seed) & 0x7FFFFFFF
