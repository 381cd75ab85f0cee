from dataclasses import replace

from engine.kv_cache.memory_planner import LIBRARY_BYTES, DeviceMemory, StepMemory

GB = 10**9

# A model of 8 layers with 4 kB of keys and values a token.
STEP = StepMemory(
    num_rows=32,
    num_places=32 * 1024,
    num_read_tokens=2048,
    bytes_per_token=4096,
    num_layers=8,
    width=512,
    vocab_size=32_000,
    item_bytes=2,
)


def test_room_is_what_the_share_leaves_beside_what_is_used_and_reserved():
    memory = DeviceMemory(free_bytes=60 * GB, total_bytes=80 * GB)
    # 72 GB may be used, 20 are, 2 are needed for a step.
    assert memory.room(0.9, 2 * GB, 1000) == 50_000_000
    assert memory.room(0.9, 2 * GB, 4096) == 50 * GB // 4096


def test_there_is_none_where_others_have_it_all():
    memory = DeviceMemory(free_bytes=1 * GB, total_bytes=80 * GB)
    assert memory.room(0.9, 0, 1000) == 0
    assert memory.room(1.0, 2 * GB, 1000) == 0
    assert memory.room(1.0, 0, 1000) == 1_000_000


def test_a_step_needs_the_keys_of_one_layer_its_logits_and_what_a_prompt_makes():
    gathered = 32 * 1024 * 512  # a layer has an eighth of the token's
    logits = 32 * 32_000 * 20
    between = 2048 * 512 * 2 * 16
    assert STEP.num_bytes == gathered + logits + between + LIBRARY_BYTES


def test_a_step_of_more_needs_more():
    for name in ("num_rows", "num_places", "num_read_tokens", "width", "vocab_size"):
        assert replace(STEP, **{name: 2 * getattr(STEP, name)}).num_bytes > STEP.num_bytes
