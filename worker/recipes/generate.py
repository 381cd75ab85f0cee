"""The generate recipe: one request, or more until the answer is valid JSON."""

from collections.abc import Sequence

from engine.protocol.request import Request
from worker.recipes.json_answer import RefusedAnswer, answered, request_to_mend, schema_of
from worker.recipes.recipe import Steps, Work


def generate(work: Work) -> Steps:
    def ask(refused: Sequence[RefusedAnswer]) -> Request:
        text = work.contract["text"]
        if refused:  # the last alone: a prompt has little room
            text = f"{text}\n\n{refused[-1].text}\n\n{request_to_mend(work, refused[-1])}\n\n"
        return work.request(task="generate", text=text, json_schema=schema_of(work))

    return (yield from answered(work, ask))
