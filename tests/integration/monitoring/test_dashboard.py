"""The dashboard and the alerts, by the real Prometheus, against live workers."""

import json
import math
import re
import shutil
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from db import JobState
from tasks import generate, submit_batch
from tasks.generate import GenerateContract
from tests.running.producers import FAKE
from tests.running.workers import PATIENCE_SECONDS, ROOT, Cluster, on_sqlite, until
from tests.services.servers import free_port

DASHBOARD = ROOT / "ops" / "grafana" / "tidemill.json"
RULES = ROOT / "ops" / "prometheus" / "rules.yml"
needs_prometheus = pytest.mark.skipif(
    shutil.which("prometheus") is None or shutil.which("promtool") is None,
    reason="no prometheus here: apt-get install prometheus",
)


def test_the_dashboard_equals_the_output_of_its_script() -> None:
    written = subprocess.run(
        [
            sys.executable,
            "-c",
            "import json, dashboard; print(json.dumps(dashboard.dashboard(), indent=2))",
        ],
        cwd=ROOT / "ops" / "grafana",
        capture_output=True,
        check=True,
        text=True,
    )
    assert written.stdout == DASHBOARD.read_text()


@needs_prometheus
@pytest.mark.parametrize(
    "arguments",
    [("check", "rules", "rules.yml"), ("check", "config", "prometheus.yml")],
    ids=" ".join,
)
def test_prometheus_takes_the_files(arguments: tuple[str, ...]) -> None:
    assert promtool(*arguments).returncode == 0


@needs_prometheus
def test_each_alert_fires_when_it_should() -> None:
    done = promtool("test", "rules", "rules_test.yml")
    assert done.returncode == 0, done.stdout + done.stderr
    tested = (RULES.parent / "rules_test.yml").read_text()
    rules = [
        rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]
    ]
    for rule in rules:
        # Prometheus extrapolates an increase, so that what such an alert says is no round number:
        # there the figure that it compares is tested.
        figure = rule["expr"].split()[0]
        assert "record" in rule or rule["alert"] in tested or figure in tested, rule


def promtool(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["promtool", *arguments], cwd=RULES.parent, capture_output=True, text=True
    )


@contextmanager
def prometheus(folder: Path, target: int) -> Iterator[Callable[[str], list[Any]]]:
    """A Prometheus with our rules that scrapes a worker each second; called with a query."""
    port = free_port()
    rules = yaml.safe_load(RULES.read_text())
    (folder / "rules.yml").write_text(yaml.safe_dump(rules))
    config = yaml.safe_load((RULES.parent / "prometheus.yml").read_text())
    config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    config["scrape_configs"][0]["static_configs"][0]["targets"] = [f"127.0.0.1:{target}"]
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    with (folder / "prometheus.log").open("wb") as log:
        process = subprocess.Popen(
            [
                "prometheus",
                f"--config.file={folder}/prometheus.yml",
                f"--storage.tsdb.path={folder}/data",
                f"--web.listen-address=127.0.0.1:{port}",
            ],
            stdout=log,
            stderr=log,
        )

    def ask(path: str) -> Any:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/api/v1/{path}", timeout=30) as answer:
            return json.load(answer)["data"]

    def query(expression: str) -> list[Any]:
        if expression == "rules":
            return list(ask("rules")["groups"])
        found: list[Any] = ask("query?" + urllib.parse.urlencode({"query": expression}))["result"]
        return found

    try:
        until(lambda: answers(lambda: ask("status/buildinfo")), "Prometheus")
        yield query
    finally:
        process.terminate()
        process.wait(PATIENCE_SECONDS)


def answers(ask: Callable[[], Any]) -> bool:
    try:
        ask()
    except OSError:
        return False
    return True


@on_sqlite
@needs_prometheus
def test_no_panel_and_no_rule_is_empty_beside_a_live_worker(
    producer: Cluster, tmp_path: Path
) -> None:
    port = free_port()
    producer.configure_models(
        {
            "storyteller": {
                "checkpoint": str(ROOT / "examples" / "models" / "storyteller"),
                "tasks": ["generate"],
                "threads": 1,
            },
            "fake": {**FAKE, "fake_out_of_memory_on": "starved", "fake_fail_on": "broken"},
        },
        {"metrics_port": port, "retry_seconds": 0.05},
    )
    with producer.worker(), prometheus(tmp_path, port) as query:
        until(lambda: query("tidemill_worker_ready == 1"), "a scrape")
        num_rounds = 0

        def missing() -> list[str]:
            """Work goes on while we look, as a rate needs."""
            nonlocal num_rounds
            num_rounds += 1
            contracts = [
                GenerateContract.parse({"text": text, "model": model, "max_new_tokens": 20})
                for model, text in (
                    ("storyteller", "Once upon a time"),
                    ("fake", "a b c"),
                    ("fake", "starved"),
                    ("fake", "broken"),
                )
            ]
            submit_batch(contracts, name=f"round {num_rounds}")
            return [each for each in expressions() if not is_seen(query(each))]

        deadline = time.monotonic() + PATIENCE_SECONDS
        while unseen := missing():
            assert time.monotonic() < deadline, unseen
            time.sleep(1)
        rules = [rule for group in query("rules") for rule in group["rules"]]
        generate.submit(text="a b c", model="fake").wait(PATIENCE_SECONDS)
    assert len(rules) == RULES.read_text().count("\n      - ")
    assert [rule for rule in rules if rule["health"] != "ok"] == []
    assert JobState.SUCCEEDED in producer.states()


def expressions() -> list[str]:
    """Of every panel, of every rule, and of every alert what it compares."""
    panels = json.loads(DASHBOARD.read_text())["panels"]
    of_panels = [target["expr"] for panel in panels for target in panel.get("targets", ())]
    assert len(of_panels) > 30
    rules = [
        rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]
    ]
    of_rules = [rule["record"] for rule in rules if "record" in rule]
    of_alerts = [re.split(r" (?:[<>]=?|==) ", rule["expr"])[0] for rule in rules if "alert" in rule]
    return [
        each.replace("$__rate_interval", "1m").replace("$model", ".*")
        for each in (*of_panels, *of_rules, *of_alerts)
    ]


def is_seen(samples: list[Any]) -> bool:
    return bool(samples) and any(not math.isnan(float(each["value"][1])) for each in samples)
