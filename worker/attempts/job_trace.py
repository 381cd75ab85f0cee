"""JobTrace: the spans of one attempt.

    tidemill.claim
    tidemill.recipe
        tidemill.part          a step of the recipe, with the requests that it makes
            tidemill.engine    one request
    tidemill.commit

The job's row stores the trace id, so that an attempt after a crash is in the same trace.
"""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any
from uuid import UUID

from db.outcome import Outcome
from engine.protocol.output import Output
from engine.protocol.request import Request
from tasks.tracing import context_of, own_traceparent, span_context

if TYPE_CHECKING:
    from opentelemetry.trace import Span, Tracer


class JobTrace:
    """Records the spans of an attempt, on the thread that advances it.

    `ended` and `committed` may be called from any thread.
    """

    def __init__(self, tracer: "Tracer", traceparent: str | None, **attributes: Any) -> None:
        self._tracer = tracer
        self._attributes = attributes
        self._context = None if traceparent is None else context_of(traceparent)
        self._links: list[Any] = []
        self._recipe: Span | None = None
        self._part: Span | None = None
        self._requests: dict[int, Span] = {}
        self._commit: Span | None = None

    @classmethod
    def of(
        cls,
        tracer: "Tracer",
        job_id: UUID,
        batch_id: UUID | None,
        traceparent: str | None,
        claim_began_ns: int,
        **attributes: Any,
    ) -> "JobTrace":
        """Start the trace of a job that was just claimed."""
        parent = None if traceparent is None else own_traceparent(job_id, batch_id, traceparent)
        attributes["job_id"] = str(job_id)
        if batch_id is not None:
            attributes["batch_id"] = str(batch_id)
        trace = cls(
            tracer,
            parent,
            **{f"tidemill.{name}": value for name, value in attributes.items()},
        )
        if parent is not None and traceparent is not None and parent != traceparent:
            from opentelemetry.trace import Link

            trace._links = [Link(span_context(traceparent))]
        trace._start("claim", start_time=claim_began_ns).end()
        trace._recipe = trace._start("recipe")
        return trace

    def _start(self, name: str, parent: "Span | None" = None, **options: Any) -> "Span":
        context = self._context
        if parent is not None:
            from opentelemetry.trace import set_span_in_context

            context = set_span_in_context(parent)
        options.setdefault("attributes", self._attributes if parent is None else {})
        links = self._links if parent is None else None
        return self._tracer.start_span(f"tidemill.{name}", context, links=links, **options)

    def part_began(self) -> None:
        if self._part is not None:
            self._part.end()
        self._part = self._start("part", self._recipe)

    def asked(self, requests: Iterable[Request]) -> None:
        model = self._attributes["tidemill.model"]
        for request in requests:
            self._requests[request.id] = self._start(
                "engine",
                self._part,
                attributes={
                    "gen_ai.request.model": model,
                    "tidemill.is_measurement": bool(request.measured_texts),
                },
            )

    def answered(self, output: Output) -> None:
        span = self._requests.pop(output.request_id, None)
        if span is None:
            return
        span.set_attribute("gen_ai.usage.input_tokens", output.prompt_tokens)
        span.set_attribute(
            "gen_ai.usage.output_tokens", sum(each.completion_tokens for each in output.choices)
        )
        if output.failure is not None:
            _fail(span, output.failure.code)
        span.end()

    def ended(self, outcome: Outcome) -> None:
        """End the recipe's span and start that of the commit."""
        for span in (*self._requests.values(), self._part, self._recipe):
            if span is None:
                continue
            if span is self._recipe:
                span.set_attribute("tidemill.next_state", outcome.state.value)
                if outcome.error_code is not None:
                    _fail(span, outcome.error_code)
            span.end()
        self._requests.clear()
        self._commit = self._start("commit")

    def committed(self) -> None:
        if self._commit is not None:
            self._commit.end()


def _fail(span: "Span", code: str) -> None:
    """Record the error's code alone: its message may quote a user's text."""
    from opentelemetry.trace import StatusCode

    span.set_attribute("error.type", code)
    span.set_status(StatusCode.ERROR, code)
