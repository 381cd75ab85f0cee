import logging

import pytest
import torch

from engine.runners.cuda_graphs import GraphCache


class Recorder:
    """Runs each step that it records, as every recorder does, and counts its recordings."""

    def __init__(self, error: Exception | None = None) -> None:
        self.error = error
        self.num_recorded = 0

    def __call__(self, step):
        if self.error is not None:
            raise self.error
        self.num_recorded += 1
        return step(), step


def run_each(graphs, *shapes):
    """The result of each shape's step, and the shapes in the order of the steps."""
    runs = []

    def step_of(shape):
        def step():
            runs.append(shape)
            return f"of {shape}"

        return step

    return [graphs.run(shape, step_of(shape)) for shape in shapes], runs


def test_a_shape_is_recorded_once_at_its_second_step():
    recorder = Recorder()
    graphs = GraphCache(recorder)
    run_each(graphs, 1, 2)
    assert (recorder.num_recorded, graphs.recorded) == (0, {})
    run_each(graphs, 1)
    assert (recorder.num_recorded, list(graphs.recorded)) == (1, [1])
    run_each(graphs, 1, 2, 2, 1)
    assert recorder.num_recorded == 2


def test_a_recorded_step_returns_what_an_eager_one_does():
    results, runs = run_each(GraphCache(Recorder()), 1, 1, 1, 2, 1)
    assert results == ["of 1", "of 1", "of 1", "of 2", "of 1"]
    assert runs[-2:] == [2, 1]


def test_the_shapes_used_last_are_kept():
    recorder = Recorder()
    graphs = GraphCache(recorder, max_graphs=2)
    run_each(graphs, 1, 1, 2, 2, 1, 3, 3)
    assert list(graphs.recorded) == [1, 3]
    run_each(graphs, 1)
    assert recorder.num_recorded == 3
    run_each(graphs, 2)  # not recorded at the first occurrence
    assert recorder.num_recorded == 4


def test_a_failed_recording_is_logged_once_and_all_steps_run_eagerly(caplog):
    graphs = GraphCache(Recorder(RuntimeError("operation not permitted")))
    with caplog.at_level(logging.WARNING):
        results, runs = run_each(graphs, 1, 2, 1, 2, 1)
    assert runs == [1, 2, 1, 2, 1]
    assert results == ["of 1", "of 2", "of 1", "of 2", "of 1"]
    assert [each.message for each in caplog.records] == ["recording failed, steps run eagerly"]
    assert graphs.record is None


def test_a_step_that_also_fails_eagerly_does_not_end_recording(caplog):
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
def test_device_faults_while_recording_are_raised(error):
    graphs = GraphCache(Recorder(error))
    run_each(graphs, 1)
    with pytest.raises(type(error)):
        run_each(graphs, 1)
    assert graphs.record is not None


def test_without_a_recorder_every_step_runs_eagerly():
    graphs = GraphCache(None)
    results, runs = run_each(graphs, 1, 1)
    assert runs == [1, 1]
    assert results == ["of 1", "of 1"]
    assert graphs.recorded == {}
