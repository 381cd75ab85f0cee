"""Errors that end an attempt, or keep a worker from starting.

WorkerError
├── EngineUnusable    the model cannot be loaded; the worker ends
└── JobError          this attempt has failed; says whether another could help
    ├── RequestFailed     the engine refused or could not run a request
    ├── PartsTooSmall     a document's parts would hold next to nothing
    ├── SummaryNotShorter its summaries are as long as what they sum up
    ├── EngineCrashed     this request ends the engine process
    ├── RecipeFailed      our own mistake in a recipe
    ├── LanguageUnclear   the text's language is not to be told
    ├── NotSubtitles      a text that is said to be subtitles has no cue
    ├── AnswerNotValid    an answer is no JSON that matches its schema, asked several times
    ├── WayTooLong        it goes from model to model and comes to no end
    ├── TextUnopenable    what was sent was changed in the database, and opens no more
    ├── PatternTooSlow    an own pattern of [masking] takes too long for a text
    ├── QualityGuardFailed  the answer is suspicious, and settings say that this is a failure
    ├── PreviousJobGone     a job of the dialogue that a chat continues is no more
    └── ResultUnkept      the database refuses this one result
"""

from collections.abc import Iterable

from db.suspicion import HasSignals, Suspicion, in_words
from engine.protocol.output import RequestFailure
from tasks.errors import TidemillError


class WorkerError(TidemillError):
    """Base of a worker's errors."""


class EngineUnusable(WorkerError):
    """The engine process cannot load its model; the message says why."""


class JobError(WorkerError):
    code: str
    retryable: bool
    output: str | None = None  # the answer that was refused; never part of the message


class RequestFailed(JobError):
    def __init__(self, failure: RequestFailure) -> None:
        self.code = failure.code
        self.retryable = failure.retryable
        super().__init__(failure.message)


class PartsTooSmall(JobError):
    code = "parts_too_small"
    retryable = False

    def __init__(self, num_tokens: int) -> None:
        super().__init__(
            f"the document has to be read in parts, and a part would have room for "
            f"{max(num_tokens, 0)} tokens of it beside the prompt and the answer; "
            "ask for a shorter answer, or use a model with a longer context"
        )


class SummaryNotShorter(JobError):
    code = "summary_not_shorter"
    retryable = False

    def __init__(self, num_before: int, num_after: int) -> None:
        super().__init__(
            f"the summaries of {num_before} parts need {num_after} parts themselves; "
            "lower max_new_tokens, or use a model that summarizes"
        )


class EngineCrashed(JobError):
    code = "engine_crash"
    retryable = False

    def __init__(self, status: int | None) -> None:
        super().__init__(
            f"the engine process ended (status {status}) while it ran this request alone"
        )


class TimeLimitPassed(JobError):
    code = "time_limit"
    retryable = False

    def __init__(self, limit_seconds: float) -> None:
        super().__init__(f"the attempt ran longer than its time limit of {limit_seconds:g} s")


class RecipeFailed(JobError):
    code = "internal_error"
    retryable = False

    def __init__(self, error: BaseException) -> None:
        # Only the type: the text of an error may hold the user's.
        super().__init__(f"the worker failed with {type(error).__name__}; its log has the place")


class LanguageUnclear(JobError):
    code = "language_unclear"
    retryable = False

    def __init__(self, candidates: Iterable[tuple[str, float]], num_letters: int) -> None:
        seems = ", ".join(f"{code} {share:.0%}" for code, share in candidates) or "none"
        super().__init__(
            f"the language of the text is undetermined (und): its {num_letters} letters do not say "
            "it clearly "
            f"(candidates: {seems}); give source_language"
        )


class NotSubtitles(JobError):
    code = "not_subtitles"
    retryable = False

    def __init__(self) -> None:
        super().__init__(
            "format is subtitles, and no line of the text is the time of a cue, such as "
            "00:00:01,000 --> 00:00:02,000; leave format out"
        )


class AnswerNotValid(JobError):
    code = "answer_not_valid"
    retryable = False

    def __init__(self, output: str, num_asked: int, is_cut: bool) -> None:
        """is_cut: whether the last answer ended at its length limit"""
        self.output = output
        times = "once" if num_asked == 1 else f"{num_asked} times"
        remedy = (
            "the last was cut at its limit of length: raise max_new_tokens"
            if is_cut
            else "say in the prompt what is wanted, simplify the schema, or use another model"
        )
        super().__init__(
            f"no answer is JSON as it was asked for ({times}); {remedy}. "
            "`tidemill show` has the last one"
        )


class WayTooLong(JobError):
    code = "way_too_long"
    retryable = False

    def __init__(self, num_attempts: int) -> None:
        super().__init__(
            f"the job went from model to model in {num_attempts} attempts without coming to an "
            "end; see whether the database keeps segments, or serve both models by one worker"
        )


class QualityGuardFailed(JobError):
    code = "quality_guard"
    retryable = False

    def __init__(self, suspicions: Iterable[Suspicion], signals: HasSignals) -> None:
        reasons = "; ".join(f"{each} ({in_words(each, signals)})" for each in suspicions)
        super().__init__(
            f"the answer is suspicious: {reasons}; [guards] in tidemill.toml says to fail"
        )


class PatternTooSlow(JobError):
    code = "masking_pattern_too_slow"
    retryable = False

    def __init__(self, kind: str, num_characters: int, seconds: float) -> None:
        super().__init__(
            f"the pattern {kind} of [masking] took longer than {seconds:.1f} s for a text of "
            f"{num_characters} characters; write it without repetitions within repetitions"
        )


class PreviousJobGone(JobError):
    code = "previous_job_gone"
    retryable = False

    def __init__(self) -> None:
        super().__init__(
            "a job of the dialogue that this one continues is no longer in the database; "
            "begin a new dialogue, or send its messages"
        )


class ResultUnkept(JobError):
    code = "result_unkept"
    retryable = False

    def __init__(self, error: BaseException) -> None:
        super().__init__(f"the database refused the result: {type(error).__name__}")


class TextUnopenable(JobError):
    code = "text_unopenable"
    retryable = False

    def __init__(self) -> None:
        super().__init__(
            "what was sent is encrypted and does not open: it was changed or moved in the database"
        )
