"""Errors of the engine process.

EngineError
├── SpecError                 the settings of a model contradict themselves
├── Unloadable                the checkpoint cannot be served: one sentence for a person
├── EngineBroken              the device or process is beyond repair: the process ends
├── InvariantBroken           our own mistake
└── RequestError              one request fails, alone; code, message, retryable
    ├── EmptyPrompt           empty_prompt
    ├── PromptTooLong         prompt_too_long
    │   └── TextTooLong       the same, by its characters
    ├── OutputTooLong         output_too_long
    ├── UnknownLanguage       unknown_language
    ├── UnsupportedParameter  unsupported_parameter
    ├── NoChatTemplate        no_chat_template
    ├── SchemaTooComplex      schema_too_complex
    ├── GenerationFailed      generation_failed
    ├── TokenOutOfRange       token_out_of_range
    └── OutOfMemory           out_of_memory, retryable

A message never holds the user's text.
"""

from __future__ import annotations

import traceback
from collections.abc import Iterable
from pathlib import Path
from typing import ClassVar

MAX_LISTED = 12  # languages named in a message


class EngineError(Exception):
    """Base of the errors that this package raises on purpose."""


class SpecError(EngineError):
    pass


class Unloadable(EngineError):
    pass


class EngineBroken(EngineError):
    pass


class InvariantBroken(EngineError):
    pass


class RequestError(EngineError):
    code: ClassVar[str]
    retryable: ClassVar[bool] = False


class EmptyPrompt(RequestError):
    code = "empty_prompt"

    def __init__(self, reason: str = "the text is empty") -> None:
        super().__init__(f"{reason}; there is nothing to give the model")


class PromptTooLong(RequestError):
    code = "prompt_too_long"

    def __init__(
        self, num_tokens: int, max_tokens: int, remedy: str, is_at_least: bool = False
    ) -> None:
        """is_at_least: whether `num_tokens` is a lower bound"""
        self.num_tokens, self.max_tokens = num_tokens, max_tokens
        at_least = "at least " if is_at_least else ""
        super().__init__(
            f"the prompt has {at_least}{num_tokens} tokens; this model takes {max_tokens}; {remedy}"
        )


class TextTooLong(PromptTooLong):
    """A text that has few tokens for its length, most of which was not tokenized."""

    def __init__(
        self, num_tokens: int, num_characters: int, max_tokens: int, max_characters: int
    ) -> None:
        """num_tokens: a lower bound, which may be within `max_tokens`"""
        super().__init__(
            num_tokens,
            max_tokens,
            f"of its {num_characters} characters at most {max_characters} are tokenized; shorten "
            "or split the text",
            is_at_least=True,
        )


class OutputTooLong(RequestError):
    code = "output_too_long"

    def __init__(self, name: str, num_tokens: int, max_tokens: int, reason: str) -> None:
        super().__init__(
            f"{name} asks for {num_tokens} tokens; at most {max_tokens} can be written {reason}"
        )


class UnknownLanguage(RequestError):
    code = "unknown_language"

    def __init__(self, name: str, language: str | None, languages: Iterable[str]) -> None:
        listed = sorted(languages)
        names = ", ".join(listed[:MAX_LISTED])
        if len(listed) > MAX_LISTED:
            names += f" and {len(listed) - MAX_LISTED} more"
        # A code is short; anything longer is text that strayed into the field.
        shown = "missing" if language is None else repr(language[:24])
        super().__init__(f"{name} is {shown}; this model knows {names or 'no languages'}")


class UnsupportedParameter(RequestError):
    code = "unsupported_parameter"

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(f"{name}: {reason}")


class NoChatTemplate(RequestError):
    code = "no_chat_template"

    def __init__(self, alias: str) -> None:
        super().__init__(
            f"model {alias!r} has no chat template; use a chat model, "
            "or the task generate with a plain text"
        )


class SchemaTooComplex(RequestError):
    code = "schema_too_complex"

    def __init__(self) -> None:
        super().__init__(
            "json_schema is too complex to hold an answer to; make it smaller, with shorter "
            "patterns and fewer alternatives"
        )


class GenerationFailed(RequestError):
    code = "generation_failed"

    def __init__(self, error: BaseException, doing: str) -> None:
        """doing: the activity that failed, as in `reading the prompt`"""
        super().__init__(
            f"the model raised {type(error).__name__} on this request while {doing}: "
            f"{in_words(error)}"
        )


class TokenOutOfRange(RequestError):
    code = "token_out_of_range"

    def __init__(self, token_id: int, num_ids: int) -> None:
        super().__init__(
            f"the tokenizer gave the token id {token_id}, and the model has the ids 0 to "
            f"{num_ids - 1}; use the tokenizer that belongs to the model, or widen its embedding"
        )


def in_words(error: BaseException) -> str:
    """The type and place of an error, without its message, which may quote the prompt."""
    kinds = {
        IndexError: "a token or position is outside a table",
        KeyError: "a name or token is not known",
        LookupError: "something is not to be found",
        UnicodeError: "bytes are no text",
        TypeError: "a value of another type, or none, came where one is needed",
        ValueError: "a value that it does not take",
        AttributeError: "a part that it needs is not there",
        NotImplementedError: "it does not support this",
        OverflowError: "a number is too large",
        ZeroDivisionError: "a division by zero",
        ArithmeticError: "a number without a value",
        ImportError: "a package that it needs is not installed",
        FileNotFoundError: "a file that it needs is not there",
        TimeoutError: "something did not answer in time",
        EOFError: "a file or a connection ended too early",
        OSError: "a file or a device could not be used",
        RecursionError: "it calls itself without an end",
        AssertionError: "what it takes for granted does not hold",
        MemoryError: "there is not enough memory",
        RuntimeError: "a computation could not be run",
    }
    words = next(
        (each for kind, each in kinds.items() if isinstance(error, kind)), "no reason given"
    )
    frames = traceback.extract_tb(error.__traceback__)
    return (
        f"{words} (in {frames[-1].name} of {Path(frames[-1].filename).name})" if frames else words
    )


class OutOfMemory(RequestError):
    code = "out_of_memory"
    retryable = True

    def __init__(self, num_rows: int, num_tokens: int) -> None:
        super().__init__(
            f"the device ran out of memory on this request alone "
            f"({num_rows} rows, a prompt of {num_tokens} tokens); use fewer beams or a shorter "
            "text, or a model with a smaller dtype"
        )
