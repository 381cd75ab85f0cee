"""Recipe: how a job becomes requests, and how their outputs become its answer.

A recipe is a generator. It yields the requests to run and is sent their outputs in the same order;
a failed request is raised in it as RequestFailed. So a one-line prompt and a document of forty
parts are the same to the worker. The requests of a step may be an iterator, which is read as there
is room for them.

When a job is taken up again, its recipe runs again, and finished requests are not repeated. So its
requests must depend on the job and on earlier outputs alone.
"""

from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, TypeAlias, TypeVar
from uuid import UUID

from db.outcome import Answer
from engine.protocol.model_card import ModelCard
from engine.protocol.output import Output
from engine.protocol.prompt_texts import OPTIONS
from engine.protocol.request import Request
from engine.protocol.sampling_params import PARAMS, SamplingParams
from worker.masking.masker import Masker


@dataclass(frozen=True, slots=True)
class Work:
    """A claimed job as its recipe sees it."""

    job_id: UUID
    task: str
    contract: dict[str, Any]
    card: ModelCard  # of the model that will run it
    request_ids: Iterator[int]
    is_interactive: bool = False  # somebody waits for it
    languages: tuple[str, ...] = ()  # of the model, as `tidemill.toml` names them
    tenant: str = "default"
    masker: Masker | None = None  # None: the model sees the text as it is
    # Which models have answered so far, by alias, where a job goes by way of several.
    models: dict[str, dict[str, Any]] = field(default_factory=dict)
    # The placeholders of a masked job: those of an earlier attempt, and from the recipe's first
    # step on the present ones.
    placeholders: dict[str, str] = field(default_factory=dict)

    def request(self, **fields: Any) -> Request:
        """A request with the job's own params, or with others if given."""
        return Request(
            id=next(self.request_ids),
            is_interactive=self.is_interactive,
            options={name: self.contract[name] for name in OPTIONS if name in self.contract},
            chat_template_kwargs=self.contract.get("chat_template_kwargs", {}),
            **{"params": self.params, **fields},
        )

    @property
    def params(self) -> SamplingParams:
        """The job's params; without a seed, one derived from the job.

        So a job that samples gives the same answer in another attempt.
        """
        params = {name: self.contract[name] for name in PARAMS if name in self.contract}
        params["stop"] = tuple(params.get("stop") or ())
        params.setdefault("seed", self.job_id.int & (2**63 - 1))
        return SamplingParams(**params)


class Fallible(tuple[Request, ...]):
    """Requests whose failures are sent to the recipe; otherwise a failure ends the attempt."""

    __slots__ = ()


T = TypeVar("T")
# A part of a recipe, a generator that returns T.
Asking: TypeAlias = Generator[Iterable[Request], tuple[Output, ...], T]
Steps: TypeAlias = Asking[Answer]
Recipe: TypeAlias = Callable[[Work], Steps]


def answer_of(work: Work, output: Output, **provenance: Any) -> Answer:
    """The answer of a job with one request.

    provenance: added to the result's settings
    """
    best, *others = output.choices
    return Answer(
        output=best.text,
        alternatives=tuple(choice.text for choice in others),
        finish_reason=best.finish_reason,
        prompt_tokens=output.prompt_tokens,
        completion_tokens=sum(choice.completion_tokens for choice in output.choices),
        provenance={"settings": dict(output.settings), **provenance},
        model_card=card_json(work.card),
        reasoning=best.reasoning,
        reasoning_tokens=reasoning_tokens([output]),
    )


def card_json(card: ModelCard) -> dict[str, Any]:
    """The card as stored in results; cached, since every answer has one."""
    known = _cards.get(id(card))
    if known is None or known[0] is not card:
        if len(_cards) >= MAX_CARDS:
            _cards.clear()
        known = _cards[id(card)] = card, card.to_json()
    return known[1]


MAX_CARDS = 64
_cards: dict[int, tuple[ModelCard, dict[str, Any]]] = {}  # by identity


def reasoning_tokens(outputs: Iterable[Output]) -> int | None:
    """The number of completion tokens in thoughts; None if no model thinks."""
    choices = [choice for each in outputs for choice in each.choices]
    if all(choice.reasoning is None for choice in choices):
        return None
    return sum(choice.reasoning_tokens for choice in choices)
