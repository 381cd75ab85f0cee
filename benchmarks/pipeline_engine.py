"""Run the engine alone, for `benchmarks.pipeline --model`: same requests, no queue, no database.

    python -m benchmarks.pipeline_engine SPEC REQUESTS WARM_UP

SPEC is JSON; the others are files. Prints requests a second.
"""

import json
import sys
import time
from pathlib import Path
from queue import SimpleQueue

from benchmarks.pipeline_model import read_requests
from engine.protocol.engine_spec import EngineSpec
from engine.protocol.output import Output
from engine.protocol.request import Request
from engine.protocol.sampling_params import SamplingParams
from worker.engines.engine_client import EngineClient


def main(spec: str, requests: str, warm_up: str) -> None:
    client = EngineClient(EngineSpec.from_json(json.loads(spec)))
    try:
        client.start()
        serve(client, Path(warm_up), 0)
        started_at = time.perf_counter()
        num_requests = serve(client, Path(requests), 1_000_000)
        print(num_requests / (time.perf_counter() - started_at))
    finally:
        client.stop()


def serve(client: EngineClient, path: Path, first_id: int) -> int:
    outputs: SimpleQueue[Output] = SimpleQueue()
    requests = [
        Request(
            id=first_id + at,
            task="generate",
            text=each["text"],
            params=SamplingParams(max_new_tokens=each["max_new_tokens"]),
        )
        for at, each in enumerate(read_requests(path))
    ]
    client.submit(requests, outputs.put)
    for _ in requests:
        failure = outputs.get().failure
        assert failure is None, failure
    return len(requests)


if __name__ == "__main__":
    main(*sys.argv[1:])
