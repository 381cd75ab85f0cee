"""Experts that are multiplied by one call give what the model's own give."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers as hf
from torch import Tensor, nn
from transformers.models.gpt_oss.modeling_gpt_oss import GptOssExperts
from transformers.models.longcat_flash.modeling_longcat_flash import LongcatFlashExperts
from transformers.models.mixtral.modeling_mixtral import MixtralExperts
from transformers.models.nemotron_h.modeling_nemotron_h import NemotronHExperts
from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeExperts

from engine.cpu.fusion import fuse
from engine.cpu.packed_experts import PackedExperts

WIDTH, INNER, NUM_EXPERTS = 48, 40, 5
SIZES = {
    "hidden_size": WIDTH, "intermediate_size": INNER, "moe_intermediate_size": INNER,
    "num_local_experts": NUM_EXPERTS, "num_experts": NUM_EXPERTS, "n_routed_experts": NUM_EXPERTS,
    "experts_implementation": "eager",
}  # fmt: skip
EXPERTS = [
    (MixtralExperts, hf.MixtralConfig(**SIZES)),
    (MixtralExperts, hf.MixtralConfig(**SIZES, hidden_act="gelu")),
    (Qwen3MoeExperts, hf.Qwen3MoeConfig(**SIZES)),
    (GptOssExperts, hf.GptOssConfig(**SIZES)),  # biases, transposed, a gate of its own
    (NemotronHExperts, hf.NemotronHConfig(**SIZES, mlp_hidden_act="relu2")),  # no gate
]


def made(kind: Any, config: Any) -> nn.Module:
    torch.manual_seed(0)
    config._experts_implementation = "eager"
    experts: nn.Module = kind(config)
    for each in experts.parameters():
        nn.init.normal_(each, std=0.2)
    return experts


def drawn(num_rows: int) -> tuple[Tensor, Tensor, Tensor]:
    """Rows, and two experts for each with their weights."""
    draw = torch.Generator().manual_seed(num_rows)
    chosen = torch.rand((num_rows, NUM_EXPERTS), generator=draw).topk(2).indices
    rows = torch.randn((num_rows, WIDTH), generator=draw)
    return rows, chosen, torch.rand((num_rows, 2), generator=draw)


@torch.inference_mode()
@pytest.mark.parametrize("num_rows", [1, 2, 17, 120])
@pytest.mark.parametrize(("kind", "config"), EXPERTS)
def test_each_row_has_what_its_experts_give(kind: Any, config: Any, num_rows: int) -> None:
    own = made(kind, config)
    model: Any = nn.Sequential(made(kind, config))
    fuse(model)
    assert isinstance(model[0], PackedExperts)
    assert not list(model.parameters())  # its weights are in memory once
    rows, chosen, weights = drawn(num_rows)
    expected = own(rows, chosen, weights)
    torch.testing.assert_close(model[0](rows, chosen, weights), expected, rtol=1e-5, atol=1e-5)


@torch.inference_mode()
def test_a_row_has_the_same_bits_alone_and_in_a_batch() -> None:
    packed = PackedExperts(made(*EXPERTS[0]))
    rows, chosen, weights = drawn(50)
    together = packed(rows, chosen, weights)
    for at in (0, 13, 49):
        one = slice(at, at + 1)
        assert torch.equal(packed(rows[one], chosen[one], weights[one])[0], together[at])
    backwards = torch.arange(49, -1, -1)
    found = packed(rows[backwards], chosen[backwards], weights[backwards])
    assert torch.equal(found, together[backwards])


@torch.inference_mode()
def test_a_choice_of_no_expert_adds_nothing() -> None:
    own = made(*EXPERTS[0])
    packed = PackedExperts(own)
    rows, chosen, weights = drawn(20)
    chosen[3], chosen[4, 1] = NUM_EXPERTS, NUM_EXPERTS  # behind the last
    found = packed(rows, chosen, weights)
    torch.testing.assert_close(found, own(rows, chosen, weights), rtol=1e-5, atol=1e-5)
    assert not found[3].any()
    chosen[:] = NUM_EXPERTS
    assert not packed(rows, chosen, weights).any()


def test_experts_of_code_of_their_own_are_left_alone() -> None:
    config = hf.LongcatFlashConfig(
        hidden_size=WIDTH, expert_ffn_hidden_size=INNER, n_routed_experts=4, zero_expert_num=1
    )
    model = nn.Sequential(LongcatFlashExperts(config))
    assert fuse(model) == 0


def test_experts_that_compute_something_else_are_left_alone(caplog: Any) -> None:
    class Halved(MixtralExperts):
        def forward(self, rows: Tensor, chosen: Tensor, weights: Tensor) -> Tensor:
            return super().forward(rows, chosen, weights) / 2  # type: ignore[no-any-return]

    model = nn.Sequential(made(Halved, EXPERTS[0][1]))
    assert fuse(model) == 0
    assert [each.message for each in caplog.records] == ["kernel disagrees with torch"]
