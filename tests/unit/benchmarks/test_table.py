import re

from benchmarks.engine.agreement import agreement
from benchmarks.engine.record import Record, append, read
from benchmarks.engine.table import tables


def record(side, number, speed, **own):
    return Record(
        **{
            "run": "one", "round": number, "model": "t5-small", "side": side,
            "rows": 1 if side == "one" else 16, "feed": "drain", "beams": 1, "dtype": "float32",
            "device": "cpu", "threads": 2, "clock": "wall", "speed": speed, "seconds": 1.0,
            "num_tokens": 100, "num_requests": 8, "num_drawn": 8, "first_seconds": 0.5, **own,
        }
    )  # fmt: skip


def test_ratios_are_taken_within_a_round():
    # The machine is half as fast in the second round, for all alike.
    records = [
        record("one", 0, 100.0), record("inflight", 0, 800.0),
        record("one", 1, 50.0), record("inflight", 1, 400.0),
    ]  # fmt: skip

    text = tables(records)

    assert "n = 2 rounds" in text
    assert re.search(r'engine = "inflight".*600 \(400-800\).*8\.00 \(8\.00-8\.00\)', text)


def test_records_of_two_runs_give_no_ratio():
    text = tables([record("one", 0, 100.0), record("inflight", 0, 800.0, run="another")])

    assert "8.00" not in text


def test_records_come_back_from_a_file(tmp_path):
    records = [record("one", 0, 100.0, versions={"torch": "2"}), record("inflight", 0, 800.0)]
    path = tmp_path / "records"

    for each in records:
        append(path, each)

    assert read([path]) == records


def test_agreement_counts_answers_and_the_tokens_before_the_first_that_differs():
    found = agreement({0: [1, 2, 3, 4], 1: [5, 6]}, {0: [1, 2, 9, 4], 1: [5, 6], 2: [7]})

    assert (found.num_compared, found.num_identical) == (2, 1)
    assert found.tokens_agreeing == 4 / 6
