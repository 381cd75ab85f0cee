"""Catalog: the models of `tidemill.toml` that jobs can name."""

import dataclasses
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import ConfigDict, Field, StringConstraints, ValidationError
from pydantic.dataclasses import dataclass

from engine.errors import SpecError
from engine.protocol.model_settings import ModelSettings
from engine.protocol.task_names import TaskName
from tasks.errors import SettingsError, UnknownLanguagePair, UnknownModel

Alias = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$")]
TABLES = (
    *("models", "worker", "prompts", "cache", "guards"),
    *("masking", "retention", "audit", "canaries"),
    "encryption",  # read by db.encryption.settings
)
PAIR = ">"
AUTO = ("auto", "und")  # the worker detects the source language
ENGLISH = "en"  # the preferred bridge between two languages that no model translates directly


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class Model(ModelSettings):
    """One `[models.ALIAS]` table: the settings of its engine, and the jobs that it takes."""

    alias: Alias
    tasks: Annotated[tuple[TaskName, ...], Field(min_length=1)]
    # "en>fr" is a pair; "en" beside others means any of them into any other.
    languages: tuple[str, ...] = ()
    replicas: Annotated[int, Field(ge=1, le=64)] = 1

    def translates(self, source: str, target: str) -> bool:
        """Whether the model takes this pair of languages; one that names no languages takes any."""
        if not self.languages or f"{source}{PAIR}{target}" in self.languages:
            return True
        return any(_is_same(target, each) for each in self.targets_of(source))

    def targets_of(self, source: str) -> tuple[str, ...]:
        """The languages that it translates this one into, in its own codes."""
        single = [each for each in self.languages if PAIR not in each]
        pairs = [each.split(PAIR, 1) for each in self.languages if PAIR in each]
        if source.lower() in AUTO:
            ends = [end for _, end in pairs]
            return (*ends, *(single if len(single) > 1 else ()))
        ends = [end for start, end in pairs if _is_same(source, start)]
        if any(_is_same(source, each) for each in single):
            ends += [each for each in single if not _is_same(source, each)]
        return tuple(ends)

    def codes_of(self, language: str) -> tuple[str, ...]:
        """The model's own code for a source language, as a tuple of at most one."""
        named = dict.fromkeys(each.split(PAIR, 1)[0] for each in self.languages)
        return tuple(each for each in named if _is_same(language, each))[:1]

    @property
    def pairs(self) -> Iterator[str]:
        single = [language for language in self.languages if PAIR not in language]
        yield from (language for language in self.languages if PAIR in language)
        yield from (f"{one}{PAIR}{other}" for one in single for other in single if one != other)


@dataclasses.dataclass(frozen=True, slots=True)
class Catalog:
    """Every model of a configuration, in order of the file."""

    path: Path
    models: Mapping[str, Model]
    worker: Mapping[str, Any]  # `worker` and the next: tables that the worker reads
    cache: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    audits_submits: bool = True  # of the [audit] table: whether each submit is an entry
    guards: Any = dataclasses.field(default_factory=dict)  # [guards], read by the worker as well
    retention: Any = dataclasses.field(
        default_factory=dict
    )  # as tasks.configuration.retention reads it
    masking: Any = dataclasses.field(
        default_factory=dict
    )  # as tasks.configuration.masking reads it
    canaries: Any = dataclasses.field(default_factory=list)  # as tasks.canaries reads it

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a configuration; raises SettingsError with the place and the fault."""
        try:
            written = tomllib.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise SettingsError(f"{path} cannot be read: {error.strerror}") from error
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise SettingsError(f"{path} is not valid TOML: {error}") from error
        unknown = set(written) - set(TABLES)
        if unknown:
            raise SettingsError(
                f"{path}: unknown table {', '.join(sorted(unknown))}; known: {', '.join(TABLES)}"
            )
        tables = written.get("models", {})
        if not isinstance(tables, dict) or not tables:
            raise SettingsError(f"{path} names no models; add a [models.NAME] table")
        return cls(
            path=path,
            models={
                alias: _model(path, alias, table, written.get("prompts", {}))
                for alias, table in tables.items()
            },
            worker=written.get("worker", {}),
            cache=written.get("cache", {}),
            audits_submits=_audits_submits(path, written.get("audit", {})),
            guards=written.get("guards", {}),
            retention=written.get("retention", {}),
            masking=written.get("masking", {}),
            canaries=written.get("canaries", []),
        )

    def route(self, task: str, alias: str | None, source: str | None, target: str | None) -> Model:
        """The model of a job: the one it names, or the first that does the task.

        Raises UnknownModel or UnknownLanguage with the list of known ones.
        """
        able = [model for model in self.models.values() if task in model.tasks]
        if alias is not None:
            if alias not in self.models:
                raise UnknownModel(f"there is no model {alias!r}", self.models)
            if task not in self.models[alias].tasks:
                raise UnknownModel(
                    f"the model {alias!r} does not {task}", (model.alias for model in able)
                )
            able = [self.models[alias]]
        if not able:
            raise UnknownModel(f"no model does the task {task!r}", self.models)
        if source is None or target is None:
            return able[0]
        for model in able:
            if model.translates(source, target):
                return model
        if alias is None and (legs := self._by_way(able, source, target)):
            return legs[0].model
        raise UnknownLanguagePair(source, target, [pair for model in able for pair in model.pairs])

    def legs(
        self, task: str, alias: str | None, source: str | None, target: str | None
    ) -> tuple["RouteLeg", ...]:
        """The models of a translation that needs several; empty if one model can do it."""
        if alias is not None or source is None or target is None:
            return ()
        able = [model for model in self.models.values() if task in model.tasks]
        if any(model.translates(source, target) for model in able):
            return ()
        return self._by_way(able, source, target)

    @staticmethod
    def _by_way(able: Sequence[Model], source: str, target: str) -> tuple["RouteLeg", ...]:
        """Two models that both name a third language, English before others."""
        if _is_same(source, target):
            return ()
        ways = [
            (RouteLeg(first, source, middle), RouteLeg(second, own, target))
            for first in able
            for middle in first.targets_of(source)
            for second in able
            if second.languages and second.translates(middle, target)
            for own in second.codes_of(middle)
        ]
        ways.sort(key=lambda way: not _is_same(ENGLISH, way[0].target))
        return ways[0] if ways else ()

    def only(self, aliases: tuple[str, ...]) -> dict[str, Model]:
        """The named models; all where none is named."""
        for alias in aliases:
            if alias not in self.models:
                raise UnknownModel(f"there is no model {alias!r}", self.models)
        return {alias: self.models[alias] for alias in aliases or self.models}


@dataclasses.dataclass(frozen=True, slots=True)
class RouteLeg:
    """One model's part of a translation through several languages."""

    model: Model
    source: str
    target: str

    def to_json(self) -> dict[str, Any]:
        leg = {
            "model": self.model.alias,
            "source_language": self.source,
            "target_language": self.target,
        }
        # The languages among which the worker of either model detects the source.
        return {**leg, "languages": list(self.model.languages)}


@cache
def _is_same(code: str, other: str) -> bool:
    """Whether two codes mean the same language, as `fr`, `fr-CA` and `fra_Latn` do."""
    if code == other:
        return True
    from engine.text.languages import closest  # only if a code is not spelled as in the model

    return closest(code, (other,)) is not None


def _audits_submits(path: Path, table: Any) -> bool:
    if not isinstance(table, dict) or set(table) - {"submits"}:
        raise SettingsError(f"{path}: the [audit] table has one setting, submits")
    submits = table.get("submits", True)
    if not isinstance(submits, bool):
        raise SettingsError(f"{path}: audit.submits is {submits!r}; it can be true or false")
    return submits


def _model(path: Path, alias: str, table: Any, prompts: Any) -> Model:
    """Parse a model's table. prompts: those of all models, which its own override"""
    try:
        if not isinstance(table, dict):
            raise SettingsError(f"{path}: models.{alias} is not a table; write [models.{alias}]")
        if not isinstance(prompts, dict):
            raise SettingsError(f"{path}: prompts is not a table; write [prompts]")
        own = table.get("prompts", {})
        if prompts and isinstance(own, dict):
            table = {**table, "prompts": {**prompts, **own}}
        model = Model(alias=alias, **table)
    except SpecError as error:
        raise SettingsError(f"{path}: {error}") from None
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        name = ".".join(map(str, first["loc"]))
        settings = sorted({field.name for field in dataclasses.fields(Model)} - {"alias"})
        fault = (
            f"is not a setting; known: {', '.join(settings)}"
            if first["type"] == "unexpected_keyword_argument"
            else first["msg"].replace("Input should be", "must be")
        )
        raise SettingsError(f"{path}: models.{alias}.{name} {fault}") from None
    folder = path.parent / model.checkpoint
    if folder.is_dir():
        return dataclasses.replace(model, checkpoint=str(folder.resolve()))
    return model
