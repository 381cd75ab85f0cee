"""The compose file: what can be said of it without a Docker engine."""

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import redis
import yaml
from typer.main import get_command

from cli.main import app
from tests.services.servers import ONCE, free_port, valkey_binary, wait_for_redis
from worker.celery.envelope import MAX_BYTES

ROOT = Path(__file__).parents[2]
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
OURS = {name: service for name, service in SERVICES.items() if "build" in service}


def test_the_compose_file_has_every_service_of_a_deployment() -> None:
    assert {"redis", "postgres", "migrate", "worker-gpu", "worker-cpu"} == set(SERVICES)
    assert SERVICES["worker-gpu"]["profiles"] == ["gpu"]
    assert SERVICES["worker-cpu"]["profiles"] == ["cpu"]
    devices = SERVICES["worker-gpu"]["deploy"]["resources"]["reservations"]["devices"]
    assert devices[0]["capabilities"] == ["gpu"]


@pytest.mark.parametrize("name", OURS)
def test_each_tidemill_command_in_the_compose_file_exists(name: str) -> None:
    commands = get_command(app).commands  # type: ignore[attr-defined]  # a group
    assert OURS[name]["command"][0] in commands
    check = OURS[name].get("healthcheck", {}).get("test", ["CMD", "tidemill", "doctor"])
    assert check[:2] == ["CMD", "tidemill"]
    assert check[2] in commands


@pytest.mark.parametrize("name", OURS)
def test_each_tidemill_variable_in_the_compose_file_is_read(name: str) -> None:
    code = "".join(
        path.read_text() for part in ("db", "tasks", "cli") for path in (ROOT / part).rglob("*.py")
    )
    for variable in OURS[name]["environment"]:
        stem = variable.removeprefix("TIDEMILL_").lower()
        assert variable in code or f'"{stem}"' in code, variable


def test_a_worker_starts_when_the_tables_are_there_and_may_drain() -> None:
    from worker.settings import Settings

    for name in ("worker-gpu", "worker-cpu"):
        after = SERVICES[name]["depends_on"]
        assert after["migrate"]["condition"] == "service_completed_successfully"
        assert after["redis"]["condition"] == "service_healthy"
        grace_seconds = int(SERVICES[name]["stop_grace_period"].removesuffix("s"))
        assert grace_seconds > Settings().drain_seconds


def test_every_long_running_service_has_a_health_check() -> None:
    assert [name for name, each in SERVICES.items() if "healthcheck" not in each] == ["migrate"]


def test_redis_starts_with_the_compose_files_options_and_stores_data(tmp_path: Path) -> None:
    """The very arguments, given to a server that takes Redis's."""
    program, *arguments = [
        re.sub(r"\$\{REDIS_PASSWORD[^}]*\}", "secret", argument)
        for argument in SERVICES["redis"]["command"]
    ]
    assert program == "redis-server"
    port = free_port()
    with subprocess.Popen(
        [valkey_binary(), *arguments, "--port", str(port), "--dir", str(tmp_path)],
        stdout=subprocess.DEVNULL,
    ) as server:
        try:
            wait_for_redis(server, port, password="secret")
            with redis.Redis(port=port, password="secret", retry=ONCE) as client:
                assert client.config_get("appendonly") == {"appendonly": "yes"}
                assert client.config_get("maxmemory-policy") == {"maxmemory-policy": "noeviction"}
                with pytest.raises(redis.ConnectionError):  # it hangs up on whoever tries
                    client.lpush("celery", bytes(MAX_BYTES + 1))
                assert client.llen("celery") == 0
            with (
                redis.Redis(port=port, retry=ONCE) as stranger,
                pytest.raises(redis.AuthenticationError),
            ):
                stranger.ping()
        finally:
            server.kill()


def test_the_image_holds_every_package() -> None:
    dockerfile = (ROOT / "Dockerfile").read_text()
    copied = set(re.findall(r"^COPY (\w+) \1$", dockerfile, flags=re.MULTILINE))
    assert copied == {"cli", "db", "engine", "tasks", "worker"}
    assert 'ENTRYPOINT ["tidemill"]' in dockerfile
