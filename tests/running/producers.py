"""Makes the test's own process a producer for a given database, broker and set of models."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from kombu import pools

from tasks.app import app
from tasks.configuration import settings

Tables = Mapping[str, Mapping[str, Any]]

FAKE: dict[str, Any] = {
    "checkpoint": "fake",
    "engine": "fake",
    "tasks": ["summarize", "translate", "generate", "chat"],
}


def write_config(path: Path, models: Tables, worker: Mapping[str, Any] | None = None) -> Path:
    """A `tidemill.toml` with these models and this [worker] table."""
    lines = []
    for name, table in (*((f"models.{each}", models[each]) for each in models), ("worker", worker)):
        lines.append(f"[{name}]")
        # Strings, numbers, truth values and lists have the same form in JSON and TOML.
        lines += [f"{key} = {json.dumps(value)}" for key, value in (table or {}).items()]
    path.write_text("\n".join(lines) + "\n")
    return path


@contextmanager
def producing(database_url: str, broker_url: str, config: Path) -> Iterator[None]:
    """Within this context, `submit` and its like use this database and broker."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TIDEMILL_DATABASE_URL", database_url)
        patch.setenv("TIDEMILL_CONFIG", str(config))
        patch.setenv("TIDEMILL_REDIS_URL", broker_url)
        # Celery reads its settings once per process, and this variable every time.
        patch.setenv("CELERY_BROKER_URL", broker_url)
        forget_settings()
        try:
            yield
        finally:
            forget_settings()


def forget_settings() -> None:
    """Drop the settings that this process took from its environment; closes connections first."""
    if settings.database.cache_info().currsize:
        settings.database().close()
    settings.database.cache_clear()
    settings.catalog.cache_clear()
    # Celery would reuse the connection pools of its first broker.
    app._pool = app.amqp._producer_pool = None
    pools.reset()
