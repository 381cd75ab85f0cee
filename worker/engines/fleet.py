"""EngineFleet: all engines of a worker, by the alias of their model."""

import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields
from typing import Any

from db.session import Database
from engine.protocol.engine_spec import EngineSpec
from engine.protocol.limits import AS_CONFIGURED
from engine.protocol.model_card import ModelCard
from engine.protocol.model_settings import ModelSettings
from tasks.configuration.catalog import Model
from worker.engines.cpu_count import threads_of_an_engine
from worker.engines.engine_client import EngineClient
from worker.engines.model_record import changed_files

log = logging.getLogger(__name__)


class EngineFleet:
    """Owns the engine processes of a worker, one or more for each model. Starts and stops once."""

    def __init__(self, database: Database, models: Sequence[Model]) -> None:
        self._database = database
        self._models = {model.alias: model for model in models}
        num_engines = sum(model.replicas for model in models)
        threads = threads_of_an_engine(num_engines)
        self._threads_reason = f"an equal share of the cores, with {num_engines} engines"
        self._replicas: dict[str, list[EngineClient]] = {
            model.alias: [
                EngineClient(engine_spec(model, threads, replica))
                for replica in range(model.replicas)
            ]
            for model in models
        }
        self.clients = tuple(client for each in self._replicas.values() for client in each)
        self._changed_weights: dict[str, dict[str, Any]] = {}  # by alias, see `changed_files`

    @property
    def aliases(self) -> tuple[str, ...]:
        """The models that this worker serves."""
        return tuple(self._replicas)

    def least_busy(self, alias: str) -> EngineClient | None:
        """The engine of a model that holds the fewest requests; None if the model is not served."""
        replicas = self._replicas.get(alias)
        return min(replicas, key=lambda client: client.num_held) if replicas else None

    def capacity(self) -> dict[str, int]:
        """The jobs of each model that a worker wants at hand: running, and as many waiting."""
        return {
            alias: sum(2 * (client.sized.spec.max_sequences or 0) for client in replicas)
            for alias, replicas in self._replicas.items()
        }

    # --- life ----------------------------------------------------------------------------------

    def start(self) -> None:
        """Load every model at once; if one cannot be loaded, stop them all and raise its error."""
        with ThreadPoolExecutor(max_workers=len(self.clients)) as pool:
            loading = [pool.submit(client.start) for client in self.clients]
        failed = [error for future in loading if (error := future.exception()) is not None]
        if failed:
            self.stop()
            raise failed[0]
        for client in self.clients:
            self._compare_weights(client.card)

    def stop(self) -> None:
        """End every engine process."""
        for client in self.clients:
            client.stop()

    def _compare_weights(self, card: ModelCard) -> None:
        """Log a warning if the weights differ from those of earlier answers."""
        changed = changed_files(self._database, card)
        if changed is not None:
            self._changed_weights[card.alias] = changed
            log.warning(
                "model changed",
                extra={
                    "model": card.alias,
                    "files": changed["files"],
                    "revision_before": changed["revision_before"],
                    "revision": card.revision,
                },
            )

    # --- reports -------------------------------------------------------------------------------

    def settings(self) -> list[dict[str, Any]]:
        """Each engine's card, its settings with reasons, and its requests; JSON-able.

        `requests` counts those that ran in flight and those that ran by `model.generate`.
        """
        return [
            {
                "model": client.spec.alias,
                "card": client.card.to_json(),
                "changed_weights": self._changed_weights.get(client.spec.alias),
                "settings": {
                    name: {"value": getattr(client.sized.spec, name), "reason": reason}
                    for name, reason in self._reasons_of(client).items()
                },
                "requests": {
                    "in_flight": client.progress.num_in_flight,
                    "by_generate": client.progress.num_by_generate,
                },
            }
            for client in self.clients
        ]

    def activity(self) -> list[dict[str, Any]]:
        """Each engine's process, queue and progress; JSON-able."""
        return [
            {
                "model": client.spec.alias,
                "pid": client.pid,
                "num_requests": client.num_held,
                "num_restarts": client.num_restarts,
                "max_rows": client.sized.spec.max_sequences,
                "max_cache_tokens": client.sized.spec.max_cache_tokens,
                **client.progress.to_json(),
            }
            for client in self.clients
        ]

    def _reasons_of(self, client: EngineClient) -> dict[str, str]:
        model = self._models[client.spec.alias]
        threads = self._threads_reason if model.threads is None else AS_CONFIGURED
        return {**client.sized.reasons, "threads": threads}


def engine_spec(model: Model, threads: int, replica: int = 0) -> EngineSpec:
    """The engine's part of a model's settings.

    threads: used if the model names no number
    replica: the number of the process, from 0
    """
    shared = {each.name: getattr(model, each.name) for each in fields(ModelSettings)}
    languages = dict.fromkeys(code for entry in model.languages for code in entry.split(">"))
    return EngineSpec(
        **{**shared, "threads": model.threads or threads},
        replica=replica,
        languages=tuple(languages),
    )
