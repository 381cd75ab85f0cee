"""Invalid messages, as they might be pushed into a list of Redis."""

import base64
import json
from collections.abc import Callable
from typing import Any
from uuid import uuid4

CANARY = "xyzzy-4711"  # is in every hostile text, and must be in no log


def envelope(
    body: Any = None,
    task: Any = "tasks.generate",
    message_id: Any = None,
    headers: dict[str, Any] | None = None,
    **fields: Any,
) -> dict[str, Any]:
    """A message as Celery sends it, with the given fields replaced."""
    if body is None:
        body = [[], {"text": CANARY}, {"callbacks": None, "errbacks": None, "chain": None}]
    if not isinstance(body, bytes):
        body = json.dumps(body).encode()
    message_id = message_id or str(uuid4())
    return {
        "body": base64.b64encode(body).decode(),
        "content-encoding": "utf-8",
        "content-type": "application/json",
        "headers": {
            "lang": "py",
            "task": task,
            "id": message_id,
            "root_id": message_id,
            "parent_id": None,
            "group": None,
            "eta": None,
            "expires": None,
            "retries": 0,
            "timelimit": [None, None],
            "argsrepr": f"('{CANARY}',)",
            "kwargsrepr": f"{{'text': '{CANARY}'}}",
            "origin": f"{CANARY}@host",
            **(headers or {}),
        },
        "properties": {
            "correlation_id": message_id,
            "reply_to": str(uuid4()),
            "delivery_mode": 2,
            "delivery_info": {"exchange": "", "routing_key": "celery"},
            "priority": 0,
            "body_encoding": "base64",
            "delivery_tag": str(uuid4()),
        },
        **fields,
    }


def without(*names: str) -> dict[str, Any]:
    """A message that lacks the field at a path."""
    return with_value(_ABSENT, *names)


def with_value(value: Any, *names: str) -> dict[str, Any]:
    """A message with another value in the field at a path."""
    made = envelope()
    inner = made
    for name in names[:-1]:
        inner = inner[name]
    if value is _ABSENT:
        del inner[names[-1]]
    else:
        inner[names[-1]] = value
    return made


_ABSENT = object()
WRONG: tuple[Any, ...] = (
    None,
    5,
    -1.5,
    True,
    CANARY,
    [CANARY],
    {CANARY: CANARY},
    [[]],
    "",
    "\ud83d",
)
PATHS: tuple[tuple[str, ...], ...] = (
    ("body",),
    ("content-type",),
    ("content-encoding",),
    ("headers",),
    ("properties",),
    *(("headers", name) for name in envelope()["headers"]),
    *(
        ("headers", name)
        for name in (
            *("stamped_headers", "stamps", "compression", "shadow", "ignore_result", "chord"),
            *("group_index", "callbacks", "errbacks", "delivery_info", "redelivered", "chain"),
            "replaced_task_nesting",
        )
    ),
    *(("properties", name) for name in envelope()["properties"]),
    ("properties", "delivery_info", "exchange"),
    ("properties", "delivery_info", "routing_key"),
)


def dumped(message: Any) -> bytes:
    return json.dumps(message).encode()


# Each is taken off its list, and ends in the quarantine or as a job.
ENTRIES: dict[str, Callable[[], bytes]] = {
    "nothing": lambda: b"",
    "no JSON": lambda: CANARY.encode(),
    "no UTF-8": lambda: b"\xff\xfe" + CANARY.encode(),
    "cut off": lambda: dumped(envelope())[:-20],
    "a list": lambda: dumped([CANARY]),
    "a text": lambda: dumped(CANARY),
    "null": lambda: b"null",
    "NaN": lambda: b"NaN",
    "deep": lambda: b"[" * 100_000 + b"]" * 100_000,
    "deep body": lambda: dumped(envelope(b"[" * 100_000 + b"]" * 100_000)),
    "a number of 5,000 digits": lambda: b"1" * 5000,
    "an empty body": lambda: dumped(envelope([])),
    "a body of two": lambda: dumped(envelope([[], {"text": CANARY}])),
    "a bare object": lambda: dumped(envelope({"text": CANARY})),
    "a body that is no base64": lambda: dumped(with_value(CANARY + "!", "body")),
    "a body that is no JSON": lambda: dumped(envelope(CANARY.encode())),
    "kwargs as a list": lambda: dumped(envelope([[], [CANARY], {}])),
    "args as an object": lambda: dumped(envelope([{CANARY: 1}, {}, {}])),
    "positional": lambda: dumped(envelope([[CANARY], {}, {}])),
    "a kwarg named self": lambda: dumped(envelope([[], {"self": CANARY, "text": CANARY}, {}])),
    "no id": lambda: dumped(without("headers", "id")),
    "no task": lambda: dumped(without("headers", "task")),
    "an unknown task": lambda: dumped(envelope(task=f"tasks.{CANARY}")),
    "a task of Celery's": lambda: dumped(envelope([[], {CANARY: 1}, {}], task="celery.starmap")),
    "pickle": lambda: dumped(envelope(**{"content-type": "application/x-python-serialize"})),
    "yaml": lambda: dumped(envelope(**{"content-type": "application/x-yaml"})),
    "an unknown encoding": lambda: dumped(envelope(**{"content-encoding": CANARY})),
    "a link that is none": lambda: dumped(
        envelope([[], {"text": CANARY}, {"callbacks": [{"task": CANARY, "subtask_type": CANARY}]}])
    ),
    "links that are none": lambda: dumped(
        envelope([[], {"text": CANARY}, {"callbacks": CANARY, "chain": 5, "chord": [CANARY]}])
    ),
    "a chain": lambda: dumped(
        envelope(
            [[], {"text": CANARY}, {"chain": [{"task": CANARY, "args": 7, "options": {}}]}],
        )
    ),
    "a bomb": lambda: dumped(
        envelope(
            __import__("zlib").compress(b"[" + b" " * 200_000_000),
            headers={"compression": "application/x-gzip"},
        )
    ),
    "a compression that is none": lambda: dumped(envelope(headers={"compression": CANARY})),
    "an eta in the year 9999": lambda: dumped(envelope(headers={"eta": "9999-12-31T23:59:59"})),
    "expired": lambda: dumped(envelope(headers={"expires": "2001-01-01T00:00:00"})),
    "the first protocol": lambda: dumped(
        {
            **envelope({"task": "tasks.generate", "id": str(uuid4()), "kwargs": {"text": CANARY}}),
            "headers": {},
        }
    ),
    "the first protocol, wrong": lambda: dumped(
        {
            **envelope(
                {"task": "tasks.generate", "id": CANARY + "2", "kwargs": [CANARY], "eta": 7}
            ),
            "headers": {},
        }
    ),
    "ids that are none": lambda: dumped(envelope([[[CANARY, 7]], {}, {}], task="tasks.run_jobs")),
    "no ids": lambda: dumped(envelope([[], {CANARY: 1}, {}], task="tasks.run_jobs")),
    "an id of no job": lambda: dumped(envelope([[[str(uuid4())]], {}, {}], task="tasks.run_jobs")),
    "a huge id": lambda: dumped(envelope(message_id=CANARY * 10_000)),
    "a long text": lambda: dumped(envelope([[], {"text": CANARY * 600_000}, {}])),
    **{
        f"without {'.'.join(names)}": lambda names=names: dumped(without(*names))  # type: ignore[misc]
        for names in PATHS
        if names[-1] in envelope() or names[-1] in envelope()[names[0]]
    },
    **{
        f"{'.'.join(names)} = {value!a}": lambda names=names, value=value: dumped(  # type: ignore[misc]
            with_value(value, *names)
        )
        for names in PATHS
        for value in WRONG
    },
}

# Of these none has an id that could be a job's.
WITHOUT_A_JOB = (
    *("nothing", "no JSON", "no UTF-8", "cut off", "a list", "a text", "null", "NaN", "deep"),
    *("a number of 5,000 digits", "ids that are none", "no ids", "an id of no job"),
)
