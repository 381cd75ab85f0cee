"""An estimate says what a run would be and enqueues nothing; it loads no model library."""

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from sentencepiece import SentencePieceProcessor
from tokenizers import Tokenizer

from db.reading.results import find_results
from db.session import Database
from tests.running.commands import ROOT, CommandLine
from tests.samples.jobs import answer, set_columns, succeed

MODELS = ROOT / "examples" / "models"
REAL = f"""
[models.summarizer]
checkpoint = "{MODELS}/summarizer"
tasks = ["summarize"]
max_input_tokens = 100

[models.translator]
checkpoint = "{MODELS}/translator"
tasks = ["translate"]
languages = ["en>fr"]
"""
NOON = datetime(2026, 1, 31, 12, tzinfo=UTC)
EVERYTHING = ("results", "--state", "all", "--format", "jsonl")
LANGUAGES = ("--source-language", "en", "--target-language", "fr")


@pytest.fixture
def database(stored: CommandLine, database_url: str) -> Iterator[Database]:
    database = Database(database_url)
    yield database
    database.close()


def answer_all(database: Database, tokens: tuple[int, int], seconds: float) -> None:
    """Answer what is queued, all side by side, in so many seconds."""
    queued = list(find_results(state="queued", database=database))
    said = replace(answer("a"), prompt_tokens=tokens[0], completion_tokens=tokens[1])
    for job in queued:
        succeed(database, job.id, said)
    ended = NOON + timedelta(seconds=seconds)
    set_columns(database, [job.id for job in queued], started_at=NOON, finished_at=ended)


def test_an_estimate_without_results_uses_usual_lengths_and_gives_no_time(
    stored: CommandLine,
) -> None:
    stored.write("a.jsonl", {"text": "x" * 400}, {"text": "y" * 200}, "{broken")

    ended = stored("submit", "summarize", "a.jsonl", "--estimate")
    asked = stored("submit", "summarize", "a.jsonl", "--estimate", "--json")

    assert (ended.status, asked.status) == (1, 1)  # a row is bad
    assert (
        "summarize with parrot: 2 documents, about 2 parts, about 150 tokens "
        "(at 4 characters a token, as is usual)"
    ) in ended.out
    assert "how long it takes is not known: there is no result of parrot yet" in ended.out
    assert "nothing was enqueued, 1 row would be left out" in ended.out
    assert (asked.json["documents"], asked.json["tokens"]) == (2, 150)
    assert (asked.json["seconds"], asked.json["num_bad"]) == (None, 1)
    assert stored(*EVERYTHING).out == ""
    assert stored("batches", "--json").json == []


def test_an_estimated_time_follows_the_measured_rate(
    stored: CommandLine, database: Database
) -> None:
    stored.write("a.jsonl", *({"text": "x" * 100, "custom_id": str(n)} for n in range(10)))
    assert stored("submit", "summarize", "a.jsonl").status == 0
    # 10 jobs of 100 characters: 50 tokens in, 10 out each; 600 tokens in 20 seconds.
    answer_all(database, (50, 10), seconds=20)
    stored.write("b.jsonl", {"text": "y" * 1000}, {"text": "z" * 4000})

    ended = stored("submit", "summarize", "b.jsonl", "--estimate")
    asked = stored("submit", "summarize", "b.jsonl", "--estimate", "--json").json

    assert ended.status == 0
    assert "about 2,500 tokens (at 2.0 characters a token, as in recent results)" in ended.out
    assert "about 2 min, at the 30 tokens/s of the last 10 results" in ended.out
    assert asked["seconds"] == 100.0  # 5,000 characters, 0.6 tokens each, 30 a second
    assert asked["models"][0]["tokens_per_second"] == 30.0


def test_an_estimate_names_the_jobs_that_wait_before_it(
    stored: CommandLine, database: Database
) -> None:
    stored.write("a.jsonl", {"text": "x" * 1000})
    assert stored("submit", "summarize", "a.jsonl").status == 0
    answer_all(database, (90, 10), seconds=10)
    assert stored("submit", "summarize", "a.jsonl").status == 0
    assert stored("submit", "summarize", "a.jsonl").status == 0

    ended = stored("submit", "summarize", "y" * 500, "--estimate")
    asked = stored("submit", "summarize", "y" * 500, "--estimate", "--json").json

    assert "2 jobs before it: about 20 s" in ended.out
    assert (asked["seconds"], asked["seconds_with_waiting"]) == (5.0, 25.0)


def test_tokens_are_counted_by_the_models_own_tokenizer(stored: CommandLine) -> None:
    (stored.folder / "tidemill.toml").write_text(REAL)
    text = "The mill at Larkness was busy on Monday. Nora Flint came for twelve sacks of rye. "
    stored.write("a.jsonl", {"text": text * 20})
    (stored.folder / "b.md").write_text("# Head\n\nThe ferry is late. Theodora sold two boats.\n")

    summary = stored("submit", "summarize", "a.jsonl", "--estimate", "--json").json
    letter = stored("submit", "translate", "b.md", "--estimate", "--json", *LANGUAGES).json

    tokenizer = Tokenizer.from_file(str(MODELS / "summarizer" / "tokenizer.json"))
    num_tokens = len(tokenizer.encode(text * 20).ids)
    assert summary["tokens"] == num_tokens
    assert summary["models"][0]["tokens_by"] == "counted by the model's tokenizer"
    assert summary["parts"] == -(-num_tokens // 100)
    processor = SentencePieceProcessor(model_file=str(MODELS / "translator" / "source.spm"))
    assert letter["tokens"] == len(processor.encode((stored.folder / "b.md").read_text()))
    assert letter["parts"] == 3


def test_an_estimate_assumes_parts_as_long_as_recent_ones(
    stored: CommandLine, database: Database
) -> None:
    config = stored.folder / "tidemill.toml"
    config.write_text(config.read_text().replace('"fake"', '"fake"\nmax_input_tokens = 64', 1))
    stored.write("a.jsonl", {"text": "x" * 1000})
    assert stored("submit", "summarize", "a.jsonl").status == 0
    [job] = find_results(state="queued", database=database)
    coverage = {"parts": 4, "source_characters": 1000, "strategy": "map_reduce"}
    succeed(database, job.id, replace(answer("a"), prompt_tokens=250, coverage=coverage))

    asked = stored("submit", "summarize", "y" * 2501, "--estimate", "--json").json

    assert asked["parts"] == 11  # 250 characters each


def test_an_estimate_counts_a_part_for_each_section(stored: CommandLine) -> None:
    (stored.folder / "a.md").write_text("".join(f"## {n}\n\nIt is here.\n\n" for n in range(7)))
    arguments = ("submit", "summarize", "a.md", "--estimate", "--json")

    assert stored(*arguments).json["parts"] == 1
    assert stored(*arguments, "--param", "by_section=true").json["parts"] == 7


def test_a_night_is_estimated_by_model_and_task(stored: CommandLine) -> None:
    stored.write("a.jsonl", {"text": "x" * 40})
    stored.write("b.jsonl", {"messages": [{"role": "user", "content": "y" * 80}]})
    (stored.folder / "n.toml").write_text(
        'run_key = "n-{date}"\n'
        '[[parts]]\ntask = "summarize"\nsource = { path = "a.jsonl" }\n'
        '[[parts]]\ntask = "chat"\nsource = { path = "b.jsonl" }\n'
    )

    ended = stored("nightly", "n.toml", "--estimate", "--json")

    assert ended.status == 0
    models = [(each["task"], each["tokens"]) for each in ended.json["models"]]
    assert models == [("summarize", 10), ("chat", 20)]
    assert stored(*EVERYTHING).out == ""


def test_an_estimate_loads_no_model_library(stored: CommandLine, tmp_path: Path) -> None:
    (stored.folder / "tidemill.toml").write_text(REAL)
    stored.write("a.jsonl", {"text": "The mill was busy."})
    script = (
        "import sys; from cli.main import main; "
        "status = main(['submit', 'summarize', 'a.jsonl', '--estimate', '--json']); "
        "print(status, sorted({'torch', 'transformers', 'tokenizers'} & set(sys.modules)))"
    )
    ended = subprocess.run(
        [sys.executable, "-c", script],
        cwd=stored.folder,
        env=stored.whole_environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    *_, last = ended.stdout.splitlines()
    assert last == "0 ['tokenizers']"
    assert json.loads(ended.stdout.rpartition("}")[0] + "}")["documents"] == 1
