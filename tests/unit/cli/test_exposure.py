"""The doctor distinguishes a Redis or database that is open to strangers from a protected one."""

import json
import re
import shlex
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from sqlalchemy import make_url
from typer.testing import CliRunner

from cli.commands.look_after.doctor import Finding
from cli.main import app
from cli.stack.exposure import database_exposure, database_tls_weakness, redis_exposure
from cli.stack.local_host import is_local


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
        ("rediss://:secret@redis.example/0?ssl_cert_reqs=optional", {}, False),
        ("rediss://:secret@redis.example/0?ssl_check_hostname=false", {}, True),
        ("rediss://:secret@redis.example/0?ssl_check_hostname=true", {}, False),
        ("rediss://:secret@localhost/0?ssl_check_hostname=false", {}, False),
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
        # libpq uses the last host in the URL, or that of a variable; an address takes precedence.
        ("postgresql://u@localhost/x?host=db.example", {}, True),
        ("postgresql:///x", {"PGHOST": "db.example"}, True),
        ("postgresql:///x", {}, False),
        ("postgresql://u@localhost,127.0.0.1/x", {}, False),
        ("postgresql:///x?host=localhost:5432&host=127.0.0.1:5433", {}, False),
        ("postgresql:///x?host=localhost:5432&host=db.example:5433", {}, True),
        ("postgresql://u@db.example/x?hostaddr=127.0.0.1", {}, False),
        ("postgresql://u@localhost/x?hostaddr=10.0.0.7", {}, True),
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
    ("host", "is_so"),
    [
        *((None, True), ("", True), ("/run/postgresql", True), ("@abstract", True)),
        *(("LocalHost.", True), ("127.0.0.2", True), ("::1", True), ("[::1]", True)),
        *(("::ffff:127.0.0.1", True), ("0:0:0:0:0:0:0:1", True), ("::ffff:10.0.0.1", False)),
        *(("fe80::1%eth0", False), ("10.0.0.1", False), ("localhost.example", False)),
    ],
)
def test_a_host_is_this_machine_or_another(host: str | None, is_so: bool) -> None:
    assert is_local(host) is is_so


REMOTE = "postgresql://u:secret@db.example/x"


@pytest.mark.parametrize(
    ("url", "environment", "says"),
    [
        ("sqlite:////tmp/x.db", {}, None),
        # A connection within this machine cannot be intercepted.
        ("postgresql://u:secret@localhost/x", {}, None),
        ("postgresql://u:secret@[::1]/x?sslmode=disable", {}, None),
        ("postgresql:///x?host=/run/postgresql", {"PGSSLMODE": "disable"}, None),
        # By default libpq encrypts only if the server offers it.
        (REMOTE, {}, "only if the server offers it"),
        (f"{REMOTE}?sslmode=", {}, "sslmode prefer"),
        (f"{REMOTE}?sslmode=prefer", {}, "only if the server offers it"),
        (f"{REMOTE}?sslmode=disable", {}, "is not encrypted: whoever is between"),
        (f"{REMOTE}?sslmode=allow", {}, "unless the server insists"),
        (f"{REMOTE}?sslmode=require", {}, "but the server's certificate is not checked"),
        (f"{REMOTE}?sslmode=require&sslrootcert=/ca.pem", {}, "for whichever name"),
        (f"{REMOTE}?sslmode=verify-ca", {}, "for whichever name"),
        (f"{REMOTE}?sslmode=verify-full", {}, None),
        (f"{REMOTE}?sslmode=nonsense", {}, None),  # libpq refuses it
        # The URL takes precedence over the environment.
        (REMOTE, {"PGSSLMODE": "verify-full"}, None),
        (REMOTE, {"PGSSLMODE": "require"}, "sslmode require"),
        (f"{REMOTE}?sslmode=verify-full", {"PGSSLMODE": "disable"}, None),
        (f"{REMOTE}?sslmode=require", {"PGSSLMODE": "verify-full"}, "sslmode require"),
        # With the system's authorities, host names are checked by default.
        (f"{REMOTE}?sslrootcert=system", {}, None),
        (REMOTE, {"PGSSLROOTCERT": "system"}, None),
        (f"{REMOTE}?sslrootcert=/ca.pem", {}, "only if the server offers it"),
        # Other ways to authenticate the server.
        (f"{REMOTE}?sslmode=require&channel_binding=require", {}, None),
        (REMOTE, {"PGCHANNELBINDING": "require"}, None),
        (f"{REMOTE}?gssencmode=require", {}, None),
        # Any of several hosts may be the one that is used.
        ("postgresql://u:secret@localhost,db.example/x", {}, "the connection to db.example is"),
        ("postgresql:///x?host=a.example:1&host=b.example:2", {}, "to a.example, b.example is"),
        ("postgresql:///x", {"PGHOST": "db.example"}, "the connection to db.example is"),
        (f"{REMOTE}?hostaddr=127.0.0.1", {}, None),
        (
            "postgresql://u:secret@localhost/x?hostaddr=10.0.0.7",
            {},
            "the connection to localhost is",
        ),
        ("postgresql://u:secret@/x?hostaddr=10.0.0.7", {}, "the connection to 10.0.0.7 is"),
    ],
)
def test_a_database_connection_that_others_can_read_or_impersonate_is_reported(
    url: str, environment: dict[str, str], says: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", "/nonexistent")
    sentence = database_tls_weakness(make_url(url), environment)
    if says is None:
        assert sentence is None
    else:
        assert sentence is not None
        assert re.search(says, sentence), sentence
        assert "give sslmode=verify-full and its authority's certificate file" in sentence
        assert "secret" not in sentence


def test_a_service_file_takes_precedence_over_the_environment(
    tmp_path: Path,
) -> None:
    file = tmp_path / "services.conf"
    file.write_text(
        "# of ours\n[open]\nhost=db.example\nsslmode=require\n\n"
        "[closed]\nhost=db.example\nsslmode=verify-full\npassword=100%\n"
    )
    environment = {"PGSERVICEFILE": str(file), "PGSSLMODE": "disable"}

    def weakness(url: str, **more: str) -> str | None:
        return database_tls_weakness(make_url(url), environment | more)

    assert "sslmode require" in (weakness("postgresql:///x?service=open") or "")
    assert weakness("postgresql:///x?service=closed") is None
    assert weakness("postgresql:///x", PGSERVICE="closed") is None
    assert weakness("postgresql:///x?service=none") is None  # and no host: a socket
    assert "sslmode allow" in (weakness("postgresql:///x?service=closed&sslmode=allow") or "")


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


def test_a_warning_is_shown_as_one_and_leaves_the_status_at_0(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The command is a container's health check, and the container's network may be private."""
    findings = [Finding("database", True, "is at revision 1")]
    findings.append(Finding("access", True, "the way to db.example is open", is_warning=True))
    monkeypatch.setattr("cli.commands.look_after.doctor.examine", lambda: findings)
    shown = CliRunner().invoke(app, ["doctor"])
    assert (shown.exit_code, "WARN   access    the way to" in shown.output) == (0, True)
    written = json.loads(CliRunner().invoke(app, ["doctor", "--json"]).output)
    assert [(each["ok"], each["warning"]) for each in written] == [(True, False), (True, True)]
    findings.append(Finding("redis", False, "is away"))
    assert CliRunner().invoke(app, ["doctor"]).exit_code == 1
