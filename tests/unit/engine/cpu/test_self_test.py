"""A compiled part serves only where it is switched on and agrees with torch."""

from __future__ import annotations

import logging

import pytest
import torch
from torch import Tensor

from engine.cpu.self_test import agrees, kernel_module, kernels_enabled


@pytest.mark.parametrize(
    ("wanted", "variable", "enabled"),
    [
        (True, None, True),
        (True, "", True),
        (True, "1", True),
        (True, "0", False),
        (True, " False ", False),
        (True, "off", False),
        (False, None, False),
        (False, "1", False),
    ],
)
def test_the_setting_or_the_environment_switches_kernels_off(
    wanted: bool, variable: str | None, enabled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TIDEMILL_CPU_KERNELS", raising=False)
    if variable is not None:
        monkeypatch.setenv("TIDEMILL_CPU_KERNELS", variable)
    assert kernels_enabled(wanted) is enabled


def ones() -> list[Tensor]:
    return [torch.ones(3), torch.ones(2)]


def one_is_missing() -> list[Tensor]:
    return ones()[:1]


def one_is_off() -> list[Tensor]:
    return [torch.ones(3), torch.ones(2) + 1e-3]


def one_is_nan() -> list[Tensor]:
    return [torch.ones(3), torch.full((2,), torch.nan)]


def raises() -> list[Tensor]:
    raise ValueError("the text of a user")


def test_a_part_that_gives_the_same_agrees(caplog: pytest.LogCaptureFixture) -> None:
    assert agrees("a part", ones, ones)
    assert caplog.records == []


@pytest.mark.parametrize(
    ("compiled", "event"),
    [
        (one_is_off, "kernel disagrees with torch"),
        (one_is_nan, "kernel disagrees with torch"),
        (one_is_missing, "kernel failed"),
        (raises, "kernel failed"),
    ],
)
def test_a_part_that_differs_or_fails_is_named_in_one_warning(
    compiled: object, event: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        assert not agrees("a part", compiled, ones)  # type: ignore[arg-type]  # one of those above
    (record,) = caplog.records
    assert (record.message, record.part) == (event, "a part")  # type: ignore[attr-defined]  # a field
    assert "text of a user" not in str(vars(record))


def test_the_self_test_leaves_the_random_stream_of_the_process_unchanged() -> None:
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    agrees("a part", lambda: [torch.rand(2)], lambda: [torch.rand(2)])
    assert torch.equal(torch.rand(1), expected)


def test_a_kernel_that_cannot_be_imported_is_none() -> None:
    assert kernel_module("kernels.of_another_world") is None


def test_a_sum_that_cancels_out_is_held_to_the_largest_number() -> None:
    exact = torch.tensor([200.0, 0.01])
    assert agrees("a part", lambda: [exact + 0.002], lambda: [exact])
    assert not agrees("a part", lambda: [exact + 0.03], lambda: [exact])
    assert not agrees("a part", lambda: [torch.tensor([0.0, 0.02])], lambda: [exact / 200])


def test_an_infinite_number_does_not_widen_the_tolerance() -> None:
    exact = torch.tensor([float("-inf"), 1.0])
    assert agrees("a part", lambda: [exact], lambda: [exact])
    assert not agrees("a part", lambda: [exact + torch.tensor([0.0, 0.1])], lambda: [exact])
    assert not agrees("a part", lambda: [exact.nan_to_num(nan=0.0, neginf=0.0)], lambda: [exact])
