"""What is left open is chosen for the model and the machine; what is said holds."""

from pathlib import Path

import pytest

from engine.errors import SpecError
from engine.kv_cache.planning.free_memory import UNKNOWN_BYTES, available_bytes
from engine.protocol import cgroup
from engine.protocol.engine_spec import EngineSpec
from engine.protocol.limits import AS_CONFIGURED, CPU_SEQUENCES, GPU_SEQUENCES, Machine, sized

GIB = 2**30


def spec(**settings) -> EngineSpec:
    return EngineSpec(alias="a", checkpoint="b", **settings)


def size(machine: Machine, **settings):
    return sized(spec(**settings), machine, "inflight", "it is proved")


def test_every_limit_is_resolved_and_has_a_reason():
    found = size(Machine("cpu", 8 * GIB, max_context_tokens=1024, bytes_per_token=2**15))
    assert found.spec.max_sequences == CPU_SEQUENCES
    assert found.spec.max_step_tokens == 8192
    assert found.spec.max_cache_tokens == 2 * GIB // 2**15
    assert found.reasons["max_cache_tokens"] == (
        "25% of the 8.0 GiB that are free, at 32.0 KiB a token"
    )
    assert found.spec.engine == "inflight"
    assert found.reasons["engine"] == "it is proved"
    assert found.reasons.keys() == {
        "engine", "max_sequences", "max_step_tokens", "max_cache_tokens"
    }  # fmt: skip


def test_limits_in_the_configuration_are_kept():
    asked = {"max_sequences": 3, "max_step_tokens": 77, "max_cache_tokens": 5, "engine": "exact"}
    found = sized(spec(**asked), Machine("cpu", GIB), "exact", "whatever")
    assert {name: getattr(found.spec, name) for name in asked} == asked
    assert set(found.reasons.values()) == {AS_CONFIGURED}


def test_a_gpu_gets_more_rows_and_a_long_context_a_longer_step():
    found = size(Machine("cuda", 8 * GIB, max_context_tokens=20_000, bytes_per_token=1))
    assert (found.spec.max_sequences, found.spec.max_step_tokens) == (GPU_SEQUENCES, 20_000)
    assert size(Machine("cuda", GIB, 10**6, 1)).spec.max_step_tokens == 32_768


@pytest.mark.parametrize(
    ("kv_cache", "num_tokens"), [("1GiB", GIB // 4096), ("64MiB", 2**14), (0.5, 4 * GIB // 4096)]
)
def test_the_cache_is_sized_in_bytes_or_as_a_share(kv_cache, num_tokens):
    machine = Machine("cpu", 8 * GIB, bytes_per_token=4096)
    assert size(machine, kv_cache=kv_cache).spec.max_cache_tokens == num_tokens


@pytest.mark.parametrize("kv_cache", ["2GB", "much", "", "0GiB", "-1GiB", "infGiB", 0, 1.5, -0.1])
def test_a_cache_of_no_size_is_refused_in_words(kv_cache):
    with pytest.raises(SpecError, match=r"kv_cache of model 'a'.*2GiB"):
        spec(kv_cache=kv_cache)


def test_a_gpu_has_room_for_what_its_other_limits_leave():
    machine = Machine(
        "cuda",
        GIB,
        bytes_per_token=1,
        max_paged_tokens=lambda it: it.max_sequences + it.max_step_tokens,
    )
    assert size(machine, max_sequences=9).spec.max_cache_tokens == 9 + 8192
    assert size(machine, kv_cache="1KiB").spec.max_cache_tokens == 1024


def test_a_gpu_keeps_no_more_than_its_sequences_can_be():
    machine = Machine("cuda", GIB, 1024, bytes_per_token=1, max_paged_tokens=lambda it: 10**9)
    assert size(machine, max_sequences=8).spec.max_cache_tokens == 2 * 8 * 1024


def test_a_backend_without_a_cache_has_no_cache_limit():
    found = size(Machine("cpu", GIB))
    assert found.spec.max_cache_tokens is None
    assert "max_cache_tokens" not in found.reasons


def test_a_step_has_room_for_a_token_of_each_row():
    assert size(Machine("cpu", GIB), max_sequences=10_000).spec.max_step_tokens == 10_000


def test_the_memory_that_is_available_is_read_from_the_system(tmp_path: Path):
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal: 99 kB\nMemAvailable:    2048 kB\n")
    assert available_bytes(meminfo) == 2048 * 1024
    assert available_bytes(tmp_path / "nothing") == UNKNOWN_BYTES


def test_a_container_bounds_the_memory_unless_it_has_no_limit(tmp_path: Path):
    (tmp_path / "memory.max").write_text("1000\n")
    (tmp_path / "memory.current").write_text("400\n")
    assert cgroup.free_memory_bytes(tmp_path) == 600
    (tmp_path / "memory.current").write_text("1400\n")
    assert cgroup.free_memory_bytes(tmp_path) == 0
    (tmp_path / "memory.max").write_text("max\n")
    assert cgroup.free_memory_bytes(tmp_path) is None
    assert cgroup.free_memory_bytes(tmp_path / "nothing") is None
