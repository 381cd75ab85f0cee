"""Sides that call `model.generate` in the usual ways: for one request or for one batch at a time.

A batch runs until its longest answer is complete; the others are cut at their own length.
"""

from __future__ import annotations

import time
from typing import Any

import torch
import transformers as hf

from benchmarks.engine.job import Job, Measured, answer, peak_rss_bytes
from benchmarks.engine.workload import Request, stratified


def run(job: Job) -> Measured:
    model = load(job)
    batches = planned(job)
    answers: dict[int, list[int]] = {}
    with torch.inference_mode():
        generated(model, [Request((5, 6, 7), 4)], job)
        first_seconds = 0.0
        started_at, computed_at = time.perf_counter(), time.process_time()
        for batch in batches:
            rows = generated(model, [job.requests[number] for number in batch], job)
            answers.update(zip(batch, rows, strict=True))
            first_seconds = first_seconds or time.perf_counter() - started_at
        seconds = time.perf_counter() - started_at
        cpu_seconds = time.process_time() - computed_at
    return Measured(
        seconds=seconds,
        cpu_seconds=cpu_seconds,
        num_tokens=sum(map(len, answers.values())),
        num_requests=len(answers),
        first_seconds=first_seconds,
        peak_rss_bytes=peak_rss_bytes(),
        versions=versions(),
        answers=answers,
    )


def load(job: Job) -> Any:
    torch.set_num_threads(job.threads)
    hf.logging.set_verbosity_error()
    hf.utils.logging.disable_progress_bar()
    config = hf.AutoConfig.from_pretrained(job.folder)
    auto = hf.AutoModelForSeq2SeqLM if config.is_encoder_decoder else hf.AutoModelForCausalLM
    model = auto.from_pretrained(job.folder, dtype=getattr(torch, job.dtype))
    model = model.to(job.device).eval()
    if job.packed:
        from engine.cpu.linear import PackedLinear, pack

        pack(model, PackedLinear)
    return model


def planned(job: Job) -> list[list[int]]:
    """Return, for each call of `generate`, the indices of its requests."""
    if job.how == "one":
        return [[number] for number in stratified(job.requests, job.num_alone)]
    order = list(range(len(job.requests)))
    if job.how == "oracle":
        order.sort(key=lambda at: (job.requests[at].num_new, len(job.requests[at].prompt)))
    batches = [order[at : at + job.rows] for at in range(0, len(order), job.rows)]
    num = min(job.num_batches or len(batches), len(batches))
    return [batches[int((each + 0.5) * len(batches) / num)] for each in range(num)]


def generated(model: Any, requests: list[Request], job: Job) -> list[list[int]]:
    """Call `generate` once and cut each answer at its own length."""
    width = max(len(each.prompt) for each in requests)
    before = not model.config.is_encoder_decoder

    def padded(row: list[int]) -> list[int]:
        pads = [0] * (width - len(row))
        return pads + row if before else row + pads

    ids = torch.tensor([padded(list(each.prompt)) for each in requests], device=job.device)
    mask = torch.tensor([padded([1] * len(each.prompt)) for each in requests], device=job.device)
    most = max(each.num_new for each in requests)
    rows = model.generate(
        input_ids=ids, attention_mask=mask, max_new_tokens=most, num_beams=job.beams
    )
    rows = rows[:, width if before else 1 :].tolist()
    return [row[: each.num_new] for row, each in zip(rows, requests, strict=True)]


def versions() -> dict[str, str]:
    return {"torch": torch.__version__, "transformers": hf.__version__}


if __name__ == "__main__":
    answer(run)
