"""Measure the cost of encryption at rest, and of a submit's entry in the audit.

    python -m benchmarks.privacy [--jobs 20000] [--rounds 3] [--quick]
    python -m benchmarks.privacy --rotation [--jobs 4000]

Jobs run through the whole path, as in `benchmarks.pipeline`, with the fake engine, so that a job
costs almost nothing and every share is as large as possible. A real model takes 10 to 1,000 times
as long.

`--rotation` measures how many texts a second `tidemill keys rotate` seals with another key.
"""

import argparse
import statistics
import time
from dataclasses import replace
from pathlib import Path

from benchmarks.pipeline import DATABASES, FAKE, RAW, Road, ask, spread, worker
from db.encryption.key_ring import KeyRing, new_key
from db.encryption.rotation import rotate
from db.queries.jobs import completion
from db.schema import migrate
from db.session import Database
from tasks.configuration.catalog import Catalog
from tasks.generate import GenerateContract
from tasks.submit import keep_job
from tests.samples.jobs import insert_jobs, job_row

TEXT = b"the tide turns and the wheel of the mill begins to move again " * 32  # 2 kB


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=RAW)
    parser.add_argument("--jobs", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="run 3,000 jobs")
    parser.add_argument("--submits", action="store_true", help="measure only submits")
    parser.add_argument("--rotation", action="store_true", help="measure only key rotation")
    parser.add_argument("--database", choices=DATABASES, action="append")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.jobs = 3000
    if arguments.rotation:
        with Road.built() as road:
            for name in arguments.database or DATABASES:
                url = road.environment(name)["TIDEMILL_DATABASE_URL"]
                rotation_rates(name, url, arguments.jobs)
        return
    print(f"to seal and open 2 kB: {seconds_of_a_text() * 1e6:.1f} µs")
    with Road.built() as road:
        config = road.folder / "tidemill.toml"
        road.configure(FAKE)
        for name in arguments.database or DATABASES:
            ways = [("plain", ""), ("sealed", new_key("k1"))]
            speeds: dict[str, list[float]] = {way: [] for way, _ in ways}
            for number in range(0 if arguments.submits else arguments.rounds):
                for way, keys in ways[:: -1 if number % 2 else 1]:
                    environment = {**road.environment(name), "TIDEMILL_KEYS": keys}
                    with worker(environment):
                        ask("run", arguments.jobs // 4, environment)  # to warm up
                        speeds[way].append(float(ask("run", arguments.jobs, environment)))
            if not arguments.submits:
                shown = ", ".join(f"{way} {spread(of, ',.0f')}" for way, of in speeds.items())
                print(f"{name:<11} jobs/s: {shown}", flush=True)
            times: dict[bool, list[float]] = {True: [], False: []}
            url = road.environment(name)["TIDEMILL_DATABASE_URL"]
            for audits in [True, False, False, True] * arguments.rounds:
                times[audits].append(microseconds_of_a_submit(url, config, audits))
            print(
                f"{name:<11} to keep a single job: {spread(times[False], ',.0f')} µs, "
                f"with its entry in the audit {spread(times[True], ',.0f')} µs",
                flush=True,
            )


def microseconds_of_a_submit(url: str, config: Path, audits: bool) -> float:
    """Return the median time until one job is committed, over some hundreds."""
    database = Database(url)
    migrate(database)
    catalog = replace(Catalog.load(config), audits_submits=audits)
    times = []
    for _ in range(300):
        contract = GenerateContract.parse({"text": TEXT.decode()})
        begun = time.perf_counter()
        keep_job(database, catalog, contract)
        times.append(time.perf_counter() - begun)
    database.close()
    return statistics.median(times) * 1e6


def rotation_rates(name: str, url: str, num_jobs: int) -> None:
    """Print the rate at which finished jobs get another key, without and with the usual pauses."""
    keys = [new_key("k1")]
    database = Database(url, KeyRing.parse(keys[0], "this benchmark"))
    migrate(database)
    job_ids = insert_jobs(
        database, [job_row(state="succeeded") for _ in range(num_jobs)], text=TEXT.decode()
    )
    result = {
        **dict(output=TEXT.decode()[:400], alternatives=[], finish_reason="stop"),
        **dict(prompt_tokens=1, completion_tokens=1, provenance={"settings": {"seed": 1}}),
    }
    with database.write() as session:
        rows = [{"job_id": job_id, **result} for job_id in job_ids]
        session.execute(completion.insert_results(), rows)
    database.close()
    rates = []
    for pause in (lambda seconds: None, time.sleep):
        keys.insert(0, new_key(f"k{len(keys) + 1}"))
        database = Database(url, KeyRing.parse("\n".join(keys), "this benchmark"))
        begun = time.perf_counter()
        num = sum(rotate(database, pause=pause).values())
        rates.append(num / (time.perf_counter() - begun))
        database.close()
    print(f"{name:<11} texts/s with another key: {rates[0]:,.0f}, with its pauses {rates[1]:,.0f}")


def seconds_of_a_text() -> float:
    ring = KeyRing.parse(new_key("k1"), "this benchmark")
    times = []
    for _ in range(2000):
        begun = time.perf_counter()
        _, name, sealed = ring.seal(TEXT, "results.output/1").split("$")
        ring.open(name, sealed, "results.output/1")
        times.append(time.perf_counter() - begun)
    return statistics.median(times)


if __name__ == "__main__":
    main()
