"""A fused encoder-decoder gives the same results as the model's own code."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers as hf

from engine.attention.base import Scoring, Spans
from engine.attention.hf_plugin import install as install_attention
from engine.attention.layers import kv_shape_of
from engine.attention.prompt_attention import attend_within
from engine.attention.selection import contiguous_kv_cache
from engine.cpu.fused.call_table import CallTable
from engine.cpu.fused.encoder_attention import NUM_FIRST, EncoderAttention
from engine.cpu.fused.fused_encoder import FusedEncoder
from engine.cpu.fused.fused_stack import FusedStack
from engine.cpu.kernels import prefill_attention
from engine.cpu.quantized_linear import Int8Linear
from engine.cpu.self_test import is_close
from engine.runners.captured_step import CapturedExecutor
from engine.runners.seq2seq import Seq2SeqRunner
from engine.runners.step_executor import EagerExecutor, FusedEncoderDecoder
from tests.unit.engine.cpu.llamas import laid_out

VOCAB = 97
# Prompts and answers are longer than the windows.
COMMON = {
    "vocab_size": VOCAB, "num_hidden_layers": 2, "sliding_window": 20,
    "attn_logit_softcapping": 0.5, "layer_types": ["sliding_attention", "full_attention"],
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
DECODER = {
    "hidden_size": 64, "intermediate_size": 88, "num_attention_heads": 4, "num_key_value_heads": 2,
    "head_dim": 16, "query_pre_attn_scalar": 9, "final_logit_softcapping": 0.7,
}  # fmt: skip
# As in published models, some encoders are larger than their decoders.
ENCODER = {
    "hidden_size": 96, "intermediate_size": 120, "num_attention_heads": 3, "num_key_value_heads": 1,
    "head_dim": 32, "query_pre_attn_scalar": 30,
}  # fmt: skip


@pytest.fixture(autouse=True)
def _inference() -> Iterator[None]:
    with torch.inference_mode():
        yield


def t5gemma(own_of_decoder: dict[str, Any] | None = None, **own_of_encoder: Any) -> Any:
    torch.manual_seed(7)
    config = hf.T5GemmaConfig(
        encoder={**COMMON, **ENCODER, **own_of_encoder},
        decoder={**COMMON, **DECODER, **(own_of_decoder or {})},
        vocab_size=VOCAB, tie_word_embeddings=False,
    )  # fmt: skip
    model = hf.T5GemmaForConditionalGeneration(config).eval()
    with torch.no_grad():
        for name, each in model.named_parameters():
            if name.endswith("norm.weight"):
                each.normal_(0.0, 0.3)
    return model


def t5(kind: str = "t5", **own: Any) -> Any:
    torch.manual_seed(7)
    # All heads together are wider than the hidden states; the bias tells distances up to 40 apart.
    config = {"t5": hf.T5Config, "mt5": hf.MT5Config}[kind](
        vocab_size=VOCAB, d_model=64, d_kv=32, d_ff=88, num_layers=3, num_decoder_layers=2,
        num_heads=3, relative_attention_max_distance=40, pad_token_id=0, eos_token_id=1,
        decoder_start_token_id=0, **own,
    )  # fmt: skip
    model = hf.AutoModelForSeq2SeqLM.from_config(config).eval()
    with torch.no_grad():
        for name, each in model.named_parameters():
            if name.endswith("norm.weight"):
                each.normal_(1.0, 0.3)
            elif name.endswith("relative_attention_bias.weight"):
                each.normal_(0.0, 2.0)
            elif each.dim() > 1:
                each.normal_(0.0, each.shape[-1] ** -0.5)
    return model


T5S = {
    "t5": {"tie_word_embeddings": True},
    "t5 of version 1.1": {"tie_word_embeddings": False, "feed_forward_proj": "gated-gelu"},
    "mt5": {"kind": "mt5", "feed_forward_proj": "gated-gelu"},
}


def runner_of(model: Any) -> Seq2SeqRunner:
    laid_out(model)
    return Seq2SeqRunner(model, 3, contiguous_kv_cache(kv_shape_of(model), poisoned=True))


def fused_runner_of(model: Any) -> Seq2SeqRunner:
    runner = runner_of(model)
    assert isinstance(runner.executor, FusedEncoderDecoder)
    assert runner.executor.fused_encoder is not None
    assert runner.executor.fused_step is not None
    return runner


def plain_runner_of(model: Any) -> Seq2SeqRunner:
    """Return a runner of the model's own code, with plain torch."""
    install_attention(model)
    kv_cache = contiguous_kv_cache(kv_shape_of(model), poisoned=True, cpu_kernels=False)
    runner = Seq2SeqRunner(model, 3, kv_cache)
    assert type(runner.executor) is EagerExecutor
    return runner


def sequence(num_tokens: int, num_rows: int = 1) -> Any:
    draw = torch.Generator().manual_seed(num_tokens)
    prompt = torch.randint(3, VOCAB, (num_tokens,), generator=draw).tolist()
    return SimpleNamespace(
        prompt_ids=tuple(prompt),
        num_rows=num_rows,
        settings=SimpleNamespace(max_new_tokens=40),
        decoder_start_token_id=None,
    )


def logits_of(runner: Seq2SeqRunner, sequences: list[Any], num_steps: int) -> torch.Tensor:
    """Prefill prompts together and decode all rows; returns the logits, (steps, rows, vocab)."""
    caches, _ = runner.prefill(sequences)
    steps = []
    for step in range(num_steps):
        tokens = [
            (7 * step + len(each.prompt_ids) + row) % VOCAB
            for each in sequences
            for row in range(each.num_rows)
        ]
        steps.append(runner.decode(caches, tokens).clone())
        for cache in caches:
            cache.commit_token()
    return torch.stack(steps)


@pytest.mark.parametrize("own_of_encoder", [{}, DECODER, {"attn_logit_softcapping": None}])
def test_passes_and_steps_give_the_logits_of_the_models_own_code(
    own_of_encoder: dict[str, Any],
) -> None:
    together = [sequence(5), sequence(150, num_rows=2), sequence(64)]
    found, expected = (
        logits_of(make(t5gemma(**own_of_encoder)), together, num_steps=30)
        for make in (fused_runner_of, plain_runner_of)
    )
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert found.isfinite().all()


@pytest.mark.parametrize("own", T5S.values(), ids=T5S)
def test_passes_and_steps_of_t5_give_the_logits_of_its_own_code(own: dict[str, Any]) -> None:
    together = [sequence(5), sequence(150, num_rows=2), sequence(64)]
    found, expected = (
        logits_of(make(t5(**own)), together, num_steps=60)
        for make in (fused_runner_of, plain_runner_of)
    )
    assert is_close(found, expected, tolerance=1e-4)
    assert found.isfinite().all()


@pytest.mark.parametrize(
    "own", [{"feed_forward_proj": "gelu"}, {"feed_forward_proj": "gated-relu"}]
)
def test_a_t5_of_other_activations_is_left_to_its_own_code(own: dict[str, Any]) -> None:
    assert isinstance(runner_of(t5(**own)).executor, CapturedExecutor)


def test_heads_that_are_no_whole_registers_are_decoded_fused_and_encoded_by_the_model() -> None:
    own = {"head_dim": 12, "query_pre_attn_scalar": 12}
    runner = runner_of(t5gemma(own, **own))
    assert isinstance(runner.executor, FusedEncoderDecoder)
    assert runner.executor.fused_encoder is None
    assert runner.executor.fused_step is not None
    together = [sequence(5), sequence(70, num_rows=2)]
    found = logits_of(runner, together, num_steps=30)
    expected = logits_of(plain_runner_of(t5gemma(own, **own)), together, num_steps=30)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("make", [t5gemma, t5])
@pytest.mark.parametrize("num_threads", [1, 2, 3])
def test_a_row_gives_the_same_bits_alone_and_in_a_batch(
    num_threads: int, make: Callable[[], Any]
) -> None:
    runner = fused_runner_of(make())
    before = torch.get_num_threads()
    torch.set_num_threads(num_threads)
    try:
        together = logits_of(runner, [sequence(70), sequence(9)], num_steps=3)
        for row, num_tokens in enumerate((70, 9)):
            alone = logits_of(runner, [sequence(num_tokens)], num_steps=3)
            assert torch.equal(together[:, row], alone[:, 0])
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("spans", [((0, 1),), ((0, 65), (65, 68)), ((0, 7), (7, 300))])
@pytest.mark.parametrize("window", [None, 1, 8, 100, 500])
def test_tokens_of_an_encoder_see_both_ways(window: int | None, spans: Spans) -> None:
    heads, key_heads, size, num_tokens = 6, 2, 32, spans[-1][1] + 3
    scoring = Scoring(0.25, window=window, softcap=None if window == 8 else 0.5)
    draw = torch.Generator().manual_seed(num_tokens)
    qkv = torch.randn(num_tokens, (heads + 2 * key_heads) * size, generator=draw)
    found, width = torch.full((num_tokens, heads * size), 7.0), heads * size
    ones, zeros = torch.ones(num_tokens, size), torch.zeros(num_tokens, size)
    attention = EncoderAttention(key_heads, size, num_tokens + 5, num_threads=2)
    table = CallTable(
        attention.calls(
            qkv.data_ptr(), width, ones.data_ptr(), zeros.data_ptr(), scoring, found.data_ptr()
        )
    )
    table.calls[:, 1 : 1 + NUM_FIRST] = attention.prepare(spans)
    table.run(2)
    query, key, value = (
        each.view(1, num_tokens, -1, size).transpose(1, 2)
        for each in qkv.split([width, key_heads * size, key_heads * size], dim=1)
    )
    for begin, end in spans:
        mine = [each[:, :, begin:end] for each in (query, key, value)]
        expected = attend_within(mine[0], mine[1], mine[2], False, scoring, None)
        torch.testing.assert_close(
            found[begin:end], expected[0].transpose(0, 1).flatten(1), rtol=1e-5, atol=1e-5
        )
    assert (found[spans[-1][1] :] == 7.0).all()  # the row's padding is unchanged


@pytest.mark.parametrize("group", [1, 2])
@pytest.mark.parametrize("spans", [((0, 1),), ((0, 65), (65, 68)), ((0, 7), (7, 300))])
def test_a_bias_by_distance_is_added_to_the_scores_of_an_encoder(spans: Spans, group: int) -> None:
    key_heads, size, num_tokens, scale = 2, 32, spans[-1][1] + 3, 0.5
    heads = group * key_heads
    draw = torch.Generator().manual_seed(num_tokens)
    qkv = torch.randn(num_tokens, (heads + 2 * key_heads) * size, generator=draw)
    bias = torch.randn(heads, 2 * num_tokens - 1, generator=draw)
    found, width = torch.empty(num_tokens, heads * size), heads * size
    attention = EncoderAttention(key_heads, size, num_tokens, num_threads=2)
    table = CallTable(
        attention.calls(qkv.data_ptr(), width, 0, 0, Scoring(scale), found.data_ptr(), bias)
    )
    table.calls[:, 1 : 1 + NUM_FIRST] = attention.prepare(spans)
    table.run(2)
    query, key, value = (
        each.view(num_tokens, -1, size).transpose(0, 1).repeat_interleave(heads // number, dim=0)
        for each, number in zip(
            qkv.split([width, key_heads * size, key_heads * size], dim=1),
            (heads, key_heads, key_heads), strict=True,
        )
    )  # fmt: skip
    for begin, end in spans:
        at = torch.arange(end - begin)
        distance = at[None] - at[:, None]
        scores = scale * query[:, begin:end] @ key[:, begin:end].transpose(1, 2)
        scores += bias[:, num_tokens - 1 + distance]
        expected = scores.softmax(dim=-1) @ value[:, begin:end]
        torch.testing.assert_close(
            found[begin:end], expected.transpose(0, 1).flatten(1), rtol=1e-5, atol=1e-5
        )


@pytest.mark.parametrize("make", [t5gemma, t5])
def test_the_buffers_grow_with_longer_prompts(make: Callable[[], Any]) -> None:
    ours, own = fused_runner_of(make()), plain_runner_of(make())
    for num_tokens in (3, 64, 65, 700, 5):
        found, expected = (logits_of(each, [sequence(num_tokens)], 2) for each in (ours, own))
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("make", [t5gemma, t5])
@pytest.mark.parametrize("token", [-1, VOCAB])
def test_a_token_without_an_embedding_is_refused(token: int, make: Callable[[], Any]) -> None:
    runner = fused_runner_of(make())
    (cache,), _ = runner.prefill([sequence(5)])
    with pytest.raises(IndexError):
        runner.decode([cache], [token])
    wrong = sequence(6)
    wrong.prompt_ids = (*wrong.prompt_ids, token)
    with pytest.raises(IndexError):
        runner.prefill([wrong])


@pytest.mark.parametrize(("stack", "others"), [("encoder", "fused_step"),
                                              ("decoder", "fused_encoder")])  # fmt: skip
def test_a_hook_beside_the_layers_is_found_by_the_self_test(
    stack: str, others: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The other stack is still fused."""
    model = t5gemma()
    getattr(model.model, stack).embed_tokens.register_forward_hook(lambda _, __, rows: 2 * rows)
    with caplog.at_level(logging.WARNING):
        runner = runner_of(model)
    assert "kernel disagrees with torch" in [each.message for each in caplog.records]
    assert isinstance(runner.executor, FusedEncoderDecoder)
    parts = {each for each in ("fused_encoder", "fused_step") if getattr(runner.executor, each)}
    assert parts == {others}
    assert isinstance(runner.executor.otherwise, CapturedExecutor)
    logits_of(runner, [sequence(70)], num_steps=3)


def test_tokens_that_do_not_see_ahead_are_found_by_the_self_test(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    own = EncoderAttention.calls

    def calls_looking_back(*arguments: Any) -> Any:
        return [
            (call, (*each[: prefill_attention.AHEAD], 0, *each[prefill_attention.AHEAD + 1 :]))
            for call, each in own(*arguments)
        ]

    monkeypatch.setattr(EncoderAttention, "calls", calls_looking_back)
    with caplog.at_level(logging.WARNING):
        runner = runner_of(t5gemma())
    assert "kernel disagrees with torch" in [each.message for each in caplog.records]
    assert isinstance(runner.executor, FusedEncoderDecoder)
    assert runner.executor.fused_encoder is None


def test_a_bias_by_another_distance_is_found_by_the_self_test(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    own = FusedStack.distance_bias
    monkeypatch.setattr(FusedStack, "distance_bias", lambda *named: own(*named).flip(1))
    with caplog.at_level(logging.WARNING):
        runner = runner_of(t5())
    assert "kernel disagrees with torch" in [each.message for each in caplog.records]
    assert isinstance(runner.executor, FusedEncoderDecoder)
    assert runner.executor.fused_encoder is None
    assert runner.executor.fused_step is not None


def test_layers_in_int8_are_left_to_the_models_own_code() -> None:
    model = t5()
    laid_out(model, Int8Linear)
    runner = Seq2SeqRunner(model, 3, contiguous_kv_cache(kv_shape_of(model), poisoned=True))
    assert isinstance(runner.executor, CapturedExecutor)


def test_a_cross_attention_of_another_kind_is_found_by_the_self_test(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = t5gemma()
    attention = model.model.decoder.layers[1].cross_attn
    own = attention.forward
    monkeypatch.setattr(attention, "forward", lambda **named: (own(**named)[0].flip(-1), None))
    runner = runner_of(model)
    assert isinstance(runner.executor, FusedEncoderDecoder)
    assert runner.executor.fused_step is None
    assert isinstance(runner.executor.fused_encoder, FusedEncoder)
