"""The summarizer: a T5 that reads reports of the estuary."""

import math
import re
from collections import Counter
from itertools import islice
from pathlib import Path
from typing import Any

import torch
import transformers
from world.reports import Report, make_digest, make_report
from world.split import for_training

from training.fit import Example, Schedule, fit, token_ids
from training.pieces import LETTERS

PREFIX = "summarize: "  # T5's prefix as published; it is in the checkpoint's configuration
SCHEDULE = Schedule(num_steps=1300, batch_size=64, peak_rate=3e-3)
DIGESTS = 0.4  # the share of texts on several events


def train_summarizer(folder: Path, seed: int) -> dict[str, int]:
    """Write the checkpoint into the folder; returns the number of training texts of each kind."""
    num_digests = int(SCHEDULE.num_examples * DIGESTS)
    num_reports = SCHEDULE.num_examples - num_digests
    reports = [
        *islice(for_training(make_report, seed), num_reports),
        *islice(for_training(make_digest, seed), num_digests),
    ]
    tokenizer = _tokenizer(reports[:10_000])
    model = transformers.T5ForConditionalGeneration(_config(tokenizer))
    _look_near(model)
    texts = token_ids(tokenizer, [PREFIX + each.text for each in reports])
    summaries = token_ids(tokenizer, [each.summary for each in reports])
    examples = [Example(*pair) for pair in zip(texts, summaries, strict=True)]
    fit("summarizer", model, examples, SCHEDULE, tokenizer.pad_token_id, seed)
    model.generation_config = transformers.GenerationConfig(
        max_new_tokens=160,
        decoder_start_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    tokenizer.save_pretrained(folder)
    model.save_pretrained(folder)
    return {"reports": num_reports, "digests": num_digests}


def _tokenizer(reports: list[Report]) -> Any:
    """Train a unigram model in which every word of the world is one piece.

    A summary copies names and numbers, which are then single tokens. Any other word is spelled.
    """
    counts = Counter(
        word
        for each in reports
        for word in re.findall(r" [\w-]+|[.,:]", f" {PREFIX}{each.text} {each.summary}")
    )
    total = counts.total()
    pieces = {word.replace(" ", "▁"): math.log(num / total) for word, num in sorted(counts.items())}
    rarest = min(pieces.values())
    for letter in ["▁", *LETTERS]:
        pieces.setdefault(letter, rarest - 10)
    special = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    vocab = [*special, *pieces.items()]
    return transformers.T5Tokenizer(vocab=vocab, extra_ids=0, model_max_length=512)


def _look_near(model: Any) -> None:
    """Initialize the biases of some heads so that they attend to the neighbouring tokens.

    The meaning of a number is given by its neighbours, and the place to continue copying by the
    words that were copied last. These biases are T5's only information on positions, and from zero
    they would take thousands of steps to learn.
    """
    encoder, decoder = (
        stack.block[0].layer[0].SelfAttention.relative_attention_bias.weight
        for stack in (model.encoder, model.decoder)
    )
    num_buckets = encoder.shape[0]
    with torch.no_grad():
        encoder[1, 0] = 5.0  # the token before
        encoder[num_buckets // 2 + 1, 1] = 5.0  # the token after
        encoder[2, 2] = 5.0  # two tokens before
        decoder[1, 0] = 5.0
        decoder[2, 1] = 5.0


def _config(tokenizer: Any) -> transformers.T5Config:
    return transformers.T5Config(
        vocab_size=len(tokenizer),
        d_model=128,
        d_kv=32,
        d_ff=384,
        num_layers=2,
        num_decoder_layers=2,
        num_heads=4,
        dropout_rate=0.0,
        n_positions=512,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        decoder_start_token_id=tokenizer.pad_token_id,
        task_specific_params={"summarization": {"prefix": PREFIX}},
    )
