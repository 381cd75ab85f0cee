"""Guard settings: the [guards] table of `tidemill.toml` and its tables by task."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from math import inf
from typing import Any, Self, get_args

from db.suspicion import Suspicion
from engine.protocol.sampling_params import PARAMS
from engine.protocol.task_names import TaskName
from tasks.errors import SettingsError
from worker.guards.action import Action

TASKS: tuple[str, ...] = get_args(TaskName)
RETRY_PARAMS = tuple(name for name in PARAMS if name != "stop")
# Where a task differs from the rest; `docs/documents.md` explains each.
DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "translate": {"min_length_ratio": 1 / 3, "max_length_ratio": 3.0, "language": True},
    "summarize": {"max_length_ratio": 1.2, "language": True},
    # That these end at their limit is what many ask for.
    "generate": {"max_cut_parts": inf},
    "chat": {"max_cut_parts": inf},
}


@dataclass(frozen=True, slots=True, kw_only=True)
class GuardSettings:
    """The limits of one task's signals, and the action when one is exceeded."""

    enabled: bool = True  # false: nothing is looked at, and no signal is kept
    action: Action = Action.FLAG  # flag, retry, fail, or retry_or_fail
    actions: Mapping[str, Action] = field(default_factory=dict)  # by reason, where they differ
    retry_with: Mapping[str, Any] = field(default_factory=dict)  # params of a retry
    min_letters: int = 20  # of source and answer; shorter ones have no language and no ratio
    min_length_ratio: float = 0.0
    max_length_ratio: float = inf
    max_repetition: float = 0.5
    language: bool = False  # whether the language of the answer is looked at
    max_untranslated: float = 0.5
    max_empty_parts: float = 0
    max_cut_parts: float = 0
    max_missed_placeholders: float = 0
    max_missed_terms: float = 0
    refusals: bool = True  # whether an answer that begins as a refusal is suspicious
    refusal_phrases: tuple[str, ...] = ()  # beginnings beside those that are known

    def action_for(self, suspicion: Suspicion) -> Action:
        return self.actions.get(suspicion, self.action)

    @property
    def retries(self) -> bool:
        """Whether any part may be retried."""
        return self.enabled and any(self.action_for(each).retries for each in Suspicion)

    @classmethod
    def by_task(cls, table: Mapping[str, Any]) -> dict[str, Self]:
        """Read the table; raises SettingsError with the name of a faulty setting."""
        if not isinstance(table, Mapping):
            raise SettingsError("guards is not a table; write [guards]")
        common = {name: value for name, value in table.items() if name not in TASKS}
        settings = {}
        # The table of every task first, so that a fault is named where it stands.
        cls._of("guards", common)
        for task in TASKS:
            own = table.get(task, {})
            if not isinstance(own, Mapping):
                raise SettingsError(f"guards.{task} is not a table; write [guards.{task}]")
            cls._of(f"guards.{task}", own)
            merged = {**DEFAULTS[task], **common, **own}
            for name in ("actions", "retry_with"):
                merged[name] = {**common.get(name, {}), **own.get(name, {})}
            settings[task] = cls._of(f"guards.{task}", merged)
        return settings

    @classmethod
    def _of(cls, place: str, table: Mapping[str, Any]) -> Self:
        names = {each.name for each in fields(cls)}
        values: dict[str, Any] = {}
        for name, value in table.items():
            if name not in names:
                raise SettingsError(
                    f"{place}.{name} is not a setting; known: {', '.join(sorted(names))}"
                )
            values[name] = _value(f"{place}.{name}", name, value)
        return cls(**values)


def _value(place: str, name: str, value: Any) -> Any:
    if name in ("enabled", "language", "refusals"):
        if not isinstance(value, bool):
            raise SettingsError(f"{place} must be true or false, not {value!r}")
        return value
    if name == "action":
        return _action(place, value)
    if name in ("actions", "retry_with"):
        if not isinstance(value, Mapping):
            raise SettingsError(f"{place} must be a table, not {value!r}")
        names = tuple(Suspicion) if name == "actions" else RETRY_PARAMS
        for key in value:
            if key not in names:
                raise SettingsError(f"{place}.{key} is unknown; known: {', '.join(names)}")
        if name == "actions":
            return {key: _action(f"{place}.{key}", each) for key, each in value.items()}
        return dict(value)
    if name == "refusal_phrases":
        if not isinstance(value, list | tuple) or not all(
            isinstance(each, str) and each.strip() for each in value
        ):
            raise SettingsError(f"{place} must be a list of texts, not {value!r}")
        return tuple(each.strip().casefold() for each in value)
    if isinstance(value, bool) or not isinstance(value, int | float) or not value >= 0:
        raise SettingsError(f"{place} must be a number that is not below 0, not {value!r}")
    if name == "min_letters" and not isinstance(value, int):
        raise SettingsError(f"{place} must be a whole number, not {value!r}")
    return value


def _action(place: str, value: Any) -> Action:
    try:
        return Action(value)
    except ValueError:
        raise SettingsError(f"{place} must be one of {', '.join(Action)}, not {value!r}") from None
