"""Answers the trials of a proof in flight; sequences join and leave at different steps."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from engine.backends.inflight import InflightBackend, RunningSequence
from engine.core.completion import Completion
from engine.core.sequence import Sequence
from engine.proof.answered_alone import AnsweredAlone
from engine.proof.disproved import Disproved
from engine.proof.drawn_beams import DrawnBeams, compare_drawn
from engine.proof.trials import (
    LENGTHS,
    NUM_STEPS,
    NUM_STEPS_IF_SLOW,
    plain_ids,
    sequence,
    shortened,
)
from engine.runners.base import Runner
from engine.sampling.resolve_params import ResolvedParams
from engine.sampling.sampler import TokenChoice

if TYPE_CHECKING:
    from engine.backends.generate import GenerateBackend


class RecordingBackend(InflightBackend):
    """An InflightBackend that records the logits of every step."""

    def __init__(self, exact: GenerateBackend, runner: Runner, drawn: Sequence | None) -> None:
        """drawn: the sequence whose beams are reordered at random"""
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


def answer_in_flight(
    exact: GenerateBackend, runner: Runner, alone: AnsweredAlone
) -> dict[int, tuple[list[list[int]], list[Tensor]]]:
    """Return the tokens and logits of each trial, by sequence id.

    The trials join one or three at a time, and one more sequence is dropped before its end. All run
    twice, the second time in reverse order; once if the model is slow.
    """
    results = {}
    trials = alone.trials
    num_drawn_steps = NUM_STEPS_IF_SLOW if alone.is_slow else NUM_STEPS
    for order in (trials,) if alone.is_slow else (trials, trials[::-1]):
        waiting = [each.sequence for each in order]
        drawn = None
        if alone.has_beams and order is trials:
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
                num_joining = 0  # a step without a new sequence
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


def replace_id(one: Sequence, id_: int) -> Sequence:
    settings = one.settings
    if settings.num_beams == 1:
        settings = shortened(settings, NUM_STEPS)
    return sequence(id_, one.prompt_ids, settings)
