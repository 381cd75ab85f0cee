"""A translator: jobs that run as attempts of a worker on a real engine of their own."""

import json
import threading
from itertools import count
from typing import Any
from uuid import uuid4

from db.outcome import Answer, Fence, Outcome
from engine.protocol.engine_spec import EngineSpec
from engine.protocol.output import Output
from engine.protocol.request import Request
from engine.protocol.sampling_params import SamplingParams
from tests.running.attempts import Pages
from tests.running.workers import PATIENCE_SECONDS
from worker.attempts.attempt import Attempt
from worker.engines.engine_client import EngineClient
from worker.guards.guard import Guard
from worker.recipes import Work
from worker.settings import Settings


class Translator:
    """Attempts of a worker on one engine."""

    def __init__(self, spec: EngineSpec) -> None:
        self.client = EngineClient(spec)
        self.client.start()
        self._ids = count(1)

    def outcome(
        self,
        text: str,
        *,
        languages: tuple[str, ...] = (),
        guards: dict[str, Any] | None = None,
        others: "tuple[Translator, ...]" = (),
        segments: dict[int, dict[str, Any]] | None = None,
        attempt: int = 1,
        **fields: Any,
    ) -> Outcome:
        """others: whose models the same worker serves; segments: of earlier attempts, added to"""
        ended = threading.Event()
        outcomes: list[Outcome] = []

        def end(outcome: Outcome) -> None:
            outcomes.append(outcome)
            ended.set()

        fence = Fence(uuid4(), max(attempt, 2) if segments else attempt, "me")
        contract = {"text": text, "source_language": "en", "target_language": "fr", **fields}
        card = self.client.card
        work = Work(fence.job_id, "translate", contract, card, self._ids, False, languages)
        guard = None if guards is None else Guard(guards)
        kept: dict[int, dict[str, Any]] = {} if segments is None else segments
        clients = {each.client.spec.alias: each.client for each in others}
        Attempt(
            fence,
            work,
            0,
            self.client,
            Settings(),
            None,
            end,
            lambda segment: kept.update({segment.position: segment.output}),
            Pages(dict(kept)),
            guard=guard,
            client_of=clients.get,
        ).start()
        assert ended.wait(PATIENCE_SECONDS)
        if guard is not None:
            guard.stop()
        (outcome,) = outcomes
        return outcome

    def client_answer(self, text: str, **params: Any) -> str:
        """What the engine says to a text as it is, whatever sentences are in it."""
        ended = threading.Event()
        outputs: list[Output] = []

        def end(output: Output) -> None:
            outputs.append(output)
            ended.set()

        request = Request(
            id=next(self._ids),
            task="translate",
            text=text,
            source_language="en",
            target_language="fr",
            params=SamplingParams(**params),
        )
        self.client.submit([request], end)
        assert ended.wait(PATIENCE_SECONDS)
        return outputs[0].choices[0].text

    def answer(self, text: str, **fields: Any) -> Answer:
        outcome = self.outcome(text, **fields)
        assert outcome.answer is not None, (outcome.error_code, outcome.error_message)
        json.dumps(outcome.answer.provenance)  # as it is kept
        return outcome.answer
