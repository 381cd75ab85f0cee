"""Errors name the operation and the cause, and never quote a library."""

import pytest

from engine.errors import GenerationFailed, in_words

ERRORS = [
    ImportError("my secret"), ModuleNotFoundError("my secret"), OSError("my secret"),
    FileNotFoundError("my secret"), TimeoutError("my secret"), EOFError("my secret"),
    RecursionError("my secret"), AssertionError("my secret"), MemoryError("my secret"),
    LookupError("my secret"), FloatingPointError("my secret"), KeyError("my secret"),
    NotImplementedError("my secret"), RuntimeError("my secret"), ValueError("my secret"),
]  # fmt: skip


@pytest.mark.parametrize("error", ERRORS, ids=lambda each: type(each).__name__)
def test_the_cause_is_said_in_words_of_ours(error):
    said = str(GenerationFailed(error, "encoding the prompt"))
    assert f"raised {type(error).__name__} on this request while encoding the prompt: " in said
    assert "no reason given" not in said
    assert "secret" not in said


def test_the_narrower_kind_is_named():
    assert in_words(FileNotFoundError()) != in_words(OSError()) != in_words(RecursionError())
    assert in_words(RecursionError()) != in_words(RuntimeError())
