"""Encoder-decoders that are not listed and are proved at load."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import transformers as hf

from tests.checkpoints.decoder_only import llama_like
from tests.checkpoints.encoder_decoders import bart_like, m2m100
from tests.checkpoints.saving import POSITIONS, WIDTH, borrowed, save
from tests.checkpoints.tokenizers import pegasus_tokenizer, t5_tokenizer


def unlisted_seq2seq(
    config_type: Any, model_type: str, model_max_length: int = 128, **own: Any
) -> Callable[[Path], None]:
    """An encoder-decoder that is not listed, with the tokenizer of T5 or Pegasus.

    model_max_length: of the tokenizer
    """

    def write(folder: Path) -> None:
        if model_type == "t5":
            tokenizer = t5_tokenizer(model_max_length)
            sizes = {"d_kv": 8, "d_ff": 2 * WIDTH, "num_layers": 2, "num_heads": 4}
            config = config_type(
                vocab_size=len(tokenizer), d_model=WIDTH, decoder_start_token_id=0,
                pad_token_id=0, eos_token_id=1, tie_word_embeddings=False, **sizes, **own,
            )  # fmt: skip
        else:
            tokenizer = pegasus_tokenizer()
            config = config_type(**bart_like(tokenizer, decoder_start_token_id=0, **own))
        save(folder, tokenizer, hf.AutoModelForSeq2SeqLM.from_config(config))

    return write


def t5gemma(folder: Path) -> None:
    """T5Gemma: windows in every other layer of both stacks; heads fill vector registers, as
    published."""
    tokenizer = t5_tokenizer()
    stack = {
        **llama_like(tokenizer), "num_key_value_heads": 2, "head_dim": 16, "sliding_window": 12,
        "query_pre_attn_scalar": 16, "pad_token_id": 0, "bos_token_id": 0, "eos_token_id": 1,
    }  # fmt: skip
    config = hf.T5GemmaConfig(
        encoder=stack, decoder=stack, vocab_size=len(tokenizer), pad_token_id=0, bos_token_id=0,
        eos_token_id=1, decoder_start_token_id=0, tie_word_embeddings=False,
    )  # fmt: skip
    save(folder, tokenizer, hf.T5GemmaForConditionalGeneration(config))


def t5gemma2(folder: Path) -> None:
    """T5Gemma 2: published with a vision tower, unused for texts; self- and cross-attention are
    merged."""
    tokenizer = t5_tokenizer()
    stack = {
        **llama_like(tokenizer), "num_key_value_heads": 2, "head_dim": 8, "sliding_window": 12,
        "query_pre_attn_scalar": 8, "pad_token_id": 0, "bos_token_id": 0, "eos_token_id": 1,
        "layer_types": ["sliding_attention", "full_attention"],
    }  # fmt: skip
    eyes = {
        "hidden_size": WIDTH, "intermediate_size": WIDTH, "num_hidden_layers": 1,
        "num_attention_heads": 4, "image_size": 16, "patch_size": 8,
        "vision_use_head": False,
    }  # fmt: skip
    size = len(tokenizer)
    marks = {"boi_token_index": size - 3, "eoi_token_index": size - 2}
    encoder = {
        "text_config": stack, "vision_config": eyes, "mm_tokens_per_image": 4, **marks,
        "image_token_index": size - 1,
    }  # fmt: skip
    config = hf.T5Gemma2Config(
        encoder=encoder, decoder=stack, image_token_index=size - 1, pad_token_id=0, bos_token_id=0,
        eos_token_id=1, decoder_start_token_id=0, tie_word_embeddings=False,
    )  # fmt: skip
    save(folder, tokenizer, hf.T5Gemma2ForConditionalGeneration(config))


def fsmt(folder: Path) -> None:
    """FSMT: two vocabularies; positions that skip the pad token."""
    tokenizer = pegasus_tokenizer()
    own = bart_like(tokenizer, decoder_start_token_id=tokenizer.eos_token_id)
    del own["vocab_size"]
    size = len(tokenizer)
    config = hf.FSMTConfig(
        langs=["en", "de"], src_vocab_size=size, tgt_vocab_size=size, num_beams=1, **own
    )
    save(folder, tokenizer, hf.FSMTForConditionalGeneration(config))


def prophetnet(folder: Path) -> None:
    """ProphetNet: predicts several tokens ahead in streams of their own."""
    tokenizer = pegasus_tokenizer()
    config = hf.ProphetNetConfig(
        vocab_size=len(tokenizer), hidden_size=WIDTH, encoder_ffn_dim=2 * WIDTH,
        decoder_ffn_dim=2 * WIDTH, num_encoder_layers=2, num_decoder_layers=2,
        num_encoder_attention_heads=4, num_decoder_attention_heads=4, num_buckets=8,
        relative_max_distance=16, max_position_embeddings=POSITIONS, pad_token_id=0,
        bos_token_id=0, eos_token_id=1, decoder_start_token_id=0, tie_word_embeddings=False,
    )  # fmt: skip
    save(folder, tokenizer, hf.ProphetNetForConditionalGeneration(config))


def seamless(folder: Path) -> None:
    """The text part of SeamlessM4T, a model of speech and text."""
    with borrowed(m2m100, folder) as (tokenizer, own):
        config = hf.SeamlessM4TConfig(
            vocab_size=own.vocab_size, hidden_size=WIDTH, encoder_layers=2, decoder_layers=2,
            encoder_attention_heads=4, decoder_attention_heads=4, encoder_ffn_dim=2 * WIDTH,
            decoder_ffn_dim=2 * WIDTH, max_position_embeddings=POSITIONS, pad_token_id=1,
            bos_token_id=0, eos_token_id=2, decoder_start_token_id=2, tie_word_embeddings=False,
        )  # fmt: skip
        save(folder, tokenizer, hf.SeamlessM4TForTextToText(config))


def bigbird_pegasus(folder: Path, **own: Any) -> None:
    """BigBird-Pegasus: texts above 5 + 2 blocks use block-sparse attention."""
    tokenizer = pegasus_tokenizer()
    own = {"block_size": 4, "num_random_blocks": 1, **own}
    own = bart_like(tokenizer, decoder_start_token_id=0, **own)
    config = hf.BigBirdPegasusConfig(**own, attention_type="block_sparse")
    save(folder, tokenizer, hf.BigBirdPegasusForConditionalGeneration(config))


def nllb_moe(folder: Path, fraction: float = 0.25) -> None:
    """NLLB-MoE: rows compete for experts that take fewer tokens than come.

    At a fraction of 1 experts take all tokens, as in published checkpoints.
    """
    names = (
        "vocab_size", "d_model", "encoder_layers", "decoder_layers", "encoder_attention_heads",
        "decoder_attention_heads", "encoder_ffn_dim", "decoder_ffn_dim", "max_position_embeddings",
        "pad_token_id", "eos_token_id", "bos_token_id", "decoder_start_token_id",
    )  # fmt: skip
    with borrowed(m2m100, folder) as (tokenizer, own):
        config = hf.NllbMoeConfig(
            **{name: getattr(own, name) for name in names},
            num_experts=4,
            moe_eval_capacity_token_fraction=fraction,
            encoder_sparse_step=1,
            decoder_sparse_step=1,
        )
        save(folder, tokenizer, hf.NllbMoeForConditionalGeneration(config))


# One per line.
UNLISTED: dict[str, Callable[[Path], None]] = {
    "umt5": unlisted_seq2seq(hf.UMT5Config, "t5"),
    "longt5": unlisted_seq2seq(hf.LongT5Config, "t5", local_radius=8),
    "t5gemma": t5gemma,
    "blenderbot": unlisted_seq2seq(hf.BlenderbotConfig, "pegasus"),
    "pegasus_x": unlisted_seq2seq(
        hf.PegasusXConfig, "pegasus", block_size=8, num_global_tokens=4
    ),
    "longt5_global": unlisted_seq2seq(
        hf.LongT5Config, "t5", local_radius=8, global_block_size=4,
        encoder_attention_type="transient-global",
    ),
    "t5gemma2": t5gemma2,
    "blenderbot_small": unlisted_seq2seq(hf.BlenderbotSmallConfig, "pegasus"),
    "mvp": unlisted_seq2seq(hf.MvpConfig, "pegasus"),
    "plbart": unlisted_seq2seq(hf.PLBartConfig, "pegasus"),
    "led": unlisted_seq2seq(
        hf.LEDConfig, "pegasus", attention_window=8, max_encoder_position_embeddings=POSITIONS,
        max_decoder_position_embeddings=POSITIONS,
    ),
    "fsmt": fsmt,
    "prophetnet": prophetnet,
    "seamless": seamless,
    "switch": unlisted_seq2seq(
        hf.SwitchTransformersConfig, "t5", num_decoder_layers=2, num_experts=4,
        num_sparse_encoder_layers=1, num_sparse_decoder_layers=1,
    ),
}  # fmt: skip

# These models change themselves, so each request must be compared with a fresh one.
CHANGED_BY_REQUESTS: dict[str, Callable[[Path], None]] = {"bigbird_pegasus": bigbird_pegasus}

# Experts with room for every token, as published.
AMPLE: dict[str, Callable[[Path], None]] = {
    "nllb_moe_ample": functools.partial(nllb_moe, fraction=1.0)
}

# For long documents: more positions than the families above have.
LONG: dict[str, Callable[[Path], None]] = {
    "led_long": unlisted_seq2seq(
        hf.LEDConfig, "pegasus", attention_window=32, max_encoder_position_embeddings=20_000,
        max_decoder_position_embeddings=POSITIONS,
    ),
    "longt5_long": unlisted_seq2seq(hf.LongT5Config, "t5", 20_000, local_radius=31),
    "longt5_global_long": unlisted_seq2seq(
        hf.LongT5Config, "t5", 20_000, local_radius=31, global_block_size=16,
        encoder_attention_type="transient-global",
    ),
    "pegasus_x_long": unlisted_seq2seq(
        hf.PegasusXConfig, "pegasus", block_size=32, num_global_tokens=8,
        max_position_embeddings=20_000,
    ),
    "bigbird_pegasus_long": functools.partial(
        bigbird_pegasus, block_size=16, max_position_embeddings=20_000
    ),
}  # fmt: skip
