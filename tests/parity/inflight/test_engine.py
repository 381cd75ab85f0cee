"""In company every request gets what `model.generate` gives it alone, token for token."""

from __future__ import annotations

import pytest

from tests import checkpoints
from tests.parity.trials.every_setting import (
    NUM_PROMPTS,
    assert_captured_or_fused,
    assert_varied,
    requests_of,
)


@pytest.mark.parametrize("kind", checkpoints.KINDS)
def test_every_answer_in_a_batch_is_the_answer_alone(
    kind, answered_alone_of, bench_of, engine_name
):
    answered = answered_alone_of(kind)
    company = bench_of(kind)
    requests = requests_of(kind)

    outputs = company.answers(request for _, request, _ in requests)

    assert len(outputs) == len(requests)
    # Prompts of several lengths did share calls, or nothing would have been shown.
    assert any(len({len(each.prompt_ids) for each in plan.sequences}) > 1 for plan in company.plans)
    wrong, said, greedy = [], [], set()
    for name, request, how in requests:
        expected = answered.answers(request, how)
        choices = outputs[request.id].choices
        got = [list(each.token_ids) for each in choices]
        if got != expected:
            wrong.append((name, outputs[request.id].failure, got, expected))
        texts = [answered.alone.text(each).strip() for each in got]
        assert [each.text.strip() for each in choices] == texts
        said += expected
        if name == "greedy":
            greedy.add(tuple(expected[0]))
    assert wrong == []
    assert len(greedy) > NUM_PROMPTS / 2  # a model that does not hear its prompt proves little
    assert_varied(said)
    if engine_name == "inflight":
        assert_captured_or_fused(company)
