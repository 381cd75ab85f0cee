"""Tracing: the trace that a job belongs to, and OpenTelemetry's tracer if the application has one.

Only the OpenTelemetry API is used, and only if the application has loaded it: whoever runs
`opentelemetry-instrument`, or sets a tracer provider, gets spans. No span contains a text.
"""

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from uuid import UUID

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.trace import SpanContext, Tracer

_IDS = r"(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-([0-9a-f]{2})"
TRACEPARENT = re.compile(f"00-{_IDS}")
# A later version has these fields in the same places, and the same last bit of the flags.
LATER_TRACEPARENT = re.compile(rf"(?!00|ff)[0-9a-f]{{2}}-{_IDS}(?:-.*)?")


def tracer() -> "Tracer | None":
    """The application's tracer; None: this process records no spans."""
    trace: Any = sys.modules.get("opentelemetry.trace")
    if trace is None:
        return None
    provider = trace.get_tracer_provider()
    if isinstance(provider, trace.ProxyTracerProvider | trace.NoOpTracerProvider):
        return None
    own_tracer: Tracer = provider.get_tracer("tidemill")
    return own_tracer


def read_traceparent(header: Any) -> str | None:
    """Validate a W3C header of version 00, which may come from anywhere; None if invalid."""
    if not isinstance(header, str):
        return None
    if TRACEPARENT.fullmatch(header):
        return header
    later = LATER_TRACEPARENT.fullmatch(header)
    if later is None:
        return None
    return f"00-{later[1]}-{later[2]}-{int(later[3], 16) & 1:02x}"


@contextmanager
def submitting(task_name: str, traceparent: Any = None) -> Iterator[str | None]:
    """Open a span around a submission; yields the traceparent for the rows of its jobs.

    traceparent: of the sender, if that is another process
    """
    parent_header = read_traceparent(traceparent)
    tracer_in_use = tracer()
    if tracer_in_use is None:
        yield parent_header
        return
    parent = context_of(parent_header) if parent_header is not None else None
    with tracer_in_use.start_as_current_span(
        "tidemill.submit", parent, attributes={"tidemill.task": task_name}, record_exception=False
    ) as span:
        yield traceparent_of(span.get_span_context())


def traceparent_of(span: "SpanContext") -> str | None:
    if not span.is_valid:
        return None
    return f"00-{span.trace_id:032x}-{span.span_id:016x}-{span.trace_flags:02x}"


def span_context(traceparent: str) -> "SpanContext":
    from opentelemetry.trace import SpanContext, TraceFlags

    match = TRACEPARENT.fullmatch(traceparent)
    assert match is not None, "read_traceparent lets no other through"
    return SpanContext(
        int(match[1], 16),
        int(match[2], 16),
        is_remote=True,
        trace_flags=TraceFlags(int(match[3], 16)),
    )


def context_of(traceparent: str) -> "Context":
    from opentelemetry.trace import NonRecordingSpan, set_span_in_context

    return set_span_in_context(NonRecordingSpan(span_context(traceparent)))


def own_traceparent(job_id: UUID, batch_id: UUID | None, traceparent: str) -> str:
    """The traceparent of a job, derived from that of its submission.

    Each job of a batch has its own trace, since one trace for all would have fifty thousand spans.
    Its id is the job's, for every attempt.
    """
    if batch_id is None:
        return traceparent
    return f"00-{job_id.hex}-{job_id.hex[16:]}-{traceparent[-2:]}"
