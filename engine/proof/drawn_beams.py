"""Drawn beams: rows reordered at random, compared with `generate` on the same tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList

from engine.core.sequence import Sequence
from engine.proof.disproved import Disproved
from engine.proof.logit_distance import distance_of, max_distance

if TYPE_CHECKING:
    from engine.backends.generate import GenerateBackend


class DrawnBeams:
    """A TokenChoice that draws each row's next token and parent at random, ignoring the logits.

    Within a few steps a model's own beams might never change rows.
    """

    is_greedy = False
    parents: Tensor | None = None

    def __init__(self, rows: Sequence, start_id: int, ids: list[int], device: torch.device) -> None:
        """start_id: the token before the first new one
        ids:      the token ids to draw from
        """
        self.start_id = start_id
        self.rows: list[list[int]] = [[] for _ in range(rows.num_rows)]
        self.num_steps = rows.settings.max_new_tokens
        self.ids = ids
        self.device = device
        self.lots = torch.Generator().manual_seed(2)
        self.logits: Tensor | None = None  # (rows, vocab) after `said`
        self.said: list[list[int]] = []

    @property
    def next_ids(self) -> list[int]:
        return [row[-1] if row else self.start_id for row in self.rows]

    def advance(self, logits: Tensor, argmax: list[int]) -> bool:
        self.said, self.logits = self.rows, logits.float().cpu().clone()
        num_rows = len(self.rows)
        parents = torch.randint(num_rows, (num_rows,), generator=self.lots)
        drawn = torch.randint(len(self.ids), (num_rows,), generator=self.lots).tolist()
        self.rows = [
            [*self.rows[parent], self.ids[token]]
            for parent, token in zip(parents.tolist(), drawn, strict=True)
        ]
        self.parents = parents.to(self.device)
        return len(self.rows[0]) >= self.num_steps

    def answers(self) -> list[tuple[list[int], int | None]]:
        return [(row, None) for row in self.rows]


class Dictation(LogitsProcessor):
    """A logits processor that forces given tokens, and then leaves the logits unchanged."""

    def __init__(self, said: Tensor, num_before: int) -> None:
        """said: (rows, steps) int64, the tokens to force"""
        self.said = said
        self.num_before = num_before

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> Any:
        at = input_ids.shape[1] - self.num_before
        if at == self.said.shape[1]:
            return scores
        silenced = torch.full_like(scores, -torch.inf)
        return silenced.scatter_(1, self.said[:, at : at + 1], 0.0)


def compare_drawn(exact: GenerateBackend, drawn: Sequence, beams: DrawnBeams) -> None:
    """Compare the last step's logits with those of `generate` forced to the same tokens.

    Raises Disproved.
    """
    assert beams.logits is not None
    device = exact.model.device
    said = torch.tensor(beams.said, device=device)  # (rows, steps)
    num_rows, num_steps = said.shape
    config = exact.generation_config((drawn,))
    config.num_beams = config.num_return_sequences = 1
    config.max_new_tokens = config.min_new_tokens = num_steps + 1
    config.forced_bos_token_id = config.forced_eos_token_id = None
    config.return_dict_in_generate = config.output_logits = True
    prompt = torch.tensor([drawn.prompt_ids], device=device).expand(num_rows, -1)
    num_before = 1 if exact.is_encoder_decoder else prompt.shape[1]
    output = exact.model.generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        generation_config=config,
        logits_processor=LogitsProcessorList([Dictation(said, num_before)]),
    )
    distance, bound = (
        distance_of(output.logits[-1].float().cpu(), beams.logits),
        max_distance(exact.model),
    )
    if not distance <= bound:
        raise Disproved(
            "rows that change places have other logits than by model.generate "
            f"(off by {distance:.1g} of 1, where rounding is at most {bound:.1g})"
        )
