"""Logits processors: builds those of `transformers` from a generation configuration, in its order.

All of them are built here. In flight each request has its own list. In a call of `model.generate`
that several requests share, the library builds the common ones; the sampling processors come from
here, since each request draws from its own generator.
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
    """Build the logits processors of one request, including those of sampling.

    config:    a complete generation configuration
    start_ids: the tokens of a row before its first new one
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
    """Build the sampling processors alone and remove their settings from `config`.

    So `generate` does not apply them again. config: a complete generation configuration
    """
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
    """Build the processors that `generate` would use under a configuration.

    num_before: the number of tokens before the first new one
    prompt:     (1, tokens) int64, for processors that read the prompt
    own:        our own processors, which come before those of sampling, as in `generate`
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
    """Sample a token for each row. scores: (rows, vocab); returns (rows, 1) int64"""
    probabilities = torch.softmax(scores, dim=-1)
    return torch.multinomial(probabilities, num_samples=1, generator=generator)


class PerRequestSampler(LogitsProcessor):
    """Samples the next token of every row of a shared call, and masks all others.

    Each request has a generator with its own seed, from which its rows draw together, as when
    `generate` runs the request alone. So a seed gives the same answer in any batch.
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
        """Mask all but the sampled tokens. scores: (rows, vocab) float32, already processed"""
        drawn = [draw(scores[rows], generator) for rows, generator in self.streams]
        only_drawn = torch.full_like(scores, -torch.inf)
        return only_drawn.scatter_(1, torch.cat(drawn), 0.0)
