"""What encryption at rest and the audit cost: of a job's own work, and of the whole road.

    python -m benchmarks.encryption [--jobs 20000] [--rounds 3] [--quick]

The road is that of `benchmarks.pipeline`: the fake engine, so that a job costs next to nothing
and every share is as large as it can be. A real model takes 10 to 1,000 times as long.
"""

import argparse
import statistics
import time

from benchmarks.pipeline import DATABASES, FAKE, RAW, Road, ask, worker
from db.encryption.key_ring import KeyRing, new_key

TEXT = b"the tide turns and the wheel of the mill begins to move again " * 32  # 2 kB


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=RAW)
    parser.add_argument("--jobs", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="3,000 jobs")
    parser.add_argument("--database", choices=DATABASES, action="append")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.jobs = 3000
    print(f"to seal and open 2 kB: {seconds_of_a_text() * 1e6:.1f} µs")
    with Road.built() as road:
        config = road.folder / "tidemill.toml"
        road.configure(FAKE)
        plain = config.read_text()
        for name in arguments.database or DATABASES:
            speeds: dict[str, list[float]] = {}
            for _ in range(arguments.rounds):
                for way, keys, table in (
                    ("neither", "", "\n[audit]\nsubmits = false\n"),
                    ("audit", "", ""),
                    ("both", new_key("k1"), ""),
                ):
                    config.write_text(plain + table)
                    environment = {**road.environment(name), "TIDEMILL_KEYS": keys}
                    with worker(environment):
                        ask("run", arguments.jobs // 4, environment)  # to warm up
                        ran = float(ask("run", arguments.jobs, environment))
                    speeds.setdefault(way, []).append(ran)
            best = statistics.median(speeds["neither"])
            shown = ", ".join(
                f"{way} {statistics.median(ran):,.0f} ({statistics.median(ran) / best:.3f})"
                for way, ran in speeds.items()
            )
            print(f"{name:<11} jobs/s: {shown}", flush=True)


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
