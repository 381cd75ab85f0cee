"""The translator: a Marian model from English into French."""

import json
from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from random import Random
from typing import Any

import transformers
from world.sentences import (
    Sentence,
    in_capitals,
    joined,
    make_sentence,
    typed_in_a_hurry,
)
from world.split import for_training

from training.fit import Example, Schedule, fit, token_ids
from training.pieces import piece_model, word_pieces

SCHEDULE = Schedule(num_steps=4000, batch_size=64)
MAX_TOKENS = 256


def train_translator(folder: Path, seed: int) -> dict[str, int]:
    """Write the checkpoint into the folder; returns the number of training texts of each kind."""
    sentences = list(islice(for_training(make_sentence, seed), SCHEDULE.num_examples))
    tokenizer = _tokenizer(folder, sentences[:40_000])
    model = transformers.MarianMTModel(_config(tokenizer))
    passages = list(_passages(sentences, Random(seed)))
    english = token_ids(tokenizer, [each.english for each in passages])
    french = token_ids(
        lambda texts: tokenizer(text_target=texts), [each.french for each in passages]
    )
    examples = [Example(*pair) for pair in zip(english, french, strict=True)]
    fit("translator", model, examples, SCHEDULE, tokenizer.pad_token_id, seed)
    model.generation_config = transformers.GenerationConfig(
        max_new_tokens=128,
        decoder_start_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    tokenizer.save_pretrained(folder)
    model.save_pretrained(folder)
    return {"sentences": len(sentences)}


def _passages(sentences: list[Sentence], draw: Random) -> Iterable[Sentence]:
    """Make a passage from each sentence: mostly the sentence alone, sometimes with others after it.

    Some passages are typed carelessly: without a full stop or capital letter, or all in capitals.
    """
    for sentence in sentences:
        num_more = draw.choice((0, 0, 0, 0, 0, 0, 0, 1, 1, 2))
        passage = joined([sentence, *draw.choices(sentences, k=num_more)])
        kind = draw.random()
        if kind < 0.12:
            passage = typed_in_a_hurry(passage, draw)
        elif kind < 0.17:
            passage = in_capitals(passage)
        yield passage


def _tokenizer(folder: Path, sentences: list[Sentence]) -> Any:
    """Train a tokenizer like published ones: a sentencepiece model for each language, and one
    vocabulary. The two models are the same, so that a name has the same pieces in both languages.
    """
    draw = Random(0)
    texts = []
    for sentence in sentences:
        for each in (sentence, typed_in_a_hurry(sentence, draw), in_capitals(sentence)):
            texts += [_without_names(text, each.names) for text in (each.english, each.french)]
    pieces = piece_model(word_pieces(texts))
    vocab = [
        "</s>",
        "<unk>",
        *(pieces.id_to_piece(at) for at in range(3, pieces.get_piece_size())),
        "<pad>",
    ]
    for name in ("source.spm", "target.spm"):
        (folder / name).write_bytes(pieces.serialized_model_proto())
    (folder / "vocab.json").write_text(json.dumps({piece: at for at, piece in enumerate(vocab)}))
    return transformers.MarianTokenizer(
        source_spm=str(folder / "source.spm"),
        target_spm=str(folder / "target.spm"),
        vocab=str(folder / "vocab.json"),
        source_lang="en",
        target_lang="fr",
        model_max_length=MAX_TOKENS,
    )


def _without_names(text: str, names: Iterable[str]) -> str:
    """Remove the names from a text, so that their parts do not become words: names are spelled."""
    for name in names:
        text = text.replace(name, "")
    return text


def _config(tokenizer: Any) -> transformers.MarianConfig:
    return transformers.MarianConfig(
        vocab_size=len(tokenizer),
        decoder_vocab_size=len(tokenizer),
        d_model=128,
        encoder_layers=3,
        decoder_layers=2,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=384,
        decoder_ffn_dim=384,
        max_position_embeddings=MAX_TOKENS,
        dropout=0.0,
        activation_function="relu",
        scale_embedding=True,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
        decoder_start_token_id=tokenizer.pad_token_id,
        forced_eos_token_id=None,
    )
