import re
import subprocess
import sys
from pathlib import Path

import pytest
from sqlalchemy.exc import OperationalError
from typer.main import get_command

from cli.commands.start.worker import celery_command
from cli.failure import sentence_of
from cli.main import app, main
from db.connection.url_redaction import masked


def run_python(program: str) -> str:
    return subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    ).stdout


def test_help_waits_for_no_heavy_library() -> None:
    modules = run_python("import sys, cli.main; print(*sys.modules)").split()

    assert "typer" in modules
    assert not {"celery", "sqlalchemy", "pyarrow", "redis", "pydantic", "torch"} & set(modules)


def test_no_command_loads_a_model_library_or_a_worker() -> None:
    root = Path(__file__).parents[3]
    files = [path.relative_to(root).with_suffix("") for path in root.joinpath("cli").rglob("*.py")]
    imports = ", ".join(
        ".".join(file.parts) for file in files if file.stem not in ("__main__", "__init__")
    )
    modules = run_python(f"import sys, {imports}; print(*sys.modules)").split()

    assert "cli.stack.local_stack" in modules
    assert not {"torch", "transformers", "worker"} & set(modules)


@pytest.mark.parametrize("command", [command.name for command in app.registered_commands])
def test_every_help_has_an_example(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command, "--help"]) == 0
    assert "Example:" in capsys.readouterr().out


def test_no_help_has_a_name_in_brackets_which_markup_would_hide() -> None:
    commands = [get_command(app)]
    for command in commands:
        commands += getattr(command, "commands", {}).values()
        texts = [command.help, *(getattr(each, "help", None) for each in command.params)]
        assert not [text for text in texts if re.search(r"\[[a-z]+\]", text or "")], command.name
    assert len(commands) > len(app.registered_commands)


@pytest.mark.parametrize(
    "arguments",
    [
        ["dance"],
        ["submit", "dance", "x"],
        ["submit", "summarize"],
        ["submit", "summarize", "x", "--file", "y.jsonl"],
        ["submit", "summarize", "x", "--param", "nothing"],
        ["submit", "summarize", "x", "--field", "text=body"],
        ["submit", "summarize", "--file", "x.jsonl", "--custom-id", "a"],
        ["submit", "summarize", "--file", "-", "--strict"],
        ["results", "--since", "yesterday"],
        ["results", "--after", "nowhere"],
        ["results", "-o", "x"],
        ["results", "-o", "x.csv", "--format", "table"],
        ["results", "-o", "/nowhere/x.csv"],
        ["results", "-o", "/tmp", "--format", "csv"],
        ["show", "doc-7"],
        ["cancel"],
        ["retry", "--state", "succeeded"],
    ],
)
def test_wrong_usage_is_status_2_and_a_sentence(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    shown_on = capsys.readouterr()
    assert shown_on.out == ""
    assert "Traceback" not in shown_on.err
    assert "Usage:" in shown_on.err


def test_without_settings_a_command_says_what_to_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for variable in ("DATABASE_URL", "REDIS_URL", "CONFIG"):
        monkeypatch.delenv(f"TIDEMILL_{variable}", raising=False)

    assert main(["models"]) == 1
    assert "TIDEMILL_CONFIG" in capsys.readouterr().err


def test_an_unforeseen_error_is_still_a_sentence() -> None:
    assert "ZeroDivisionError" in sentence_of(ZeroDivisionError("secret"))
    assert "secret" not in sentence_of(ZeroDivisionError("secret"))
    failed = OperationalError("SELECT secret", {}, Exception("disk is full\nand more"))
    assert sentence_of(failed) == "the database failed: disk is full"


def test_an_address_in_an_error_has_no_password() -> None:
    assert masked("redis://:secret@host:1/0") == "redis://:***@host:1/0"
    assert masked("redis://me:secret@host:1/0") == "redis://me:***@host:1/0"
    assert masked("redis://host:1/0") == "redis://host:1/0"


def test_a_worker_is_celery_s_own() -> None:
    command = celery_command("here", concurrency=3)

    python = command.index("-A")
    assert command[:python] == [sys.executable, "-P", "-m", "cli.stack.celery_main"]
    assert command[python : python + 3] == ["-A", "tasks", "worker"]
    assert command[-2:] == ["--concurrency", "3"]
    assert "here@%h" in command
    assert not {"-P", "--pool"} & set(command[python:])  # the app's settings choose it
