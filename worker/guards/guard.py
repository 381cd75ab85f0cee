"""Guard: measures every answer before it is written, and applies the configured action."""

import logging
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

from db.outcome import Answer
from db.reading.results import input_of
from worker.documents.languages import short_code
from worker.errors import JobError, QualityGuardFailed
from worker.guards.reasons import are_quick, measured, suspicions
from worker.guards.retries import retrying
from worker.guards.settings import GuardSettings
from worker.recipes import RECIPES, Steps, Work

log = logging.getLogger(__name__)

Verdict = Callable[[Answer | JobError], None]


class Guard:
    """The guards of a worker, with a thread for checks that take more than microseconds."""

    def __init__(self, table: Mapping[str, Any]) -> None:
        """table: [guards] of `tidemill.toml`; raises SettingsError if it is invalid"""
        self._settings = GuardSettings.by_task(table)
        # Looked up for every job; equal for all jobs of a task.
        self._retries = {task: each.retries for task, each in self._settings.items()}
        self._thread = ThreadPoolExecutor(1, "guards")

    def stop(self) -> None:
        self._thread.shutdown(wait=False)

    def recipe(self, work: Work) -> Steps:
        """The recipe of a job; suspicious parts are retried if the settings say so."""
        steps = RECIPES[work.task](work)
        if not self._retries[work.task]:
            return steps
        return retrying(steps, self._settings[work.task], language_of(work), work.request_ids)

    def examine(self, work: Work, answer: Answer, then: Verdict) -> None:
        """Call `then` with the answer and its signals, or with the error that fails the job.

        For a short answer the call comes at once, else from the guards' thread.
        """
        settings = self._settings[work.task]
        if not settings.enabled:
            then(answer)
            return
        source = input_of(work.contract) or ""
        if are_quick(settings, source, answer.output):
            then(self._verdict(settings, work, source, answer))
        else:
            try:
                self._thread.submit(lambda: then(self._verdict(settings, work, source, answer)))
            except RuntimeError:  # it has stopped
                then(answer)

    @staticmethod
    def _verdict(
        settings: GuardSettings, work: Work, source: str, answer: Answer
    ) -> Answer | JobError:
        try:
            return judged(settings, source, answer, language_of(work))
        except Exception as error:
            # A fault of ours costs a result its signals, never the job. Only its type is logged: a
            # message may quote the user's text.
            log.error(
                "guard failed",
                extra={"job_id": str(work.job_id), "error": type(error).__name__},
            )
            return answer


def judged(
    settings: GuardSettings, source: str, answer: Answer, language: str | None
) -> Answer | JobError:
    """The answer with its signals, or the error of a guard that fails the job."""
    counts: dict[str, int] = {}  # that the recipe has not made
    if answer.signals.num_empty_parts is None:
        counts["num_empty_parts"] = int(not answer.output.strip())
    if answer.signals.num_cut_parts is None:
        num_cut = (answer.coverage or {}).get("parts_cut", 0)
        counts["num_cut_parts"] = num_cut + (answer.finish_reason == "length")
    signals = measured(settings, source, answer.output, answer.signals, **counts)
    found = suspicions(settings, source, answer.output, signals, language)
    if found:
        signals = replace(signals, suspicions=found)
        fatal = [each for each in found if settings.action_for(each).fails]
        if fatal:
            return QualityGuardFailed(fatal, signals)
    return replace(answer, signals=signals)


def language_of(work: Work) -> str | None:
    """The language that an answer should be in; None: that of its source, or any."""
    code = work.contract.get("target_language") or work.contract.get("output_language")
    return None if code is None else short_code(code)
