"""Pages of files are forgotten, and nothing else is; a model is in memory once."""

import mmap
import subprocess
import sys
from array import array
from pathlib import Path

import pytest
import torch
import transformers

from engine.cpu import file_pages
from engine.cpu.linear import best, pack
from tests import checkpoints

MIB = 2**20
PAGE_FLOATS = mmap.PAGESIZE // 4
NUM_PAGES = 64

# What a process says of itself in the first lines of each script.
STATUS = """
from pathlib import Path

def status(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name + ":"))
"""
PACKING = """
import sys, torch, transformers
from engine.cpu.linear import best, pack

model = transformers.AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.float32)
make = best()
read = status("VmRSS")
Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
pack(model, make)
print(status("VmHWM") - read)
"""
LOADING = """
import sys
from engine.process import load_engine
from engine.protocol.engine_spec import EngineSpec

engine = load_engine(EngineSpec(alias="small", checkpoint=sys.argv[1], device="cpu"))
print(status("RssFile"))
"""


def run(script: str, *arguments: Path) -> int:
    """The number that a process of its own prints."""
    command = [sys.executable, "-c", STATUS + script, *map(str, arguments)]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return int(printed.splitlines()[-1])


def num_present(tensor: torch.Tensor) -> int:
    """Pages of a tensor that this process has."""
    page = mmap.PAGESIZE
    begin, end = tensor.data_ptr(), tensor.data_ptr() + tensor.nbytes
    entries = array("Q")
    with file_pages.PAGEMAP.open("rb", buffering=0) as file:
        file.seek(begin // page * file_pages.ENTRY_BYTES)
        entries.frombytes(file.read((-(-end // page) - begin // page) * file_pages.ENTRY_BYTES))
    return sum(bool(each & file_pages.IS_PRESENT) for each in entries)


@pytest.fixture
def of_file(tmp_path: Path) -> torch.Tensor:
    """The numbers from 0 on, a view of a file as the tensors of a checkpoint are; all read."""
    path = tmp_path / "numbers"
    torch.arange(NUM_PAGES * PAGE_FLOATS, dtype=torch.float32).numpy().tofile(path)
    tensor = torch.from_file(str(path), shared=False, size=NUM_PAGES * PAGE_FLOATS)
    assert tensor.double().sum() > 0
    assert num_present(tensor) == NUM_PAGES
    return tensor


def test_what_was_read_of_a_file_is_forgotten_and_read_again(of_file: torch.Tensor) -> None:
    file_pages.release_tensor_pages(of_file)
    assert num_present(of_file) == 0
    assert torch.equal(of_file, torch.arange(len(of_file), dtype=torch.float32))


def test_only_whole_pages_are_forgotten(of_file: torch.Tensor) -> None:
    file_pages.release_tensor_pages(of_file[1 : 3 * PAGE_FLOATS - 1])
    assert num_present(of_file) == NUM_PAGES - 1


def test_what_was_written_is_kept(of_file: torch.Tensor) -> None:
    """It is in this process only: the file has something else there."""
    of_file[5 * PAGE_FLOATS] = -1
    file_pages.release_tensor_pages(of_file)
    assert num_present(of_file) == NUM_PAGES
    assert of_file[5 * PAGE_FLOATS] == -1


def test_memory_of_no_file_is_kept() -> None:
    tensor = torch.ones(NUM_PAGES * PAGE_FLOATS)
    file_pages.release_tensor_pages(tensor)
    assert tensor.sum() == len(tensor)


def test_where_the_system_does_not_say_everything_is_kept(
    of_file: torch.Tensor, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("MAPS", "PAGEMAP"):
        monkeypatch.setattr(file_pages, name, tmp_path / "nothing")
    file_pages.release_tensor_pages(of_file)
    file_pages.release_library_pages()
    monkeypatch.undo()
    assert num_present(of_file) == NUM_PAGES


@pytest.mark.parametrize("tied", [False, True])
def test_a_model_is_in_memory_once_while_it_is_laid_out(tied: bool, tmp_path: Path) -> None:
    config = transformers.LlamaConfig(
        vocab_size=4096,
        hidden_size=512,
        intermediate_size=2048,
        num_hidden_layers=6,
        num_attention_heads=8,
        tie_word_embeddings=tied,
    )
    model = transformers.LlamaForCausalLM(config)
    model.save_pretrained(tmp_path, max_shard_size="40MB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    num_bytes = sum(each.nbytes for each in model.parameters())
    if tied:  # as an embedding and as a product it is laid out in two ways
        num_bytes += model.lm_head.weight.nbytes
    assert num_bytes > 100 * MIB
    # The largest weight is there twice for a moment.
    assert run(PACKING, tmp_path) < num_bytes + model.lm_head.weight.nbytes + 24 * MIB


def test_tied_weights_stay_what_they_are(tmp_path: Path) -> None:
    """One of the two is laid out, and the pages of both are forgotten."""
    config = transformers.LlamaConfig(
        vocab_size=512,
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        tie_word_embeddings=True,
    )
    transformers.LlamaForCausalLM(config).save_pretrained(tmp_path)
    model = transformers.LlamaForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    ids = torch.arange(500)[None]
    with torch.inference_mode():
        expected = model(ids).logits
        assert pack(model, best(), min_weights=0) == 8
        torch.testing.assert_close(model(ids).logits, expected)


def test_an_engine_that_is_loaded_has_let_libraries_go(tmp_path: Path) -> None:
    """torch alone is 75 MiB when it is imported, and what compiles for us as much again."""
    assert run(LOADING, checkpoints.build("llama", tmp_path)) < 40 * MIB
