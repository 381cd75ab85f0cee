"""What is written like a path is never taken for a text without a word."""

from pathlib import Path

import pytest

from cli.ingest.argument import is_source, what_it_looks_like


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "txts").mkdir()
    (tmp_path / "my notes").mkdir()
    (tmp_path / "gate").touch()


@pytest.mark.parametrize(
    "text",
    [
        *("Hello.", "word", "word.", "...", "Hello", "What?", "**bold**", "f*ck", "3.14", "v1.2"),
        *("and/or", "km/h", "24/7", "i.e.", "No.", "~5", "@somebody", "é", "#1", "C:", "a:b"),
        *("", " ", "-", "x" * 9999, "a\x00b", "Read the file notes.txt", "See notes.txt\n"),
        *("One.\nTwo.txt", "The mill at /etc/mill", "~nobody-of-that-name and others"),
    ],
)
def test_a_plain_argument_is_a_text(text: str) -> None:
    assert what_it_looks_like(text) is None
    assert not is_source(text)


@pytest.mark.parametrize(
    ("text", "looks"),
    [
        ("txts", "a folder here"),
        ("txts/", "a folder here"),
        ("my notes", "a folder here"),
        (".", "a folder here"),
        ("~/txts", "a folder here"),
        ("gate", "a file here"),
        ("./gate", "a file here"),
        ("nosuch.txt", "there is none"),
        ("report.PDF", "there is none"),
        (".env.local", "there is none"),
        ("archive.tar.gz", "there is none"),
        ("nosuch/", "there is none"),
        ("./nosuch", "there is none"),
        ("../nosuch", "there is none"),
        ("~/nosuch", "there is none"),
        ("/nosuch/at/all", "there is none"),
        ("txts/nosuch", "there is none"),
        ("C:\\texts\\a", "there is none"),
        ("@notes.txt", "there is none"),
        ("*.txt", "a pattern"),
        ("nosuch/*", "a pattern"),
        ("txts/**/*.jsonl", "a pattern"),
        ("https://example.com/a", "an address"),
        ("file:///etc/hosts", "an address"),
        ("s3://bucket/a.jsonl", "an address"),
    ],
)
def test_an_argument_that_looks_like_a_source_is_recognised(text: str, looks: str) -> None:
    assert looks in (what_it_looks_like(text) or "")
    assert is_source(text)
