"""The canaries of a configuration, and what a mistake in one says."""

import pytest

from tasks.canaries import canaries_of
from tasks.errors import SettingsError

GATE = {"name": "gate", "task": "generate", "text": "The gate", "expected": "is open"}


def test_a_canary_is_parsed_into_a_job_and_its_expected_answer() -> None:
    (canary,) = canaries_of([GATE])
    assert (canary.name, canary.expected) == ("gate", "is open")
    assert canary.contract.work()["text"] == "The gate"
    assert canary.contract.custom_id == "gate"


@pytest.mark.parametrize(
    ("tables", "said"),
    [
        ({"gate": GATE}, r"write \[\[canaries\]\]"),
        ([{**GATE, "name": ""}], "canary 1 needs a name"),
        ([{**GATE, "task": "sing"}], "canary gate: task is one of summarize, "),
        ([{**GATE, "expected": 3}], "canary gate: expected is a text"),
        ([{**GATE, "txt": "x"}], "canary gate: .*txt.*did you mean text"),
        ([GATE, GATE], "each has a name of its own"),
    ],
)
def test_a_faulty_canary_table_is_refused_by_name(tables: object, said: str) -> None:
    with pytest.raises(SettingsError, match=said):
        canaries_of(tables)
