"""Writes a model and requests for `benchmarks.pipeline --model`: random weights, a real tokenizer.

The tokenizer is a byte-level BPE as large as the model's vocabulary: it merges letters into pairs
and pairs into syllables of four letters, and the texts consist of these. So encoding a prompt and
decoding an answer cost as much as with a published model of the same size.
"""

from __future__ import annotations

import json
import random
import string
from pathlib import Path
from typing import Any

from benchmarks.engine.models import SHAPES, Shape, made, widen
from benchmarks.engine.workload import drawn


def write_checkpoint(folder: Path, shape: Shape) -> None:
    import torch
    import transformers as hf

    torch.manual_seed(0)
    model = made(shape)
    widen(model)
    # No end token: an answer has the length that the job asks for.
    model.generation_config = hf.GenerationConfig(pad_token_id=0, do_sample=False)
    model.save_pretrained(folder)
    tokenizer(shape.vocab_size).save_pretrained(folder)


def tokenizer(vocab_size: int) -> Any:
    import transformers as hf
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    words = sorted(pre_tokenizers.ByteLevel.alphabet())
    pairs = [(one, other) for one in string.ascii_lowercase for other in string.ascii_lowercase]
    joined = ["".join(each) for each in pairs]
    draw = random.Random(4)
    syllables = set()
    while len(syllables) < vocab_size - len(words) - len(joined):
        syllables.add((draw.choice(joined), draw.choice(joined)))
    merges = [*pairs, *sorted(syllables)]
    words += ["".join(each) for each in merges]
    bpe = Tokenizer(models.BPE({word: at for at, word in enumerate(words)}, merges))
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    return hf.PreTrainedTokenizerFast(tokenizer_object=bpe, model_max_length=2048)


def write_requests(path: Path, num_requests: int) -> None:
    """Write requests as JSON lines, with about the token counts of the engine's benchmark."""
    draw = random.Random(5)
    with path.open("w", encoding="utf-8") as file:
        for request in drawn(num_requests, SHAPES["llama-15m"].vocab_size):
            num_words = max(len(request.prompt) // 3, 1)  # a space, and one or two more
            letters = ["".join(draw.choices(string.ascii_lowercase, k=4)) for _ in range(num_words)]
            print(
                json.dumps({"text": " ".join(letters), "max_new_tokens": request.num_new}),
                file=file,
            )


def read_requests(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
