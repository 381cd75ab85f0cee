"""BeamSearch: the beam search of one request, step by step.

The algorithm is that of `transformers`: it calls the functions that `generate` calls between two
forward passes. The beams are rows of one sequence.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from engine.core.sequence import Sequence
from engine.sampling.logits_processors import request_processors

# Private functions of `transformers`. Where a version lacks one, `generate` runs the beams.
STEPS = (
    "_get_top_k_continuations",
    "_get_running_beams_for_next_iteration",
    "_update_finished_beams",
    "_check_early_stop_heuristic",
    "_beam_search_has_unfinished_sequences",
)
NEVER = -1.0e9


def supports_beam_search(model: Any) -> bool:
    """Whether this version of `transformers` has all functions of STEPS."""
    return all(hasattr(model, each) for each in STEPS)


class BeamSearch:
    """The beam search of one request, as a TokenChoice.

    Shapes are those of `generate` with one request: (1, beams, ...).
    """

    is_greedy = False

    def __init__(
        self,
        sequence: Sequence,
        config: Any,
        start_ids: tuple[int, ...],
        model: Any,
        device: torch.device,
    ) -> None:
        """config: a complete generation configuration, without sampling"""
        self.model = model
        self.settings = sequence.settings
        self.num_before = self.num_tokens = len(start_ids)
        self.max_tokens = self.num_before + config.max_new_tokens
        self.processors = request_processors(model, config, sequence, start_ids)
        eos_ids = config.eos_token_id
        self.eos_ids = None if eos_ids is None else torch.tensor(eos_ids, device=device)
        num_beams = self.settings.num_beams
        self.num_kept = max(2, 1 + len(eos_ids or ())) * num_beams
        self.is_top = torch.arange(self.num_kept, device=device) < num_beams
        self.running = torch.full(
            (1, num_beams, self.max_tokens), config.pad_token_id, device=device
        )
        self.running[:, :, : self.num_before] = torch.tensor(start_ids, device=device)
        self.finished = self.running.clone()
        # Only the first beam counts at first, or all would be the same.
        self.running_scores = torch.full((1, num_beams), NEVER, device=device)
        self.running_scores[:, 0] = 0.0
        self.scores = torch.full((1, num_beams), NEVER, device=device)
        self.is_finished = torch.zeros((1, num_beams), dtype=torch.bool, device=device)
        self.can_improve = torch.ones((1, 1), dtype=torch.bool, device=device)
        self.running_parents = torch.full(
            (1, num_beams, config.max_new_tokens), -1, dtype=torch.int32, device=device
        )
        self.finished_parents = self.running_parents.clone()
        self.parents: Tensor | None = None

    @property
    def next_ids(self) -> list[int]:
        return self.running[0, :, self.num_tokens - 1].tolist()

    def advance(self, logits: Tensor, argmax: list[int]) -> bool:
        """Extend the beams by one token. Returns whether the search is over.

        It also sets `parents`, (beams,) int64.

        logits: (beams, vocab)
        argmax: unused
        """
        num_beams, length = self.settings.num_beams, self.num_tokens
        scores = torch.log_softmax(logits.to(torch.float32), dim=-1)
        so_far: Any = self.running[0, :, :length]
        scores = self.processors(so_far, scores)
        summed = (scores[None] + self.running_scores[:, :, None]).reshape(1, -1)
        top_scores, top_rows, top_parents = self.model._get_top_k_continuations(
            accumulated_log_probs=summed,
            running_sequences=self.running,
            running_beam_indices=self.running_parents,
            cur_len=length,
            decoder_prompt_len=self.num_before,
            do_sample=False,
            beams_to_keep=self.num_kept,
            num_beams=num_beams,
            batch_size=1,
        )
        ends = self._ends(top_rows[:, :, length])
        self.running, self.running_scores, self.running_parents = (
            self.model._get_running_beams_for_next_iteration(
                topk_log_probs=top_scores,
                topk_running_sequences=top_rows,
                topk_running_beam_indices=top_parents,
                next_token_hits_stopping_criteria=ends,
                num_beams=num_beams,
            )
        )
        self.finished, self.scores, self.finished_parents, self.is_finished = (
            self.model._update_finished_beams(
                sequences=self.finished,
                topk_running_sequences=top_rows,
                beam_scores=self.scores,
                topk_log_probs=top_scores,
                beam_indices=self.finished_parents,
                topk_running_beam_indices=top_parents,
                is_early_stop_heuristic_unsatisfied=self.can_improve,
                is_sent_finished=self.is_finished,
                next_token_hits_stopping_criteria=ends,
                top_num_beam_mask=self.is_top,
                num_beams=num_beams,
                cur_len=length,
                decoder_prompt_len=self.num_before,
                length_penalty=self.settings.length_penalty,
                early_stopping=self.settings.early_stopping,
            )
        )
        self.parents = self.running_parents[0, :, length - self.num_before].long()
        self.num_tokens += 1
        return self._is_over(ends)

    def answers(self) -> list[tuple[list[int], int | None]]:
        """The new tokens of each returned beam.

        Searches with stop strings run by `generate` instead.
        """
        num_returned = self.settings.num_return_sequences
        num_new = int((self.finished_parents[0, :num_returned] >= 0).sum(dim=1).max())
        new = self.finished[0, :num_returned, self.num_before : self.num_before + num_new]
        return [(row, None) for row in new.tolist()]

    def _ends(self, tokens: Tensor) -> Tensor:
        """Whether each candidate ends. tokens: (1, kept) int64; returns the same shape in bool"""
        if self.num_tokens + 1 >= self.max_tokens:
            return torch.ones_like(tokens, dtype=torch.bool)
        if self.eos_ids is None:
            return torch.zeros_like(tokens, dtype=torch.bool)
        return torch.isin(tokens, self.eos_ids)

    def _is_over(self, ends: Tensor) -> bool:
        self.can_improve = self.model._check_early_stop_heuristic(
            is_early_stop_heuristic_unsatisfied=self.can_improve,
            running_beam_scores=self.running_scores,
            beam_scores=self.scores,
            is_sent_finished=self.is_finished,
            cur_len=self.num_tokens,
            max_length=self.max_tokens,
            decoder_prompt_len=self.num_before,
            early_stopping=self.settings.early_stopping,
            length_penalty=self.settings.length_penalty,
        )
        return not self.model._beam_search_has_unfinished_sequences(
            self.can_improve, self.is_finished, ends, self.settings.early_stopping
        )
