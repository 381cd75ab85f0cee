import pytest

from engine.checkpoint.loader import choose_device
from engine.errors import Unloadable
from engine.protocol.engine_spec import EngineSpec
from tasks.configuration.catalog import Model
from worker.engines.fleet import engine_spec


def device(asked: str, replica: int = 0, num_gpus: int = 0) -> str:
    spec = EngineSpec(alias="reports", checkpoint="x", device=asked, replica=replica)
    return str(choose_device(spec, num_gpus))


@pytest.mark.parametrize("asked", ["auto", "cuda"])
def test_replicas_take_turns_with_the_gpus(asked):
    assert [device(asked, replica, num_gpus=2) for replica in range(5)] == [
        "cuda:0", "cuda:1", "cuda:0", "cuda:1", "cuda:0",
    ]  # fmt: skip


def test_a_gpu_that_is_named_is_that_of_all_replicas():
    assert {device("cuda:1", replica, num_gpus=4) for replica in range(4)} == {"cuda:1"}


def test_a_model_runs_on_a_cpu_where_it_is_told_to_or_there_is_nothing_else():
    assert device("cpu", num_gpus=2) == "cpu"
    assert device("auto", replica=3, num_gpus=0) == "cpu"


@pytest.mark.parametrize(("asked", "num_gpus"), [("cuda", 0), ("cuda:0", 0), ("cuda:2", 2)])
def test_a_gpu_that_is_not_there_is_refused_with_numbers(asked, num_gpus):
    with pytest.raises(Unloadable, match=f"'{asked}', and there are {num_gpus}"):
        device(asked, num_gpus=num_gpus)


def test_every_replica_is_told_which_it_is():
    model = Model(alias="reports", checkpoint="x", tasks=("summarize",), replicas=2)
    assert [engine_spec(model, 1, at).replica for at in range(2)] == [0, 1]
