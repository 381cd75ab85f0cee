"""`tidemill models`: what tidemill.toml names."""

from cli import options
from cli.terminal import note, print_table, table, write_json


def models(json: options.Json = False) -> None:
    """Show the models of tidemill.toml: their tasks, languages and limits."""
    from tasks import settings

    catalog = settings.catalog()
    if json:
        write_json([model.model_dump(mode="json") for model in catalog.models.values()])
        return
    made = table(
        "model", "checkpoint", "tasks", "languages", "device", "dtype", "replicas", "limits"
    )
    for model in catalog.models.values():
        limits = {
            "sequences": model.max_sequences,
            "step tokens": model.max_step_tokens,
            "input tokens": model.max_input_tokens,
            "new tokens": model.max_new_tokens,
        }
        made.add_row(
            model.alias,
            model.checkpoint + (f" @ {model.revision}" if model.revision else ""),
            ", ".join(model.tasks),
            ", ".join(model.languages) or ("any" if "translate" in model.tasks else ""),
            model.device,
            model.dtype,
            str(model.replicas),
            ", ".join(f"{limit:,} {what}" for what, limit in limits.items() if limit is not None),
        )
    print_table(made)
    note(f"from {catalog.path}")
