"""Draw the plots of docs/performance.md from the measurements of the benchmarks.

    .venv-plots/bin/python -m benchmarks.engine.plots rows RECORDS... --out docs/rows.svg
    .venv-plots/bin/python -m benchmarks.engine.plots time SHARES... --out docs/time.svg

RECORDS are files of `python -m benchmarks.engine --rows 1,2,4,8,16,32 --json`, SHARES are
files of `python -m benchmarks.engine.profile --json`. matplotlib comes with `make bench-peers`.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections import defaultdict
from pathlib import Path
from typing import Any

import matplotlib

from benchmarks.engine.record import read

matplotlib.use("svg")
matplotlib.rcParams.update(
    {
        "svg.hashsalt": "tidemill",  # the same data give the same file
        "svg.fonttype": "none",  # text stays text, which keeps the file small
        "font.size": 9,
        "axes.spines.top": False,
        "axes.spines.right": False,
    }
)

from matplotlib import pyplot  # noqa: E402  # after the backend is chosen

ENGINE = "inflight"
KINDS = {
    "products": "#33658a",
    "attention": "#86bbd8",
    "choosing": "#f6ae2d",
    "other": "#b8b8b8",
    "python": "#e4572e",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=RAW)
    parser.add_argument("picture", choices=("rows", "time"))
    parser.add_argument("files", type=Path, nargs="+")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    draw = {"rows": speed_by_rows, "time": time_by_kind}[arguments.picture]
    figure = draw(arguments.files)
    figure.tight_layout()
    figure.savefig(arguments.out, metadata={"Date": None})


def speed_by_rows(paths: list[Path]) -> Any:
    """Plot tokens/s by the number of rows: medians, with bars from the lowest to the highest."""
    speeds: dict[str, dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    for record in read(paths):
        if record.side == ENGINE:
            speeds[record.model][record.rows].append(record.speed)
    figure, axes = pyplot.subplots(figsize=(6, 3.6))
    for model, by_rows in speeds.items():
        rows = sorted(by_rows)
        medians = [statistics.median(by_rows[each]) for each in rows]
        below = [median - min(by_rows[each]) for each, median in zip(rows, medians, strict=True)]
        above = [max(by_rows[each]) - median for each, median in zip(rows, medians, strict=True)]
        axes.errorbar(rows, medians, (below, above), marker="o", ms=3, capsize=2, label=model)
    all_rows = sorted({rows for by_rows in speeds.values() for rows in by_rows})
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xticks(all_rows, map(str, all_rows))
    axes.set_xlabel("requests in flight")
    axes.set_ylabel("tokens/s")
    axes.yaxis.set_major_formatter("{x:.0f}")
    axes.yaxis.set_minor_formatter("{x:.0f}")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def time_by_kind(paths: list[Path]) -> Any:
    """Plot the parts of a step's time, one bar for each model, from its last measurement."""
    shares = {}
    for path in paths:
        for line in path.read_text(encoding="utf-8").splitlines():
            measured = json.loads(line)
            shares[measured["model"]] = measured
    models = list(shares)[::-1]
    figure, axes = pyplot.subplots(figsize=(6, 1.2 + 0.3 * len(models)))
    left = [0.0] * len(models)
    for kind, colour in KINDS.items():
        widths = [100 * shares[model][kind] for model in models]
        axes.barh(models, widths, left=left, color=colour, label=kind, height=0.6)
        left = [one + other for one, other in zip(left, widths, strict=True)]
    axes.set_xlabel("% of the time")
    axes.set_xlim(0, 100)
    axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


RAW = argparse.RawDescriptionHelpFormatter

if __name__ == "__main__":
    main()
