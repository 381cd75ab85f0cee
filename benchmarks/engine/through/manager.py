"""The continuous batching of transformers, by the manager on which `generate_batch` is built.

`generate_batch` itself has one length for all answers. The manager's default settings take
gigabytes on a CPU; these are the best that were found.
"""

from __future__ import annotations

import time
from typing import Any

import torch
import transformers as hf

from benchmarks.engine.job import Job, Measured, answer, peak_rss_bytes
from benchmarks.engine.through.feed import serve
from benchmarks.engine.through.generate import load, versions

PAGE_TOKENS = 32
STEP_TOKENS = 512


class Manager:
    def __init__(self, manager: Any, job: Job) -> None:
        self.manager = manager
        self.job = job
        self.numbers: dict[str, int] = {}
        self.num_rows = 0

    def submit(self, numbers: list[int]) -> None:
        for number in numbers:
            request = self.job.requests[number]
            id_ = self.manager.add_request(list(request.prompt), max_new_tokens=request.num_new)
            self.numbers[id_] = number

    def finished(self) -> list[tuple[int, list[int]]]:
        while True:
            result = self.manager.get_result(timeout=1)
            if result is not None and result.is_finished():
                assert result.error is None, result.error
                self.num_rows += len(result.generated_tokens)
                return [(self.numbers.pop(result.request_id), list(result.generated_tokens))]
            if result is None and not self.manager.is_running():
                raise RuntimeError(f"it ended: {self.manager.background_thread_status.fatal_error}")

    def cpu_seconds(self) -> float:
        return time.process_time()

    def steps(self) -> tuple[int, int]:
        return self.manager.current_batch, self.num_rows


def run(job: Job) -> Measured:
    model = load(job)
    longest = max(len(each.prompt) + each.num_new for each in job.requests)
    on_cpu = job.device == "cpu"
    config = hf.ContinuousBatchingConfig(
        page_size=PAGE_TOKENS,
        num_blocks=job.rows * (longest // PAGE_TOKENS + 1),
        max_batch_tokens=STEP_TOKENS,
        max_requests_per_batch=job.rows,
        allow_block_sharing=False,
        use_cuda_graph=False if on_cpu else None,
        use_async_batching=False if on_cpu else None,
    )
    generation = hf.GenerationConfig(
        do_sample=False, max_new_tokens=128, eos_token_id=-1, pad_token_id=0
    )
    with (
        torch.inference_mode(),
        model.continuous_batching_context_manager(
            generation_config=generation, continuous_batching_config=config, warmup=not on_cpu
        ) as manager,
    ):
        server = Manager(manager, job)
        server.submit([0])
        server.finished()
        measured = serve(server, job)
    measured.peak_rss_bytes = peak_rss_bytes()
    measured.versions = versions()
    return measured


if __name__ == "__main__":
    answer(run)
