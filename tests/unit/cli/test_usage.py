"""The errors for mistyped commands."""

from pathlib import Path

import pytest

from cli.main import main
from cli.usage import in_plain_words, program

SAYS = {
    ("submit", "sumarize", "x"): "'sumarize' is not one of summarize, translate, generate, chat; "
    "did you mean summarize?",
    ("submit", "generate", "x", "--lane", "bulkk"): "'bulkk' is not one of interactive, bulk; "
    "did you mean bulk?",
    ("results", "--state", "zzz"): "'zzz' is not one of queued, running, succeeded, failed, "
    "cancelled, expired, all",
    ("submit", "generate", "x", "--priority", "high"): "must be a whole number",
    ("quality", "--hours", "all"): "must be a number",
    ("worker", "--metrics-port", "99999"): "must be less than or equal to 65535",
    ("keys", "list", "--nothing"): "No such option: --nothing",
    ("audit", "list", "--limit", "all"): "must be a whole number",
}


@pytest.mark.parametrize("arguments", SAYS)
def test_a_wrong_value_is_told_in_plain_words(
    arguments: tuple[str, ...], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    assert main(arguments) == 2
    shown = " ".join(capsys.readouterr().err.split())
    assert SAYS[arguments] in shown
    assert "Value error" not in shown
    assert "Input should" not in shown


def test_a_hint_is_given_only_where_a_name_is_near() -> None:
    message = "Value error, 'x' is not one of 'chat', 'generate'."
    assert in_plain_words(message) == "'x' is not one of chat, generate"
    assert in_plain_words("Field required") == "Field required"


def test_a_command_to_copy_is_typed_as_the_shell_finds_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed = tmp_path / "bin" / "tidemill"
    installed.parent.mkdir()
    installed.touch(0o755)
    monkeypatch.setattr("sys.argv", [".venv/bin/tidemill", "up"])
    monkeypatch.setenv("PATH", str(tmp_path))
    assert program() == ".venv/bin/tidemill"
    monkeypatch.setattr("sys.argv", ["/a folder/bin/tidemill", "up"])
    assert program() == "'/a folder/bin/tidemill'"
    monkeypatch.setenv("PATH", str(installed.parent))
    assert program() == "tidemill"
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("sys.argv", ["/code/cli/__main__.py", "up"])
    assert program() == "tidemill"
