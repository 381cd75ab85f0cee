"""Loop: admit, cancel, schedule, step, collect. Read this first.

Four threads share one engine process. The reader takes frames off the pipe, the tokenizer
thread turns requests into sequences, the loop (the main thread) owns the scheduler and the
model, the writer turns completions into text and sends them. This is the loop.
"""

from __future__ import annotations

import logging
import time
from bisect import bisect_left
from collections.abc import Callable

from engine.core.backend import Backend
from engine.core.completion import Completion
from engine.core.request_tracker import RequestTracker
from engine.core.scheduler import Scheduler, StepPlan
from engine.core.threads.inbox import Inbox
from engine.core.threads.outbox import Outbox
from engine.errors import EngineBroken, GenerationFailed
from engine.logging import error_location
from engine.protocol.progress import STEP_SECONDS, Progress

log = logging.getLogger(__name__)


class Loop:
    """Runs sequences step by step. Each one from the inbox ends as one completion in the outbox."""

    def __init__(
        self,
        engine: Backend,
        scheduler: Scheduler,
        inbox: Inbox,
        outbox: Outbox,
        tracker: RequestTracker,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.engine = engine
        self.scheduler = scheduler
        self.inbox = inbox
        self.outbox = outbox
        self.tracker = tracker
        self.clock = clock
        self.num_steps = 0
        self.num_prompt_tokens = 0
        self.num_found_tokens = 0
        self.num_completion_tokens = 0
        self.num_in_flight = 0
        self.num_by_generate = 0
        self.busy_seconds = 0.0
        self.num_rows = 0  # of the last step; this and the next are 0 when there is none
        self.num_cache_tokens = 0
        self.num_row_steps = 0
        self.step_counts = [0] * (len(STEP_SECONDS) + 1)

    def run(self) -> None:
        """Advance until the inbox is closed; unfinished sequences then stay unanswered."""
        while not self.inbox.closed:
            if self.advance() is None:
                self.check()
                self.inbox.wait()

    def advance(self) -> StepPlan | None:
        """Run one step for every sequence that fits; None when there is nothing to do."""
        self.scheduler.add(self.inbox.take())
        self.cancel()
        plan = self.scheduler.next_step(self.engine.max_rows)
        if plan is None:
            self.rest()
            return None
        self.num_rows = self.scheduler.num_rows
        self.num_cache_tokens = self.scheduler.num_cache_tokens
        self.num_row_steps += self.num_rows
        results = self.step(plan)
        finished = self.scheduler.apply(plan, results)
        self.count(plan, finished)
        self.outbox.put(finished, self.progress())
        return plan

    def rest(self) -> None:
        """Report progress before the loop waits: nothing is running any more."""
        if self.num_rows:
            self.num_rows = self.num_cache_tokens = 0
            self.outbox.put([], self.progress())

    def check(self) -> None:
        """Raise InvariantBroken if scheduler, tracker and backend disagree about what they hold."""
        self.scheduler.check()
        self.tracker.check()
        self.engine.check(self.scheduler.running.values())

    def cancel(self) -> None:
        """Remove cancelled sequences from scheduler and backend, and send their completions."""
        sequences = self.scheduler.cancel(self.tracker.cancelled)
        if sequences:
            self.engine.drop(sequences)
            self.outbox.put([Completion.cancelled(each) for each in sequences], self.progress())

    def step(self, plan: StepPlan) -> list[Completion | None]:
        """Run the plan.

        Returns the completion of each of its sequences, None for those unfinished.
        """
        started_at = self.clock()
        try:
            return self.engine.run(plan)
        except EngineBroken:
            raise
        except Exception as error:
            # A backend blames single requests by itself. An error that it did not foresee fails
            # every request that shared the step, so that each is answered.
            log.error("step failed", extra={"error": error_location(error)})
            self.engine.drop(plan.sequences)
            failure = GenerationFailed(error, "running the step that it was in")
            return [Completion.failed(each, failure) for each in plan.sequences]
        finally:
            seconds = self.clock() - started_at
            self.busy_seconds += seconds
            self.scheduler.learn(plan, seconds)
            self.step_counts[bisect_left(STEP_SECONDS, seconds)] += 1

    def count(self, plan: StepPlan, finished: list[Completion]) -> None:
        """Add a step to the totals of `progress`."""
        self.num_steps += 1
        self.num_prompt_tokens += sum(len(each.prompt_ids) for each in plan.admitted)
        self.num_found_tokens += plan.num_found_tokens
        num_by_generate = sum(each.runs_to_completion for each in plan.admitted)
        self.num_by_generate += num_by_generate
        self.num_in_flight += len(plan.admitted) - num_by_generate
        self.num_completion_tokens += sum(each.num_tokens for each in finished)

    def progress(self) -> Progress:
        """The present queue lengths, and totals since the start."""
        return Progress(
            num_waiting=len(self.scheduler.waiting),
            num_running=len(self.scheduler.running),
            num_steps=self.num_steps,
            num_prompt_tokens=self.num_prompt_tokens,
            num_found_tokens=self.num_found_tokens,
            num_completion_tokens=self.num_completion_tokens,
            num_in_flight=self.num_in_flight,
            num_by_generate=self.num_by_generate,
            busy_seconds=self.busy_seconds,
            num_rows=self.num_rows,
            num_cache_tokens=self.num_cache_tokens,
            num_row_steps=self.num_row_steps,
            step_counts=tuple(self.step_counts),
        )
