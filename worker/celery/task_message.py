"""Validates a task message that kombu delivered, before Celery reads it.

Celery trusts headers and body as its own. Whatever would make it fail is found here first, and for
our own tasks it gets only the headers that matter.
"""

from collections.abc import Container
from datetime import UTC, datetime
from typing import Any
from uuid import UUID, uuid4

from celery.app.task import Context
from celery.utils.time import maybe_iso8601
from kombu.serialization import dumps, loads, prepare_accept_content

from tasks.quarantine import Reason, job_id_of
from tasks.queues import RUN_JOBS
from worker.celery.envelope import MAX_NAME, Malformed, identity

CONTRACTS = frozenset({"tasks.summarize", "tasks.translate", "tasks.generate", "tasks.chat"})
OURS = CONTRACTS | {RUN_JOBS}
JSON_ONLY = prepare_accept_content(["json"])
MAX_ID = 255

# Celery's headers that are texts, numbers, and so on; others may be anything scalar.
TEXTS = ("lang", "root_id", "parent_id", "group", "meth", "origin", "argsrepr", "kwargsrepr")
NUMBERS = ("retries", "group_index", "replaced_task_nesting")
EMBEDDED = ("callbacks", "errbacks", "chain")


def check(message: Any, registered: Container[str]) -> None:
    """Reduce a kombu message to what Celery can handle; raises Malformed.

    registered: the names of this worker's tasks
    """
    headers = message.headers if isinstance(message.headers, dict) else {}
    message_id, task, origin = identity(headers, message.properties)
    try:
        payload = loads(
            message.body, message.content_type, message.content_encoding, accept=JSON_ONLY
        )
    except Exception:  # refused, unreadable, too deep: all the same here
        raise Malformed(Reason.BAD_CONTENT, message_id, task, origin) from None
    if "task" not in headers and isinstance(payload, dict) and "task" in payload:
        # Celery's first protocol has everything in the body.
        headers = {**payload, **headers}
        message_id, task, _ = identity(payload, message.properties)
    identified = (message_id, task, origin)
    if not task:
        raise Malformed(Reason.NO_TASK, *identified)
    if task not in registered or task.startswith("celery."):
        raise Malformed(Reason.UNKNOWN_TASK, *identified)
    if not message_id or not _id_of(headers):
        raise Malformed(Reason.NO_ID, *identified)
    body = _body(payload)
    # Celery passes them together with its own `self`.
    if body is None or (task in OURS and "self" in body[1]):
        raise Malformed(Reason.BAD_ARGUMENTS, *identified)
    try:
        read = _headers(headers, task, message_id)
    except (ValueError, TypeError, OverflowError, AttributeError):
        raise Malformed(Reason.BAD_HEADERS, *identified) from None
    message.headers = read
    if body != payload:
        message.content_type, message.content_encoding, message.body = dumps(body, "json")
        message.body = message.body.encode()
    message._decoded_cache = body


def _id_of(headers: dict[str, Any]) -> bool:
    return isinstance(headers.get("id"), str | UUID)


def _body(payload: Any) -> list[Any] | None:
    """[args, kwargs, embed] of a payload; None if it has another form."""
    if isinstance(payload, dict):  # of the first protocol
        embed = {name: payload.get(name) for name in ("callbacks", "errbacks", "chord")}
        payload = [payload.get("args", []), payload.get("kwargs", {}), embed]
    if not isinstance(payload, list) or len(payload) != 3:
        return None
    args, kwargs, embed = payload
    if embed is None:
        embed = {}
    if not (isinstance(args, list) and isinstance(kwargs, dict) and isinstance(embed, dict)):
        return None
    for name in EMBEDDED:
        signatures = embed.get(name) or []
        if not isinstance(signatures, list) or not all(map(_is_signature, signatures)):
            return None
    if embed.get("chord") is not None and not _is_signature(embed["chord"]):
        return None
    return [args, kwargs, {name: embed.get(name) for name in (*EMBEDDED, "chord")}]


def _is_signature(value: Any) -> bool:
    return isinstance(value, dict) and isinstance(value.get("task"), str)


def _headers(headers: dict[str, Any], task: str, message_id: str) -> dict[str, Any]:
    """The headers for Celery."""
    read: dict[str, Any] = {"task": task, "id": message_id}
    for name in TEXTS:
        read[name] = _typed(headers, name, str)
    for name in NUMBERS:
        read[name] = _typed(headers, name, int) or 0
    read["ignore_result"] = _typed(headers, "ignore_result", bool)
    if headers.get("stamped_headers"):
        read |= _stamps(headers["stamped_headers"], headers.get("stamps"))
    for name in headers.keys() - read.keys():
        # Those of tracing libraries, for example; none that would stand in for Celery's own.
        value = headers[name]
        if _is_scalar(value) and not hasattr(Context, name):
            read[name] = value
    eta, expires = _instant(headers.get("eta")), _instant(headers.get("expires"))
    if task in CONTRACTS:
        # A job is stored at once and waits in the database, not in a worker.
        read["id"] = str(job_id_of(message_id))
        read["not_before"] = eta and eta.isoformat()
        read["not_after"] = expires and expires.isoformat()
    elif task == RUN_JOBS:
        read["id"] = message_id if _is_uuid(message_id) else str(uuid4())
        read["timelimit"] = _time_limits(headers.get("timelimit"))
    else:
        if len(message_id) > MAX_ID or not message_id.isprintable():
            raise ValueError("id")
        read["timelimit"] = _time_limits(headers.get("timelimit"))
        read["eta"] = eta and eta.isoformat()
        read["expires"] = expires and expires.isoformat()
        read["shadow"] = _typed(headers, "shadow", str)
    return read


def _typed(headers: dict[str, Any], name: str, kind: type) -> Any:
    value = headers.get(name)
    if value is not None and not isinstance(value, kind):
        raise TypeError(name)
    return value


def _stamps(names: Any, stamps: Any) -> dict[str, Any]:
    """The stamped headers that `revoke_by_stamped_headers` looks at."""
    stamps = stamps or {}
    if not isinstance(names, list) or not isinstance(stamps, dict):
        raise TypeError("stamps")
    if not all(isinstance(name, str) for name in names):
        raise TypeError("stamps")
    for stamp in stamps.values():
        if not all(map(_is_scalar, stamp if isinstance(stamp, list) else [stamp])):
            raise TypeError("stamps")
    return {"stamped_headers": names, "stamps": stamps}


def _time_limits(limits: Any) -> tuple[float | None, float | None]:
    if limits is None:
        return None, None
    hard, soft = limits
    for limit in (hard, soft):
        if limit is not None and not (
            isinstance(limit, int | float) and not isinstance(limit, bool) and 0 < limit < 1e9
        ):
            raise TypeError("timelimit")
    return hard, soft


def _instant(value: Any) -> datetime | None:
    """Parse an instant; raises one of several errors for an invalid one."""
    if value is None:
        return None
    instant: datetime | None = maybe_iso8601(value) if isinstance(value, str | datetime) else None
    if instant is None:
        raise TypeError("no instant")
    if instant.tzinfo is None:
        instant = instant.replace(tzinfo=UTC)
    return instant.astimezone(UTC)


def _is_scalar(value: Any) -> bool:
    return value is None or (
        isinstance(value, str | int | float) and len(str(value)[: MAX_NAME + 1]) <= MAX_NAME
    )


def _is_uuid(text: str) -> bool:
    try:
        UUID(text)
    except ValueError:
        return False
    return True
