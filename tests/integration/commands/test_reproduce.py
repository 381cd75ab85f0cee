"""`tidemill reproduce`, and its report if a model's files have changed."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from db.clock import seconds_from_now
from db.schema import migrate
from db.session import Database
from tasks import chat, generate, summarize, translate
from tests import checkpoints
from tests.running.commands import CommandLine
from tests.running.producers import FAKE, producing
from tests.running.workers import PATIENCE_SECONDS, Cluster
from tests.samples.jobs import set_columns
from tests.services.servers import ValkeyServer


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory, valkey: ValkeyServer) -> Iterator[Cluster]:
    """A model that generates and one that summarizes, with real weights in separate files."""
    folder = tmp_path_factory.mktemp("reproduce")
    checkpoints.build("gpt2", folder / "gpt2")
    checkpoints.build("t5", folder / "t5")
    (folder / "gpt2" / "README.md").write_text("---\nlicense: apache-2.0\n---\n")
    database = Database(f"sqlite:///{folder}/tidemill.db")
    migrate(database)
    cluster = Cluster(folder, database, valkey.new_database())
    config = cluster.configure_models(
        {
            "writer": {"checkpoint": "gpt2", "tasks": ["generate"], "device": "cpu", "threads": 1},
            "reports": {"checkpoint": "t5", "tasks": ["summarize"], "device": "cpu", "threads": 1},
            "fake": {**FAKE, "tasks": ["translate", "chat"], "max_input_tokens": 60},
        }
    )
    config.write_text(config.read_text() + '[masking.tenants.acme]\nrules = ["email"]\n')
    with producing(cluster.database_url, cluster.redis_url, config):
        yield cluster
    cluster.end()
    database.close()


def command_line(cluster: Cluster) -> CommandLine:
    return CommandLine(
        cluster.folder,
        {
            "TIDEMILL_DATABASE_URL": cluster.database_url,
            "TIDEMILL_REDIS_URL": cluster.redis_url,
            "COLUMNS": "300",
        },
    )


def reproduced(cluster: Cluster, job_id: Any) -> tuple[int, dict[str, Any]]:
    ended = command_line(cluster)("reproduce", str(job_id), "--json")
    return ended.status, json.loads(ended.out)


def test_a_job_is_reproduced_until_its_models_files_change(cluster: Cluster) -> None:
    with cluster.worker():
        jobs = [
            generate.submit(text="the mill", max_new_tokens=12),
            generate.submit(text="the mill", max_new_tokens=12, do_sample=True),  # without a seed
            generate.submit(text="the mill", max_new_tokens=9, num_beams=3, num_return_sequences=2),
            summarize.submit(text="the mill " * 400, max_words=12),
            # A masked document in another language, of several parts.
            translate.submit(
                text="Write to ada@mail.example of the mill. " * 20,
                source_language="en",
                target_language="fr",
                tenant="acme",
            ),
            chat.submit(messages=[{"role": "user", "content": "I am the miller"}]),
        ]
        for job in jobs:
            assert job.wait(PATIENCE_SECONDS).state == "succeeded"
        # A job that continues a dialogue, and one whose answer came from the cache.
        jobs += [
            chat.submit(
                messages=[{"role": "user", "content": "And who am I?"}], previous_job_id=jobs[-1].id
            ),
            generate.submit(text="the mill", max_new_tokens=12),
        ]
        for job in jobs[-2:]:
            assert job.wait(PATIENCE_SECONDS).state == "succeeded"
        cached = json.loads(command_line(cluster)("show", str(jobs[-1].id), "--json").out)
        assert cached["provenance"]["cached_parts"]["cached"] == [[1, 1]]
        for job in jobs:
            status, said = reproduced(cluster, job.id)
            assert (status, said["identical"], said["records"]) == (0, True, {})
            assert said["job"] == str(job.id) != said["again"]
        shown = json.loads(command_line(cluster)("show", said["again"], "--json").out)
        assert shown["metadata"] == {"reproduces": str(jobs[-1].id)}
        assert "cached_parts" not in shown["provenance"]
        provenance = json.loads(command_line(cluster)("show", str(jobs[0].id), "--json").out)[
            "provenance"
        ]
        assert provenance["licence"] == "apache-2.0"
        assert list(provenance["weight_files"]) == ["model.safetensors"]

    weights = cluster.folder / "gpt2" / "model.safetensors"
    turn_around(weights)
    with cluster.worker() as worker:
        assert "model changed" in worker.log
        assert "model.safetensors" in worker.log
        shown_models = command_line(cluster)("models").out
        assert "changed since" in shown_models
        assert "model.safetensors" in shown_models
        status, said = reproduced(cluster, jobs[0].id)
        assert (status, said["identical"]) == (1, False)
        assert set(said["records"]) == {"revision", "weight_files"}
        ended = command_line(cluster)("reproduce", str(jobs[0].id))
        assert ended.status == 1
        assert "different from character" in ended.out
        assert "the records differ in weight_files" in ended.err
    # The unchanged model is not reported.
    assert worker.log.count("model changed") == 1


def test_a_job_without_an_answer_is_not_reproduced(cluster: Cluster) -> None:
    waiting = generate.submit(text="nobody works", tenant="gone")
    ended = command_line(cluster)("reproduce", str(waiting.id))
    assert ended.status == 1
    assert "only one that succeeded" in ended.err

    set_columns(cluster.database, [waiting.id], state="succeeded", finished_at=seconds_from_now(0))
    assert command_line(cluster)("erase", "--tenant", "gone", "--yes").status == 0
    ended = command_line(cluster)("reproduce", str(waiting.id))
    assert (ended.status, "were pruned or erased" in ended.err) == (1, True)


def turn_around(weights: Path) -> None:
    """Replace the weights by others of the same names and shapes in a file of the same size."""
    size = weights.stat().st_size
    tensors = {
        name: torch.flip(tensor, [0]).contiguous() for name, tensor in load_file(weights).items()
    }
    save_file(tensors, weights, metadata={"format": "pt"})
    assert weights.stat().st_size == size
