"""Self-proof: whether a checkpoint answers in flight as `model.generate` answers alone.

It runs on the checkpoint itself when it is loaded. Requests of different lengths run one by one by
`generate`, and then in flight, where they join and leave at different steps. Greedy ones are
compared by the logits of each step; beams, sampling and processors that read earlier tokens by
their tokens. Windows are shortened so that the prompts cross them, and a short context is filled to
its end. If rows of a step affect each other, logits show it long before answers do.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from engine.errors import in_words
from engine.logging import error_location
from engine.proof.answered_alone import AnsweredAlone, answered_alone
from engine.proof.answered_in_flight import answer_in_flight
from engine.proof.disproved import Disproved
from engine.proof.logit_distance import distance_of, max_distance
from engine.proof.proof_conditions import as_proved, renewing_to
from engine.runners.base import Runner

if TYPE_CHECKING:
    from engine.backends.generate import GenerateBackend

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Proof:
    num_requests: int
    worst: float  # the largest distance of logits, relative to their spread
    num_equal: int  # requests of which every token was the same

    def __str__(self) -> str:
        return (
            f"proved at load: {self.num_equal} of {self.num_requests} requests answered in flight "
            f"as by model.generate, logits within {self.worst:.1g}"
        )


def prove(
    exact: GenerateBackend, runner: Runner, has_beams: bool, alone: AnsweredAlone | None = None
) -> Proof:
    """Run the proof.

    Raises Disproved. The model's state is restored and the runner's cache empty.

    has_beams: whether beam search is proved too
    alone:     the result of `answered_alone`; None: it is computed here
    """
    try:
        alone = answered_alone(exact, has_beams) if alone is None else alone
        with as_proved(exact.model), renewing_to(runner, exact.model):
            runner.refresh()  # to the short windows
            return compared(exact, alone, answer_in_flight(exact, runner, alone))
    except Disproved:
        raise
    except Exception as error:
        log.warning("the proof failed", extra={"error": error_location(error)})
        raise Disproved(f"in flight it raised {type(error).__name__}: {in_words(error)}") from error
    finally:
        runner.kv_cache.free_all_but(())
        runner.refresh()


def compared(
    exact: GenerateBackend,
    alone: AnsweredAlone,
    found: dict[int, tuple[list[list[int]], list[Tensor]]],
) -> Proof:
    """Compare answers and logits with those alone. Raises Disproved."""
    bound = max_distance(exact.model)
    is_exact = exact.model.dtype == torch.float32
    worst, num_equal = 0.0, 0
    for trial in alone.trials:
        settings, id_ = trial.sequence.settings, trial.sequence.id
        equal = True
        for key in (id_,) if alone.is_slow else (id_, -1 - id_):
            rows, logits = found[key]
            if trial.logits is not None:
                num_alike = num_same(trial.rows[0], rows[0])
                # Up to the first token that differs, both logits follow from the same tokens.
                until = min(num_alike + 1, len(trial.logits), len(logits))
                distance = distance_of(trial.logits[:until], torch.stack(logits[:until]))
                if not distance <= bound:
                    raise Disproved(
                        "its logits in flight are others than by model.generate "
                        f"(off by {distance:.1g} of 1, where rounding is at most {bound:.1g})"
                    )
                worst = max(worst, distance)
            if rows != trial.rows:
                equal = False
                if is_exact:
                    kind = "beams" if settings.num_beams > 1 else "answers"
                    raise Disproved(f"its {kind} in flight are others than by model.generate")
        num_equal += equal
    return Proof(len(alone.trials), worst, num_equal)


def num_same(one: list[int], other: list[int]) -> int:
    num = 0
    for mine, its in zip(one, other, strict=False):
        if mine != its:
            break
        num += 1
    return num
