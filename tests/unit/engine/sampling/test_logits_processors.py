"""Sampling uses the logits processors of `transformers`, and applies them once."""

import copy

import pytest
import torch
import transformers as hf

from engine.sampling.logits_processors import NEUTRAL_SAMPLING, build, take_sampling_processors

ALL = {
    "temperature": 0.7,
    "top_k": 9,
    "top_p": 0.9,
    "top_h": 0.6,
    "min_p": 0.02,
    "typical_p": 0.95,
    "epsilon_cutoff": 1e-4,
    "eta_cutoff": 1e-3,
    "renormalize_logits": True,
}


@pytest.fixture(scope="module")
def model():
    config = hf.GPT2Config(n_layer=1, n_head=1, n_embd=8, vocab_size=64, n_positions=16)
    return hf.GPT2LMHeadModel(config).eval()


def scores_of(processors):
    draw = torch.Generator().manual_seed(0)
    ids = torch.randint(0, 64, (3, 5), generator=draw)
    return processors(ids, 4 * torch.randn(3, 64, generator=draw))


@pytest.mark.parametrize("names", [list(ALL), *([name] for name in ALL)], ids=str)
def test_splitting_off_the_processors_of_sampling_changes_no_score(model, names):
    settings = {name: ALL[name] for name in names}
    config = hf.GenerationConfig(
        do_sample=True, num_beams=1, repetition_penalty=1.3, **NEUTRAL_SAMPLING | settings
    )
    expected = scores_of(build(model, copy.deepcopy(config), 5, None))
    sampling = take_sampling_processors(model, config)
    rest = build(model, config, 5, None)
    # `generate` applies its own processors, then the given ones.
    assert torch.equal(scores_of(hf.LogitsProcessorList([*rest, *sampling])), expected)
    assert len(rest) == 1
