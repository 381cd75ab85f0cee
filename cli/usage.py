"""Usage errors in plain words: the expected value, and the nearest name."""

import difflib
import re
import shlex
import shutil
import sys
from pathlib import Path
from typing import Any

import typer
from typer.core import TyperCommand

CHOICES = re.compile(r"(.*) is not one of ('.*')\.", re.DOTALL)
KINDS = {"int": "a whole number", "float": "a number", "bool": "true or false"}


def program() -> str:
    """The command that a user types for `tidemill`: a path if the shell does not find it."""
    typed = sys.argv[0]
    if Path(typed).name != "tidemill" or shutil.which("tidemill"):
        return "tidemill"
    return shlex.quote(typed)


class Command(TyperCommand):
    """A command whose usage errors, found by pydantic, are in plain words."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        try:
            return super().parse_args(ctx, args)
        except typer.BadParameter as error:
            error.message = in_plain_words(error.message, _type_of(error.__cause__))
            raise


def in_plain_words(message: str, kind: str = "") -> str:
    """Rephrase a usage error. kind: pydantic's name of the fault, such as `int_parsing`"""
    message = message.removeprefix("Value error, ").removeprefix("Assertion failed, ")
    if (choices := CHOICES.fullmatch(message)) is not None:
        names = re.findall("'([^']*)'", choices[2])
        nearest = difflib.get_close_matches(choices[1].strip("'\""), names, n=1)
        hint = f"; did you mean {nearest[0]}?" if nearest else ""
        return f"{choices[1]} is not one of {', '.join(names)}{hint}"
    base, _, fault = kind.partition("_")
    if fault == "parsing" and base in KINDS:
        return f"must be {KINDS[base]}"
    return message.replace("Input should be", "must be").replace("Input should", "must")


def _type_of(cause: BaseException | None) -> str:
    errors = getattr(cause, "errors", None)  # pydantic's, without loading it for every command
    found = errors() if callable(errors) else ()
    return str(found[0]["type"]) if found else ""
