"""An architecture that nobody has heard of runs in flight, unless it has a flaw."""

from __future__ import annotations

import pytest
import torch

from engine.backends.generate import GenerateBackend
from engine.backends.loader import load
from engine.backends.router import RouterBackend
from engine.errors import Unloadable
from tests import checkpoints
from tests.parity.trials.joining import SETTINGS, let_join, requests, spec_of
from tests.parity.trials.made_up import made_up
from tests.running.engines import Bench


def test_an_unknown_architecture_runs_in_flight(folder_of, tmp_path):
    folder = made_up(tmp_path / "made_up", folder_of("gpt2"), "pass")
    with pytest.raises(Unloadable, match="trust_remote_code"):
        load(spec_of(folder))
    spec = spec_of(folder, trust_remote_code=True)
    engine = load(spec)
    assert isinstance(engine, RouterBackend), engine.card.engine_reason
    bench = Bench(engine, spec)
    asked = requests()
    outputs = let_join(bench, asked)
    assert bench.progress.num_in_flight == len(asked)
    alone = checkpoints.hf.AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
    tokenizer = checkpoints.hf.AutoTokenizer.from_pretrained(folder)
    for each in asked[::5]:
        ids = torch.tensor([tokenizer(each.text)["input_ids"]])
        expected = alone.generate(ids, **SETTINGS[0])[0, ids.shape[1] :].tolist()
        assert list(outputs[each.id].choices[0].token_ids) == expected


@pytest.mark.parametrize(
    "raised", ["assert use_cache", "1 / int(use_cache)", "next(iter([0] * use_cache))"]
)
def test_an_error_of_a_models_own_code_in_the_proof_ends_no_load(raised, folder_of, tmp_path):
    """`generate` always has a cache, and the fast way looks once without."""
    folder = made_up(tmp_path / "made_up", folder_of("gpt2"), raised)
    engine = load(spec_of(folder, trust_remote_code=True))
    assert isinstance(engine, RouterBackend), engine.card.engine_reason
    assert "by its own attention and cache" in engine.card.engine_reason


def test_a_model_that_answers_nothing_is_refused_when_it_is_loaded(folder_of, tmp_path):
    flaw = "raise IndexError('a secret')"
    folder = made_up(tmp_path / "made_up", folder_of("gpt2"), flaw)
    with pytest.raises(Unloadable, match=r"model\.generate itself raises IndexError") as refused:
        load(spec_of(folder, trust_remote_code=True))
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize(
    "flaw",
    [
        "position_ids = position_ids + (input_ids.shape[0] > 1)",
        # Only in a row that has joined longer ones, and only past its prompt.
        "position_ids = position_ids + int(attention_mask is not None "
        "and input_ids.shape[1] == 1 and attention_mask.shape[1] > int(position_ids.min()) + 1)",
        # By what the neighbours say.
        "position_ids = position_ids + int(input_ids.sum()) % 2 * (input_ids.shape[0] > 1)",
        # By how much the cache holds, which is the longest of the rows.
        "position_ids = position_ids + (past_key_values.get_seq_length() > 9)",
        # Only from the fourth row on.
        "position_ids = position_ids + (torch.arange(input_ids.shape[0])[:, None] > 2)",
    ],
)
def test_a_position_off_by_one_in_a_batch_is_caught(flaw, folder_of, tmp_path):
    folder = made_up(tmp_path / "made_up", folder_of("gpt2"), flaw)
    engine = load(spec_of(folder, trust_remote_code=True))
    assert isinstance(engine, GenerateBackend)
    assert "others in company" in engine.card.engine_reason or "in flight" in (
        engine.card.engine_reason
    )


@pytest.mark.parametrize(
    "flaw",
    [
        # Positions are counted from the padding on, where there is some.
        "position_ids = torch.arange(input_ids.shape[1])[None] if input_ids.shape[1] > 1 "
        "else position_ids",
    ],
)
def test_a_model_that_reads_padding_computes_prompts_one_by_one(flaw, folder_of, tmp_path):
    folder = made_up(tmp_path / "made_up", folder_of("gpt2"), flaw)
    engine = load(spec_of(folder, trust_remote_code=True))
    assert isinstance(engine, RouterBackend), engine.card.engine_reason
    assert not engine.in_flight.runner.pads_prompts
