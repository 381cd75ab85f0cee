from pathlib import Path

import pytest

from engine.protocol.cgroup import quota_cores
from worker.engines.cpu_count import threads_of_an_engine, usable_cores, whole_cores


@pytest.mark.parametrize(
    ("written", "cores"),
    [("max 100000", None), ("200000 100000", 2), ("50000 100000", 1), ("nonsense", None)],
)
def test_a_quota_is_worth_whole_cores(written: str, cores: int | None, tmp_path: Path) -> None:
    (tmp_path / "cpu.max").write_text(written)
    assert quota_cores(tmp_path) == cores


def test_engines_share_the_cores_and_none_is_without(tmp_path: Path) -> None:
    assert usable_cores(tmp_path, tmp_path) >= 1
    (tmp_path / "cpu.max").write_text("100000 100000")
    assert usable_cores(tmp_path, tmp_path) == 1
    assert threads_of_an_engine(1000) == 1


def test_two_hardware_threads_of_a_core_are_one_core(tmp_path: Path) -> None:
    for number in range(8):
        topology = tmp_path / f"cpu{number}/topology"
        topology.mkdir(parents=True)
        (topology / "thread_siblings_list").write_text(f"{number % 4},{number % 4 + 4}\n")
    assert whole_cores(range(8), tmp_path) == 4
    assert whole_cores({0, 1}, tmp_path) == 2
    assert whole_cores({1, 5}, tmp_path) == 1  # all cores that this process may use


def test_each_hardware_thread_counts_as_a_core_where_the_system_says_nothing(
    tmp_path: Path,
) -> None:
    assert whole_cores({0, 3}, tmp_path) == 2
