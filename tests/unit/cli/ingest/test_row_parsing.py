from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from cli.errors import ColumnsUnfit
from cli.ingest import BadRow, Row
from cli.ingest.row_parsing import RowParser, SourcePart
from cli.ingest.source import CheckColumns
from tasks.chat import ChatContract
from tasks.configuration.catalog import Catalog, Model
from tasks.contracts.by_task import CONTRACTS
from tasks.errors import ContractError, UnknownLanguagePair, UnknownModel

CATALOG = Catalog(
    path=Path("tidemill.toml"),
    models={
        "parrot": Model(
            alias="parrot",
            checkpoint="fake",
            engine="fake",
            tasks=("summarize", "translate", "chat"),
            languages=("en>fr",),
        )
    },
    worker={},
)


@dataclass
class GivenSource:
    given: list[Any]
    columns: list[str] | None = None
    name: str = "given"
    fraction: float | None = 0.5
    num_reads: int = field(default=0)

    def rows(self, check_columns: CheckColumns) -> Iterator[Row | BadRow]:
        self.num_reads += 1
        if self.columns is not None:
            check_columns(self.columns)
        for number, fields in enumerate(self.given, start=1):
            if isinstance(fields, str):
                yield BadRow(number, f"line {number}", fields)
            else:
                yield Row(number, f"line {number}", fields)


def part(given: list[Any], task: str = "summarize", **more: Any) -> SourcePart:
    columns = more.pop("of_columns", None)
    return SourcePart(source=GivenSource(given, columns), contract=CONTRACTS[task], **more)


def intake(*parts: SourcePart, run_key: str | None = None) -> tuple[RowParser, list[str]]:
    complaints: list[str] = []
    return RowParser(parts, CATALOG, run_key, complaints.append), complaints


def test_a_bad_row_is_reported_by_its_place_and_the_rest_goes_through() -> None:
    taken, complaints = intake(
        part([{"text": "one"}, "is not valid JSON", {"text": ""}, {"text": "x", "seed": -1}])
    )

    assert [contract.num_characters for contract in taken.contracts()] == [3]
    assert (taken.num_good, taken.num_bad) == (1, 3)
    assert complaints == [
        "given, line 2 is not valid JSON",
        "given, line 3: text: is empty; give at least one word",
        "given, line 4: seed: must be greater than or equal to 0, not -1",
    ]


def test_a_row_that_no_model_takes_is_a_bad_row() -> None:
    languages = {"source_language": "en", "target_language": "de"}
    taken, complaints = intake(
        part([{"text": "x", "model": "ghost"}]), part([{"text": "x", **languages}], "translate")
    )

    assert list(taken.contracts()) == []
    assert "known models: parrot" in complaints[0]
    assert "known: en>fr" in complaints[1]


def test_a_row_wins_over_the_defaults_and_metadata_are_joined() -> None:
    defaults = {"max_new_tokens": 5, "metadata": {"origin": "archive", "station": "south"}}
    given = [
        {"text": "x", "max_new_tokens": 9, "metadata.station": "north"},
        {"text": "y", "metadata": {"gate": "2"}},
    ]

    first, second = intake(part(given, defaults=defaults))[0].contracts()

    assert (first.max_new_tokens, second.max_new_tokens) == (9, 5)
    assert first.metadata == {"origin": "archive", "station": "north"}
    assert second.metadata == {"origin": "archive", "station": "south", "gate": "2"}


def test_named_columns_are_renamed_and_those_of_no_use_left_out() -> None:
    columns = {"text": "body", "custom_id": "id", "metadata.id": "id"}
    given = [{"id": "7", "body": "x", "title": "no", "text": "the old one", "seed": 3}]

    [contract] = intake(part(given, columns=columns))[0].contracts()

    assert contract.work() == {"text": "x", "seed": 3}
    assert (contract.custom_id, contract.metadata) == ("7", {"id": "7"})


def test_one_text_of_a_chat_is_a_message_of_the_user() -> None:
    [contract] = intake(part([{"text": "hello"}], "chat"))[0].contracts()

    assert isinstance(contract, ChatContract)
    assert [(message.role, message.content) for message in contract.messages] == [("user", "hello")]


@pytest.mark.parametrize(
    ("columns", "named", "sentence"),
    [
        (["body"], {}, "'body', which is not a field of summarize"),
        (["custom_id"], {}, "no column 'text', which summarize needs; its columns: custom_id"),
        (["text"], {"custom_id": "id"}, "no column 'id' for custom_id; its columns: text"),
    ],
)
def test_columns_that_spoil_every_row_are_refused_at_once(
    columns: list[str], named: dict[str, str], sentence: str
) -> None:
    taken, complaints = intake(part([{"text": "x"}], of_columns=columns, columns=named))

    with pytest.raises(ColumnsUnfit, match=sentence):
        list(taken.contracts())
    assert complaints == []


@pytest.mark.parametrize(
    ("task", "columns", "defaults"),
    [
        ("summarize", ["text", "metadata.x", "seed"], {}),
        ("chat", ["messages"], {}),
        ("chat", ["text"], {}),
        ("translate", ["text", "source_language"], {"target_language": "fr"}),
    ],
)
def test_columns_that_fit_are_taken(
    task: str, columns: list[str], defaults: dict[str, str]
) -> None:
    part([], task, defaults=defaults).check_columns(columns)


def test_a_run_key_gives_each_row_a_key_of_its_own() -> None:
    given = [{"text": "x", "custom_id": "a"}, {"text": "y"}, {"text": "z", "idempotency_key": "k"}]

    keys = [
        contract.idempotency_key for contract in intake(part(given), run_key="r")[0].contracts()
    ]

    assert keys == ["r/a", "r/#2", "k"]


def test_a_position_is_the_row_s_own_whatever_was_left_out_before_it() -> None:
    broken, mended = ["broken", {"text": "y"}], [{"text": "x"}, {"text": "y"}]

    before = [c.idempotency_key for c in intake(part(broken), run_key="r")[0].contracts()]
    after = [c.idempotency_key for c in intake(part(mended), run_key="r")[0].contracts()]

    assert before == ["r/#2"]
    assert after == ["r/#1", "r/#2"]


def test_the_same_custom_id_in_two_parts_is_two_jobs() -> None:
    parts = [part([{"text": "x", "custom_id": "a"}], tag=tag) for tag in ("1", "2")]

    keys = [contract.idempotency_key for contract in intake(*parts, run_key="r")[0].contracts()]

    assert keys == ["r/1/a", "r/2/a"]


def test_a_custom_id_twice_in_a_part_is_a_bad_row_that_names_the_first() -> None:
    same = [{"text": "x", "custom_id": "a"}, {"text": "y"}, {"text": "z", "custom_id": "a"}]
    for run_key in (None, "r"):
        taken, complaints = intake(part(same), run_key=run_key)

        assert len(list(taken.contracts())) == 2
        assert complaints == [
            "given, line 3: custom_id: is that of line 1 too; each job of a batch needs its own"
        ]
        assert len(list(taken.contracts())) == 2, "and as often as it is read"


def test_a_key_that_a_row_brings_stands_once_in_the_whole_night() -> None:
    parts = [part([{"text": "x", "idempotency_key": "k"}], tag=tag) for tag in ("1", "2")]
    taken, complaints = intake(*parts, run_key="r")

    assert len(list(taken.contracts())) == 1
    assert "idempotency_key: is that of line 1 too" in complaints[0]


def test_a_custom_id_that_looks_like_a_position_takes_no_other_row_s_place() -> None:
    taken, complaints = intake(part([{"text": "x", "custom_id": "#2"}, {"text": "y"}]), run_key="r")

    keys = [contract.idempotency_key for contract in taken.contracts()]

    assert len(set(keys)) == 2
    assert complaints == []


def test_the_texts_of_a_file_without_a_header_are_in_no_error() -> None:
    text = "Once upon a time " * 20
    with pytest.raises(ColumnsUnfit) as failed:
        part([]).check_columns([text, "and then"])
    assert text not in str(failed.value)
    with pytest.raises(ColumnsUnfit, match="has the column 'text' twice"):
        part([]).check_columns(["text", "text"])


def test_a_key_that_would_be_too_long_is_shortened_and_still_its_own() -> None:
    given = [{"text": "x", "custom_id": "a" * 255 + last} for last in "bc"]

    keys = [c.idempotency_key or "" for c in intake(part(given), run_key="r" * 200)[0].contracts()]

    assert len(set(keys)) == 2
    assert all(len(key) == 64 for key in keys)


def test_defaults_that_spoil_every_row_are_refused_before_the_first() -> None:
    with pytest.raises(ContractError, match="did you mean num_beams"):
        part([], defaults={"num_beam": 2}).check_defaults(CATALOG)
    with pytest.raises(UnknownModel):
        part([], defaults={"model": "ghost"}).check_defaults(CATALOG)
    languages = {"source_language": "en", "target_language": "xx"}
    with pytest.raises(UnknownLanguagePair):
        part([], "translate", defaults=languages).check_defaults(CATALOG)
    with pytest.raises(UnknownModel):
        part([], "generate").check_defaults(CATALOG)


def test_defaults_need_no_field_that_a_row_can_bring() -> None:
    part([], "translate").check_defaults(CATALOG)


def test_how_much_is_read_counts_the_parts() -> None:
    taken, _ = intake(part([{"text": "x"}]), part([{"text": "y"}]))

    fractions = [taken.fraction for _ in taken.contracts()]

    assert fractions == [0.25, 0.75]
    assert taken.fraction == 1.0
