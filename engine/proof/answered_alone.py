"""Answers the trials of a proof one by one with `generate`: the reference for the proof."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from engine.checkpoint.model_state import Freshness
from engine.proof.batch_probe import SLOW_PASS_SECONDS, compute_seconds
from engine.proof.proof_conditions import as_proved
from engine.proof.trials import (
    LENGTHS,
    NUM_LEAST,
    NUM_STEPS_IF_SLOW,
    SHORT_CONTEXT_IF_SLOW,
    Trial,
    shortened,
    trials_of,
)
from engine.sampling.seeded import seeded

if TYPE_CHECKING:
    from engine.backends.generate import GenerateBackend

# Time for what `generate` answers; in flight it takes less.
MAX_SECONDS = 4.0


@dataclass(frozen=True, slots=True)
class AnsweredAlone:
    """The trials with the answers of `generate`, for one or several proofs."""

    trials: list[Trial]
    is_slow: bool  # passes take long, so trials run in one order only
    has_beams: bool  # False: `generate` cannot, or they are left out

    def without_beams(self) -> AnsweredAlone:
        trials = [each for each in self.trials if each.sequence.settings.num_beams == 1]
        return AnsweredAlone(trials, self.is_slow, has_beams=False)


def answered_alone(exact: GenerateBackend, has_beams: bool) -> AnsweredAlone:
    """Answer the trials one by one with `generate`. The model's state is restored."""
    with as_proved(exact.model) as switch:
        return tried_alone(exact, trials_of(exact, has_beams, switch), Freshness(exact.model))


def tried_alone(exact: GenerateBackend, trials: list[Trial], fresh: Freshness) -> AnsweredAlone:
    """Answer as many trials as time allows, each on the model as it was just loaded."""
    until = time.monotonic() + MAX_SECONDS
    done: list[Trial] = []
    is_slow = False
    has_beams = any(each.sequence.settings.num_beams > 1 for each in trials)
    for trial in trials:
        if len(done) >= NUM_LEAST and (is_slow or time.monotonic() > until):
            break
        num_beams = trial.sequence.settings.num_beams
        if num_beams > 1 and not has_beams:
            continue
        if is_slow:
            spare(trial)
        fresh.restore()
        begun = compute_seconds()
        is_probed = take_probed(exact, trial)
        try:
            if not is_probed:
                answer_alone(exact, trial)
        except ValueError:
            if num_beams == 1:
                raise
            has_beams = False  # some models' states cannot be reordered
            continue
        done.append(trial)
        if is_probed:
            is_slow = exact.probed.is_slow
        elif len(done) == 2:  # the first may have included lazy loading
            seconds = compute_seconds() - begun
            is_slow = seconds > SLOW_PASS_SECONDS * trial.sequence.settings.max_new_tokens
    exact.probed.clear()
    return AnsweredAlone(done, is_slow, has_beams)


def spare(trial: Trial) -> None:
    """Shorten a trial for a slow model: fewer steps, and a short prompt."""
    one = trial.sequence
    one.settings = shortened(one.settings, min(one.settings.max_new_tokens, NUM_STEPS_IF_SLOW))
    if len(one.prompt_ids) > SHORT_CONTEXT_IF_SLOW:
        one.prompt_ids = one.prompt_ids[: max(LENGTHS)]
        one.num_prefill_tokens = len(one.prompt_ids)


def take_probed(exact: GenerateBackend, trial: Trial) -> bool:
    """Reuse the answer of the batch probe if it ran the same request; False if it did not."""
    one = trial.sequence
    answer = exact.probed.answer(one, exact.generation_config((one,)))
    if answer is None:
        return False
    rows = answer.token_ids
    trial.rows = [list(exact.text.answer(one, row, None).token_ids) for row in rows]
    trial.logits = answer.logits
    return True


def answer_alone(exact: GenerateBackend, trial: Trial) -> None:
    settings = trial.sequence.settings
    input_ids, attention_mask = exact.padded((trial.sequence,))
    config = exact.generation_config((trial.sequence,))
    config.return_dict_in_generate = True
    config.output_logits = settings.num_beams == 1
    with seeded(exact.model.device, settings.seed):
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
