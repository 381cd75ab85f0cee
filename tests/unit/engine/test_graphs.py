import logging

import pytest
import torch

from worker.engine.graphs import Graphs


class Recorder:
    """Runs what it records, as a warm-up does, and counts."""

    def __init__(self, error: Exception | None = None) -> None:
        self.error = error
        self.num_recorded = 0

    def __call__(self, step):
        if self.error is not None:
            raise self.error
        self.num_recorded += 1
        step()
        return step


def test_a_shape_is_recorded_once_and_run_again_each_time():
    recorder, runs = Recorder(), []
    graphs = Graphs(recorder)
    for shape in ("small", "large", "small", "small"):
        graphs.run(shape, lambda shape=shape: runs.append(shape))
    assert recorder.num_recorded == 2
    # The first time of each it is run by the recorder too.
    assert runs == ["small", "small", "large", "large", "small", "small"]


def test_those_used_last_are_kept():
    recorder = Recorder()
    graphs = Graphs(recorder, max_graphs=2)
    for shape in (1, 2, 1, 3):
        graphs.run(shape, lambda: None)
    assert list(graphs.recorded) == [1, 3]
    graphs.run(1, lambda: None)
    assert recorder.num_recorded == 3
    graphs.run(2, lambda: None)
    assert recorder.num_recorded == 4


def test_where_recording_fails_steps_are_run_as_written_and_it_is_said_once(caplog):
    graphs, runs = Graphs(Recorder(RuntimeError("operation not permitted"))), []
    with caplog.at_level(logging.WARNING):
        for shape in (1, 2, 1):
            graphs.run(shape, lambda shape=shape: runs.append(shape))
    assert runs == [1, 2, 1]
    assert [each.message for each in caplog.records] == ["no graphs, steps are run as written"]


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError(), torch.AcceleratorError("an illegal memory access")]
)
def test_what_is_no_fault_of_recording_is_not_taken_for_one(error):
    graphs = Graphs(Recorder(error))
    with pytest.raises(type(error)):
        graphs.run(1, lambda: None)
    assert graphs.record is not None


def test_without_a_recorder_nothing_is_recorded():
    graphs, runs = Graphs(None), []
    graphs.run(1, lambda: runs.append(1))
    graphs.run(1, lambda: runs.append(1))
    assert runs == [1, 1]
    assert graphs.recorded == {}
