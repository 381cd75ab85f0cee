"""JSON answers: validated, and requested again with the reason if they are not valid.

The engine masks tokens where it can; where it cannot, this is the only check.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from engine.protocol.output import Choice, Output
from engine.protocol.request import Request
from worker.errors import AnswerNotValid, RequestFailed
from worker.recipes.json_validation import fault_of, json_within
from worker.recipes.recipe import Asking, Steps, Work, answer_of, reasoning_tokens

MAX_ASKED = 3
TOO_LONG = ("prompt_too_long", "output_too_long")
ANY_OBJECT = {"type": "object"}


@dataclass(frozen=True, slots=True)
class RefusedAnswer:
    text: str
    reason: str  # for the model only, since it may quote the text


# Makes the request that follows so many refused answers.
Ask = Callable[[Sequence[RefusedAnswer]], Request]


def answered(work: Work, ask: Ask, **provenance: Any) -> Steps:
    """The answer of a job with one request, or with several until its JSON is valid.

    provenance: added to the result's settings
    """
    if not _wants_json(work):
        (output,) = yield (ask(()),)
        return answer_of(work, output, **provenance)
    outputs = yield from _until_valid(work, ask)
    answer = answer_of(work, outputs[-1], **provenance, times_asked=len(outputs))
    return replace(
        answer,
        prompt_tokens=sum(each.prompt_tokens for each in outputs),
        completion_tokens=sum(
            choice.completion_tokens for each in outputs for choice in each.choices
        ),
        reasoning_tokens=reasoning_tokens(outputs),
    )


def schema_of(work: Work) -> dict[str, Any] | None:
    """The schema by which the engine masks tokens."""
    schema: dict[str, Any] | None = work.contract.get("json_schema")
    return ANY_OBJECT if schema is None and _wants_json(work) else schema


def request_to_mend(work: Work, refused: RefusedAnswer) -> str:
    """The message to a model whose answer was invalid."""
    schema = work.contract.get("json_schema")
    requirement = (
        "one JSON object"
        if schema is None
        else f"JSON that matches this JSON schema:\n{json.dumps(schema, ensure_ascii=False)}"
    )
    return f"That was not valid: {refused.reason}\nAnswer again, with nothing but {requirement}"


def _wants_json(work: Work) -> bool:
    return "json_schema" in work.contract or bool(work.contract.get("json_object"))


def _until_valid(work: Work, ask: Ask) -> Asking[list[Output]]:
    """All outputs; the last contains only valid choices. Raises AnswerNotValid."""
    outputs: list[Output] = []
    refused: list[RefusedAnswer] = []
    while True:
        try:
            (output,) = yield (ask(refused),)
        except RequestFailed as failure:
            # The prompt has no room for the added message.
            if not refused or failure.code not in TOO_LONG:
                raise
            break
        valid, fault = _sorted_out(work, output)
        outputs.append(replace(output, choices=valid) if valid else output)
        if valid:
            return outputs
        refused.append(RefusedAnswer(output.choices[0].text, fault))
        is_held_to_it = bool(output.settings.get("is_constrained"))
        if len(refused) == MAX_ASKED or (is_held_to_it and _is_cut(output)):
            break
    raise AnswerNotValid(refused[-1].text, len(refused), _is_cut(outputs[-1]))


def _sorted_out(work: Work, output: Output) -> tuple[tuple[Choice, ...], str]:
    """The valid choices, and the fault of the first invalid one."""
    schema = work.contract.get("json_schema")
    valid: list[Choice] = []
    first_fault = ""
    for choice in output.choices:
        text = json_within(choice.text)
        fault = fault_of(text, schema)
        if fault is None:
            valid.append(replace(choice, text=text))
        else:
            first_fault = first_fault or fault
    return tuple(valid), first_fault


def _is_cut(output: Output) -> bool:
    return output.choices[0].finish_reason == "length"
