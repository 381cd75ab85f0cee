"""Logits processors: those that `transformers` makes of a generation configuration, in its order.

This is the one place that builds them. In flight each request has a list of its own. In a call of
`model.generate` that several requests share, the library builds those that are the same for all,
and the processors of sampling come from here, for each request draws from its own generator.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList

from engine.core.sequence import Sequence
from engine.sampling.grammar_processor import GrammarProcessor

# Settings of a checkpoint that look at the prompt, with the value at which they do nothing.
LOOKS_AT_THE_PROMPT: dict[str, Any] = {
    "encoder_repetition_penalty": 1.0,
    "encoder_no_repeat_ngram_size": 0,
}
# Settings of sampling, with the value at which they do nothing.
NEUTRAL_SAMPLING: dict[str, Any] = {
    "temperature": 1.0,
    "top_k": 0,
    "top_p": 1.0,
    "top_h": None,
    "min_p": None,
    "typical_p": 1.0,
    "epsilon_cutoff": 0.0,
    "eta_cutoff": 0.0,
    "renormalize_logits": False,
}


def request_processors(
    model: Any, config: Any, sequence: Sequence, start_ids: tuple[int, ...]
) -> LogitsProcessorList:
    """The logits processors of one request, those of sampling included.

    config:    a complete generation configuration
    start_ids: the tokens of a row before the first new one
    """
    device = model.device
    config = copy.copy(config)
    config.max_length = len(start_ids) + config.max_new_tokens
    prompt = None
    if any(getattr(config, name, None) is not None for name in LOOKS_AT_THE_PROMPT):
        prompt = torch.tensor([sequence.prompt_ids], device=device)
    own = LogitsProcessorList()
    if sequence.grammar is not None:
        own.append(GrammarProcessor((sequence,), len(start_ids)))
    return build(model, config, len(start_ids), prompt, own)


def take_sampling_processors(model: Any, config: Any) -> LogitsProcessorList:
    """The processors of sampling alone. They are taken out of `config`, a complete generation
    configuration, so that `generate` does not apply them again."""
    sampling = GenerationConfig(do_sample=True, num_beams=1)
    for name, neutral in NEUTRAL_SAMPLING.items():
        value = getattr(config, name, None)
        setattr(sampling, name, neutral if value is None else value)
        setattr(config, name, neutral)
    return build(model, sampling, 0, None)


def build(
    model: Any,
    config: Any,
    num_before: int,
    prompt: Tensor | None,
    own: LogitsProcessorList | None = None,
) -> LogitsProcessorList:
    """The processors that `generate` would use under a configuration.

    num_before: tokens before the first new one
    prompt:     (1, tokens) int64, where a processor looks at it
    own:        processors of ours; they come before those of sampling, as in `generate`
    """
    device, eos_ids = model.device, config.eos_token_id
    config._eos_token_tensor = None if eos_ids is None else torch.tensor(eos_ids, device=device)
    listed: LogitsProcessorList = model._get_logits_processor(
        config,
        input_ids_seq_length=num_before,
        encoder_input_ids=prompt,
        logits_processor=own,
        device=str(device),
    )
    return listed


def draw(scores: Tensor, generator: torch.Generator) -> Tensor:
    """The sampled token of each row. scores: (rows, vocab); returns (rows, 1) int64."""
    probabilities = torch.softmax(scores, dim=-1)
    return torch.multinomial(probabilities, num_samples=1, generator=generator)


class PerRequestSampler(LogitsProcessor):
    """Draws the next token of every row of a shared call and leaves only that one possible.

    Each request has a generator of its own, seeded with its seed, and its rows draw together, as
    they do when `generate` runs it alone; so a seed gives the same answer whatever else is in
    the call.
    """

    def __init__(self, sequences: tuple[Sequence, ...], device: torch.device) -> None:
        self.streams: list[tuple[slice, torch.Generator]] = []
        at = 0
        for sequence in sequences:
            assert sequence.settings.seed is not None
            generator = torch.Generator(device=device).manual_seed(sequence.settings.seed)
            self.streams.append((slice(at, at + sequence.num_rows), generator))
            at += sequence.num_rows

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """scores: (rows, vocab) float32, processed; returns them with one finite value a row."""
        drawn = [draw(scores[rows], generator) for rows, generator in self.streams]
        only_drawn = torch.full_like(scores, -torch.inf)
        return only_drawn.scatter_(1, torch.cat(drawn), 0.0)
