from pathlib import Path

import pytest

from worker.cores import quota_cores, threads_of_an_engine, usable_cores


@pytest.mark.parametrize(
    ("written", "cores"),
    [("max 100000", None), ("200000 100000", 2), ("50000 100000", 1), ("nonsense", None)],
)
def test_a_quota_is_worth_whole_cores(written: str, cores: int | None, tmp_path: Path) -> None:
    (tmp_path / "cpu.max").write_text(written)
    assert quota_cores(tmp_path) == cores


def test_engines_share_the_cores_and_none_is_without(tmp_path: Path) -> None:
    assert usable_cores(tmp_path) >= 1
    (tmp_path / "cpu.max").write_text("100000 100000")
    assert usable_cores(tmp_path) == 1
    assert threads_of_an_engine(1000) == 1
