"""`tidemill models`: lists the models of tidemill.toml, and how live workers run them."""

from dataclasses import asdict
from typing import Any

from cli import options
from cli.output.terminal import note, plural, print_table, say, table, write_json

UNITS = {"max_sequences": "rows", "max_step_tokens": "tokens", "max_cache_tokens": "tokens"}


def models(json: options.Json = False) -> None:
    """Show the models of tidemill.toml, and the settings that live workers chose for them.

    Example: tidemill models --json | jq '.[].loaded[].settings'
    """
    from tasks.configuration import settings

    catalog = settings.catalog()
    loaded = engines_by_model()
    if json:
        write_json(
            [
                {**asdict(model), "loaded": loaded.get(alias, [])}
                for alias, model in catalog.models.items()
            ]
        )
        return
    listing = table("model", "checkpoint", "tasks", "languages", "device", "dtype", "replicas")
    for model in catalog.models.values():
        listing.add_row(
            model.alias,
            model.checkpoint + (f" @ {model.revision}" if model.revision else ""),
            ", ".join(model.tasks),
            ", ".join(model.languages) or ("any" if "translate" in model.tasks else ""),
            model.device,
            model.dtype if model.quantization == "none" else f"{model.dtype}, {model.quantization}",
            str(model.replicas),
        )
    print_table(listing)
    note(f"from {catalog.path}")
    if loaded:
        say("")
        print_table(_choices(loaded))
    else:
        note("no live worker has loaded one; what is left open is chosen then, and shown here")


def engines_by_model() -> dict[str, list[dict[str, Any]]]:
    """The engines of live workers by model; empty if the database cannot be used."""
    from db.errors import DatabaseError
    from db.queries import worker_registry
    from db.schema import require_current
    from tasks.configuration import settings
    from tasks.errors import TidemillError

    engines: dict[str, list[dict[str, Any]]] = {}
    try:
        database = settings.database()
        require_current(database)
    except (DatabaseError, TidemillError):
        return engines
    with database.read() as session:
        for worker in session.scalars(worker_registry.live_workers()):
            for engine in worker.engines or []:
                engines.setdefault(engine["model"], []).append({"worker": worker.name, **engine})
    return engines


def requests_by_way(engines: list[dict[str, Any]]) -> str:
    """How many requests ran in flight, and how many by `generate`."""
    ways = [engine.get("requests") or {} for engine in engines]  # an older worker counts none
    num_in_flight, num_by_generate = (
        sum(each.get(way, 0) for each in ways) for way in ("in_flight", "by_generate")
    )
    return (
        f"{plural(num_in_flight + num_by_generate, 'request')} so far: "
        f"{num_in_flight:,} in flight, {num_by_generate:,} by generate"
    )


def _choices(loaded: dict[str, list[dict[str, Any]]]) -> Any:
    """A table of each engine's settings and their reasons; equal engines share an entry."""
    listing = table("loaded", "setting", "value", "because")
    for alias, engines in loaded.items():
        rows: list[Any] = []
        for engine in engines:
            card, settings_of_engine = engine["card"], engine["settings"]
            if (card, settings_of_engine) in rows:
                continue
            rows.append((card, settings_of_engine))
            equal = [each for each in engines if (each["card"], each["settings"]) == rows[-1]]
            size = f"{card['num_parameters'] / 1e6:,.1f}M parameters"
            facts = f"{card['model_type']}, {size}, {card['dtype']}"
            listing.add_row(alias, "device", card["device"], facts)
            for name, setting in settings_of_engine.items():
                value = setting["value"]
                shown = f"{value:,} {UNITS.get(name, '')}" if isinstance(value, int) else str(value)
                listing.add_row("", name, shown.strip(), setting["reason"])
            if held := card.get("weights"):
                listing.add_row("", "weights", "", held)
            if changed := engine.get("changed_weights"):
                listing.add_row(
                    "",
                    "weights",
                    card.get("revision") or "",
                    f"changed since {changed['kept_at'][:16]}, when they were "
                    f"{changed['revision_before']}: {', '.join(changed['files'])}",
                )
            listing.add_row("", "requests", requests_by_way(equal), card.get("engine_reason") or "")
    return listing
