import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.engine.cost import cost_of, kv_bytes, operations
from benchmarks.engine.models import Shape, made
from benchmarks.engine.workload import Request, drawn

SMALL = {"width": 64, "layers": 2, "heads": 4, "inner": 256, "vocab_size": 500, "positions": 256}
REQUEST = Request(tuple(range(10, 34)), 9)


@pytest.mark.parametrize("family", ["llama", "gpt2", "t5", "marian", "bart"])
def test_operations_are_those_that_torch_counts(family):
    shape = Shape(family=family, **SMALL)
    with torch.random.fork_rng(devices=[]):
        model = made(shape).eval()
    model.set_attn_implementation("eager")  # the counter knows the products of this attention

    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        model.generate(
            torch.tensor([REQUEST.prompt]),
            max_new_tokens=REQUEST.num_new,
            min_new_tokens=REQUEST.num_new,
            do_sample=False,
        )

    # The counter includes the half of the prompt's pairs that the causal mask drops.
    assert counter.get_total_flops() == pytest.approx(operations(shape, REQUEST, 1), rel=0.05)


def test_more_rows_read_the_weights_less_often():
    shape = Shape(family="llama", **SMALL)
    requests = drawn(32, shape.vocab_size)

    few, many = cost_of(shape, requests, rows=1), cost_of(shape, requests, rows=16)

    assert few.operations == many.operations
    assert few.bytes_read > many.bytes_read


def test_a_limit_is_where_the_peak_or_the_bandwidth_is_used_up():
    cost = cost_of(Shape(family="gpt2", **SMALL), [REQUEST], rows=1)

    assert cost.limit(cost.operations, 1e30) == pytest.approx(REQUEST.num_new)
    assert cost.limit(1e30, cost.bytes_read / 2) == pytest.approx(REQUEST.num_new / 2)


def test_an_encoder_keeps_its_prompt_once_for_all_beams():
    per_token = 2 * SMALL["layers"] * SMALL["width"] * 4
    num_prompt, num_new = len(REQUEST.prompt), REQUEST.num_new

    def held(family):
        return kv_bytes(Shape(family=family, **SMALL), [REQUEST], rows=16, beams=4, size=4)

    assert held("t5") == (num_prompt + 4 * num_new) * per_token
    assert held("llama") == 4 * (num_prompt + num_new) * per_token
