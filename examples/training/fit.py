"""The training loop that the demo models share."""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

import torch

IGNORED = -100  # a label that the loss of transformers ignores


@dataclass(frozen=True, slots=True)
class Example:
    """The input of a model and the expected output, as token ids.

    For an encoder-decoder they are two texts. For a decoder-only model they have the same length,
    and the label is IGNORED where nothing is to be learned.
    """

    input_ids: list[int]
    labels: list[int]

    @property
    def num_tokens(self) -> int:
        return len(self.input_ids) + len(self.labels)


def token_ids(encode: Callable[[list[str]], Any], texts: Sequence[str]) -> list[list[int]]:
    """Return the token ids of every text.

    Texts are encoded in groups, because a tokenizer's result takes much more memory than the ids.
    """
    return [
        ids
        for start in range(0, len(texts), 1000)
        for ids in encode(list(texts[start : start + 1000]))["input_ids"]
    ]


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    num_steps: int
    batch_size: int = 64
    peak_rate: float = 2e-3
    warmup_steps: int = 100
    weight_decay: float = 0.01

    @property
    def num_examples(self) -> int:
        return self.num_steps * self.batch_size

    def rate(self, step: int) -> float:
        """Return the learning rate of a step: it rises linearly, then falls to 0 as a cosine."""
        if step < self.warmup_steps:
            return self.peak_rate * (step + 1) / self.warmup_steps
        done = (step - self.warmup_steps) / (self.num_steps - self.warmup_steps)
        return self.peak_rate * (1 + math.cos(math.pi * done)) / 2


def fit(
    name: str, model: Any, examples: Sequence[Example], schedule: Schedule, pad_id: int, seed: int
) -> None:
    """Train the model in place on every example once, and print the progress."""
    optimizer = torch.optim.AdamW(
        model.parameters(),
        lr=schedule.peak_rate,
        betas=(0.9, 0.98),
        weight_decay=schedule.weight_decay,
    )
    model.train()
    started = time.perf_counter()
    recent = 0.0
    for step, batch in enumerate(_batches(examples, schedule.batch_size, pad_id, Random(seed))):
        for group in optimizer.param_groups:
            group["lr"] = schedule.rate(step)
        loss = model(**batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        recent = loss.item() if step == 0 else 0.98 * recent + 0.02 * loss.item()
        if (step + 1) % 100 == 0 or step + 1 == schedule.num_steps:
            seconds = time.perf_counter() - started
            print(
                f"{name}: step {step + 1} of {schedule.num_steps}, "
                f"loss {recent:.4f}, {seconds:.0f} s",
                flush=True,
            )
    model.eval()


def _batches(
    examples: Sequence[Example], batch_size: int, pad_id: int, draw: Random
) -> Iterator[dict[str, torch.Tensor]]:
    """Yield batches in random order, each of similar lengths, so that they have little padding."""
    order = list(range(len(examples)))
    draw.shuffle(order)
    pool_size = 40 * batch_size
    for start in range(0, len(order), pool_size):
        pool = sorted(order[start : start + pool_size], key=lambda at: examples[at].num_tokens)
        cuts = list(range(0, len(pool), batch_size))
        draw.shuffle(cuts)
        for cut in cuts:
            yield _padded([examples[at] for at in pool[cut : cut + batch_size]], pad_id)


def _padded(examples: list[Example], pad_id: int) -> dict[str, torch.Tensor]:
    input_ids = _rectangle([each.input_ids for each in examples], pad_id)
    ones = _rectangle([[1] * len(each.input_ids) for each in examples], 0)
    labels = _rectangle([each.labels for each in examples], IGNORED)
    return {"input_ids": input_ids, "attention_mask": ones, "labels": labels}


def _rectangle(rows: list[list[int]], filler: int) -> torch.Tensor:
    """Return the rows as a (rows, longest) int64 tensor, padded on the right."""
    width = max(map(len, rows))
    return torch.tensor([row + [filler] * (width - len(row)) for row in rows])
