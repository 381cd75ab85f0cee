"""A Redis or a database that is open to strangers is told from a protected one."""

import shlex
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from sqlalchemy import make_url

from cli.stack.exposure import database_exposure, redis_exposure


@pytest.mark.parametrize(
    ("url", "settings", "is_open"),
    [
        ("redis://127.0.0.1:6379/0", {}, False),
        ("redis://[::1]:6379/0", {}, False),
        ("redis://localhost/0", {"bind": "127.0.0.1 -::1", "protected-mode": "yes"}, False),
        ("redis://localhost/0", {"bind": "0.0.0.0", "protected-mode": "no"}, True),
        ("redis://localhost/0", {"bind": "* -::*", "protected-mode": "no"}, True),
        ("redis://localhost/0", {"bind": "", "protected-mode": "no"}, True),
        ("redis://localhost/0", {"bind": "* -::*", "protected-mode": "yes"}, False),
        ("redis://:secret@localhost/0", {"bind": "0.0.0.0", "protected-mode": "no"}, False),
        ("redis://10.0.0.7:6379/0", {}, True),
        ("redis://redis:6379/0", {}, True),
        ("rediss://redis.example:6379/0", {}, True),
        ("redis://:secret@10.0.0.7:6379/0", {}, False),
        ("redis://user:secret@redis.example/0", {}, False),
        ("rediss://redis.example/0?ssl_certfile=/own.pem", {}, False),
        ("rediss://:secret@redis.example/0?ssl_cert_reqs=none", {}, True),
        ("rediss://:secret@redis.example/0?ssl_cert_reqs=required", {}, False),
        ("rediss://:secret@127.0.0.1/0?ssl_cert_reqs=none", {}, False),
    ],
)
def test_the_exposure_of_a_redis_is_reported(
    url: str, settings: dict[str, str], is_open: bool
) -> None:
    assert (redis_exposure(url, settings) is not None) is is_open


@pytest.mark.parametrize(
    ("url", "environment", "is_open"),
    [
        ("sqlite:////tmp/x.db", {}, False),
        ("postgresql://u@localhost/x", {}, False),
        ("postgresql:///x?host=/run/postgresql", {}, False),
        ("postgresql://u@db.example/x", {}, True),
        ("postgresql+psycopg://u@10.0.0.7:5432/x", {}, True),
        ("postgresql:///x?host=localhost,db.example", {}, True),
        ("postgresql://u:secret@db.example/x", {}, False),
        ("postgresql://u@db.example/x", {"PGPASSWORD": "secret"}, False),
        ("postgresql://u@db.example/x?sslcert=own.pem", {}, False),
    ],
)
def test_an_exposed_database_is_reported(
    url: str, environment: dict[str, str], is_open: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", "/nonexistent")
    sentence = database_exposure(make_url(url), environment)
    assert (sentence is not None) is is_open
    assert "secret" not in (sentence or "")


@pytest.mark.parametrize(
    ("of_file", "of_folder", "is_open"),
    [(0o644, 0o755, True), (0o640, 0o755, False), (0o644, 0o750, False), (0o602, 0o711, True)],
)
def test_a_database_file_that_everybody_may_read_is_reported(
    of_file: int, of_folder: int, is_open: bool
) -> None:
    # Not in the tests' folder, which other users cannot enter.
    with TemporaryDirectory(dir="/tmp") as name:
        folder = Path(name)
        file = folder / "it's.db"
        file.touch()
        file.chmod(of_file)
        folder.chmod(of_folder)
        sentence = database_exposure(make_url(f"sqlite:///{file}"), {})
        assert (sentence is not None) is is_open
        assert sentence is None or f"""chmod o-rwx {shlex.quote(str(file))}*""" in sentence
        assert database_exposure(make_url(f"sqlite:///{folder}/none.db"), {}) is None
