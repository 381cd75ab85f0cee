"""Where nobody proved that requests may share a call, company and order change no answer."""

from __future__ import annotations

from dataclasses import replace

import pytest

from engine.backends.generate import GenerateBackend
from engine.backends.router import load
from engine.errors import Unloadable
from engine.protocol.engine_spec import EngineSpec
from engine.protocol.messages import Params, Request
from tests import checkpoints
from tests.engines import Bench
from tests.parity.alone import Alone

GREEDY = {"max_new_tokens": 10, "min_new_tokens": 10, "do_sample": False}


@pytest.mark.parametrize("engine", ["auto", "exact"])
@pytest.mark.parametrize("kind", checkpoints.UNPROVED)
def test_an_answer_is_that_of_a_model_loaded_afresh(kind, engine, folder_of):
    folder = folder_of(kind)
    spec = EngineSpec(alias="a", checkpoint=str(folder), device="cpu", engine=engine)
    loaded = load(spec)
    assert isinstance(loaded, GenerateBackend)
    assert "one by one" in loaded.card.engine_reason
    bench = Bench(loaded, spec)
    # Long after short, some of equal length, and some far beyond BigBird's full attention.
    long = [" ".join(checkpoints.sentences(6, seed=each)) for each in range(8)]
    texts = [*checkpoints.sentences(12), *(long if kind == "bigbird_pegasus" else ())]
    requests = [
        Request(id=at, task="generate", text=text, params=Params(**GREEDY))
        for at, text in enumerate([*texts, texts[1], texts[0], texts[1]])
    ]
    outputs = bench.answers(requests)
    answers = {each.choices[0].token_ids for each in outputs.values()}
    assert len(answers) > len(texts) / 2  # a model that says one thing would agree with all
    for each in requests:
        (expected,) = Alone(kind, folder).generate(each.text, **GREEDY)
        assert outputs[each.id].failure is None
        assert list(outputs[each.id].choices[0].token_ids) == expected
    assert {len(plan.sequences) for plan in bench.plans} == {1}
    assert bench.progress.num_by_generate == len(requests)
    with pytest.raises(Unloadable, match=r"not among the proved|rotary positions"):
        load(replace(spec, engine="inflight"))
