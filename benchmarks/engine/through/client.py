"""Our engine, in the process that a worker would start: text in, text and tokens out."""

from __future__ import annotations

import itertools
from dataclasses import fields
from queue import SimpleQueue

import psutil

from benchmarks.engine.job import Job, Measured, answer, peak_rss_bytes
from benchmarks.engine.models import PAD, text
from benchmarks.engine.through.feed import serve
from engine.protocol.engine_spec import EngineSpec
from engine.protocol.output import Choice, Output
from engine.protocol.request import Request
from engine.protocol.sampling_params import SamplingParams
from worker.engines.engine_client import EngineClient


class Client:
    def __init__(self, client: EngineClient, job: Job) -> None:
        self.client = client
        self.job = job
        self.process = psutil.Process(client.pid)
        self.ids = itertools.count()
        self.numbers: dict[int, int] = {}
        self.outputs: SimpleQueue[Output] = SimpleQueue()
        self.texts = [text(each.prompt) for each in job.requests]

    def submit(self, numbers: list[int]) -> None:
        requests = []
        for number in numbers:
            id_ = next(self.ids)
            self.numbers[id_] = number
            params = SamplingParams(
                max_new_tokens=self.job.requests[number].num_new,
                num_beams=self.job.beams,
                do_sample=False,
            )
            text = self.texts[number]
            requests.append(Request(id=id_, task="generate", text=text, params=params))
        self.client.submit(requests, self.outputs.put)

    def finished(self) -> list[tuple[int, list[int]]]:
        outputs = [self.outputs.get()]
        while not self.outputs.empty():
            outputs.append(self.outputs.get())
        for output in outputs:
            assert output.failure is None, output.failure
        return [(self.numbers.pop(each.request_id), token_ids(each.choices[0])) for each in outputs]

    def cpu_seconds(self) -> float:
        times = self.process.cpu_times()
        return float(times.user + times.system)

    def steps(self) -> tuple[int, int]:
        if self.client.card.engine == "exact":
            return 0, 0  # a step runs a whole batch, so its rows are unknown
        progress = self.client.progress
        return progress.num_steps, progress.num_completion_tokens * self.job.beams


def token_ids(choice: Choice) -> list[int]:
    """Return the tokens of an answer, which has one word for each; padding is not in the text."""
    ids = [int(word.removeprefix("t")) for word in choice.text.split()]
    return ids + [PAD] * (choice.completion_tokens - len(ids))


def spec_of(job: Job) -> EngineSpec:
    own = {}
    if job.quantization != "none":
        if "quantization" not in {each.name for each in fields(EngineSpec)}:
            raise SystemExit("this engine has no quantization")
        own["quantization"] = job.quantization
    return EngineSpec(
        alias="measured",
        checkpoint=job.folder,
        engine=job.how,
        dtype=job.dtype,
        device=job.device,
        threads=job.threads,
        max_sequences=job.rows * job.beams,
        **own,
    )


def run(job: Job) -> Measured:
    client = EngineClient(spec_of(job))
    try:
        client.start()
        server = Client(client, job)
        warm_up(server)
        measured = serve(server, job)
        measured.peak_rss_bytes = peak_rss_bytes(client.pid)
        measured.versions = dict(client.card.versions)
        return measured
    finally:
        client.stop()


def warm_up(server: Client) -> None:
    """Run some requests first, since the first calls are slower."""
    shortest = sorted(
        range(len(server.job.requests)), key=lambda at: server.job.requests[at].num_new
    )
    numbers = shortest[:2]
    server.submit(numbers)
    left = len(numbers)
    while left:
        left -= len(server.finished())


if __name__ == "__main__":
    answer(run)
