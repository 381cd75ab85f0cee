"""Prefill: prompts of different lengths are concatenated in one row, without padding."""

from __future__ import annotations

from typing import Any, Protocol, TypeVar

import torch

from engine.attention.base import Spans
from engine.cpu.linear import is_of_onednn

# The tokens of a chunk: enough to keep matrix products busy, and few enough to stay in the
# processor's caches. A GPU needs more to be busy; T5's bias grows with their square.
CHUNK_TOKENS = {"cpu": 512, "cuda": 2048}
# oneDNN compiles a product for every number of rows and keeps it: a millisecond and 600 KiB
# each, up to a thousand of them. So there are few numbers of rows where oneDNN multiplies.
TOKEN_MULTIPLE = 8
ENCODER_TOKEN_MULTIPLE = 16  # a decoder's products come beside an encoder's


class HasPromptIds(Protocol):
    """Prompt token ids to prefill: those of a sequence, or a slice of them."""

    @property
    def prompt_ids(self) -> tuple[int, ...]: ...


AnyPrompt = TypeVar("AnyPrompt", bound=HasPromptIds)


def chunks(prompts: list[AnyPrompt], device: torch.device) -> list[list[AnyPrompt]]:
    """Split prompts into chunks of at most CHUNK_TOKENS tokens, or of one longer prompt."""
    chunked: list[list[AnyPrompt]] = []
    num_tokens = 0
    for prompt in prompts:
        num_tokens += len(prompt.prompt_ids)
        if not chunked or num_tokens > CHUNK_TOKENS[device.type]:
            chunked.append([])
            num_tokens = len(prompt.prompt_ids)
        chunked[-1].append(prompt)
    return chunked


def token_multiple_for(model: Any, of_onednn: int) -> int:
    """Return the multiple to which a prefill's token count is padded."""
    return of_onednn if any(map(is_of_onednn, model.modules())) else 1


def padded_to_multiple(
    prompts: list[tuple[int, ...]], multiple: int, num_before: int = 0
) -> list[tuple[int, ...]]:
    """Appends a dummy prompt, if needed, so that the token count is a multiple of `multiple`.

    num_before: tokens that come before the prompts
    """
    num_more = -(num_before + sum(map(len, prompts))) % multiple
    return [*prompts, (0,) * num_more] if num_more else prompts


def concatenated(prompts: list[tuple[int, ...]]) -> tuple[list[int], Spans]:
    """Return the tokens of all prompts, concatenated, and the span of each prompt."""
    ids: list[int] = []
    spans = []
    for prompt in prompts:
        spans.append((len(ids), len(ids) + len(prompt)))
        ids.extend(prompt)
    return ids, tuple(spans)
