"""The requests that every side serves: prompts as token ids, and the length of each answer."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

FIRST_ID = 5  # lower ids are special tokens: start, end, padding


@dataclass(frozen=True, slots=True)
class Request:
    prompt: tuple[int, ...]
    num_new: int


def drawn(num_requests: int, vocab_size: int, seed: int = 309) -> list[Request]:
    """Draw requests of log-normal lengths: prompts of 16 to 512 tokens, answers of 8 to 128.

    For 256 requests the means are 101 and 39 tokens, the medians 64 and 28.
    """
    draw = random.Random(seed)

    def length(median: float, sigma: float, least: int, most: int) -> int:
        return min(max(round(draw.lognormvariate(math.log(median), sigma)), least), most)

    lengths = [(length(64, 0.9, 16, 512), length(28, 0.8, 8, 128)) for _ in range(num_requests)]
    return [Request(tokens(draw, prompt, vocab_size), new) for prompt, new in lengths]


def short(num_requests: int, vocab_size: int, seed: int = 309) -> list[Request]:
    """Draw short requests: prompts of 8 to 24 tokens, answers of 4 to 12."""
    draw = random.Random(seed)
    return [
        Request(tokens(draw, draw.randint(8, 24), vocab_size), draw.randint(4, 12))
        for _ in range(num_requests)
    ]


def tokens(draw: random.Random, num_tokens: int, vocab_size: int) -> tuple[int, ...]:
    return tuple(draw.randrange(FIRST_ID, vocab_size - 1) for _ in range(num_tokens))


def stratified(requests: list[Request], num: int) -> list[int]:
    """Return the indices of `num` requests, each from the middle of a class of answer lengths.

    A side that would take hours serves only these, and its tokens/s represents all requests.
    """
    by_length = sorted(range(len(requests)), key=lambda at: requests[at].num_new)
    num = min(num, len(requests))
    return [by_length[int((each + 0.5) * len(requests) / num)] for each in range(num)]
