"""Self-proof: whether a checkpoint answers in flight as `model.generate` answers it alone.

It is found out on the checkpoint itself when it is loaded. Requests of uneven lengths are run
one by one by `generate`, and then in flight, where they join and leave while others run: greedy
ones whose logits are compared step by step, beams, draws, and processors that look back; across
windows, which are made as short as the prompts meanwhile, and up to the end of a short context.
What the rows of a step do to each other shows in the logits long before it shows in an answer.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList

from engine.backends.inflight import InflightBackend, Runner, RunningSequence
from engine.checkpoint.model_state import Freshness
from engine.core.completion import Completion
from engine.core.sequence import Sequence
from engine.errors import in_words
from engine.logging import error_location
from engine.proof.batch_probe import MAX_OFF, SLOW_PASS_SECONDS, WINDOWS, compute_seconds, off
from engine.protocol.messages import Request
from engine.runners.length_switches import RotarySwitch, short_switch
from engine.sampling.resolve_params import ResolvedParams
from engine.sampling.sampler import TokenChoice

if TYPE_CHECKING:
    from engine.backends.generate import GenerateBackend

log = logging.getLogger(__name__)

NUM_STEPS = 6
# Of prompts; the first few are run however slow the model is, with what matters most.
LENGTHS = (9, 3, 21, 14, 1, 40, 6, 27, 2, 33, 12, 5, 18, 8, 30, 4, 11, 24)
NUM_LEAST = 6
# Steps less of each, if the model is slow.
NUM_SPARED = 2
# Windows are made as short as this, so that a decoder beside an encoder, which begins with one
# token, crosses them in NUM_STEPS.
WINDOW = 3
SMALLEST = {name: WINDOW for name in WINDOWS} | {"expert_capacity": 1}
# Time for what `generate` answers; in flight it takes less.
MAX_SECONDS = 4.0
# A prompt that ends with the context is affordable in one as short as this.
SHORT_CONTEXT = 1024
# Sums in another order, in units of the dtype's precision, grow with the layers they pass.
ROUNDING_UNITS = 8


class Disproved(Exception):
    """An answer in flight differs from that of `generate`; the message says how."""


@dataclass(frozen=True, slots=True)
class Proof:
    num_requests: int
    worst: float  # the largest distance of logits, relative to their spread
    num_equal: int  # requests of which every token was the same

    def __str__(self) -> str:
        return (
            f"proved at load: {self.num_equal} of {self.num_requests} requests answered in flight "
            f"as by model.generate, logits within {self.worst:.1g}"
        )


@dataclass(slots=True)
class Trial:
    sequence: Sequence
    rows: list[list[int]] = field(default_factory=list)  # by `generate`, alone
    logits: Tensor | None = None  # (steps, vocab) of a greedy one


@dataclass(frozen=True, slots=True)
class AnsweredAlone:
    """The answers of `generate`, for one proof or several."""

    trials: list[Trial]
    is_slow: bool  # if each pass takes long, few are made: not the same again in another order
    has_beams: bool  # False: `generate` cannot, or they are left out

    def without_beams(self) -> AnsweredAlone:
        trials = [each for each in self.trials if each.sequence.settings.num_beams == 1]
        return AnsweredAlone(trials, self.is_slow, has_beams=False)


class DrawnBeams:
    """A TokenChoice by lot: rows take other tokens and change places whatever the model says, for
    its own beams may keep their places for so few steps."""

    is_greedy = False
    parents: Tensor | None = None

    def __init__(self, rows: Sequence, start_id: int, ids: list[int], device: torch.device) -> None:
        """start_id: before the first token
        ids: to be drawn from"""
        self.start_id = start_id
        self.rows: list[list[int]] = [[] for _ in range(rows.num_rows)]
        self.num_steps = rows.settings.max_new_tokens
        self.ids = ids
        self.device = device
        self.lots = torch.Generator().manual_seed(2)
        self.logits: Tensor | None = None  # (rows, vocab) after `said`
        self.said: list[list[int]] = []

    @property
    def next_ids(self) -> list[int]:
        return [row[-1] if row else self.start_id for row in self.rows]

    def advance(self, logits: Tensor, argmax: list[int]) -> bool:
        self.said, self.logits = self.rows, logits.float().cpu().clone()
        num_rows = len(self.rows)
        parents = torch.randint(num_rows, (num_rows,), generator=self.lots)
        drawn = torch.randint(len(self.ids), (num_rows,), generator=self.lots).tolist()
        self.rows = [
            [*self.rows[parent], self.ids[token]]
            for parent, token in zip(parents.tolist(), drawn, strict=True)
        ]
        self.parents = parents.to(self.device)
        return len(self.rows[0]) >= self.num_steps

    def answers(self) -> list[tuple[list[int], int | None]]:
        return [(row, None) for row in self.rows]


class RecordingBackend(InflightBackend):
    """Keeps the logits of every step."""

    def __init__(self, exact: GenerateBackend, runner: Runner, drawn: Sequence | None) -> None:
        """drawn: whose beams are drawn by lot"""
        super().__init__(exact, runner)
        self.logits: dict[int, list[Tensor]] = {}
        self.drawn = drawn
        self.beams: DrawnBeams | None = None

    def _choice_of(self, sequence: Sequence) -> TokenChoice:
        if sequence is not self.drawn:
            return super()._choice_of(sequence)
        start_id = self.runner.start_ids(sequence)[-1]
        device = self.exact.model.device
        self.beams = DrawnBeams(sequence, start_id, plain_ids(self.exact), device)
        return self.beams

    def _choose_one(
        self, running: RunningSequence, logits: Tensor, argmax: list[int]
    ) -> Completion | None:
        recorded = self.logits.setdefault(running.sequence.id, [])
        recorded.append(logits[0].float().cpu().clone())
        return super()._choose_one(running, logits, argmax)


def answered_alone(exact: GenerateBackend, has_beams: bool) -> AnsweredAlone:
    """Answer the trials by `generate`, for one proof or several. The model is left as it was."""
    with as_proved(exact.model) as switch:
        return tried_alone(exact, trials_of(exact, has_beams, switch), Freshness(exact.model))


def prove(
    exact: GenerateBackend, runner: Runner, has_beams: bool, alone: AnsweredAlone | None = None
) -> Proof:
    """Raises Disproved. The model is left as it was, and the runner's cache empty.

    alone: what `answered_alone` returned; None: it is asked for
    """
    try:
        alone = answered_alone(exact, has_beams) if alone is None else alone
        with as_proved(exact.model), renewing_to(runner, exact.model):
            runner.refresh()  # to the short windows
            return compared(exact, alone, run_in_company(exact, runner, alone, has_beams))
    except Disproved:
        raise
    except Exception as error:
        log.warning("the proof failed", extra={"error": error_location(error)})
        raise Disproved(f"in flight it raised {type(error).__name__}: {in_words(error)}") from error
    finally:
        runner.kv_cache.free_all_but(())
        runner.refresh()


@contextlib.contextmanager
def as_proved(model: Any) -> Iterator[RotarySwitch | None]:
    """Windows and the rotary switch are short within, and what a forward leaves on the model is
    gone after it."""
    fresh = Freshness(model)
    try:
        with (
            short_windows_everywhere(model),
            short_switch(model.config) as switch,
            torch.inference_mode(),
        ):
            yield switch
    finally:
        with torch.inference_mode():
            fresh.restore()


@contextlib.contextmanager
def renewing_to(runner: Any, model: Any) -> Iterator[None]:
    """Let a runner that puts its model back before a prompt put it back as it is now, with short
    windows."""
    before = getattr(runner, "freshness", None)
    if before is None:
        yield
        return
    runner.freshness = Freshness(model)
    try:
        yield
    finally:
        runner.freshness = before


def trials_of(
    exact: GenerateBackend, has_beams: bool, switch: RotarySwitch | None = None
) -> list[Trial]:
    """The trials of a proof; those that show most come first."""
    checkpoint = exact.checkpoint
    limits = checkpoint.limits
    named = (limits.max_prompt_tokens, limits.max_answer_context_tokens)
    bounds = [each - NUM_STEPS for each in named if each is not None]
    longest = max(min(bounds, default=max(LENGTHS)), 1)
    lengths = [min(each, longest) for each in LENGTHS]
    if bounds and longest <= SHORT_CONTEXT:
        lengths[5] = longest
    greedy = ResolvedParams(max_new_tokens=NUM_STEPS, min_new_tokens=NUM_STEPS, num_beams=1)
    special: dict[int, ResolvedParams] = {
        4: replace(greedy, repetition_penalty=1.3),
        7: replace(greedy, do_sample=True, seed=7, temperature=0.9),
        10: replace(greedy, no_repeat_ngram_size=2),
        13: replace(greedy, do_sample=True, seed=3, num_return_sequences=2, top_p=0.9),
    }
    if has_beams:
        special |= {
            3: replace(greedy, num_beams=3, num_return_sequences=3),
            11: replace(greedy, num_beams=2, num_return_sequences=2),
        }
    prompts = plain_prompts(exact, lengths)
    tried = [
        # Uneven answers, so that they leave at different steps.
        (prompt, special.get(at) or shortened(greedy, NUM_STEPS - at % 3))
        for at, prompt in enumerate(prompts)
        if switch is None or not switch.is_crossed(len(prompt), NUM_STEPS)
    ]
    return [Trial(sequence(at, *each)) for at, each in enumerate(tried)]


def shortened(settings: ResolvedParams, num_steps: int) -> ResolvedParams:
    return replace(settings, max_new_tokens=num_steps, min_new_tokens=num_steps)


def plain_ids(exact: GenerateBackend) -> list[int]:
    """The token ids without special ones."""
    checkpoint = exact.checkpoint
    special = {*checkpoint.tokenizer.all_special_ids, checkpoint.pad_token_id}
    num_ids = min(checkpoint.num_ids, len(checkpoint.tokenizer))
    return [each for each in range(num_ids) if each not in special] or [0]


def plain_prompts(exact: GenerateBackend, lengths: list[int]) -> list[tuple[int, ...]]:
    """Spread over the vocabulary."""
    plain = plain_ids(exact)
    drawn = torch.Generator().manual_seed(1)
    return [
        tuple(plain[at] for at in torch.randint(len(plain), (each,), generator=drawn).tolist())
        for each in lengths
    ]


def sequence(id_: int, prompt: tuple[int, ...], settings: ResolvedParams) -> Sequence:
    return Sequence(
        request=Request(id=id_, task="generate"),
        prompt_ids=prompt,
        settings=settings,
        num_rows=settings.num_rows,
        num_prefill_tokens=len(prompt),
    )


def tried_alone(exact: GenerateBackend, trials: list[Trial], fresh: Freshness) -> AnsweredAlone:
    """The trials that `generate` answered in time, each as if the model was just loaded."""
    until = time.monotonic() + MAX_SECONDS
    done: list[Trial] = []
    is_slow = False
    has_beams = any(each.sequence.settings.num_beams > 1 for each in trials)
    for trial in trials:
        if len(done) >= NUM_LEAST and (is_slow or time.monotonic() > until):
            break
        settings = trial.sequence.settings
        if is_slow:
            trial.sequence.settings = shortened(settings, settings.max_new_tokens - NUM_SPARED)
        fresh.restore()
        begun = compute_seconds()
        if settings.num_beams > 1 and not has_beams:
            continue
        try:
            answer_alone(exact, trial)
        except ValueError:
            if settings.num_beams == 1:
                raise
            has_beams = False  # the states of some cannot be put into another order
            continue
        done.append(trial)
        if len(done) == 2:  # the first may have found things to load
            seconds = compute_seconds() - begun
            is_slow = seconds > SLOW_PASS_SECONDS * settings.max_new_tokens
    return AnsweredAlone(done, is_slow, has_beams)


def answer_alone(exact: GenerateBackend, trial: Trial) -> None:
    settings = trial.sequence.settings
    input_ids, attention_mask = exact.padded((trial.sequence,))
    config = exact.generation_config((trial.sequence,))
    config.return_dict_in_generate = True
    config.output_logits = settings.num_beams == 1
    with exact.seeded(settings.seed):
        output = exact.model.generate(
            input_ids, attention_mask=attention_mask, generation_config=config
        )
    num_before = 1 if exact.is_encoder_decoder else input_ids.shape[1]
    trial.rows = [
        list(exact.text.answer(trial.sequence, row, None).token_ids)
        for row in output.sequences[:, num_before:].tolist()
    ]
    if settings.num_beams == 1 and settings.num_rows == 1:
        trial.logits = torch.stack(output.logits, 1)[0].float().cpu()


def run_in_company(
    exact: GenerateBackend, runner: Runner, alone: AnsweredAlone, has_beams: bool
) -> dict[int, tuple[list[list[int]], list[Tensor]]]:
    """The tokens and logits of each request, as they join one or three at a time, and one that
    never ends is dropped on the way. Twice, the second time in another order."""
    results = {}
    trials = alone.trials
    num_drawn_steps = NUM_STEPS - NUM_SPARED if alone.is_slow else NUM_STEPS
    for order in (trials,) if alone.is_slow else (trials, trials[::-1]):
        waiting = [each.sequence for each in order]
        drawn = None
        if has_beams and order is trials:
            beams = ResolvedParams(
                max_new_tokens=num_drawn_steps, num_beams=3, num_return_sequences=3
            )
            drawn = sequence(2 * len(LENGTHS), trials[0].sequence.prompt_ids, beams)
            waiting.insert(2, drawn)
        backend = RecordingBackend(exact, runner, drawn)
        dropped = replace_id(waiting[len(waiting) // 2], len(LENGTHS))
        waiting.insert(1, dropped)
        running: list[Sequence] = []
        num_steps = 0
        while waiting or running:
            num_joining = 3 if num_steps % 2 else 1
            if num_steps % 3 == 2:
                num_joining = 0  # a step without anybody new
            admitted, waiting = waiting[:num_joining], waiting[num_joining:]
            ended = backend.run(tuple(running), tuple(admitted))
            both = [*running, *admitted]
            running = [each for each, one in zip(both, ended, strict=True) if one is None]
            for completion in ended:
                if completion is None:
                    continue
                id_ = completion.sequence.id
                if completion.error is not None:
                    raise Disproved(f"in flight a request failed ({completion.error})")
                if completion.sequence is drawn:
                    assert backend.beams is not None
                    compare_drawn(exact, drawn, backend.beams)
                    continue
                rows = [list(each.token_ids) for each in completion.answers]
                key = id_ if order is trials else -1 - id_
                results[key] = (rows, backend.logits[id_])
            num_steps += 1
            if num_steps == 3 and dropped in running:
                running.remove(dropped)
                backend.drop([dropped])
            backend.check(running)
    return results


class Dictation(LogitsProcessor):
    """Forces given tokens on rows, and then lets them go on by their own logits."""

    def __init__(self, said: Tensor, num_before: int) -> None:
        """said: (rows, steps) int64"""
        self.said = said
        self.num_before = num_before

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> Any:
        at = input_ids.shape[1] - self.num_before
        if at == self.said.shape[1]:
            return scores
        silenced = torch.full_like(scores, -torch.inf)
        return silenced.scatter_(1, self.said[:, at : at + 1], 0.0)


def compare_drawn(exact: GenerateBackend, drawn: Sequence, beams: DrawnBeams) -> None:
    """The logits of the last step, which follow from all that the rows have said, against those
    of `generate` that has to say the same, step by step. Raises Disproved."""
    assert beams.logits is not None
    device = exact.model.device
    said = torch.tensor(beams.said, device=device)  # (rows, steps)
    num_rows, num_steps = said.shape
    config = exact.generation_config((drawn,))
    config.num_beams = config.num_return_sequences = 1
    config.max_new_tokens = config.min_new_tokens = num_steps + 1
    config.forced_bos_token_id = config.forced_eos_token_id = None
    config.return_dict_in_generate = config.output_logits = True
    prompt = torch.tensor([drawn.prompt_ids], device=device).expand(num_rows, -1)
    num_before = 1 if exact.is_encoder_decoder else prompt.shape[1]
    output = exact.model.generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        generation_config=config,
        logits_processor=LogitsProcessorList([Dictation(said, num_before)]),
    )
    distance, bound = off(output.logits[-1].float().cpu(), beams.logits), max_off(exact.model)
    if not distance <= bound:
        raise Disproved(
            "rows that change places have other logits than by model.generate "
            f"(off by {distance:.1g} of 1, where rounding is at most {bound:.1g})"
        )


def replace_id(one: Sequence, id_: int) -> Sequence:
    settings = one.settings
    if settings.num_beams == 1:
        settings = shortened(settings, NUM_STEPS)
    return sequence(id_, one.prompt_ids, settings)


def compared(
    exact: GenerateBackend,
    alone: AnsweredAlone,
    found: dict[int, tuple[list[list[int]], list[Tensor]]],
) -> Proof:
    """Raises Disproved."""
    bound = max_off(exact.model)
    is_exact = exact.model.dtype == torch.float32
    worst, num_equal = 0.0, 0
    for trial in alone.trials:
        settings, id_ = trial.sequence.settings, trial.sequence.id
        equal = True
        for key in (id_,) if alone.is_slow else (id_, -1 - id_):
            rows, logits = found[key]
            if trial.logits is not None:
                num_alike = num_same(trial.rows[0], rows[0])
                # The first token that differs was chosen by logits that may be compared yet.
                until = min(num_alike + 1, len(trial.logits), len(logits))
                distance = off(trial.logits[:until], torch.stack(logits[:until]))
                if not distance <= bound:
                    raise Disproved(
                        "its logits in flight are others than by model.generate "
                        f"(off by {distance:.1g} of 1, where rounding is at most {bound:.1g})"
                    )
                worst = max(worst, distance)
            if rows != trial.rows:
                equal = False
                if is_exact:
                    kind = "beams" if settings.num_beams > 1 else "answers"
                    raise Disproved(f"its {kind} in flight are others than by model.generate")
        num_equal += equal
    return Proof(len(alone.trials), worst, num_equal)


def num_same(one: list[int], other: list[int]) -> int:
    num = 0
    for mine, its in zip(one, other, strict=False):
        if mine != its:
            break
        num += 1
    return num


def max_off(model: Any) -> float:
    """The bound on the error of logits: in half precision, what its rounding amounts to in so many
    layers."""
    if model.dtype == torch.float32:
        return MAX_OFF
    num_layers = getattr(model.config.get_text_config(decoder=True), "num_hidden_layers", 12)
    bound = ROUNDING_UNITS * torch.finfo(model.dtype).eps * float(num_layers) ** 0.5
    return float(min(bound, 0.3))


@contextlib.contextmanager
def short_windows_everywhere(model: Any) -> Iterator[None]:
    """Windows as short as the prompts, and experts that take as few tokens as they can, in every
    configuration and module that notes their size."""
    owners = [model.config, model.config.get_text_config(decoder=True)]
    for module in model.modules():
        owners += [module, getattr(module, "config", module)]
    noted = [
        (vars(owner), name, size)
        for owner in {id(each): each for each in owners}.values()
        for name in SMALLEST
        if isinstance(size := vars(owner).get(name), int) and not isinstance(size, bool)
    ]
    for attributes, name, size in noted:
        attributes[name] = min(size, SMALLEST[name])
    try:
        yield
    finally:
        for attributes, name, size in noted:
            attributes[name] = size
