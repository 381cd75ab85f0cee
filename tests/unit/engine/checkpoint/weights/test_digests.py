"""The digests of a checkpoint's files in its model card."""

import hashlib
from pathlib import Path

import pytest

from engine.checkpoint.weights.digests import folder_revision, licence_of, weight_digests


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def test_weights_are_the_safetensors_where_there_are_some(tmp_path: Path) -> None:
    for name in ("model-1.safetensors", "model-2.safetensors", "pytorch_model.bin", "a.json"):
        (tmp_path / name).write_bytes(name.encode())
    assert weight_digests(tmp_path) == {
        name: sha256(name.encode()) for name in ("model-1.safetensors", "model-2.safetensors")
    }


def test_weights_are_else_the_pickles_but_not_those_of_training(tmp_path: Path) -> None:
    for name in ("pytorch_model.bin", "training_args.bin"):
        (tmp_path / name).write_bytes(b"weights")
    assert weight_digests(tmp_path) == {"pytorch_model.bin": sha256(b"weights")}


def test_a_blob_of_the_hubs_cache_is_known_by_its_name_and_not_read(tmp_path: Path) -> None:
    name = "ab" * 32
    (tmp_path / "blobs").mkdir()
    (tmp_path / "blobs" / name).write_bytes(b"other bytes than the name says")
    (tmp_path / "snapshot").mkdir()
    (tmp_path / "snapshot" / "model.safetensors").symlink_to(tmp_path / "blobs" / name)
    assert weight_digests(tmp_path / "snapshot") == {"model.safetensors": name}


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin", "config.json"])
def test_one_byte_in_the_middle_of_any_file_is_another_revision(tmp_path: Path, name: str) -> None:
    data = bytearray(1_000_000)
    for each in {name, "config.json"}:
        (tmp_path / each).write_bytes(data)
    before = folder_revision(tmp_path, weight_digests(tmp_path))
    assert folder_revision(tmp_path, weight_digests(tmp_path)) == before
    data[500_000] = 1
    (tmp_path / name).write_bytes(data)
    assert folder_revision(tmp_path, weight_digests(tmp_path)) != before


@pytest.mark.parametrize(
    ("readme", "licence"),
    [
        ("---\nlanguage: en\nlicense: apache-2.0\n---\n# Model\n", "apache-2.0"),
        ('---\nlicence: "MIT"  # ours\n---\n', "MIT"),
        ("# Model\n\nlicense: apache-2.0\n", None),
        ("---\nlanguage: en\n---\nlicense: mit\n", None),
        ("", None),
    ],
)
def test_a_licence_is_what_the_front_matter_names(tmp_path, readme, licence) -> None:
    (tmp_path / "README.md").write_text(readme)
    assert licence_of(tmp_path) == licence


def test_a_checkpoint_without_a_readme_has_no_licence(tmp_path: Path) -> None:
    assert licence_of(tmp_path) is None
