"""Writes `tidemill.json`, the dashboard for Grafana 10 to 13, in its Classic format.

    python ops/grafana/dashboard.py

Change the panels here, never in the JSON. A test runs every expression against a live worker.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FILE = Path(__file__).with_name("tidemill.json")
WIDTH = 24  # columns of a row, in Grafana
RATE = "[$__rate_interval]"
MODEL = 'model=~"$model"'


@dataclass(frozen=True)
class Panel:
    title: str
    # Expression -> what its line is called, with Grafana's {{label}}.
    lines: dict[str, str]
    unit: str = "short"
    says: str = ""
    kind: str = "timeseries"
    width: int = 8
    height: int = 7


def stat(title: str, expression: str, unit: str = "short", says: str = "") -> Panel:
    return Panel(title, {expression: ""}, unit, says, "stat", 4, 4)


def quantiles(metric: str, by: str = "model") -> dict[str, str]:
    return {
        f"histogram_quantile({q}, sum by (le, {by}) (rate({metric}_bucket{{{MODEL}}}{RATE})))": (
            f"p{q * 100:.0f} {{{{{by}}}}}"
        )
        for q in (0.5, 0.95)
    }


ROWS: dict[str, tuple[Panel, ...]] = {
    "At a glance": (
        stat("Workers", "max(tidemill_workers)"),
        stat("Queued jobs", f"sum(tidemill_backlog_jobs{{{MODEL}}})"),
        stat("Oldest queued job", f"max(tidemill_backlog_oldest_seconds{{{MODEL}}})", "s"),
        stat("Jobs a second", f"sum(rate(tidemill_jobs_ended_total{{{MODEL}}}{RATE}))", "ops"),
        stat("Failed, of those ended", "tidemill:failed:ratio15m", "percentunit"),
        stat(
            "Time left",
            "tidemill:backlog_drain:seconds",
            "s",
            "The tokens of the backlog by those of the last 15 minutes.",
        ),
    ),
    "Jobs": (
        Panel(
            "Ended, by state",
            {f"sum by (state) (rate(tidemill_jobs_ended_total{{{MODEL}}}{RATE}))": "{{state}}"},
            "ops",
        ),
        Panel(
            "Failed, by code",
            {
                f'sum by (error_code) (rate(tidemill_jobs_ended_total{{{MODEL},state="failed"}}'
                f"{RATE})) or vector(0)": "{{error_code}}"
            },
            "ops",
        ),
        Panel(
            "Kept in the database",
            {f"sum by (state) (tidemill_jobs{{{MODEL}}})": "{{state}}"},
            says="Cancelled jobs are here only: nobody who counts ends them.",
        ),
        Panel("Waiting", quantiles("tidemill_job_wait_seconds"), "s"),
        Panel("Running", quantiles("tidemill_job_run_seconds"), "s"),
        Panel(
            "Tokens a second",
            {
                f"sum by (model) (rate(tidemill_{kind}_tokens_total{{{MODEL}}}{RATE}))": (
                    f"{kind} {{{{model}}}}"
                )
                for kind in ("prompt", "completion")
            },
            says="Of results that were committed.",
        ),
    ),
    "Backlog": (
        Panel(
            "Queued jobs",
            {f"sum by (model, lane) (tidemill_backlog_jobs{{{MODEL}}})": "{{model}} {{lane}}"},
        ),
        Panel(
            "Queued tokens, estimated",
            {f"sum by (model, lane) (tidemill_backlog_tokens{{{MODEL}}})": "{{model}} {{lane}}"},
        ),
        Panel(
            "Age of the oldest",
            {
                f"max by (model, lane) (tidemill_backlog_oldest_seconds{{{MODEL}}})": (
                    "{{model}} {{lane}}"
                ),
                "max(tidemill_oldest_open_batch_seconds)": "oldest open batch",
            },
            "s",
        ),
    ),
    "Quality": (
        Panel(
            "Signals that have changed",
            {f"max by (model) (tidemill_quality_changed_signals{{{MODEL}}})": "{{model}}"},
            says="The last day against four weeks; `tidemill quality` says which.",
        ),
        Panel(
            "Canaries that failed or changed",
            {"max(tidemill_canaries_alarming)": "canaries"},
            says="`tidemill canaries` shows their answers.",
        ),
        Panel(
            "Entries of the audit",
            {"max(tidemill_audit_entries)": "the last", "max(tidemill_audit_head)": "of today"},
            says="`tidemill audit verify --head` takes the hash that `tidemill_audit_head` has.",
        ),
    ),
    "Engines": (
        Panel(
            "Rows used, of rows there are",
            {
                f"sum by (model) (rate(tidemill_engine_row_steps_total{{{MODEL}}}{RATE})) / "
                f"clamp_min(sum by (model) (rate(tidemill_engine_step_seconds_count{{{MODEL}}}"
                f"{RATE})), 1e-9) / avg by (model) (tidemill_engine_max_rows{{{MODEL}}})": (
                    "{{model}}"
                )
            },
            "percentunit",
            "The mean of all steps.",
        ),
        Panel("A step", quantiles("tidemill_engine_step_seconds"), "s"),
        Panel(
            "KV cache used",
            {
                f"sum by (model) (tidemill_engine_kv_cache_tokens{{{MODEL}}}) / "
                f"sum by (model) (tidemill_engine_max_kv_cache_tokens{{{MODEL}}})": "{{model}}"
            },
            "percentunit",
        ),
        Panel(
            "Busy",
            {
                f"avg by (model) (rate(tidemill_engine_step_seconds_sum{{{MODEL}}}{RATE}))": (
                    "{{model}}"
                )
            },
            "percentunit",
            "The time within steps.",
        ),
        Panel(
            "Engine tokens a second",
            {
                f"sum by (model) (rate(tidemill_engine_{kind}_tokens_total{{{MODEL}}}{RATE}))": (
                    f"{kind} {{{{model}}}}"
                )
                for kind in ("prompt", "completion")
            },
        ),
        Panel(
            "Restarts",
            {
                f"sum by (model) (increase(tidemill_engine_restarts_total{{{MODEL}}}[1h]))": (
                    "{{model}}"
                )
            },
        ),
    ),
    "Queue and database": (
        Panel(
            "Published jobs a second",
            {
                f"sum by (model, lane) (rate(tidemill_published_jobs_total{{{MODEL}}}{RATE}))": (
                    "{{model}} {{lane}}"
                )
            },
            "ops",
        ),
        Panel(
            "Outcomes that wait for the database",
            {"sum by (instance) (tidemill_worker_unwritten_outcomes)": "{{instance}}"},
        ),
        Panel(
            "Leaders",
            {"sum(tidemill_worker_leads)": "dispatchers that lead"},
            says="One; for a moment none or two.",
        ),
        Panel(
            "Retries a second",
            {
                f"sum by (error_code) (rate(tidemill_retries_total{{{MODEL}}}{RATE})) "
                "or vector(0)": "{{error_code}}"
            },
            "ops",
        ),
        Panel(
            "Leases lost, messages set aside",
            {
                "sum(increase(tidemill_leases_lost_total[1h]))": "given up here",
                "sum(increase(tidemill_leases_expired_total[1h]))": "of silent workers",
                "sum(increase(tidemill_fenced_outcomes_total[1h]))": "outcomes in vain",
                "sum(increase(tidemill_messages_set_aside_total[1h]))": "messages set aside",
            },
        ),
        Panel(
            "Cache of answers, hits of lookups",
            {
                'sum(rate(tidemill_cache_lookups_total{result!="miss"}[5m])) / '
                "clamp_min(sum(rate(tidemill_cache_lookups_total[5m])), 1e-9) or vector(0)": "hits"
            },
            "percentunit",
        ),
    ),
    "Machines": (
        Panel(
            "Disk used",
            {
                "1 - tidemill_disk_free_bytes / tidemill_disk_size_bytes": "{{instance}} {{use}}",
            },
            "percentunit",
        ),
        Panel(
            "Memory of workers",
            {'process_resident_memory_bytes{job="tidemill"}': "{{instance}}"},
            "bytes",
            "Without their engines.",
        ),
        Panel(
            "CPU of workers",
            {f'rate(process_cpu_seconds_total{{job="tidemill"}}{RATE})': "{{instance}}"},
            says="Without their engines. 1 is a core.",
        ),
    ),
}


def dashboard() -> dict[str, Any]:
    """The whole of it, as Grafana imports it."""
    panels: list[dict[str, Any]] = []
    y = 0
    for title, members in ROWS.items():
        panels.append(
            {
                "id": len(panels) + 1,
                "type": "row",
                "title": title,
                "collapsed": False,
                "panels": [],
                "gridPos": {"x": 0, "y": y, "w": WIDTH, "h": 1},
            }
        )
        y, x, height = y + 1, 0, 0
        for panel in members:
            if x + panel.width > WIDTH:
                y, x = y + height, 0
            height = panel.height
            panels.append(_panel(panel, len(panels) + 1, x, y))
            x += panel.width
        y += height
    return {
        "uid": "tidemill",
        "title": "Tidemill",
        "tags": ["tidemill"],
        "schemaVersion": 39,
        "editable": True,
        "refresh": "10s",
        "time": {"from": "now-3h", "to": "now"},
        "templating": {"list": [_datasource(), _model()]},
        "panels": panels,
    }


DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}


def _panel(panel: Panel, number: int, x: int, y: int) -> dict[str, Any]:
    return {
        "id": number,
        "type": panel.kind,
        "title": panel.title,
        "description": panel.says,
        "datasource": DATASOURCE,
        "gridPos": {"x": x, "y": y, "w": panel.width, "h": panel.height},
        "fieldConfig": {"defaults": {"unit": panel.unit, "min": 0}, "overrides": []},
        "targets": [
            {
                "refId": chr(ord("A") + index),
                "datasource": DATASOURCE,
                "expr": expression,
                "legendFormat": legend,
            }
            for index, (expression, legend) in enumerate(panel.lines.items())
        ],
    }


def _datasource() -> dict[str, Any]:
    return {
        "name": "datasource",
        "label": "Prometheus",
        "type": "datasource",
        "query": "prometheus",
    }


def _model() -> dict[str, Any]:
    query = "label_values(tidemill_engine_ready, model)"
    return {
        "name": "model",
        "label": "Model",
        "type": "query",
        "datasource": DATASOURCE,
        "query": {"query": query, "refId": "model"},
        "definition": query,
        "refresh": 2,
        "includeAll": True,
        "allValue": ".*",
        "multi": True,
        "current": {"text": "All", "value": "$__all"},
    }


if __name__ == "__main__":
    FILE.write_text(json.dumps(dashboard(), indent=2) + "\n")
