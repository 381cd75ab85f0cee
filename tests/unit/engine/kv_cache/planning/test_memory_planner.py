from dataclasses import replace

from engine.kv_cache.planning.memory_planner import DeviceMemory, StepMemory

GB = 10**9

# A model of 8 layers with 4 kB of keys and values a token.
STEP = StepMemory(
    num_rows=32,
    num_gathered_tokens=32 * 1024,
    num_prefill_tokens=2048,
    bytes_per_token=4096,
    num_layers=8,
    hidden_size=512,
    vocab_size=32_000,
    item_bytes=2,
)


def test_the_cache_gets_the_share_of_the_device_that_is_neither_used_nor_reserved():
    memory = DeviceMemory(free_bytes=60 * GB, total_bytes=80 * GB)
    # 72 GB may be used; 20 are in use, and a step needs 2.
    assert memory.max_tokens(0.9, 2 * GB, 1000) == 50_000_000
    assert memory.max_tokens(0.9, 2 * GB, 4096) == 50 * GB // 4096


def test_the_cache_gets_nothing_where_other_processes_use_the_whole_share():
    memory = DeviceMemory(free_bytes=1 * GB, total_bytes=80 * GB)
    assert memory.max_tokens(0.9, 0, 1000) == 0
    assert memory.max_tokens(1.0, 2 * GB, 1000) == 0
    assert memory.max_tokens(1.0, 0, 1000) == 1_000_000


def test_a_step_needs_memory_for_whatever_grows_with_it():
    """At least for the gathered keys of a layer, and for the logits in float32."""
    assert STEP.num_bytes > 32 * 1024 * 4096 // 8 + 32 * 32_000 * 4
    for name in (
        "num_rows", "num_gathered_tokens", "num_prefill_tokens", "hidden_size", "vocab_size"
    ):  # fmt: skip
        assert replace(STEP, **{name: 2 * getattr(STEP, name)}).num_bytes > STEP.num_bytes
