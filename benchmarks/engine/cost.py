"""The least cost of a workload for any engine: operations, bytes read, bytes of memory.

The limit of a machine is the speed at which its peak of operations or its memory bandwidth is
reached, whichever comes first, if both were in use all the time. No engine comes near it.
"""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.engine.models import Shape
from benchmarks.engine.workload import Request


@dataclass(frozen=True, slots=True)
class Cost:
    num_tokens: int
    operations: float
    bytes_read: float

    def limit(self, flops: float, bytes_per_second: float) -> float:
        """Return the most tokens per second on a machine."""
        seconds = max(self.operations / flops, self.bytes_read / bytes_per_second)
        return self.num_tokens / seconds


def cost_of(
    shape: Shape, requests: list[Request], rows: int, beams: int = 1, bytes_per_weight: int = 4
) -> Cost:
    """Return the cost of requests: each prompt is read once, and a step reads the decoder's
    weights once for all rows."""
    num_tokens = sum(each.num_new for each in requests)
    decoder = shape.layers * decoder_weights(shape) + shape.vocab_size * shape.width
    num_steps = num_tokens / rows
    kv = kv_bytes_per_token(shape, bytes_per_weight)
    return Cost(
        num_tokens=num_tokens,
        operations=sum(operations(shape, each, beams) for each in requests),
        bytes_read=num_steps * decoder * bytes_per_weight
        + kv * beams * sum(keys_read(shape, each) for each in requests),
    )


def operations(shape: Shape, request: Request, beams: int) -> float:
    """Count a multiplication and an addition for each weight and for each pair of positions."""
    num_prompt, num_new = len(request.prompt), request.num_new
    head = 2.0 * shape.vocab_size * shape.width * num_new * beams
    per_pair = 4.0 * shape.layers * shape.width
    decoding = 2.0 * shape.layers * decoder_weights(shape) * beams
    if not shape.is_encoder_decoder:
        prefill = 2.0 * shape.layers * decoder_weights(shape) * num_prompt
        pairs = num_prompt * (num_prompt + 1) / 2 + beams * keys_read(shape, request)
        return prefill + decoding * (num_new - 1) + head + per_pair * pairs
    encoding = 2.0 * shape.layers * encoder_weights(shape) * num_prompt
    crossing = 2.0 * shape.layers * 2 * shape.width**2 * num_prompt
    pairs = num_prompt**2 + beams * keys_read(shape, request)
    return encoding + crossing + decoding * num_new + head + per_pair * pairs


def keys_read(shape: Shape, request: Request) -> int:
    """Count the keys that all steps of a row read: of its own tokens and of its prompt."""
    num_prompt, num_new = len(request.prompt), request.num_new
    if shape.is_encoder_decoder:
        return num_new * (num_new + 1) // 2 + num_new * num_prompt
    return sum(range(num_prompt + 1, num_prompt + num_new))


def encoder_weights(shape: Shape) -> int:
    """Count the weights of one encoder layer."""
    return 4 * shape.width**2 + (3 if shape.family == "llama" else 2) * shape.width * shape.inner


def decoder_weights(shape: Shape) -> int:
    """Count the weights of one decoder layer that a token uses; the cross-attention keys of a
    prompt are computed only once and not counted."""
    crossing = 2 * shape.width**2 if shape.is_encoder_decoder else 0
    return encoder_weights(shape) + crossing


def kv_bytes_per_token(shape: Shape, bytes_per_weight: int) -> int:
    return 2 * shape.layers * shape.width * bytes_per_weight


def kv_bytes(shape: Shape, requests: list[Request], rows: int, beams: int, size: int) -> int:
    """Return the most bytes of keys and values at once: those of the longest requests together."""

    def held(request: Request) -> int:
        if shape.is_encoder_decoder:
            return len(request.prompt) + beams * request.num_new
        return beams * (len(request.prompt) + request.num_new)

    longest = sorted(map(held, requests), reverse=True)[:rows]
    return sum(longest) * kv_bytes_per_token(shape, size)
