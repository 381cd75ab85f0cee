"""Guards: suspicious answers by their settings, and the reaction to each."""

import logging
import math
import threading
from dataclasses import replace
from itertools import count
from typing import Any
from uuid import uuid4

import pytest

from db.outcome import Answer, Signals
from db.suspicion import Suspicion
from tasks.errors import SettingsError
from tests.samples.model_cards import FAKE_CARD
from worker.errors import JobError, QualityGuardFailed
from worker.guards.action import Action
from worker.guards.guard import Guard
from worker.guards.settings import GuardSettings
from worker.recipes import Work

ENGLISH = "The tide is low and the ferry waits at the harbour until the morning comes."
FRENCH = "La marée est basse et le bac attend au port jusqu'à ce que le matin arrive."
LOOP = "le bac le bac le bac le bac le bac le bac le bac le bac"
CARD = replace(FAKE_CARD, max_context_tokens=100)


def examined(
    output: str,
    *,
    text: str = ENGLISH,
    task: str = "translate",
    guards: dict[str, Any] | None = None,
    finish_reason: str = "stop",
    signals: Signals | None = None,
    **fields: Any,
) -> Answer | JobError:
    contract = {"text": text, **({"target_language": "fr"} if task == "translate" else {})}
    work = Work(uuid4(), task, {**contract, **fields}, CARD, count(1))
    answer = Answer(
        output=output,
        finish_reason=finish_reason,
        prompt_tokens=1,
        completion_tokens=1,
        provenance={},
        signals=signals or Signals(),
    )
    guard = Guard(guards or {})
    verdicts: list[Answer | JobError] = []
    ended = threading.Event()

    def end(verdict: Answer | JobError) -> None:
        verdicts.append(verdict)
        ended.set()

    guard.examine(work, answer, end)
    assert ended.wait(60)
    guard.stop()
    (verdict,) = verdicts
    return verdict


def suspicions(output: str, **given: Any) -> tuple[str, ...]:
    verdict = examined(output, **given)
    assert isinstance(verdict, Answer), verdict
    return verdict.signals.suspicions


def test_a_good_translation_is_not_suspicious() -> None:
    verdict = examined(FRENCH)
    assert isinstance(verdict, Answer)
    signals = verdict.signals
    assert signals.suspicions == ()
    assert signals.detected_language == "fr"
    assert signals.length_ratio == pytest.approx(1.0, abs=0.1)
    assert (signals.repetition, signals.num_empty_parts, signals.num_cut_parts) == (0.0, 0, 0)


@pytest.mark.parametrize(
    ("output", "given", "expected"),
    [
        ("", {}, {"empty", "too_short"}),
        (" \n ", {"task": "generate"}, {"empty"}),
        (FRENCH, {"finish_reason": "length"}, {"cut_by_length"}),
        ("Oui.", {}, {"too_short"}),
        (" ".join(f"le {each}e bac est" for each in range(25)), {}, {"too_long"}),
        (LOOP, {}, {"repetition"}),
        (LOOP, {"task": "generate"}, {"repetition"}),
        (ENGLISH, {}, {"wrong_language"}),
        (ENGLISH, {"task": "summarize", "text": FRENCH}, {"wrong_language"}),
        (FRENCH, {"task": "summarize", "text": "Oui. " + FRENCH}, set()),
        (f"{ENGLISH} {ENGLISH}" * 2, {"task": "summarize"}, {"too_long", "repetition"}),
        (FRENCH, {"signals": Signals(untranslated_share=0.6)}, {"untranslated"}),
        (FRENCH, {"signals": Signals(num_missed_placeholders=1)}, {"placeholders_missed"}),
        (FRENCH, {"signals": Signals(num_missed_terms=1)}, {"terms_missed"}),
        # Results that users often want, or that indicate nothing.
        (FRENCH, {"finish_reason": "length", "task": "generate"}, set()),
        ("Bonjour tout le monde.", {"text": "Hi."}, set()),
        (LOOP, {"text": "the ferry " * 8}, set()),
    ],
)
def test_each_signal_beyond_its_limit_is_a_suspicion(
    output: str, given: dict[str, Any], expected: set[str]
) -> None:
    assert set(suspicions(output, **given)) == expected


@pytest.mark.parametrize(
    ("guards", "expected"),
    [
        ({"enabled": False}, ()),
        ({"translate": {"enabled": False}}, ()),
        ({"chat": {"enabled": False}}, ("repetition",)),
        ({"max_repetition": 0.99}, ()),
        ({"max_repetition": 0.99, "translate": {"max_repetition": 0.1}}, ("repetition",)),
        ({"min_length_ratio": 0.95}, ("too_short", "repetition")),
        ({"max_length_ratio": 0.1}, ("too_long", "repetition")),
    ],
)
def test_thresholds_are_settings(guards: dict[str, Any], expected: tuple[str, ...]) -> None:
    assert suspicions(LOOP, guards=guards) == expected


def test_a_guard_can_fail_the_job() -> None:
    verdict = examined(LOOP, guards={"actions": {"repetition": "fail"}})
    assert isinstance(verdict, QualityGuardFailed)
    assert verdict.code == "quality_guard"
    assert not verdict.retryable
    assert "repetition (0." in str(verdict)
    assert "bac" not in str(verdict), "an error holds no user's text"
    assert suspicions("Oui.", guards={"actions": {"repetition": "fail"}}) == ("too_short",)


def test_given_signals_stay_and_an_error_while_measuring_fails_no_job(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError(ENGLISH)

    monkeypatch.setattr("worker.guards.guard.measured", fail)
    with caplog.at_level(logging.DEBUG):
        verdict = examined(FRENCH)
    assert isinstance(verdict, Answer)
    assert verdict.output == FRENCH
    assert "RuntimeError" in str(caplog.records[0].__dict__)
    assert ENGLISH not in caplog.text


def test_no_language_is_guessed_of_tiny_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("worker.guards.reasons.detect", lambda *_: pytest.fail("guessed"))
    assert suspicions("Bonjour à tous.", text="Hello, everybody.") == ()
    assert suspicions(FRENCH, guards={"language": False}) == ()
    assert suspicions(FRENCH, task="generate") == ()


@pytest.mark.parametrize(
    ("guards", "fault"),
    [
        ({"max_repitition": 1}, "guards.max_repitition is not a setting; known: action"),
        ({"max_repetition": "much"}, "guards.max_repetition must be a number"),
        ({"max_repetition": -1}, "guards.max_repetition must be a number that is not below 0"),
        ({"max_repetition": math.nan}, "guards.max_repetition must be a number"),
        ({"enabled": 1}, "guards.enabled must be true or false"),
        ({"action": "explode"}, "guards.action must be one of flag, retry, fail, retry_or_fail"),
        ({"actions": {"sad": "fail"}}, "guards.actions.sad is unknown; known: empty"),
        ({"actions": {"empty": 3}}, "guards.actions.empty must be one of"),
        ({"retry_with": {"beams": 3}}, "guards.retry_with.beams is unknown; known: max_new"),
        ({"translate": {"langauge": True}}, "guards.translate.langauge is not a setting"),
        ({"translate": 3}, "guards.translate is not a table"),
        ({"min_letters": 2.5}, "guards.min_letters must be a whole number"),
        (3, "guards is not a table"),
    ],
)
def test_a_wrong_setting_is_named(guards: Any, fault: str) -> None:
    with pytest.raises(SettingsError, match=fault.replace(".", r"\.")):
        GuardSettings.by_task(guards)


def test_the_table_of_a_task_goes_before_the_common_one() -> None:
    settings = GuardSettings.by_task(
        {
            "action": "retry",
            "actions": {"empty": "fail"},
            "translate": {"action": "flag", "actions": {"repetition": "retry_or_fail"}},
        }
    )
    assert settings["chat"].action_for(Suspicion.REPETITION) is Action.RETRY
    assert settings["chat"].action_for(Suspicion.EMPTY) is Action.FAIL
    assert settings["translate"].action_for(Suspicion.TOO_LONG) is Action.FLAG
    assert settings["translate"].action_for(Suspicion.EMPTY) is Action.FAIL
    assert settings["translate"].action_for(Suspicion.REPETITION) is Action.RETRY_OR_FAIL
    assert settings["translate"].retries
    assert not GuardSettings.by_task({})["translate"].retries
