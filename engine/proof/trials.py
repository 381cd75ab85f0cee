"""Trials: the requests of a proof, with the answers of `generate`."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from engine.core.sequence import Sequence
from engine.protocol.request import Request
from engine.runners.length_switches import RotarySwitch
from engine.sampling.resolve_params import ResolvedParams

if TYPE_CHECKING:
    from engine.backends.generate import GenerateBackend

NUM_STEPS = 6
# Prompt lengths. However slow the model is, the first few run, with the most revealing settings.
LENGTHS = (9, 3, 21, 14, 1, 40, 6, 27, 2, 33, 12, 5, 18, 8, 30, 4, 11, 24)
NUM_LEAST = 6
# If the model is slow; the first two requests, which show whether it is, take no more anyway.
NUM_STEPS_IF_SLOW = 3
BEAMS_AT = 3  # among the prompts


# A prompt that ends with the context is affordable in one as short as this.
SHORT_CONTEXT = 1024
SHORT_CONTEXT_IF_SLOW = 256


@dataclass(slots=True)
class Trial:
    sequence: Sequence
    rows: list[list[int]] = field(default_factory=list)  # by `generate`, alone
    logits: Tensor | None = None  # (steps, vocab) of a greedy one


def trials_of(
    exact: GenerateBackend, has_beams: bool, switch: RotarySwitch | None = None
) -> list[Trial]:
    """The trials of a proof, the most revealing first."""
    greedy = ResolvedParams(max_new_tokens=NUM_STEPS, min_new_tokens=NUM_STEPS, num_beams=1)
    special: dict[int, ResolvedParams] = {
        # Below 1, so that tokens of the prompt are preferred by any model.
        5: replace(greedy, repetition_penalty=0.1),
        8: replace(greedy, repetition_penalty=1.3),
        7: replace(greedy, do_sample=True, seed=7, temperature=0.9),
        10: replace(greedy, no_repeat_ngram_size=2),
        13: replace(greedy, do_sample=True, seed=3, num_return_sequences=2, top_p=0.9),
    }
    if has_beams:
        special |= {
            BEAMS_AT: replace(greedy, num_beams=3, num_return_sequences=3),
            11: replace(greedy, num_beams=2, num_return_sequences=2),
        }
    prompts = plain_prompts(exact, trial_lengths(exact))
    # Uneven answers, so that they leave at different steps.
    num_steps = [NUM_STEPS - at % 3 for at in range(len(prompts))]
    num_steps[:2] = [NUM_STEPS_IF_SLOW] * 2
    tried = [
        (prompt, special.get(at) or shortened(greedy, num_steps[at]))
        for at, prompt in enumerate(prompts)
        if switch is None or not switch.is_crossed(len(prompt), NUM_STEPS)
    ]
    return [Trial(sequence(at, *each)) for at, each in enumerate(tried)]


def trial_lengths(exact: GenerateBackend) -> list[int]:
    """The lengths of the trial prompts; one fills the context if that is short."""
    limits = exact.checkpoint.limits
    named = (limits.max_prompt_tokens, limits.max_answer_context_tokens)
    bounds = [each - NUM_STEPS for each in named if each is not None]
    longest = max(min(bounds, default=max(LENGTHS)), 1)
    lengths = [min(each, longest) for each in LENGTHS]
    if bounds and longest <= SHORT_CONTEXT:
        lengths[5] = longest
    return lengths


def shortened(settings: ResolvedParams, num_steps: int) -> ResolvedParams:
    return replace(settings, max_new_tokens=num_steps, min_new_tokens=num_steps)


def plain_ids(exact: GenerateBackend) -> list[int]:
    """The token ids without special ones."""
    checkpoint = exact.checkpoint
    special = {*checkpoint.tokenizer.all_special_ids, checkpoint.pad_token_id}
    num_ids = min(checkpoint.num_ids, len(checkpoint.tokenizer))
    return [each for each in range(num_ids) if each not in special] or [0]


def plain_prompts(exact: GenerateBackend, lengths: Iterable[int]) -> list[tuple[int, ...]]:
    """Draw prompts of plain tokens.

    Lists of lengths that begin alike give prompts that begin alike.
    """
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
