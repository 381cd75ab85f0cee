"""Batch probe: whether requests that share a call of `generate` get the answers they get alone.

A forward pass may ignore positions, so that padding shifts a text; rows may compete for the experts
of a layer; a short text may change the model for the next. A model that no proof covers is tested
at load for such faults: prompts of different lengths run one by one and padded together, in two
orders, greedily and by beam search. They are also trials of a proof, which reuses their answers.
"""

from __future__ import annotations

import copy
import logging
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from engine.checkpoint.model_state import Freshness
from engine.core.sequence import Sequence
from engine.errors import in_words
from engine.logging import error_location
from engine.proof.logit_distance import MAX_DISTANCE, distance_of
from engine.proof.proof_conditions import as_proved
from engine.proof.proved_families import is_listed, length_bound_rope
from engine.proof.trials import BEAMS_AT, NUM_STEPS_IF_SLOW, plain_prompts, trial_lengths
from engine.protocol.request import Request
from engine.runners.length_switches import temperature_step_of
from engine.sampling.resolve_params import ResolvedParams
from engine.sampling.seeded import seeded

if TYPE_CHECKING:
    from engine.backends.generate import GenerateBackend

log = logging.getLogger(__name__)

NUM_PROMPTS = 4  # of those of a proof
NUM_STEPS = NUM_STEPS_IF_SLOW
NUM_BEAMS = 3
OF_THE_REPORT = frozenset({"return_dict_in_generate", "output_logits", "output_scores"})
LEAVES_CHANGES = "a request leaves the model changed"
# A forward pass of one row; a model that takes longer is tried with fewer of them.
SLOW_PASS_SECONDS = 0.2


@dataclass(frozen=True, slots=True)
class RowAnswer:
    token_ids: list[list[int]]  # of one row, or of each beam
    logits: Tensor | None  # (steps, vocab); None with beams
    scores: Tensor | None  # of each beam


class ProbedAnswers:
    """The probe's answers of requests run alone, kept until a proof has used them."""

    def __init__(self, neutral: dict[str, Any]) -> None:
        """neutral: settings by name, each with the value that has no effect"""
        self.neutral = neutral
        self.is_slow = False
        self._answers: list[tuple[tuple[int, ...], dict[str, Any], RowAnswer]] = []

    def keep(self, prompt: tuple[int, ...], config: Any, answer: RowAnswer) -> None:
        self._answers.append((prompt, question(config, self.neutral), answer))

    def answer(self, sequence: Sequence, config: Any) -> RowAnswer | None:
        """The answer to this prompt under an equal configuration; None if it was not run."""
        asked = question(config, self.neutral)
        for prompt, known, answer in self._answers:
            if prompt == sequence.prompt_ids and known == asked:
                return answer
        return None

    def clear(self) -> None:
        self._answers.clear()


def question(config: Any, neutral: dict[str, Any]) -> dict[str, Any]:
    """The settings of a generation configuration that affect the answer.

    neutral: settings by name, each with the value that has no effect
    """
    return {
        name: value
        for name, value in vars(config).items()
        if name not in OF_THE_REPORT and value is not None and value != neutral.get(name)
    }


class Disturbed(Exception):
    """Requests may not share a call; the message gives the evidence."""


def why_not_batched(backend: GenerateBackend, fresh: Freshness) -> str | None:
    """The reason that requests may not share a call of this model; None if they may.

    The model's state is restored. fresh: a snapshot from before any pass
    """
    model = backend.model
    if (rope := length_bound_rope(model.config)) is not None:
        return rope
    if temperature_step_of(model.config) is not None:
        return "the temperature of its attention follows the longest row"
    if not is_tried(backend):
        if is_listed(model):  # tests/parity covers its class, though not this configuration
            return None
        return "that its requests can share a call is tried in unrounded float32 only"
    try:
        with as_proved(model):
            _try(BatchProbe(backend, Freshness(model)))
    except Disturbed as disturbed:
        return str(disturbed)
    except Exception as error:
        log.warning("the batch probe failed", extra={"error": error_location(error)})
        return f"the probe of shared calls raised {type(error).__name__}: {in_words(error)}"
    finally:
        with torch.inference_mode():
            fresh.restore()
    return None


def is_tried(backend: GenerateBackend) -> bool:
    """Whether the probe can decide: elsewhere rounding differs from batch to batch."""
    return backend.model.dtype == torch.float32 and backend.spec.quantization == "none"


def _try(probe: BatchProbe) -> None:
    """Compare answers of requests alone and together. Raises Disturbed."""
    prompts = plain_prompts(probe.backend, trial_lengths(probe.backend)[:NUM_PROMPTS])
    alone = [probe.alone(each) for each in prompts[:2]]
    is_slow = probe.backend.probed.is_slow = probe.pass_seconds > SLOW_PASS_SECONDS
    beams = [prompts[0], prompts[BEAMS_AT]] if is_slow else prompts
    prompts = prompts[:3] if is_slow else prompts
    alone += [probe.alone(each) for each in prompts[2:]]
    every = list(range(len(prompts)))
    # The second time in another order and width, on the model as the first run left it.
    for order in (every,) if is_slow else (every, every[-2::-1]):
        found = probe.together([prompts[at] for at in order])
        for at, answer in zip(order, found, strict=True):
            compare(alone[at], answer)
    if not is_slow:
        compare(alone[0], probe.together(prompts[:1])[0])
    tried = beams[-1:] if is_slow else beams
    alone = [probe.alone(each, NUM_BEAMS) for each in tried]
    for expected, answer in zip(
        alone, probe.together(beams, NUM_BEAMS)[-len(tried) :], strict=True
    ):
        compare(expected, answer)


class BatchProbe:
    def __init__(self, backend: GenerateBackend, fresh: Freshness) -> None:
        self.backend = backend
        self.model = backend.model
        self.fresh = fresh
        self.pass_seconds = 0.0  # of the last prompt alone

    def alone(self, prompt: tuple[int, ...], num_beams: int = 1) -> RowAnswer:
        """Answer a prompt alone, on the model as it was just loaded."""
        begun = compute_seconds()
        (answer,) = self.together([prompt], num_beams, is_alone=True)
        self.pass_seconds = (compute_seconds() - begun) / NUM_STEPS
        if changes := self.fresh.changes():
            raise Disturbed(f"{LEAVES_CHANGES} ({changes[0]})")
        return answer

    def together(
        self, prompts: list[tuple[int, ...]], num_beams: int = 1, is_alone: bool = False
    ) -> list[RowAnswer]:
        """Answer prompts in one call. is_alone: whether to keep the answer for a proof"""
        settings = ResolvedParams(
            max_new_tokens=NUM_STEPS, min_new_tokens=NUM_STEPS, num_beams=num_beams,
            num_return_sequences=num_beams,
        )  # fmt: skip
        sequences = tuple(sequence(prompt, settings) for prompt in prompts)
        input_ids, attention_mask = self.backend.padded(sequences)
        config = self.config(sequences, num_beams)
        with torch.inference_mode(), seeded(self.model.device, 0):
            output = self.model.generate(
                input_ids,
                attention_mask=attention_mask,
                generation_config=config,
            )
        num_before = 1 if self.backend.is_encoder_decoder else input_ids.shape[1]
        rows = output.sequences[:, num_before:].tolist()
        logits = None if num_beams > 1 else torch.stack(output.logits, 1).float().cpu()
        scores = output.sequences_scores.float().cpu() if num_beams > 1 else None
        answers = [
            RowAnswer(
                rows[at * num_beams : (at + 1) * num_beams],
                None if logits is None else logits[at],
                None if scores is None else scores[at * num_beams : (at + 1) * num_beams],
            )
            for at in range(len(prompts))
        ]
        if is_alone:
            self.backend.probed.keep(prompts[0], config, answers[0])
        return answers

    def config(self, sequences: tuple[Sequence, ...], num_beams: int) -> Any:
        """The backend's configuration, without settings that forbid sharing or padding."""
        config = copy.copy(self.backend.generation_config(sequences))
        for name, value in self.backend.kept_apart().items():
            setattr(config, name, value)
        config.return_dict_in_generate = True
        config.output_logits = num_beams == 1
        config.output_scores = num_beams > 1
        return config


def compute_seconds() -> float:
    """The CPU seconds of this process per thread, which other processes do not affect."""
    return time.process_time() / torch.get_num_threads()


def sequence(prompt: tuple[int, ...], settings: ResolvedParams) -> Sequence:
    return Sequence(
        request=Request(id=0, task="generate"),
        prompt_ids=prompt,
        settings=settings,
        num_rows=settings.num_rows,
        num_prefill_tokens=len(prompt),
        batch_key=None,
    )


def compare(expected: RowAnswer, found: RowAnswer) -> None:
    """Raise Disturbed where two answers differ."""
    if expected.logits is not None and found.logits is not None:
        distance = distance_of(expected.logits, found.logits)
        if not distance <= MAX_DISTANCE:
            raise Disturbed(f"its logits are others in company (off by {distance:.1g} of 1)")
    if expected.token_ids != found.token_ids:
        raise Disturbed("its answers are others in company")
    if expected.scores is None or found.scores is None:
        return
    if not torch.allclose(expected.scores, found.scores, rtol=1e-3, atol=1e-3):
        raise Disturbed("its beams have other scores in company")
