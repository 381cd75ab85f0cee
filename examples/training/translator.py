"""The translator: a Marian model from English into French."""

import json
from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from random import Random
from typing import Any

import transformers
from world.sentences import Sentence, make_sentence
from world.split import for_training

from training.fit import Example, Schedule, fit, token_ids
from training.pieces import learn_pieces

SCHEDULE = Schedule(num_steps=1500, batch_size=64)
MAX_PIECES = 700


def train_translator(folder: Path, seed: int) -> dict[str, int]:
    """Write the checkpoint into the folder; returns how many texts of each kind it learned from."""
    sentences = list(islice(for_training(make_sentence, seed), SCHEDULE.num_examples))
    tokenizer = _tokenizer(folder, sentences[:20_000])
    model = transformers.MarianMTModel(_config(tokenizer))
    passages = list(_passages(sentences, Random(seed)))
    english = token_ids(tokenizer, [english for english, _ in passages])
    french = token_ids(
        lambda texts: tokenizer(text_target=texts), [french for _, french in passages]
    )
    examples = [Example(*pair) for pair in zip(english, french, strict=True)]
    fit("translator", model, examples, SCHEDULE, tokenizer.pad_token_id, seed)
    model.generation_config = transformers.GenerationConfig(
        max_new_tokens=64,
        decoder_start_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    tokenizer.save_pretrained(folder)
    model.save_pretrained(folder)
    return {"sentences": len(sentences)}


def _passages(sentences: list[Sentence], draw: Random) -> Iterable[tuple[str, str]]:
    """One passage a sentence: mostly that alone, sometimes with others after it."""
    for sentence in sentences:
        passage = [
            sentence,
            *draw.choices(sentences, k=draw.choice((0, 0, 0, 0, 0, 0, 0, 1, 1, 2))),
        ]
        yield (
            " ".join(each.english for each in passage),
            " ".join(each.french for each in passage),
        )


def _tokenizer(folder: Path, sentences: list[Sentence]) -> Any:
    """As published ones are: one sentencepiece model a language, one vocabulary for both."""
    source = learn_pieces([each.english for each in sentences], MAX_PIECES)
    target = learn_pieces([each.french for each in sentences], MAX_PIECES)
    pieces = {
        spm.id_to_piece(at) for spm in (source, target) for at in range(3, spm.get_piece_size())
    }
    vocab = ["</s>", "<unk>", *sorted(pieces), "<pad>"]
    (folder / "source.spm").write_bytes(source.serialized_model_proto())
    (folder / "target.spm").write_bytes(target.serialized_model_proto())
    (folder / "vocab.json").write_text(json.dumps({piece: at for at, piece in enumerate(vocab)}))
    return transformers.MarianTokenizer(
        source_spm=str(folder / "source.spm"),
        target_spm=str(folder / "target.spm"),
        vocab=str(folder / "vocab.json"),
        source_lang="en",
        target_lang="fr",
        model_max_length=128,
    )


def _config(tokenizer: Any) -> transformers.MarianConfig:
    return transformers.MarianConfig(
        vocab_size=len(tokenizer),
        decoder_vocab_size=len(tokenizer),
        d_model=128,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=384,
        decoder_ffn_dim=384,
        max_position_embeddings=128,
        dropout=0.0,
        activation_function="relu",
        scale_embedding=True,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
        decoder_start_token_id=tokenizer.pad_token_id,
        forced_eos_token_id=None,
    )
