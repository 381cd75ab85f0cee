"""What `model.generate` cannot do for requests that share a call: to draw for each from
a stream of its own, and to stop each at its own length and texts."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList, StoppingCriteria
from transformers.generation.logits_process import (
    EpsilonLogitsWarper,
    EtaLogitsWarper,
    LogitNormalization,
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopHLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
    TypicalLogitsWarper,
)

from engine.core.sequence import Sequence
from engine.sampling.resolve_params import Settings
from engine.text.stop_strings import TokenTexts


def warpers(settings: Settings, own: Any, device: torch.device) -> LogitsProcessorList:
    """The processors of sampling, in the order of `transformers`.

    own: the checkpoint's generation configuration, for those that a job cannot set.
    """

    def own_value(name: str, idle: float) -> float:
        value = getattr(own, name, None)
        return idle if value is None else float(value)

    listed = LogitsProcessorList()
    if settings.temperature != 1.0:
        listed.append(TemperatureLogitsWarper(float(settings.temperature)))
    if getattr(own, "top_h", None) is not None:
        listed.append(TopHLogitsWarper(top_h=float(own.top_h)))
    if settings.top_k != 0:
        listed.append(TopKLogitsWarper(top_k=settings.top_k))
    if settings.top_p < 1.0:
        listed.append(TopPLogitsWarper(top_p=float(settings.top_p)))
    if (min_p := own_value("min_p", 0.0)) > 0.0:
        listed.append(MinPLogitsWarper(min_p=min_p))
    if (typical_p := own_value("typical_p", 1.0)) < 1.0:
        listed.append(TypicalLogitsWarper(mass=typical_p))
    if 0.0 < (epsilon := own_value("epsilon_cutoff", 0.0)) < 1.0:
        listed.append(EpsilonLogitsWarper(epsilon=epsilon))
    if 0.0 < (eta := own_value("eta_cutoff", 0.0)) < 1.0:
        listed.append(EtaLogitsWarper(epsilon=eta, device=str(device)))
    if getattr(own, "renormalize_logits", None):
        listed.append(LogitNormalization())
    return listed


def keep_sampled_order(config: Any) -> None:
    """Take the warpers out of a generation configuration, for `warpers` come before them."""
    config.temperature = config.top_p = config.typical_p = 1.0
    config.top_k = 0
    config.epsilon_cutoff = config.eta_cutoff = 0.0
    config.top_h = config.min_p = None
    config.renormalize_logits = False


class PerRequestSampler(LogitsProcessor):
    """Draws the next token of every row and leaves only that one possible.

    Each request has a generator of its own, seeded with its seed, and its rows draw
    together, as they do when `generate` runs it alone; so a seed gives the same answer
    whatever else is in the call.
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
        """scores: (rows, vocab) float32, warped; returns the same with one finite value a row."""
        probabilities = torch.softmax(scores, dim=-1)
        drawn = [
            torch.multinomial(probabilities[rows], num_samples=1, generator=generator)
            for rows, generator in self.streams
        ]
        chosen = torch.full_like(scores, -torch.inf)
        return chosen.scatter_(1, torch.cat(drawn), 0.0)


class PerRequestStops(StoppingCriteria):
    """Ends each row at its request's own length, or at one of its stop texts."""

    def __init__(
        self,
        sequences: tuple[Sequence, ...],
        num_before: int,
        token_texts: TokenTexts,
        rows_keep_their_place: bool,
    ) -> None:
        """num_before: columns before the first new token."""
        self.num_before = num_before
        self.token_texts = token_texts
        self.of_row = [each for each in sequences for _ in range(each.num_rows)]
        self.rows_keep_their_place = rows_keep_their_place
        self.stopped: dict[int, int] = {}  # new tokens by row, for rows that keep their place
        self.max_new_tokens = torch.tensor([each.settings.max_new_tokens for each in self.of_row])
        self.any_stops = any(each.settings.stop for each in sequences)

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        """input_ids: (rows, columns) int64; returns (rows,) bool."""
        num_new = input_ids.shape[1] - self.num_before
        if not self.rows_keep_their_place:
            return self._beams_end(input_ids)
        ended = num_new >= self.max_new_tokens
        if self.any_stops:
            for row, sequence in enumerate(self.of_row):
                if row not in self.stopped and self._says_stop(sequence, self._new(input_ids[row])):
                    self.stopped[row] = num_new
            for row in self.stopped:
                ended[row] = True
        return ended.to(input_ids.device)

    def ended_at(self, row: int, new_ids: list[int]) -> int | None:
        """How many new tokens a finished row had when it said a stop text; None if it did not."""
        if self.rows_keep_their_place or not self.any_stops:
            return self.stopped.get(row)
        lengths = range(1, len(new_ids) + 1)
        return next((n for n in lengths if self._says_stop(self.of_row[0], new_ids[:n])), None)

    def _beams_end(self, input_ids: Tensor) -> Tensor:
        """For candidates that change places. With stop texts they are of one request."""
        says = [
            self.any_stops and self._says_stop(self.of_row[0], self._new(row)) for row in input_ids
        ]
        return torch.tensor(says, device=input_ids.device)

    def _new(self, row: Tensor) -> list[int]:
        return row[self.num_before :].tolist()

    def _says_stop(self, sequence: Sequence, new_ids: list[int]) -> bool:
        return bool(sequence.settings.stop) and self.token_texts.has_stop_string(sequence, new_ids)
