"""Encoder-decoders of the listed families."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import transformers as hf

from tests.checkpoints.saving import POSITIONS, WIDTH, save
from tests.checkpoints.tokenizers import (
    byte_level,
    pegasus_tokenizer,
    pieces,
    scores,
    t5_tokenizer,
    write_spm,
)


def t5(folder: Path) -> None:
    save_t5(folder, hf.T5Config, hf.T5ForConditionalGeneration)


def mt5(folder: Path) -> None:
    save_t5(folder, hf.MT5Config, hf.MT5ForConditionalGeneration)


def save_t5(folder: Path, config_type: Any, model_type: Any) -> None:
    tokenizer = t5_tokenizer()
    config = config_type(
        vocab_size=len(tokenizer),
        d_model=WIDTH,
        d_kv=8,
        d_ff=2 * WIDTH,
        num_layers=2,
        num_heads=4,
        decoder_start_token_id=0,
        pad_token_id=0,
        eos_token_id=1,
        tie_word_embeddings=False,
    )
    save(folder, tokenizer, model_type(config))


def bart_like(tokenizer: Any, **own: Any) -> dict[str, Any]:
    """The common configuration of BART's relatives."""
    return {
        "vocab_size": len(tokenizer),
        "d_model": WIDTH,
        "encoder_layers": 2,
        "decoder_layers": 2,
        "encoder_attention_heads": 4,
        "decoder_attention_heads": 4,
        "encoder_ffn_dim": 2 * WIDTH,
        "decoder_ffn_dim": 2 * WIDTH,
        "max_position_embeddings": POSITIONS,
        "tie_word_embeddings": False,
        "pad_token_id": tokenizer.pad_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "forced_eos_token_id": None,
        **own,
    }


def bart(folder: Path) -> None:
    """BART as a published summarizer, with beams and lengths of its own."""
    vocab, merges = byte_level(["<s>", "<pad>", "</s>", "<unk>", "<mask>"])
    tokenizer = hf.BartTokenizer(vocab=vocab, merges=merges)
    config = hf.BartConfig(**bart_like(tokenizer, decoder_start_token_id=2))
    model = hf.BartForConditionalGeneration(config)
    own = model.generation_config
    own.num_beams, own.max_length, own.min_length = 4, 24, 8
    own.length_penalty, own.no_repeat_ngram_size, own.early_stopping = 2.0, 3, True
    own.forced_bos_token_id, own.forced_eos_token_id = 0, 2
    save(folder, tokenizer, model)


def pegasus(folder: Path) -> None:
    tokenizer = pegasus_tokenizer()
    config = hf.PegasusConfig(**bart_like(tokenizer, decoder_start_token_id=0))
    save(folder, tokenizer, hf.PegasusForConditionalGeneration(config))


def marian(folder: Path) -> None:
    save_marian(folder, [], source_lang="en", target_lang="fr")


def marian_multi(folder: Path) -> None:
    """A Marian of several target languages, named by a token before the text."""
    save_marian(folder, [">>fra<<", ">>deu<<"], source_lang="eng", target_lang="mul")


def save_marian(folder: Path, codes: list[str], **languages: str) -> None:
    source, target = pieces(260), pieces(240, character_coverage=1.0)
    names = {each for spm in (source, target) for each, _ in scores(spm)[3:]}
    vocab = ["</s>", "<unk>", *sorted(names), *codes, "<pad>"]
    (folder / "vocab.json").write_text(json.dumps({each: at for at, each in enumerate(vocab)}))
    tokenizer = hf.MarianTokenizer(
        source_spm=write_spm(source, folder / "source.spm"),
        target_spm=write_spm(target, folder / "target.spm"),
        vocab=str(folder / "vocab.json"),
        **languages,
    )
    start = tokenizer.pad_token_id
    config = hf.MarianConfig(
        **bart_like(tokenizer, decoder_start_token_id=start, decoder_vocab_size=len(tokenizer))
    )
    model = hf.MarianMTModel(config)
    # Published models may never generate the pad token, from which their decoder starts.
    model.generation_config.bad_words_ids = [[start]]
    save(folder, tokenizer, model)


def m2m100(folder: Path) -> None:
    spm = pieces(260)
    vocab = ["<s>", "<pad>", "</s>", "<unk>", *(each for each, _ in scores(spm)[3:])]
    (folder / "vocab.json").write_text(json.dumps({each: at for at, each in enumerate(vocab)}))
    tokenizer = hf.M2M100Tokenizer(
        vocab_file=str(folder / "vocab.json"),
        spm_file=write_spm(spm, folder / "sentencepiece.bpe.model"),
    )
    size = len(vocab) + len(tokenizer.lang_code_to_id) + tokenizer.num_madeup_words
    save_m2m100(folder, tokenizer, size)


def nllb(folder: Path) -> None:
    """NLLB: an M2M100 model with another tokenizer."""
    spm = pieces(260, model_type="bpe")
    vocab = {"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3}
    for piece, _ in scores(spm)[3:]:
        vocab[piece] = len(vocab)
    merges = [
        (piece[:at], piece[at:])
        for piece in vocab
        for at in range(1, len(piece))
        if piece[:at] in vocab and piece[at:] in vocab and not piece.startswith("<")
    ]
    tokenizer = hf.NllbTokenizer(vocab=vocab, merges=merges)
    save_m2m100(folder, tokenizer, len(tokenizer))


def save_m2m100(folder: Path, tokenizer: Any, vocab_size: int) -> None:
    own = bart_like(tokenizer, decoder_start_token_id=2) | {"vocab_size": vocab_size}
    save(folder, tokenizer, hf.M2M100ForConditionalGeneration(hf.M2M100Config(**own)))


def mbart(folder: Path) -> None:
    tokenizer = hf.MBart50Tokenizer(vocab=[list(each) for each in scores(pieces(260))])
    config = hf.MBartConfig(**bart_like(tokenizer, decoder_start_token_id=2))
    save(folder, tokenizer, hf.MBartForConditionalGeneration(config))


ENCODER_DECODERS: dict[str, Callable[[Path], None]] = {
    each.__name__: each
    for each in (t5, mt5, bart, pegasus, marian, marian_multi, m2m100, nllb, mbart)
}
