from typing import get_args

import pytest
import typer

from cli import options
from db.lane import Lane
from db.states import JobState


def test_the_choices_are_those_of_the_packages_that_know_them() -> None:
    assert get_args(options.LaneName) == tuple(Lane)
    assert get_args(options.StateName) == (*JobState, "all")


def test_params_that_parse_as_json_become_json_values() -> None:
    given = ["a=60", "b=0.7", "c=true", 'd=["x", "y"]', "e=plain text", "f=", "g=x=y", 'h="1"']

    assert options.params(given) == {
        "a": 60,
        "b": 0.7,
        "c": True,
        "d": ["x", "y"],
        "e": "plain text",
        "f": "",
        "g": "x=y",
        "h": "1",
    }


@pytest.mark.parametrize("text", ["nothing", "=value", ""])
def test_a_pair_without_its_halves_is_wrong_usage(text: str) -> None:
    with pytest.raises(typer.BadParameter):
        options.pairs("--metadata", [text])


def test_an_instant_has_a_time_zone() -> None:
    local, given = options.instant("--since", "2026-01-31"), "2026-01-31T02:00:00+01:00"

    assert local is not None
    assert local.tzinfo is not None
    assert (local.hour, local.minute) == (0, 0)
    assert str(options.instant("--since", given)).startswith("2026-01-31")
    with pytest.raises(typer.BadParameter):
        options.instant("--since", "yesterday")


def test_an_invalid_job_id_is_wrong_usage() -> None:
    with pytest.raises(typer.BadParameter, match="custom id"):
        options.job_ids(["doc-7"])
