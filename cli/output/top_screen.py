"""Draws `tidemill top` as tables."""

from datetime import timedelta

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from cli.output.terminal import fitted, plural, table
from cli.stack.ready import start_command
from cli.stack.top_figures import EngineNow, Snapshot

# What is left out first where the terminal is narrow.
DISPENSABLE_OF_WORKERS = ("restarts", "waiting", "KV cache")
DISPENSABLE_OF_BACKLOG = ("oldest", "running")


def screen(snapshot: Snapshot, width: int) -> RenderableType:
    parts: list[RenderableType] = [Text(_headline(snapshot)), Text("")]
    if not snapshot.redis_answers:
        parts.append(Text("Redis does not answer, so what the workers do is not known", "red"))
    if snapshot.workers:
        parts.append(fitted(_workers(snapshot), width, DISPENSABLE_OF_WORKERS))
    else:
        parts.append(Text(f"workers: none is running; start one with {start_command()}"))
    parts.append(Text(""))
    if snapshot.backlog:
        parts.append(fitted(_backlog(snapshot), width, DISPENSABLE_OF_BACKLOG))
    else:
        parts.append(Text("backlog: nothing waits"))
    return Group(*parts)


def _headline(snapshot: Snapshot) -> str:
    num_queued = sum(each.num_queued for each in snapshot.backlog)
    num_running = sum(each.num_running for each in snapshot.backlog)
    return ", ".join(
        [
            plural(len(snapshot.workers), "worker"),
            f"{num_running:,} running",
            f"{num_queued:,} queued",
            f"{snapshot.tokens_per_second:,.0f} tokens/s",
            f"ETA {duration(snapshot.eta_seconds)}",
        ]
    )


def duration(seconds: float | None) -> str:
    """Seconds as `1:02:03`; a dash if unknown."""
    return "-" if seconds is None else str(timedelta(seconds=round(seconds)))


def _workers(snapshot: Snapshot) -> Table:
    listing = table("worker", "model", "rows", "KV cache", "waiting", "tokens/s", "restarts")
    _right(listing, 2)
    for worker in snapshot.workers:
        name = f"{worker.name}{' (leads)' if worker.leads else ''}"
        if not worker.answers:
            listing.add_row(name, "does not answer", "", "", "", "", "")
        for engine in worker.engines:
            listing.add_row(
                name,
                engine.model,
                f"{engine.num_rows:,} of {engine.max_rows or 0:,}",
                _cache(engine),
                f"{engine.num_waiting:,}",
                f"{engine.tokens_per_second:,.0f}",
                f"{engine.num_restarts:,}",
            )
            name = ""
    return listing


def _cache(engine: EngineNow) -> str:
    if not engine.max_cache_tokens:
        return "-"
    return f"{engine.num_cache_tokens / engine.max_cache_tokens:.0%}"


def _backlog(snapshot: Snapshot) -> Table:
    listing = table("backlog", "lane", "queued", "running", "tokens", "oldest")
    _right(listing, 2)
    for each in snapshot.backlog:
        listing.add_row(
            each.model,
            each.lane,
            f"{each.num_queued:,}",
            f"{each.num_running:,}",
            f"{each.num_tokens:,}",
            duration(each.oldest_seconds) if each.num_queued else "-",
        )
    return listing


def _right(listing: Table, since: int) -> None:
    for column in listing.columns[since:]:
        column.justify = "right"
        column.no_wrap = True  # half of a number is another number
