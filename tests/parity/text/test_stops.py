"""A stop text ends an answer where `model.generate(stop_strings=...)` ends it."""

from __future__ import annotations

import pytest

from engine.protocol.request import Request
from engine.protocol.sampling_params import SamplingParams
from tests import checkpoints
from tests.parity.trials.alone import Alone

HOW = {"max_new_tokens": 14, "min_new_tokens": 14, "do_sample": False}


def stops_of(alone: Alone, ids: list[int], prompt: str) -> set[str]:
    """Stop texts of many kinds that an answer may hold."""
    decode, found = alone.tokenizer.decode, set()
    for at in range(2, len(ids) - 2, 4):
        token = decode([ids[at]], skip_special_tokens=False)
        pair = decode(ids[at : at + 2], skip_special_tokens=False)
        found |= {token, " " + token, token.upper(), pair, pair[1:], pair[:-1], pair[-1:]}
        found.add(alone.tokenizer.convert_ids_to_tokens(ids[at]))
    found |= set(alone.tokenizer.all_special_tokens[:4])
    found.add(prompt[-2:] + decode(ids[:1]))
    return {each for each in found if each and "\ufffd" not in each and "\0" not in each}


@pytest.mark.parametrize("num_beams", [1, 2])
@pytest.mark.parametrize("kind", ["gpt2", "qwen2", "llama", "t5", "bart", "m2m100", "nllb"])
def test_a_stop_ends_where_generate_ends(bench_of, folder_of, kind, num_beams):
    alone, bench = Alone(kind, folder_of(kind)), bench_of(kind)
    how = {**HOW, "num_beams": num_beams}
    requests, expected = [], {}
    for text in checkpoints.sentences(1, seed=4):
        (whole,) = alone.generate(text, **how)
        for stop in sorted(stops_of(alone, whole, text))[:: 1 if num_beams == 1 else 5]:
            id_ = len(requests)
            try:
                (row,) = alone.generate(text, **how, stop_strings=[stop], tokenizer=alone.tokenizer)
            except ValueError:  # no token has any of it
                (row,) = alone.generate(text, **how)
            expected[id_] = (stop, row)
            params = SamplingParams(**how, stop=(stop,))
            requests.append(Request(id=id_, task="generate", text=text, params=params))
    outputs = bench.answers(requests)
    pad = bench.loop.engine.checkpoint.pad_token_id
    wrong = []
    for id_, (stop, row) in expected.items():
        got = list(outputs[id_].choices[0].token_ids)
        while len(row) > len(got) and row[-1] == pad:
            row.pop()
        if got != row:
            wrong.append((stop, got, row))
    assert wrong == []
    assert len({len(row) for _, row in expected.values()}) > (2 if num_beams == 1 else 0)


def test_a_special_token_ends_an_answer_and_is_not_in_it(bench_of, folder_of):
    alone, bench = Alone("qwen2", folder_of("qwen2")), bench_of("qwen2")
    tokenizer, exact = alone.tokenizer, bench.loop.engine
    texts = exact.text.token_texts
    special = tokenizer.convert_tokens_to_ids("<|im_start|>")
    words = tokenizer("the mill")["input_ids"]

    class Asked:
        prompt_ids = tuple(words)

        class settings:  # stands where the sequence has a value
            stop = ("<|im_start|>",)

    assert texts.has_stop_string(Asked, [*words, special])
    assert not texts.has_stop_string(Asked, [*words, special, *words])
    assert texts.before_stop(Asked, [*words, special]) == tokenizer.decode(words)
