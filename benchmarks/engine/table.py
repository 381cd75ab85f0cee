"""Make tables from records: medians over the rounds with their range.

    python -m benchmarks.engine.table [--short] FILE...

Ratios are of two processes of the same round, which ran minutes apart at most; the table has their
median and range. `engine` is the speed of our engine (`inflight`, with as many rows and the same
weights) divided by that of the side; `one` is the speed of the side divided by that of `one`.
`--short` gives one line for each model, with the speed of the engine divided by that of each side;
for a side that is our engine with rounded weights, its speed divided by that of `one`.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Iterable
from itertools import groupby
from pathlib import Path

from benchmarks.engine.models import SHAPES
from benchmarks.engine.record import Record, read
from benchmarks.engine.sides import SIDES

ENGINE = "inflight"
ALONE = "one"
NO_ROWS = 1  # for the side `one`
MIB = 1024**2
COLUMNS = (
    f"| {'side':52} | rows | {'tokens/s':>21} | {'one':>17} | {'engine':>17} | {'identical':>15} "
    f"| used | first s | {'peak MiB':>11} | limit |"
)


def tables(records: Iterable[Record]) -> str:
    """Return a table for each model and each setting of serving it."""
    sides, models = list(SIDES), list(SHAPES)
    kept = sorted(
        records,
        key=lambda each: (
            models.index(each.model), setting_of(each), sides.index(each.side), each.rows,
        ),
    )  # fmt: skip
    return "\n".join(table(list(part)) for _, part in groupby(kept, key=setting_of))


def setting_of(record: Record) -> tuple[str, str, int, str, str, int, int, str]:
    return (
        record.model, record.feed, record.beams, record.dtype, record.device,
        record.threads, record.num_drawn, record.clock,
    )  # fmt: skip


def short(records: Iterable[Record]) -> str:
    """Return one table: a line for each model and setting, a column for each side."""
    kept = sorted(records, key=lambda each: (list(SHAPES).index(each.model), setting_of(each)))
    present = {each.side for each in kept}
    sides = [each for each in SIDES if each in present and each != ENGINE]
    lines = ["| model | n | tokens/s | " + " | ".join(sides) + " | limit | peak MiB |"]
    lines.append("|" + " --- |" * (len(sides) + 5))
    for setting, part in groupby(kept, key=setting_of):
        own = list(part)
        engine = [each for each in own if each.side == ENGINE]
        if not engine:
            continue
        alone = [each for each in own if each.side == ALONE]
        cells = [
            # Our engine with other weights is compared with `one`.
            spread(ratios(its, alone) if side.startswith(ENGINE) else ratios(engine, its), ".2f")
            for side in sides
            for its in [[each for each in own if each.side == side]]
        ]
        peak = max(each.peak_rss_bytes for each in engine) / MIB
        name = f"{setting[0]}, {setting[1]}" + (f", beams {setting[2]}" if setting[2] > 1 else "")
        lines.append(
            f"| {name} | {len(engine)} | {spread([each.speed for each in engine], '.0f')} | "
            + " | ".join(cells)
            + f" | {share_of_limit(engine, own)} | {peak:.0f} of "
            f"{engine[-1].allowed_bytes / MIB:.0f} |"
        )
    return "\n".join(lines)


def table(records: list[Record]) -> str:
    """Return the table of one model."""
    first = records[0]
    lines = [
        "",
        f"{first.model}: {first.num_drawn} requests, {first.feed}, {first.dtype}, {first.device}, "
        f"{first.threads} threads, beams {first.beams}, {first.clock} time, "
        f"n = {len({(each.run, each.round) for each in records})} rounds",
        "",
        COLUMNS,
        "|" + "|".join("-" * len(each) for each in COLUMNS.split("|")[1:-1]) + "|",
    ]
    for (side, rows), part in groupby(records, key=lambda each: (each.side, each.rows)):
        lines.append(row(side, rows, list(part), records))
    return "\n".join(lines)


def row(side: str, rows: int, own: list[Record], records: list[Record]) -> str:
    last = own[-1]
    served = "" if last.num_requests == last.num_drawn else f" ({last.num_requests} requests)"
    alone = ratios(own, [each for each in records if each.side == ALONE])
    is_like = [each for each in records if each.side == ENGINE and rows in (NO_ROWS, each.rows)]
    engine = ratios(is_like, own)
    return (
        f"| {SIDES[side].about + served:52} | {rows:4} "
        f"| {spread([each.speed for each in own], '.0f'):>21} | {spread(alone, '.2f'):>17} "
        f"| {spread(engine, '.2f'):>17} | {agreeing(last):>15} "
        f"| {'-' if last.occupancy is None else format(last.occupancy, '.0%'):>4} "
        f"| {statistics.median(each.first_seconds for each in own):7.1f} "
        f"| {max(each.peak_rss_bytes for each in own) / MIB:4.0f} /{last.allowed_bytes / MIB:5.0f} "
        f"| {share_of_limit(own, records):>5} |"
    )


def ratios(over: list[Record], under: list[Record]) -> list[float]:
    """Return the ratios of two sides within the same rounds."""
    by_round = {(each.run, each.round): each.speed for each in under}
    return [
        each.speed / by_round[each.run, each.round]
        for each in over
        if (each.run, each.round) in by_round
    ]


def spread(numbers: list[float], how: str) -> str:
    if not numbers:
        return "-"
    median, least, most = statistics.median(numbers), min(numbers), max(numbers)
    return f"{median:{how}} ({least:{how}}-{most:{how}})"


def agreeing(record: Record) -> str:
    if not record.num_compared:
        return "-"
    answer = f"{record.num_identical}/{record.num_compared}"
    if record.num_identical == record.num_compared or record.tokens_agreeing is None:
        return answer
    return f"{answer}, {record.tokens_agreeing:.0%}"


def share_of_limit(own: list[Record], records: list[Record]) -> str:
    """Return the median speed as a share of the highest limit of all rounds.

    In the other rounds, other processes slowed the measurement of the limit.
    """
    limits = [each.limit for each in records if each.limit and each.rows in (own[0].rows, NO_ROWS)]
    if not limits:
        return "-"
    return f"{statistics.median(each.speed for each in own) / max(limits):.0%}"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--short", action="store_true", help="print one line for each model")
    arguments = parser.parse_args()
    print((short if arguments.short else tables)(read(arguments.files)))
