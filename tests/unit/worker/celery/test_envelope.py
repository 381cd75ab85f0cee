"""An envelope is read from anything, or refused; what is read is safe to hand on."""

import base64
import json
import zlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.quarantine import EndedJob, Reason, SetAside, job_id_of
from tests.samples.hostile import CANARY, ENTRIES, envelope
from worker.celery import envelope as envelopes
from worker.celery.envelope import MAX_BYTES, Malformed
from worker.quarantine import BODY_LIMITS


@pytest.mark.parametrize("make", ENTRIES.values(), ids=[ascii(name) for name in ENTRIES])
def test_a_valid_entry_is_read_with_the_right_types(make: Any) -> None:
    try:
        read = envelopes.read(make(), "celery")
    except Malformed:
        return
    base64.b64decode(read["body"])
    assert isinstance(read["headers"], dict)
    assert read["properties"]["delivery_info"] == {
        "exchange": "",
        "routing_key": "celery",
        "redelivered": read["headers"].get("redelivered") is True,
    }
    assert 0 <= read["properties"]["priority"] <= 9
    assert isinstance(read["properties"]["delivery_tag"], str)


@given(
    st.binary()
    | st.recursive(st.none() | st.text(), st.lists).map(lambda it: json.dumps(it).encode())
)
def test_an_invalid_entry_is_refused(entry: bytes) -> None:
    with pytest.raises(Malformed):
        envelopes.read(entry, "celery")


def test_entries_with_one_delivery_tag_get_distinct_tags() -> None:
    entry = json.dumps(envelope()).encode()
    tags = {envelopes.read(entry, "celery")["properties"]["delivery_tag"] for _ in range(2)}
    assert len(tags) == 2


def test_an_oversized_entry_is_not_parsed() -> None:
    with pytest.raises(Malformed) as raised:
        envelopes.read(b"[" * (MAX_BYTES + 1), "celery")
    assert raised.value.reason is Reason.TOO_LARGE


@pytest.mark.parametrize("compression", [None, "gzip"])
def test_a_message_that_grows_beyond_what_redis_takes_is_too_large(compression: str | None) -> None:
    """Or it would be gone: it is off its list when it is written down as unacked."""
    plain = b"x" * (50 * 2**20)  # a third more as base64
    message = envelope(message_id="order 7")
    if compression is None:
        message["body"], message["properties"]["body_encoding"] = plain.decode(), "utf-8"
    else:
        message["body"] = base64.b64encode(zlib.compress(plain, 1)).decode()
        message["headers"]["compression"] = "application/x-gzip"
    entry = json.dumps(message).encode()
    assert len(entry) < MAX_BYTES
    with pytest.raises(Malformed) as raised:
        envelopes.read(entry, "celery")
    assert (raised.value.reason, raised.value.message_id) == (Reason.TOO_LARGE, "order 7")


def test_a_quarantined_message_round_trips() -> None:
    message = SetAside(
        queue="celery",
        reason=Reason.NOT_JSON,
        body=b"\xff" + CANARY.encode(),
        num_bytes=11,
        job=EndedJob(id=job_id_of("a"), task="chat", error_code="x", error_message=None),
    )
    assert SetAside.from_json(message.to_json()) == message


def test_messages_waiting_in_redis_are_bounded() -> None:
    at_most = previous = 0
    for num_messages, num_bytes in BODY_LIMITS:
        at_most += (num_messages - previous) * num_bytes
        previous = num_messages
    assert at_most < 64 * 2**20
