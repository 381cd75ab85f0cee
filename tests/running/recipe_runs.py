"""A recipe run against an engine, without a queue or a database around it."""

from queue import SimpleQueue

from db.outcome import Answer
from engine.protocol.output import Output
from engine.protocol.request import Request
from worker.engines.engine_client import EngineClient
from worker.errors import RequestFailed
from worker.recipes.recipe import Steps


def run_recipe(client: EngineClient, steps: Steps) -> tuple[Answer, list[tuple[Request, Output]]]:
    """The answer of a job, and each request that the model answered, in order."""
    answered: list[tuple[Request, Output]] = []
    step = next(steps)
    while True:
        requests = tuple(step)
        outputs: SimpleQueue[Output] = SimpleQueue()
        client.submit(requests, outputs.put)
        by_id = {each.request_id: each for each in (outputs.get() for _ in requests)}
        answers = tuple(by_id[each.id] for each in requests)
        answered += [
            (request, answer)
            for request, answer in zip(requests, answers, strict=True)
            if answer.failure is None and not request.is_measured
        ]
        failure = next((each.failure for each in answers if each.failure is not None), None)
        try:
            step = steps.send(answers) if failure is None else steps.throw(RequestFailed(failure))
        except StopIteration as end:
            return end.value, answered
