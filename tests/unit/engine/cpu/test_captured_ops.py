"""A captured step gives the bits of the eager step, or is not captured."""

from __future__ import annotations

import ctypes
import importlib.util
import logging
import sys
import threading
from collections.abc import Callable, Iterator
from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils import _python_dispatch

from engine.cpu import captured_ops
from engine.cpu.captured_ops import NotCapturable, OpCapturer, captured_call, overload_with_out
from engine.cpu.linear import PackedLinear
from engine.cpu.op_buffers import MIN_BUFFER_BYTES, CapturedGraph, GraphBuffers
from engine.runners.cuda_graphs import GraphCache

WIDTH = 24


@pytest.fixture(autouse=True)
def _inference() -> Iterator[None]:
    """Steps run in inference mode, as in an engine."""
    with torch.inference_mode():
        yield


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def assert_replayed(step: Callable[..., Tensor], *inputs: Tensor) -> CapturedGraph:
    """Check that a step captured with some values gives the eager results for others."""
    recorded, again = OpCapturer()(lambda: step(*inputs))
    assert torch.equal(recorded, step(*inputs))
    for seed in range(1, 4):
        for each in inputs:
            if each.is_floating_point():
                each.copy_(numbers(*each.shape, seed=seed))
            else:
                each.copy_(each.flip(-1) + 1)
        before = [each.clone() for each in inputs]
        played = again().clone()
        for each, was in zip(inputs, before, strict=True):
            assert torch.equal(each, was), "it wrote into an input"
        assert torch.equal(played, step(*inputs))
    return again


def functions_of(again: CapturedGraph) -> list[object]:
    """Return the operations of a graph, allocating ones included."""
    return [each.args[0].func if each.func == again.make else each.func for each in again.calls]


# Operations of a step


def views(x: Tensor) -> Tensor:
    y = (x * 2)[:, 1:].t()[::2]
    halves = y.unsqueeze(1).expand(-1, 3, -1).chunk(2, dim=-1)
    return torch.cat(halves, dim=-1).flatten(1) + x[0, 0]


def composites(x: Tensor) -> Tensor:
    y = F.linear(x, numbers_kept, numbers_kept[0]).reshape(-1, 2, WIDTH // 2)
    y = F.layer_norm(y.transpose(0, 1).reshape(-1, WIDTH), (WIDTH,))
    return F.gelu(torch.matmul(y, numbers_kept)).contiguous()


def in_place(x: Tensor) -> Tensor:
    y = x + 1
    y[:, 3:7] *= 2
    y.mul_(x).masked_fill_(y > 0.5, 0.25)
    y[1] = y[0].clone()
    torch.add(x, 1, out=y[:, :])
    return y.add_(x.sum(0))


def factories(x: Tensor) -> Tensor:
    mask = x.new_ones((len(x), 1), dtype=torch.bool)
    empty = torch.empty_like(x)
    empty.copy_(x)
    places = torch.arange(WIDTH, dtype=torch.float32) + torch.tensor([0.5])
    return torch.where(mask, empty, torch.zeros_like(x)) + places + x.new_full((1,), 3.0)


def several_results(x: Tensor) -> Tensor:
    argmax, places = torch.topk(x, 3)
    spread, mean = torch.var_mean(x, dim=1)
    order = torch.sort(x, dim=1, stable=True).indices
    return argmax + places + order[:, :3] + (spread / mean)[:, None]


def halves_of_floats(x: Tensor) -> Tensor:
    """Views of another dtype, in the middle of a storage."""
    bits = (x + 1).view(torch.int16)[:, 5:11]
    return (bits & 255).to(torch.float32) + (x * 3)[:, 2:].view(torch.int32)[:, :6]


def lists_of_tensors(x: Tensor) -> Tensor:
    rows = torch.stack([x + 1, x * 2, x[0].expand_as(x)])
    at = torch.argsort(x[:, 0])
    picked = rows[:, at, at]
    rows.index_put_((at[:2] // 2, at[:2]), x[0])
    return torch.cat([rows.flatten(1), picked], dim=1)


def half_precision(x: Tensor) -> Tensor:
    y = torch.softmax(x @ x.t(), dim=-1).to(torch.bfloat16)
    return (y @ x.to(torch.bfloat16)).float()


numbers_kept = numbers(WIDTH, WIDTH, seed=7)


@pytest.mark.parametrize(
    "step",
    [
        views, composites, in_place, factories, several_results, halves_of_floats,
        lists_of_tensors, half_precision,
    ],
)  # fmt: skip
def test_a_replay_with_other_values_gives_what_the_step_gives(step):
    kept = numbers_kept.clone()
    again = assert_replayed(step, numbers(4, WIDTH))
    assert len(again.calls) > 1
    assert torch.equal(numbers_kept, kept), "it wrote into a weight"


def test_packed_weights_and_dropout_that_is_off_are_replayed():
    torch.manual_seed(3)
    linear = nn.Linear(WIDTH, WIDTH)
    packed, dropout = PackedLinear(linear.weight, linear.bias), nn.Dropout(0.5).eval()

    def step(x):
        # Packed weights and empty tensors have no address.
        nothing = x.new_empty((len(x), 0)) * 2
        return torch.cat([dropout(packed(x)).relu_(), nothing], dim=1)

    again = assert_replayed(step, numbers(4, WIDTH))
    product = torch.ops.mkldnn._linear_pointwise.default
    assert functions_of(again)[0] == product
    assert torch.ops.aten.clone.out not in functions_of(again)
    assert overload_with_out(product) is None


def test_a_replay_looks_new_tokens_up():
    table = nn.Embedding(40, WIDTH)
    tokens, positions = torch.arange(5), torch.arange(5) + 9

    def step(tokens, positions):
        pads = tokens == 3
        return table(tokens[:, None])[:, -1].masked_fill(pads[:, None], 0) + table(positions + 1)

    assert_replayed(step, tokens, positions)


def test_a_result_that_is_a_view_of_an_input_follows_the_input():
    x = numbers(4, WIDTH)
    _, again = OpCapturer()(lambda: x[:, -1])
    x.fill_(5.0)
    assert torch.equal(again(), torch.full((4,), 5.0))


# Effects that torch does not see


def doubled(x: Tensor, y: Tensor) -> None:
    y.numpy()[:] = 2 * x.numpy()


def test_a_call_that_torch_does_not_see_is_replayed_by_captured_call():
    def step(x):
        y = torch.empty_like(x)
        captured_call(doubled, x + 1, y)
        return y * 3

    assert_replayed(step, numbers(4, WIDTH))


def test_a_captured_call_runs_once_in_a_replay():
    num_calls = 0

    def added(x, y):
        nonlocal num_calls
        num_calls += 1
        y += x * x.sum().item()

    def step(x):
        y = x + 1
        captured_call(added, x, y)
        return y.clone()

    again = assert_replayed(step, numbers(4, WIDTH))
    before = num_calls
    again()
    assert num_calls == before + 1


def test_outside_a_capture_a_captured_call_is_a_call():
    x, y = numbers(2, 3), torch.empty(2, 3)
    captured_call(doubled, x, y)
    assert torch.equal(y, 2 * x)


# Refused steps

counter = torch.zeros(4)


def written_unseen(x: Tensor) -> Tensor:
    """Writes through an address, as a C library would."""
    y = torch.empty_like(x)
    place = (ctypes.c_float * y.numel()).from_address(y.untyped_storage().data_ptr())
    np.frombuffer(place, np.float32)[:] = 1.0
    return y + x


class Model:
    """Keeps state from step to step."""

    def __init__(self) -> None:
        self.total = torch.zeros(1)
        self.past = torch.zeros(4, WIDTH)
        self.held: list[Tensor] = []

    def counts(self, x: Tensor) -> Tensor:
        self.total += x.sum()
        return x + self.total

    def remembers(self, x: Tensor) -> Tensor:
        result = x + self.past
        self.past = x * 2
        return result

    def remembers_a_view(self, x: Tensor) -> Tensor:
        result = x + 1
        self.held = [(x * 2)[1:].t()]
        return result


def counts_in_a_constant(x: Tensor) -> Tensor:
    return torch.tensor([0.0] * 4).add_(x[:, 0])


def normed_in_training(x: Tensor) -> Tensor:
    """Writes to some of its arguments and creates others."""
    mean, var = x.new_zeros(WIDTH), x.new_ones(WIDTH)
    return torch.native_batch_norm(x, None, None, mean, var, True, 0.1, 1e-5)[0]


def resizes(x: Tensor) -> Tensor:
    y = x + 1
    torch.mul(x, 2, out=(z := torch.empty(0)))
    return y + z


def reshapes_itself(x: Tensor) -> Tensor:
    return (x + 1).unsqueeze_(0).squeeze(0)


@pytest.mark.filterwarnings("ignore:An output with one or more elements was resized")
@pytest.mark.parametrize(
    ("step", "said"),
    [
        (written_unseen, "does not see"),
        (lambda x: x + x[0, 0].item(), "reads a value"),
        (lambda x: x + 1 if x[0, 0] > 0 else x, "reads a value"),
        (lambda x: x + max(x[0].tolist()), "tolist reads values"),
        (lambda x: x + float(x.numpy().max()), "numpy reads values"),
        (lambda x: x + float(np.asarray(x).max()), "__array__ reads values"),
        (lambda x: x + float(np.from_dlpack(x).max()), "__dlpack__ reads values"),
        (lambda x: x * (x.data_ptr() % 3), "data_ptr reads values"),
        (lambda x: x + torch.rand(4, 1), "draws random"),
        (lambda x: torch.bernoulli(x.sigmoid()), "draws random"),
        (lambda x: F.dropout(x, 0.5, training=True), "draws random"),
        (lambda x: x.clone().normal_(), "draws random"),
        (lambda x: x[x > 0].sum(), "mask selects"),
        (lambda x: torch.masked_select(x, x > 0).sum(), "depends on values"),
        (lambda x: torch.nonzero(x > 0).sum(), "depends on values"),
        (lambda x: x.repeat_interleave(torch.tensor([1, 2, 1, 1]), 0), "depends on values"),
        (lambda x: x.add_(1), "outlives the step"),
        (lambda x: x + counter.add_(1)[:, None], "outlives the step"),
        (Model().counts, "outlives the step"),
        (counts_in_a_constant, "outlives the step"),
        (Model().remembers, "keeps what it computes"),
        (Model().remembers_a_view, "keeps what it computes"),
        (normed_in_training, "other tensors"),
        (resizes, "resizes"),
        (reshapes_itself, "shape"),
    ],
)  # fmt: skip
def test_a_step_that_depends_on_values_is_not_captured(step, said):
    x, state = numbers(4, WIDTH), torch.get_rng_state()
    given_ = x.clone()
    with pytest.raises(NotCapturable, match=said):
        OpCapturer()(lambda: step(x))
    # The capture was refused before any effect that the eager step would repeat.
    assert torch.equal(x, given_)
    assert torch.equal(counter, torch.zeros(4))
    assert torch.equal(torch.get_rng_state(), state)


def test_a_table_that_is_made_at_the_first_step_does_not_prevent_capture():
    class Lazy:
        table: Tensor | None = None

        def step(self, x: Tensor) -> Tensor:
            if self.table is None:
                self.table = torch.arange(float(WIDTH))
            return x + self.table

    lazy = Lazy()
    graphs, x = GraphCache(OpCapturer()), numbers(4, WIDTH)
    for seed in range(4):
        x.copy_(numbers(4, WIDTH, seed=seed))
        assert torch.equal(graphs.run(4, lambda: lazy.step(x)), x + torch.arange(float(WIDTH)))
    assert graphs.recorded


def test_a_reference_cycle_is_not_taken_for_kept_state():
    def step(x):
        ring = [x + 1]
        ring.append(ring)
        return ring[0] * 2

    assert_replayed(step, numbers(4, WIDTH))


def test_a_step_that_fails_in_its_capture_leaves_nothing_behind():
    recorder, x = OpCapturer(), numbers(4, WIDTH)

    def fails(y):
        raise ValueError("in a call")

    for broken in (
        lambda: (x + 1).view(7),
        lambda: captured_call(fails, x + 1),
        lambda: x[0, 0].item(),
    ):
        with pytest.raises((RuntimeError, ValueError, NotCapturable)):
            recorder(broken)
        assert _python_dispatch._get_current_dispatch_mode() is None
        assert x[0].tolist() == x.numpy()[0].tolist()
        assert len(torch.rand(1)) == 1
        captured_call(doubled, x, torch.empty_like(x))
    _, again = recorder(lambda: x * 2)
    x.fill_(3.0)
    assert torch.equal(again(), torch.full_like(x, 6.0))


def test_operations_of_another_thread_are_not_captured():
    in_step, other_done = threading.Event(), threading.Event()
    drawn = []

    def other() -> None:
        in_step.wait(30)
        y = torch.rand(3, 3)
        captured_call(doubled, y, y)
        drawn.append(y.tolist())
        other_done.set()

    thread = threading.Thread(target=other)
    thread.start()
    x = numbers(4, WIDTH)

    def step() -> Tensor:
        in_step.set()
        assert other_done.wait(30)
        return x + 1

    _, again = OpCapturer()(step)
    thread.join()
    assert len(drawn) == 1
    assert functions_of(again) == [torch.ops.aten.add.out]


# Memory


def test_graphs_of_other_shapes_share_one_pool():
    recorder, packed = OpCapturer(), PackedLinear(numbers_kept, None)

    def step(x):
        return composites(packed(x) + 1)

    inputs = {rows: numbers(rows, WIDTH) for rows in (3, 4, 9)}
    captured = {rows: recorder(lambda x=x: step(x))[1] for rows, x in inputs.items()}
    memory = {each.data_ptr() for buffers in recorder.pool.buffers.values() for each in buffers}
    for turn in range(3):
        for rows, again in captured.items():
            inputs[rows].copy_(numbers(rows, WIDTH, seed=turn))
            assert torch.equal(again(), step(inputs[rows]))
            assert again.result.untyped_storage().data_ptr() in memory
    alone = OpCapturer()
    alone(lambda: step(inputs[9]))
    # The others need less, and use the same memory.
    sizes = [sum(map(len, each.pool.buffers.values())) for each in (recorder, alone)]
    assert sizes[0] < 2 * sizes[1]


NEED = st.tuples(st.integers(0, 30), st.integers(0, 12), st.integers(0, 5000))


@given(recordings=st.lists(st.lists(NEED, max_size=25), min_size=1, max_size=4))
def test_a_pool_shares_no_buffer_between_overlapping_needs(recordings):
    pool = GraphBuffers()
    for each in recordings:
        needs = [
            (first, first + calls, name, size) for name, (first, calls, size) in enumerate(each)
        ]
        assigned = pool.assign(iter(needs))
        assert assigned.keys() == set(range(len(needs)))
        for _, _, name, size in needs:
            assert assigned[name].numel() >= max(size, MIN_BUFFER_BYTES)
            assert any(assigned[name] is each for each in pool.buffers[assigned[name].numel()])
        for one, other in combinations(needs, 2):
            if one[0] <= other[1] and other[0] <= one[1]:
                assert assigned[one[2]] is not assigned[other[2]]


@given(num_needs=st.integers(1, 30), size=st.integers(1, 5000))
def test_needs_that_do_not_overlap_share_one_buffer(num_needs, size):
    pool = GraphBuffers()
    assigned = pool.assign((at, at, at, size) for at in range(num_needs))
    assert len({each.data_ptr() for each in assigned.values()}) == 1
    # The result of a call does not overlap its arguments.
    chain = pool.assign((at, at + 1, at, size) for at in range(num_needs))
    assert len({each.data_ptr() for each in chain.values()}) == min(num_needs, 2)
    assert sum(map(len, pool.buffers.values())) == min(num_needs, 2)


# Without support in torch


def test_without_torch_dispatch_modes_steps_run_as_written(monkeypatch, caplog):
    monkeypatch.delattr(_python_dispatch, "TorchDispatchMode")
    spec = importlib.util.spec_from_file_location("captured_ops_elsewhere", captured_ops.__file__)
    elsewhere = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "captured_ops_elsewhere", elsewhere)
    spec.loader.exec_module(elsewhere)
    x = numbers(4, WIDTH)
    graphs = GraphCache(elsewhere.OpCapturer())
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            assert torch.equal(graphs.run(4, lambda: composites(x)), composites(x))
    assert (graphs.record, graphs.recorded) == (None, {})
    assert len(caplog.records) == 1


@pytest.mark.parametrize("name", ["_can_decompose", "decompose", "tags"])
def test_where_operations_lack_an_attribute_steps_run_as_written(name, monkeypatch):
    def missing(self):
        raise AttributeError(name)

    monkeypatch.setattr(torch._ops.OpOverload, name, property(missing))
    x = numbers(4, WIDTH)
    graphs = GraphCache(OpCapturer())
    for _ in range(3):
        assert torch.equal(graphs.run(4, lambda: composites(x)), composites(x))
    assert (graphs.record, graphs.recorded) == (None, {})
