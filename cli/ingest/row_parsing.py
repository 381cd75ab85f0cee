"""RowParser: turns the rows of sources into contracts, and reports the rows that are invalid."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any

from cli.errors import ColumnsUnfit, CommandError, SourceEmpty
from cli.ingest import BadRow, Row, Source
from tasks.chat import ChatContract
from tasks.configuration import settings
from tasks.configuration.catalog import Catalog
from tasks.contracts.contract import Contract
from tasks.errors import ContractError, DuplicateId, Refused
from tasks.submission.first_seen import FirstSeen
from tasks.submission.previous_job import continued

METADATA = "metadata."
MAX_KEY_CHARACTERS = 256
MAX_COLUMN_SHOWN, MAX_COLUMNS_SHOWN = 64, 20


@dataclass(frozen=True, slots=True, kw_only=True)
class SourcePart:
    """A source, and the defaults of its contracts."""

    source: Source
    contract: type[Contract]
    defaults: Mapping[str, Any] = field(default_factory=dict)  # where a row says nothing
    columns: Mapping[str, str] = field(default_factory=dict)  # field -> the source's name for it
    tag: str = ""  # keeps apart the keys of parts that share a run key
    allow_empty: bool = False  # a source without rows is as it should be

    def contract_of(self, fields: dict[str, Any]) -> Contract:
        """The contract of a row; raises ContractError, which names each wrong field."""
        # Whether a number is a number in the source, as in JSON, or a text that reads like one.
        exact_types = getattr(self.source, "exact_types", True)
        return self.contract.parse(self._complete(self._shape(fields)), exact_types=exact_types)

    def check_defaults(self, catalog: Catalog) -> None:
        """Raise Refused if the defaults alone make every row invalid."""
        sample = self._complete({"text": "sample"})
        try:
            contract = self.contract.parse(sample)
        except ContractError as error:
            unknown = [
                problem
                for problem in error.problems
                if problem.field.split(".")[0] in self.defaults
            ]
            if unknown:
                raise ContractError(self.contract.task, unknown) from None
            return
        route(catalog, contract)

    def check_columns(self, columns: Sequence[str]) -> None:
        """Raise ColumnsUnfit if the columns alone make every row invalid."""
        present, task = set(columns), self.contract.task
        twice = [name for name in present if columns.count(name) > 1]
        if twice:
            raise ColumnsUnfit(
                f"{self.source.name} has the column {_shown(min(twice))} twice; rename one"
            )
        for name, column in self.columns.items():
            if column not in present:
                raise ColumnsUnfit(
                    f"{self.source.name} has no column {column!r} for {name}; "
                    f"its columns: {_listed(columns)}"
                )
        named = set(self._shape(dict.fromkeys(columns, "")))
        unknown = [name for name in columns if name in named and not self._is_field(name)]
        if unknown:
            raise ColumnsUnfit(
                f"{self.source.name} has the column {_shown(unknown[0])}, which is not a field of "
                f"{task} (those are {', '.join(self.contract.model_fields)}); keep it as "
                f"{METADATA}{_shown(unknown[0])[1:-1]}, or name the columns that count: "
                f"--field text=COLUMN, or [fields] in a nightly configuration, leaves out the rest"
            )
        for name in self._required() - named - set(self.defaults):
            raise ColumnsUnfit(
                f"{self.source.name} has no column {name!r}, which {task} needs; its columns: "
                f"{_listed(columns)}. Say which one it is: --field {name}=COLUMN, or [fields] "
                "in a nightly configuration"
            )

    def _shape(self, fields: dict[str, Any]) -> dict[str, Any]:
        """A row under the contract's names, with dotted columns collected into metadata."""
        if self.columns:
            renamed = {
                name: fields[column] for name, column in self.columns.items() if column in fields
            }
            taken = set(self.columns.values())
            columns = {
                name: value
                for name, value in fields.items()
                if name not in taken and self._is_field(name)
            }
            fields = {**columns, **renamed}
        dotted = {
            name.removeprefix(METADATA): value
            for name, value in fields.items()
            if name.startswith(METADATA)
        }
        if not dotted:
            return fields
        own = fields.get("metadata", {})
        fields_of_row = {
            name: value for name, value in fields.items() if not name.startswith(METADATA)
        }
        return {**fields_of_row, "metadata": {**own, **dotted} if isinstance(own, dict) else own}

    def _complete(self, fields: dict[str, Any]) -> dict[str, Any]:
        """The row's fields, completed by the defaults; a chat's single text becomes a message."""
        complete = {**self.defaults, **fields}
        ours, own = self.defaults.get("metadata"), fields.get("metadata")
        if ours and isinstance(own, dict):
            complete["metadata"] = {**ours, **own}
        if self.contract is ChatContract and "messages" not in complete and "text" in complete:
            complete["messages"] = [{"role": "user", "content": complete.pop("text")}]
        return complete

    def _is_field(self, name: str) -> bool:
        return (
            name in self.contract.model_fields
            or name.startswith(METADATA)
            or (name == "text" and self.contract is ChatContract)
        )

    def _required(self) -> set[str]:
        required = {
            name for name, field in self.contract.model_fields.items() if field.is_required()
        }
        # Either will do for a chat, so neither can be asked for by name.
        return required - {"messages"}


def route(catalog: Catalog, contract: Contract) -> None:
    """Raise UnknownModel or UnknownLanguage if no model takes the contract."""
    catalog.route(
        contract.task,
        contract.model,
        getattr(contract, "source_language", None),
        contract.language_of_output,
    )


@dataclass(frozen=True, slots=True)
class Refusal:
    """A row that was left out, and the reason, without any of its texts."""

    source: str
    place: str
    position: int
    code: str
    problem: str


class RowParser:
    """Reads parts one after the other; reports an invalid row and continues.

    With a run key, each job's idempotency key is the run key and the row's custom id, or else its
    position. So an interrupted run that is started again adds the missing jobs. If several parts
    share a run key, the key also has the part's tag: the same custom id in two parts is two jobs,
    unless `one_namespace` says that all parts are of one kind. Within a part it is a bad row.
    """

    def __init__(
        self,
        parts: Sequence[SourcePart],
        catalog: Catalog,
        run_key: str | None,
        report: Callable[[str], None],
        keep: Callable[[Refusal], None] = lambda refusal: None,
        *,
        one_namespace: bool = False,
    ) -> None:
        self.parts = parts
        self._catalog = catalog
        self._run_key = run_key
        self._report = report
        self._keep = keep
        self._one_namespace = one_namespace
        self._current = 0
        self._gaps_reported: set[tuple[str, str]] = set()
        self._begin()

    def _begin(self) -> None:
        self.num_good = 0
        self.num_bad = 0
        self.num_partial = 0  # good ones, of documents parts of which gave no text
        self.empty: list[str] = []  # sources that had no rows and should have had some
        self.failures: list[str] = []  # of sources, where another went on
        self._seen = FirstSeen()

    @property
    def is_complete(self) -> bool:
        """Whether every source was read to its end and had the rows that it should have."""
        return not self.empty and not self.failures

    @property
    def fraction(self) -> float | None:
        """The share that has been read, 0 to 1; None if a source does not know."""
        if self._current >= len(self.parts):
            return 1.0
        within = self.parts[self._current].source.fraction
        if within is None:
            return None
        return (self._current + within) / len(self.parts)

    def contracts(self) -> Iterator[Contract]:
        """The contract of every valid row.

        With a single source it raises SourceUnusable or ColumnsUnfit. With several, the others are
        still read, and `failures` has the errors.
        """
        self._begin()
        for number, part in enumerate(self.parts):
            self._current = number
            num_before = self.num_good + self.num_bad
            try:
                yield from self._contracts_of(part)
            except SourceEmpty:
                pass
            except CommandError as error:
                if len(self.parts) == 1:
                    raise
                self.failures.append(str(error))
                continue
            if self.num_good + self.num_bad == num_before and not part.allow_empty:
                self.empty.append(part.source.name)
        self._current = len(self.parts)
        self._seen.close()

    def check(self) -> None:
        """Read everything once and store nothing; `num_good` and `num_bad` are the result."""
        for _ in self.contracts():
            pass

    def _contracts_of(self, part: SourcePart) -> Iterator[Contract]:
        for row in part.source.rows(part.check_columns):
            contract = self._take(part, row)
            if contract is not None:
                self.num_good += 1
                yield contract

    def _take(self, part: SourcePart, row: Row | BadRow) -> Contract | None:
        if isinstance(row, BadRow):
            self._refuse(part, row, row.code, row.fault, " ")
            return None
        try:
            contract = part.contract_of(row.fields)
            if getattr(contract, "previous_job_id", None) is not None:
                continued(settings.database(), self._catalog, contract)
            route(self._catalog, contract)
            contract = self._with_key(part, row, contract)
            self._require_new(part, row, contract)
        except ContractError as error:
            self._refuse(part, row, error.code, "; ".join(map(str, error.problems)))
            return None
        except DuplicateId as error:
            self._refuse(part, row, error.code, error.fault)
            return None
        except Refused as error:
            self._refuse(part, row, error.code, str(error))
            return None
        if row.without_text is not None:
            self._report_gaps(part, row, row.without_text)
        return contract

    def _with_key(self, part: SourcePart, row: Row, contract: Contract) -> Contract:
        if self._run_key is None or contract.idempotency_key is not None:
            return contract
        # A position is a part's own, even where custom ids are not.
        shared = self._one_namespace and contract.custom_id is not None
        name = contract.custom_id or f"#{row.position}"
        if contract.custom_id is not None and contract.custom_id.startswith("#"):
            name = f"##{contract.custom_id}"  # or it would be that of a position
        key = _short("/".join(filter(None, (self._run_key, "" if shared else part.tag, name))))
        return contract.model_copy(update={"idempotency_key": key})

    def _require_new(self, part: SourcePart, row: Row, contract: Contract) -> None:
        """Raise DuplicateId if an earlier row has the same custom id or key."""
        place = f"{part.source.name}, {row.place}" if self._one_namespace else row.place
        scope = "" if self._one_namespace else part.tag
        if contract.custom_id is not None:
            self._seen.require_new("custom_id", contract.custom_id, place, contract.tenant, scope)
        if contract.idempotency_key is not None:
            key = contract.idempotency_key
            self._seen.require_new("idempotency_key", key, place, contract.tenant)

    def _report_gaps(self, part: SourcePart, row: Row, without_text: str) -> None:
        """Report the parts of a document without text, once even if its source is read twice."""
        self.num_partial += 1
        if (part.source.name, row.place) in self._gaps_reported:
            return
        self._gaps_reported.add((part.source.name, row.place))
        problem = f"no text in {without_text}; the rest goes through"
        self._report(f"{part.source.name}, {row.place}: {problem}")
        self._keep(
            Refusal(part.source.name, row.place, row.position, "parts_without_text", problem)
        )

    def _refuse(
        self, part: SourcePart, row: Row | BadRow, code: str, problem: str, between: str = ": "
    ) -> None:
        self.num_bad += 1
        self._report(f"{part.source.name}, {row.place}{between}{problem}")
        self._keep(Refusal(part.source.name, row.place, row.position, code, problem))


def _short(key: str) -> str:
    return key if len(key) <= MAX_KEY_CHARACTERS else sha256(key.encode()).hexdigest()


def _shown(column: str) -> str:
    """The name of a column, quoted; in a file without a header it is the beginning of a text."""
    shown = column if len(column) <= MAX_COLUMN_SHOWN else column[:MAX_COLUMN_SHOWN] + "..."
    return repr(shown)


def _listed(columns: Sequence[str]) -> str:
    shown = [_shown(name)[1:-1] for name in columns[:MAX_COLUMNS_SHOWN]]
    more = len(columns) - len(shown)
    return ", ".join(shown) + (f" and {more} more" if more else "")
