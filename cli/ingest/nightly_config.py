"""NightlyConfig: the batch of each night, configured in TOML."""

import os
import tomllib
from datetime import date, datetime
from pathlib import Path
from typing import Annotated, Any, Self
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from cli.ingest import Source, open_source
from cli.ingest.formats.sql import SqlSource
from cli.ingest.row_parsing import SourcePart
from engine.protocol.task_names import TaskName
from tasks.contracts.by_task import CONTRACTS
from tasks.contracts.contract import clash
from tasks.errors import SettingsError

DATE = "{date}"
Metadata = dict[str, str]


class SourceTable(BaseModel):
    """The `[source]` table: a path, relative to the configuration, or a url and a query."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    path: str | None = None
    encoding: str | None = None  # of texts at the path that name none and are not in UTF-8
    url: str | None = None
    url_env: str | None = None  # the environment variable that holds the url
    query: str | None = None
    read_only_user: bool = False  # needed where we cannot ensure that a query only reads

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        if (self.path is None) == (self.query is None):
            raise clash("source", "needs a path, or a url and a query")
        if self.query is not None and (self.url is None) == (self.url_env is None):
            raise clash("source", "needs a url, or a url_env, beside its query")
        if self.path is not None and (self.url or self.url_env):
            raise clash("source", "has a path and a url; give one")
        if self.path is None and self.encoding is not None:
            raise clash("source", "has an encoding beside a query; it is about files")
        if self.path is not None and self.read_only_user:
            raise clash("source", "has read_only_user beside a path; it is about a url")
        return self

    def opened(self, folder: Path, day: date) -> Source:
        """Open the source; raises SourceUnusable or SettingsError."""
        if self.path is not None:
            return open_source(_path(folder, self.path, day), self.encoding)
        assert self.query is not None
        url = self.url
        if self.url_env is not None:
            url = os.environ.get(self.url_env)
            if not url:
                raise SettingsError(f"source.url_env names {self.url_env}, which is not set")
        assert url is not None
        return SqlSource(url, _dated(self.query, day), read_only_user=self.read_only_user)


class PartTable(BaseModel):
    """The settings of one source; with several, each is a `[[parts]]` table."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    task: TaskName
    source: SourceTable
    params: dict[str, Any] = {}
    fields: dict[str, str] = {}
    metadata: Metadata = {}
    allow_empty: bool | None = None  # None: as the night has it


class NightlyConfig(BaseModel):
    """A batch of one source, or of several parts, under one run key."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    run_key: Annotated[str, Field(min_length=1, max_length=200)]
    batch: str | None = None
    timezone: str | None = None
    tenant: str = "default"
    metadata: Metadata = {}
    allow_empty: bool = False  # a source without rows is as it should be
    errors: str | None = None  # a file for the rows that are left out
    task: TaskName | None = None
    source: SourceTable | None = None
    params: dict[str, Any] = {}
    fields: dict[str, str] = {}
    parts: tuple[PartTable, ...] = ()

    @model_validator(mode="after")
    def _one_or_several(self) -> Self:
        single = self.task is not None and self.source is not None
        if self.parts and (self.task or self.source or self.params or self.fields):
            raise clash("parts", "stand beside a task or source of the whole; give one kind")
        if not self.parts and not single:
            raise clash("task", "and source are needed, or [[parts]] with one of each")
        return self

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a configuration; raises SettingsError with the place and the fault."""
        try:
            return cls.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))
        except OSError as error:
            raise SettingsError(f"{path} cannot be read: {error.strerror}") from error
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise SettingsError(f"{path} is not valid TOML: {error}") from error
        except ValidationError as error:
            raise SettingsError(f"{path}: {_fault(error)}") from None

    def today(self) -> date:
        """The date in the configuration's time zone; raises SettingsError for an unknown one."""
        if self.timezone is None:
            return datetime.now().astimezone().date()
        try:
            return datetime.now(ZoneInfo(self.timezone)).date()
        except (ZoneInfoNotFoundError, ValueError) as error:
            raise SettingsError(
                f"there is no time zone {self.timezone!r}; it looks like Europe/Berlin"
            ) from error

    def run_key_of(self, day: date) -> str:
        return _dated(self.run_key, day)

    def batch_of(self, day: date) -> str:
        return _dated(self.batch or self.run_key, day)

    def metadata_of(self, day: date) -> Metadata:
        return {key: _dated(value, day) for key, value in self.metadata.items()}

    def errors_of(self, folder: Path, day: date) -> Path | None:
        return None if self.errors is None else _path(folder, self.errors, day)

    def parts_of(self, folder: Path, day: date) -> list[SourcePart]:
        """The parts with opened sources; if there are several, each has a number."""
        tables = self.parts
        if not tables:
            assert self.task is not None
            assert self.source is not None
            tables = (
                PartTable(
                    task=self.task, source=self.source, params=self.params, fields=self.fields
                ),
            )
        return [
            SourcePart(
                source=table.source.opened(folder, day),
                contract=CONTRACTS[table.task],
                defaults=self._defaults(table, day),
                columns=table.fields,
                tag=str(number) if len(tables) > 1 else "",
                allow_empty=self.allow_empty if table.allow_empty is None else table.allow_empty,
            )
            for number, table in enumerate(tables, start=1)
        ]

    def _defaults(self, table: PartTable, day: date) -> dict[str, Any]:
        own = {key: _dated(value, day) for key, value in table.metadata.items()}
        metadata = {**self.metadata_of(day), **own}
        return {
            "tenant": self.tenant,
            **({"metadata": metadata} if metadata else {}),
            **table.params,
        }


def _path(folder: Path, text: str, day: date) -> Path:
    """A path of the configuration: relative to its folder; `~` is the home."""
    return folder / Path(_dated(text, day)).expanduser()


def _dated(text: str, day: date) -> str:
    return text.replace(DATE, day.isoformat())


def _fault(error: ValidationError) -> str:
    first = error.errors(include_url=False)[0]
    place = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        return f"{place} is not a setting"
    if first["type"] == "missing":
        return f"{place} is missing"
    if first["type"] == "clash":
        inner = f"{first['ctx']['field']} {first['ctx']['fault']}"
        return f"{place}: {inner}" if place else inner
    return f"{place}: {first['msg'].replace('Input should be', 'must be')}"
