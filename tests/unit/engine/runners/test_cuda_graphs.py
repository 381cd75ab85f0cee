import logging

import pytest
import torch

from engine.runners.cuda_graphs import GraphCache


class Recorder:
    """Runs what it records, as every recorder does, and counts."""

    def __init__(self, error: Exception | None = None) -> None:
        self.error = error
        self.num_recorded = 0

    def __call__(self, step):
        if self.error is not None:
            raise self.error
        self.num_recorded += 1
        return step(), step


def run_each(graphs, *shapes):
    """What each of the shapes came to, and in which order they were run."""
    runs = []

    def step_of(shape):
        def step():
            runs.append(shape)
            return f"of {shape}"

        return step

    return [graphs.run(shape, step_of(shape)) for shape in shapes], runs


def test_a_shape_is_recorded_when_it_comes_again_and_then_never_more():
    recorder = Recorder()
    graphs = GraphCache(recorder)
    run_each(graphs, 1, 2)
    assert (recorder.num_recorded, graphs.recorded) == (0, {})
    run_each(graphs, 1)
    assert (recorder.num_recorded, list(graphs.recorded)) == (1, [1])
    run_each(graphs, 1, 2, 2, 1)
    assert recorder.num_recorded == 2


def test_whichever_way_a_step_is_run_its_result_is_returned():
    results, runs = run_each(GraphCache(Recorder()), 1, 1, 1, 2, 1)
    assert results == ["of 1", "of 1", "of 1", "of 2", "of 1"]
    assert runs[-2:] == [2, 1]


def test_those_used_last_are_kept():
    recorder = Recorder()
    graphs = GraphCache(recorder, max_graphs=2)
    run_each(graphs, 1, 1, 2, 2, 1, 3, 3)
    assert list(graphs.recorded) == [1, 3]
    run_each(graphs, 1)
    assert recorder.num_recorded == 3
    run_each(graphs, 2)  # not met for the first time
    assert recorder.num_recorded == 4


def test_where_recording_fails_steps_are_run_as_written_and_it_is_said_once(caplog):
    graphs = GraphCache(Recorder(RuntimeError("operation not permitted")))
    with caplog.at_level(logging.WARNING):
        results, runs = run_each(graphs, 1, 2, 1, 2, 1)
    assert runs == [1, 2, 1, 2, 1]
    assert results == ["of 1", "of 2", "of 1", "of 2", "of 1"]
    assert [each.message for each in caplog.records] == ["no graphs, steps are run as written"]
    assert graphs.record is None


def test_a_step_that_fails_by_itself_is_no_reason_to_record_no_more(caplog):
    recorder = Recorder()
    graphs = GraphCache(recorder)

    def fails():
        raise ValueError("of a request")

    run_each(graphs, 1, 2)
    with caplog.at_level(logging.WARNING), pytest.raises(ValueError, match="of a request"):
        graphs.run(1, fails)
    assert caplog.records == []
    run_each(graphs, 1, 2)
    assert list(graphs.recorded) == [1, 2]


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError(), torch.AcceleratorError("an illegal memory access")]
)
def test_what_is_no_fault_of_recording_is_not_taken_for_one(error):
    graphs = GraphCache(Recorder(error))
    run_each(graphs, 1)
    with pytest.raises(type(error)):
        run_each(graphs, 1)
    assert graphs.record is not None


def test_without_a_recorder_nothing_is_recorded():
    graphs = GraphCache(None)
    results, runs = run_each(graphs, 1, 1)
    assert runs == [1, 1]
    assert results == ["of 1", "of 1"]
    assert graphs.recorded == {}
