"""CTranslate2, offline: all requests in one call, which sorts them by length and makes batches.

It has one length limit for all answers, so a callback ends each answer at its own length. The
checkpoint is converted beforehand, in a process with torch; this process has none.
"""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import ctranslate2

from benchmarks.engine.job import Job, Measured, answer, peak_rss_bytes


def run(job: Job) -> Measured:
    translator = ctranslate2.Translator(
        str(converted(job)),
        device="cpu",
        compute_type="int8" if job.quantization == "int8" else "float32",
        intra_threads=job.threads,
        inter_threads=1,
    )
    everything = list(range(len(job.requests)))
    translated(translator, job, everything[:1])
    started_at, computed_at = time.perf_counter(), time.process_time()
    answers, first_at = translated(translator, job, everything)
    return Measured(
        seconds=time.perf_counter() - started_at,
        cpu_seconds=time.process_time() - computed_at,
        num_tokens=sum(map(len, answers.values())),
        num_requests=len(answers),
        first_seconds=first_at - started_at,
        peak_rss_bytes=peak_rss_bytes(),
        versions={"ctranslate2": ctranslate2.__version__},
        answers=answers,
    )


def converted(job: Job) -> Path:
    folder = Path(job.folder) / f"ctranslate2-{job.quantization}"
    if not (folder / "model.bin").exists():
        command = [sys.executable, "-m", "benchmarks.engine.through.convert_for_ctranslate2"]
        subprocess.run([*command, job.folder, str(folder), job.quantization], check=True)
    return folder


def translated(
    translator: ctranslate2.Translator, job: Job, numbers: list[int]
) -> tuple[dict[int, list[int]], float]:
    """Return the answers, and the time of the first."""
    lengths = [job.requests[number].num_new for number in numbers]
    first_at: list[float] = []

    def ends(result: ctranslate2.GenerationStepResult) -> bool:
        has_ended = result.step + 1 >= lengths[result.batch_id]
        if has_ended and not first_at:
            first_at.append(time.perf_counter())
        return has_ended

    results = translator.translate_batch(
        [[f"t{id_}" for id_ in job.requests[number].prompt] for number in numbers],
        max_batch_size=job.rows,
        beam_size=1,
        max_input_length=0,
        min_decoding_length=max(lengths),
        max_decoding_length=max(lengths),
        callback=ends,
    )
    answers = {
        number: [int(token[1:]) for token in result.hypotheses[0]]
        for number, result in zip(numbers, results, strict=True)
    }
    for number, tokens in answers.items():
        assert len(tokens) == job.requests[number].num_new, (number, len(tokens))
    return answers, first_at[0]


if __name__ == "__main__":
    answer(run)
