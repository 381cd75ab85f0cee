"""Envelope: an entry of a Redis queue, parsed without trusting its content.

An entry comes from a producer's library, or from anyone with access. kombu and Celery read every
field without checking its type, so a missing field or one of another type would end the worker.
They get only checked fields, in a new envelope.
"""

import base64
import binascii
import bz2
import lzma
import zlib
from typing import Any
from uuid import UUID, uuid4

from kombu.utils.json import dumps, loads

from tasks.quarantine import Reason

# The longest allowed text has four million characters. As JSON in base64 that is 64 MiB if each
# character is escaped, and usually a tenth of it.
MAX_BYTES = 64 * 2**20
# The size of an envelope as kombu stores it until it is acked. It may be a third longer than the
# entry, or a thousand times if the entry is compressed. Redis may refuse a value beyond 64 MiB and
# close the connection; the message, already off its list, would be lost.
MAX_KEPT_BYTES = MAX_BYTES - 64 * 2**10
MAX_NAME = 1024

Envelope = dict[str, Any]


class Malformed(Exception):
    """A message that cannot be taken, with whatever could be read of it."""

    def __init__(
        self,
        reason: Reason,
        message_id: str | None = None,
        task: str | None = None,
        origin: str | None = None,
    ) -> None:
        self.reason = reason
        self.message_id = message_id
        self.task = task
        self.origin = origin
        super().__init__(reason.value)


def read(entry: bytes, queue: str) -> Envelope:
    """Parse a queue entry into a valid envelope; raises Malformed."""
    if len(entry) > MAX_BYTES:
        raise Malformed(Reason.TOO_LARGE)
    try:
        message = loads(entry)
    except Exception:  # RecursionError and MemoryError too, and what a type's decoder raises
        raise Malformed(Reason.NOT_JSON) from None
    return checked(message, queue)


def checked(message: Any, queue: str) -> Envelope:
    """Validate an entry that is already parsed; raises Malformed."""
    if not isinstance(message, dict):
        raise Malformed(Reason.NOT_AN_ENVELOPE)
    headers, properties = message.get("headers"), message.get("properties")
    message_identity = identity(headers, properties)
    if headers is None:
        headers = {}
    if properties is None:
        properties = {}
    if not isinstance(headers, dict):
        raise Malformed(Reason.BAD_HEADERS, *message_identity)
    if not isinstance(properties, dict):
        raise Malformed(Reason.BAD_HEADERS, *message_identity)
    try:
        body = _body(message.get("body"), properties.get("body_encoding"), headers)
        num_bytes = len(body) + len(dumps(headers).encode())  # as stored until it is acked
    except (Malformed, ValueError, TypeError, RecursionError, MemoryError) as error:
        reason = error.reason if isinstance(error, Malformed) else Reason.BAD_BODY
        raise Malformed(reason, *message_identity) from None
    if num_bytes > MAX_KEPT_BYTES:
        raise Malformed(Reason.TOO_LARGE, *message_identity)
    return {
        "body": body,
        "content-type": _name(message.get("content-type")),
        "content-encoding": _name(message.get("content-encoding")),
        "headers": {name: value for name, value in headers.items() if name != "compression"},
        "properties": {
            "correlation_id": _name(properties.get("correlation_id")),
            "reply_to": _name(properties.get("reply_to")),
            "delivery_mode": 2,
            # The queue that it returns to if it is restored. The queue that it names may not be
            # ours, and the message would be lost.
            "delivery_info": {
                "exchange": "",
                "routing_key": queue,
                "redelivered": headers.get("redelivered") is True,
            },
            "priority": _priority(properties.get("priority")),
            "body_encoding": "base64",
            # A new tag: its own may equal another message's, and acking one would ack both.
            "delivery_tag": str(uuid4()),
        },
    }


def identity(headers: Any, properties: Any) -> tuple[str | None, str | None, str | None]:
    """The (id, task, origin) that a message names; each is None if it cannot be read."""
    headers = headers if isinstance(headers, dict) else {}
    properties = properties if isinstance(properties, dict) else {}
    message_id = _id(headers.get("id")) or _id(properties.get("correlation_id"))
    return message_id, _name(headers.get("task")), _name(headers.get("origin"))


def _body(body: Any, encoding: Any, headers: dict[str, Any]) -> str:
    """The body in base64, decompressed."""
    if not isinstance(body, str):
        raise Malformed(Reason.BAD_BODY)
    if encoding is None or (isinstance(encoding, str) and encoding.lower() in ("utf-8", "utf8")):
        plain = body.encode()
    elif isinstance(encoding, str) and encoding.lower() == "base64":
        plain = base64.b64decode(body)
    else:
        raise Malformed(Reason.BAD_BODY)
    compression = headers.get("compression")
    if compression is None and encoding is not None and encoding.lower() == "base64":
        return body
    if compression is not None:
        plain = _decompressed(plain, compression)
    return base64.b64encode(plain).decode()


def _decompressed(body: bytes, compression: Any) -> bytes:
    """Decompress the body like kombu, up to the size limit of a message.

    A compressed megabyte can expand to a thousand.
    """
    try:
        match compression:
            case "application/x-gzip" | "gzip" | "zlib":
                plain = zlib.decompressobj().decompress(body, MAX_BYTES + 1)
            case "application/x-bz2" | "bzip2" | "bzip":
                plain = bz2.BZ2Decompressor().decompress(body, MAX_BYTES + 1)
            case "application/x-lzma" | "lzma" | "xz":
                plain = lzma.LZMADecompressor().decompress(body, MAX_BYTES + 1)
            case _:
                raise Malformed(Reason.BAD_BODY)
    except (zlib.error, OSError, EOFError, lzma.LZMAError, binascii.Error):
        raise Malformed(Reason.BAD_BODY) from None
    if len(plain) > MAX_BYTES:
        raise Malformed(Reason.TOO_LARGE)
    return plain


def _id(value: Any) -> str | None:
    if isinstance(value, UUID):
        return str(value)
    return _name(value) or None


def _name(value: Any) -> str | None:
    """The value if it is a short text without lone surrogates; else None."""
    if not isinstance(value, str) or len(value) > MAX_NAME:
        return None
    return value.encode(errors="replace").decode()


def _priority(value: Any) -> int:
    return min(9, max(0, value)) if isinstance(value, int) else 0
