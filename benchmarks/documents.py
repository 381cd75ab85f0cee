"""Compare long documents with the same parts submitted as separate jobs.

    python -m benchmarks.documents [--documents 1000] [--quick] [--databases sqlite]
    python -m benchmarks.documents --model 15m --documents 12 --longest 4000 --databases sqlite
    python -m benchmarks.documents --million

Documents of log-normal length (median 800 words, one in 300 of 50,000) are summarized by a model
with a context of 512 tokens. Every request of their recipes is also submitted as a separate job, to
another worker and database of the same kind. In both runs a short interactive job is submitted four
times a second. The engine is the fake one, whose tokens are words and whose steps take `--step-ms`;
so its speed is the same on any machine, and only the worker's differs. `--model` uses a model with
random weights and a real tokenizer instead. The CPU time of a part includes the worker and its
engine; other work on the machine affects it less than the rate.

`--million` sends one document of 1,000,000 tokens and prints the memory over time.
"""

import argparse
import json
import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from benchmarks.engine.models import SHAPES
from benchmarks.pipeline import DATABASES, RAW, Road, cpu_seconds, python, worker
from benchmarks.pipeline_model import write_checkpoint

MEDIAN_WORDS = 800
SIGMA = 1.0
LONGEST_WORDS = 50_000
ONE_LONGEST_IN = 300
MILLION = 1_000_000
MAX_CONTEXT_TOKENS = 512
SAMPLE_SECONDS = 0.25


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=RAW)
    parser.add_argument("--documents", type=int, default=1000)
    parser.add_argument("--longest", type=int, default=LONGEST_WORDS, help="most words of a text")
    parser.add_argument("--quick", action="store_true", help="use a twentieth of the documents")
    parser.add_argument("--million", action="store_true", help="send one document of 1M tokens")
    parser.add_argument("--model", choices=("1m", "15m", "60m"), help="a model of this size")
    parser.add_argument("--threads", type=int, default=2, help="threads of the model's engine")
    parser.add_argument("--step-ms", type=float, default=5.0, help="time of a fake engine's step")
    parser.add_argument("--databases", nargs="+", choices=DATABASES, default=DATABASES)
    arguments = parser.parse_args()
    with Road.built() as road:
        model = {"max_sequences": 32, "max_input_tokens": MAX_CONTEXT_TOKENS}
        if arguments.model is None:
            fake = {"checkpoint": "fake", "engine": "fake"}
            model |= {**fake, "fake_step_seconds": arguments.step_ms / 1000}
        else:
            write_checkpoint(road.folder / "model", SHAPES[f"llama-{arguments.model}"])
            path = str(road.folder / "model")
            model |= {"checkpoint": path, "dtype": "float32", "threads": arguments.threads}
        lines = [f"{key} = {json.dumps(value)}" for key, value in model.items()]
        tasks = 'tasks = ["summarize", "generate"]'
        (road.folder / "tidemill.toml").write_text("\n".join(["[models.measured]", tasks, *lines]))
        if arguments.million:
            one_large(road, arguments.databases)
        else:
            number = arguments.documents // (20 if arguments.quick else 1)
            documents = road.folder / "documents.jsonl"
            num_words = write_documents(documents, max(number, 1), arguments.longest)
            print(f"{max(number, 1):,} documents, {num_words:,} words")
            against_plain_jobs(road, documents, arguments.databases)


def against_plain_jobs(road: Road, documents: Path, databases: list[str]) -> None:
    parts = road.folder / "parts.jsonl"
    config = str(road.folder / "tidemill.toml")
    producer = "benchmarks.documents_producer"
    num_parts = int(python(producer, "parts", config, str(documents), str(parts)))
    print(f"{num_parts:,} parts")
    print(
        f"{'database':11}{'sent as':11}{'parts/s':>9}{'of plain':>10}{'CPU ms a part':>15}"
        f"{'worker MiB, quarters':>29}{'peak':>6}{'interactive: longest, median':>31}"
    )
    for database in databases:
        rates: list[float] = []
        for name, path in (("plain jobs", parts), ("documents", documents)):
            environment = road.environment(database)
            with worker(environment) as process, memory_of_worker() as samples:
                ran = python(producer, "run", str(path), environment=environment)
                milliseconds = 1000 * sum(cpu_seconds(process)) / num_parts
            seconds, longest, median = map(float, ran.split())
            rates.append(num_parts / seconds)
            print(
                f"{database:11}{name:11}{rates[-1]:9,.1f}{rates[-1] / rates[0]:10.3f}"
                f"{milliseconds:15.2f}{quarters(samples):>29}{max(samples):6,.0f}"
                f"{longest:22.2f} s,{median:5.2f} s",
                flush=True,
            )


def one_large(road: Road, databases: list[str]) -> None:
    path = road.folder / "documents.jsonl"
    draw = random.Random(6)
    with path.open("w", encoding="utf-8") as file:
        # Words of at most three characters with the space: a text may have 4,000,000 characters.
        print(json.dumps({"text": text_of(draw, MILLION, 2)}), file=file)
    for database in databases:
        environment = road.environment(database)
        with worker(environment), memory_of_worker() as samples:
            ran = python("benchmarks.documents_producer", "run", str(path), environment=environment)
        seconds, longest, median = map(float, ran.split())
        print(
            f"{database}: {MILLION:,} tokens in {seconds:.1f} s, worker {quarters(samples)} MiB "
            f"(peak {max(samples):,.0f}); interactive: longest {longest:.2f} s, median {median:.2f}"
        )


def write_documents(path: Path, num_documents: int, most_words: int) -> int:
    """Write the documents as JSON lines with `text`; returns the number of words."""
    draw = random.Random(5)
    num_words = 0
    with path.open("w", encoding="utf-8") as file:
        for number in range(num_documents):
            drawn = int(draw.lognormvariate(0, SIGMA) * MEDIAN_WORDS)
            # The first is one of the longest, so that a small run has one, too.
            length = most_words if number % ONE_LONGEST_IN == 0 else min(drawn, most_words)
            num_words += max(length, 1)
            print(json.dumps({"text": text_of(draw, max(length, 1), 6)}), file=file)
    return num_words


def text_of(draw: random.Random, num_words: int, max_letters: int) -> str:
    """Make sentences of twelve words, in paragraphs of eight sentences."""
    letters = "abcdefghijklmnopqrstuvwxyz"
    words = []
    for at in range(1, num_words + 1):
        word = "".join(draw.choices(letters, k=draw.randint(1, max_letters)))
        is_last = at % 12 == 0
        first = word.capitalize() if at % 12 == 1 else word
        words.append(f"{first}{'.' if is_last else ''}{chr(10) * 2 if at % 96 == 0 else ' '}")
    return "".join(words).rstrip()


@contextmanager
def memory_of_worker() -> Iterator[list[float]]:
    """Sample the memory of the worker's own process, in MiB, within this context."""
    samples: list[float] = []
    ended = threading.Event()

    def sample() -> None:
        while not ended.wait(SAMPLE_SECONDS):
            for process in psutil.Process().children():
                try:
                    if "celery" in process.cmdline():
                        samples.append(process.memory_info().rss / 2**20)
                except psutil.Error:
                    pass  # it has ended meanwhile

    thread = threading.Thread(target=sample)
    thread.start()
    try:
        yield samples
    finally:
        ended.set()
        thread.join()


def quarters(samples: list[float]) -> str:
    """Return the peak in each quarter of the time; equal peaks mean that memory does not grow."""
    size = max(len(samples) // 4, 1)
    parts = [samples[at * size : (at + 1) * size if at < 3 else None] for at in range(4)]
    return ", ".join(f"{max(part):,.0f}" for part in parts if part)


if __name__ == "__main__":
    main()
