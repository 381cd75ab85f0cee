"""A job's spans, from its submission to its commit, and over a worker's death."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from db import JobState
from tasks import submit_batch, summarize
from tasks.app import app
from tasks.generate import GenerateContract
from tasks.tracing import read_traceparent
from tests.running.workers import Cluster, on_sqlite, until
from tests.samples.hostile import CANARY

# As `opentelemetry-instrument` does it: before any of our code is imported.
SITE = """
import json, os
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExporter, SpanExportResult

class ToFile(SpanExporter):
    def export(self, spans):
        with open(os.environ["SPANS"], "a") as to:
            for span in spans:
                to.write(json.dumps(json.loads(span.to_json())) + "\\n")
        return SpanExportResult.SUCCESS

provider = TracerProvider()
provider.add_span_processor(SimpleSpanProcessor(ToFile()))
trace.set_tracer_provider(provider)
"""
TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
TRACEPARENT = f"00-{TRACE}-00f067aa0ba902b7-01"


@pytest.mark.parametrize(
    ("header", "kept"),
    [
        (TRACEPARENT, TRACEPARENT),
        (f"01-{TRACE}-00f067aa0ba902b7-09", TRACEPARENT),
        (f"cc-{TRACE}-00f067aa0ba902b7-00-what-will-be", f"00-{TRACE}-00f067aa0ba902b7-00"),
        (f"00-{TRACE}-00f067aa0ba902b7-01-more", None),
        (f"ff-{TRACE}-00f067aa0ba902b7-01", None),
        (TRACEPARENT.upper(), None),
        (f"00-{'0' * 32}-00f067aa0ba902b7-01", None),
        (f"00-{TRACE}-{'0' * 16}-01", None),
        (f"{TRACEPARENT}\n", None),
        (["00"], None),
    ],
)
def test_a_header_is_read_whatever_its_version(header: object, kept: str | None) -> None:
    assert read_traceparent(header) == kept


def spans(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text().splitlines()]


def trace_id(span: dict[str, Any]) -> str:
    return str(span["context"]["trace_id"]).removeprefix("0x")


@on_sqlite
def test_a_trace_goes_from_the_message_to_the_commit_and_survives_a_crash(
    producer: Cluster, tmp_path: Path
) -> None:
    (tmp_path / "sitecustomize.py").write_text(SITE)
    written = tmp_path / "spans"
    environment = {
        "PYTHONPATH": f"{tmp_path}:{producer.environment['PYTHONPATH']}",
        "SPANS": str(written),
    }
    settings = {"lease_seconds": 2, "renew_seconds": 0.5, "lead_seconds": 2, "log_format": "json"}
    producer.configure(fake_step_seconds=0.05, worker=settings, fake_fail_on="broken")
    headers = {"traceparent": TRACEPARENT}
    fields = {"text": f"{CANARY} a b", "max_new_tokens": 2000}
    with producer.worker(**environment) as first:
        sent = app.send_task("tasks.generate", kwargs=fields, headers=headers)
        app.send_task("tasks.generate", kwargs={"text": "a"}, headers={"traceparent": CANARY})
        producer.wait_for(JobState.RUNNING, 1)
        producer.wait_for(JobState.SUCCEEDED, 1)
        first.kill()
    producer.configure(worker=settings, fake_fail_on="broken")
    with producer.worker(**environment) as second:
        batch = submit_batch([GenerateContract.parse({"text": f"{CANARY} broken"})], name=CANARY)
        document = summarize.submit(text=f"{CANARY} b. " * 2000, max_new_tokens=3).id
        until(lambda: not {"queued", "running"} & producer.states().keys(), "all ended")
        until(lambda: str(batch.id) in second.log, "the batch's line")
    found = spans(written)
    of_message = [span for span in found if trace_id(span) == TRACE]
    names = [span["name"] for span in of_message]
    for name in ("submit", "recipe", "part", "engine", "commit"):
        assert f"tidemill.{name}" in names, names
    assert names.count("tidemill.claim") == 2, "each attempt"
    attempts = {
        span["attributes"]["tidemill.attempt"]
        for span in of_message
        if span["name"] == "tidemill.claim"
    }
    assert attempts == {1, 2}
    (engine,) = [span for span in of_message if span["name"] == "tidemill.engine"]
    assert engine["attributes"]["gen_ai.usage.output_tokens"] > 0
    by_id = {span["context"]["span_id"]: span["name"] for span in of_message}
    assert by_id[engine["parent_id"]] == "tidemill.part"
    of_document = [s for s in found if s["attributes"].get("tidemill.job_id") == str(document)]
    assert {span["name"] for span in of_document} >= {"tidemill.recipe", "tidemill.commit"}
    assert CANARY not in written.read_text()
    lines = [json.loads(line) for line in second.log.splitlines()]
    (line,) = [each for each in lines if each.get("job_id") == sent.id]
    assert line["trace_id"] == TRACE


@on_sqlite
def test_a_batchs_jobs_have_a_trace_each_that_is_linked_to_the_batchs(
    producer: Cluster, tmp_path: Path
) -> None:
    (tmp_path / "sitecustomize.py").write_text(SITE)
    written = tmp_path / "spans"
    environment = {
        **producer.environment,
        "PYTHONPATH": f"{tmp_path}:{producer.environment['PYTHONPATH']}",
        "SPANS": str(written),
    }
    producer.configure()
    config = str(producer.folder / "tidemill.toml")
    with producer.worker(PYTHONPATH=environment["PYTHONPATH"], SPANS=str(written)):
        submitting = (
            "from tasks import submit_batch; from tasks.generate import GenerateContract as G;"
            "submit_batch([G.parse({'text': 'a b'}) for _ in range(3)], name='three')"
        )
        subprocess.run(
            [sys.executable, "-c", submitting],
            cwd=producer.folder,
            env={**environment, "TIDEMILL_CONFIG": config},
            check=True,
        )
        producer.wait_until_finished(3)
        until(
            lambda: sum(span["name"] == "tidemill.commit" for span in spans(written)) == 3,
            "three commits",
        )
    found = spans(written)
    (batch,) = [span for span in found if span["name"] == "tidemill.submit"]
    recipes = [span for span in found if span["name"] == "tidemill.recipe"]
    assert len({trace_id(span) for span in recipes}) == 3
    for span in recipes:
        assert [trace_id(link) for link in span["links"]] == [trace_id(batch)]
        assert trace_id(span) == span["attributes"]["tidemill.job_id"].replace("-", "")
