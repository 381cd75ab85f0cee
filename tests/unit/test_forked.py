"""A fork ends as a program that was started would, and is a new interpreter where it must be."""

import os
import signal
import subprocess
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests import checkpoints
from tests.forking.fork_server import Imported, Kind
from tests.forking.forked import MODULE, ROOT, ForkedProcess
from tests.running.workers import Cluster, on_sqlite

ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT)}


def forked(*command: str, **arguments: Any) -> ForkedProcess:
    return ForkedProcess(
        [*MODULE, *command],
        **{"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        | {"env": ENVIRONMENT}
        | arguments,
    )


def is_fork(process: psutil.Process) -> bool:
    """Of what became a new interpreter, the arguments are its own."""
    return "tests.forking.fork_server" in process.cmdline()


@pytest.mark.parametrize(
    ("command", "status", "said"),
    [(["base64", "-t"], 0, "Aladdin"), (["json.tool"], 1, "Expecting value")],
)
def test_a_fork_returns_the_modules_exit_status_and_output(
    command: list[str], status: int, said: str, tmp_path: Path
) -> None:
    with forked(*command, cwd=tmp_path, stdin=subprocess.DEVNULL) as process:
        out, _ = process.communicate(timeout=60)
    assert process.poll() == status
    assert said in out


def test_a_fork_reads_its_input_in_its_own_folder(tmp_path: Path) -> None:
    with forked("json.tool", "-", "made.json", cwd=tmp_path, stdin=subprocess.PIPE) as process:
        process.communicate('{"a": 1}', timeout=60)
    assert (tmp_path / "made.json").read_text() == '{\n    "a": 1\n}\n'


def test_a_signal_reaches_the_forked_module() -> None:
    with forked("http.server", "--bind", "127.0.0.1", "0") as process:
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.01)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == -signal.SIGTERM


def test_a_module_on_another_path_runs_in_a_new_interpreter() -> None:
    environment = {**ENVIRONMENT, "PYTHONPATH": f"{ROOT}:/elsewhere"}
    with forked("site", env=environment) as process:
        out, _ = process.communicate(timeout=60)
    assert "/elsewhere" in out


def test_a_variable_that_an_import_has_read_must_be_unchanged() -> None:
    kind = Kind(modules=(), read_again={}, native=("NATIVE_",))
    imported = Imported(kind, {"READ", "ABSENT"}, {"READ": "one", "UNREAD": "one"})
    assert imported.others({"READ": "one", "UNREAD": "two"}) == set()
    assert imported.others({"READ": "two"}) == {"READ"}
    assert imported.others({}) == {"READ"}
    added = {"READ": "one", "ABSENT": "", "PYTHONPATH": "somewhere", "NATIVE_THREADS": "1"}
    assert imported.others(added) == {"ABSENT", "PYTHONPATH", "NATIVE_THREADS"}


@on_sqlite
def test_a_worker_and_its_engines_are_forks(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As joblib and torch do, in a process of tests that has imported them.
    monkeypatch.setenv("KMP_INIT_AT_FORK", "FALSE")
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(cluster.folder))
    folder = checkpoints.build("gpt2", cluster.folder / "gpt2")
    model = {"checkpoint": str(folder), "tasks": ["generate"], "device": "cpu", "threads": 1}
    fake = {"checkpoint": "fake", "engine": "fake", "tasks": ["chat"]}
    cluster.configure_models({"real": model, "fake": fake})
    with cluster.worker() as worker:
        children = worker.children
        assert len(children) == 2
        assert all(map(is_fork, [psutil.Process(worker.pid), *children]))


def test_a_fork_of_the_engines_runs_its_own_number_of_threads() -> None:
    setup = "import torch; from torch import ones; assert torch.get_num_threads() == 2"
    command = (
        "timeit",
        "-n1",
        "-r1",
        "-s",
        setup,
        "assert (ones(900, 900) @ ones(900, 900) == 900).all()",
    )
    environment = {**ENVIRONMENT, "OMP_NUM_THREADS": "2"}
    with forked(*command, env=environment, needs_model=True) as process:
        assert is_fork(psutil.Process(process.pid))
        out, _ = process.communicate(timeout=60)
    assert process.returncode == 0, out
