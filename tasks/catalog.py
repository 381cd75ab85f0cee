"""The models that jobs can ask for, as `tidemill.toml` names them."""

import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from engine.protocol.task_names import TaskName
from tasks.errors import SettingsError, UnknownLanguage, UnknownModel

Alias = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$")]
TABLES = ("models", "worker", "guards")
PAIR = ">"
AUTO = "auto"  # a source language that the worker finds out


class Model(BaseModel):
    """One `[models.ALIAS]` table."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    alias: Alias
    checkpoint: str  # a folder, relative to the file that names it, or a name on a hub
    tasks: tuple[TaskName, ...] = Field(min_length=1)
    revision: str | None = None
    # "en>fr" is a pair; "en" beside others means any of them into any other.
    languages: tuple[str, ...] = ()
    engine: Literal["auto", "inflight", "exact", "ctranslate2", "vllm", "fake"] = "auto"
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    quantization: Literal["none", "int8", "bfloat16"] = "none"  # of the weights, on a CPU
    cpu_kernels: bool = True  # on a CPU, what is compiled here; false: plain torch
    device: str = "auto"
    replicas: Annotated[int, Field(ge=1, le=64)] = 1
    gpu_memory_utilization: Annotated[float, Field(gt=0, le=1)] = 0.9  # of a model on a GPU
    threads: Annotated[int, Field(ge=1)] | None = None
    # None: chosen by the engine for the model and the machine; `tidemill models` tells.
    max_sequences: Annotated[int, Field(ge=1, le=4096)] | None = None  # decoded together
    max_step_tokens: Annotated[int, Field(ge=16)] | None = None  # prompts and answers of one step
    max_cache_tokens: Annotated[int, Field(ge=1)] | None = None  # keys and values held
    kv_cache: str | float | None = None  # the same as "2GiB", or as a share of what is free
    max_input_tokens: Annotated[int, Field(ge=1)] | None = None  # None: what the checkpoint takes
    max_new_tokens: Annotated[int, Field(ge=1)] | None = None  # where neither job nor model says
    prompt: Mapping[TaskName, str] = {}
    trust_remote_code: bool = False
    fake_step_seconds: Annotated[float, Field(ge=0)] = 0.0
    fake_fail_on: str | None = None
    fake_out_of_memory_on: str | None = None
    fake_crash_on: str | None = None

    def translates(self, source: str, target: str) -> bool:
        """Whether the pair is among this model's; one that names no languages takes any."""
        if not self.languages or f"{source}{PAIR}{target}" in self.languages:
            return True
        single = {language for language in self.languages if PAIR not in language}
        if source == AUTO:
            into = any(entry.endswith(f"{PAIR}{target}") for entry in self.languages)
            return into or (target in single and len(single) > 1)
        return source != target and {source, target} <= single

    @property
    def pairs(self) -> Iterator[str]:
        single = [language for language in self.languages if PAIR not in language]
        yield from (language for language in self.languages if PAIR in language)
        yield from (f"{one}{PAIR}{other}" for one in single for other in single if one != other)


@dataclass(frozen=True, slots=True)
class Catalog:
    """Every model of a configuration, in the order of the file."""

    path: Path
    models: Mapping[str, Model]
    worker: Mapping[str, Any]  # the [worker] table, which the worker reads
    guards: Mapping[str, Any] = field(default_factory=dict)  # [guards], which it reads as well

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a configuration; raises SettingsError naming the place and the fault."""
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
            models={alias: _model(path, alias, table) for alias, table in tables.items()},
            worker=written.get("worker", {}),
            guards=written.get("guards", {}),
        )

    def route(self, task: str, alias: str | None, source: str | None, target: str | None) -> Model:
        """The model for a job: the one it names, or the first that does the task.

        Raises UnknownModel or UnknownLanguage, each with the list of known ones.
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
        raise UnknownLanguage(source, target, [pair for model in able for pair in model.pairs])

    def only(self, aliases: tuple[str, ...]) -> dict[str, Model]:
        """The named models; all where none is named."""
        for alias in aliases:
            if alias not in self.models:
                raise UnknownModel(f"there is no model {alias!r}", self.models)
        return {alias: self.models[alias] for alias in aliases or self.models}


def _model(path: Path, alias: str, table: Any) -> Model:
    try:
        if not isinstance(table, dict):
            raise SettingsError(f"{path}: models.{alias} is not a table; write [models.{alias}]")
        model = Model(alias=alias, **table)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = ".".join(map(str, first["loc"]))
        fault = (
            f"is not a setting; known: {', '.join(sorted(set(Model.model_fields) - {'alias'}))}"
            if first["type"] == "extra_forbidden"
            else first["msg"].replace("Input should be", "must be")
        )
        raise SettingsError(f"{path}: models.{alias}.{field} {fault}") from None
    folder = path.parent / model.checkpoint
    if folder.is_dir():
        return model.model_copy(update={"checkpoint": str(folder.resolve())})
    return model
