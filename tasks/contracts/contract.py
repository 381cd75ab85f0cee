"""Contract: the fields of a job that a producer fills in.

A contract is validated at submission, before anything is stored, so that the caller sees a mistake
at once and not after the night.
"""

import difflib
from typing import Annotated, Any, ClassVar, Self
from uuid import UUID

from pydantic import (
    AwareDatetime,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import ErrorDetails, PydanticCustomError

from db.lane import Lane
from engine.protocol.sampling_params import PARAMS, SamplingParams
from tasks.errors import ContractError, Problem

MAX_TEXT_CHARACTERS = 4_000_000
MAX_METADATA_PAIRS = 16
MAX_NAME_SHOWN = 64  # characters of a wrong name that an error quotes


def storable(value: Any) -> Any:
    """Refuse characters that no database stores and no tokenizer reads: NUL and lone surrogates."""
    if isinstance(value, bytes | bytearray):
        raise PydanticCustomError("bytes", "is bytes; decode it to a text")
    if isinstance(value, str):
        if "\x00" in value:
            raise PydanticCustomError(
                "nul_byte",
                "holds a NUL byte at position {position}; remove it",
                {"position": value.index("\x00")},
            )
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise PydanticCustomError(
                "lone_surrogate",
                "holds half a character (a lone surrogate) at position {position}; "
                "decode the source as UTF-8",
                {"position": error.start},
            ) from None
    return value


def is_number(value: Any, info: ValidationInfo) -> Any:
    """Refuse a boolean for a number; refuse a text too, unless the source has only texts."""
    if isinstance(value, bool):
        raise PydanticCustomError("no_number", "must be a number")
    if isinstance(storable(value), str) and not reads_texts(info):
        raise PydanticCustomError("no_number", "must be a number, not a text")
    return value


def is_truth_value(value: Any, info: ValidationInfo) -> Any:
    """Refuse all but true and false; accept 1 or "yes" only if the source has only texts."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int | str) and reads_texts(info):
        return value
    raise PydanticCustomError("no_truth_value", "must be true or false")


def is_id(value: Any) -> Any:
    """Refuse a value that is not a job id, without quoting it."""
    if isinstance(value, str):
        try:
            return UUID(value)
        except ValueError:
            pass
    if isinstance(value, UUID):
        return value
    raise PydanticCustomError(
        "no_id", "must be a job's id, such as 01a20a9c-8646-70ad-ab14-32e4e2328b4c"
    )


def not_a_truth_value(value: Any) -> Any:
    if isinstance(value, bool):
        raise PydanticCustomError("no_instant", "must be a date and time")
    return value


def reads_texts(info: ValidationInfo) -> bool:
    """Whether the source has only texts."""
    return bool(info.context and info.context.get("reads_texts"))


def not_blank(value: Any) -> Any:
    if isinstance(value, str) and not value.strip():
        raise PydanticCustomError("blank_text", "is empty; give at least one word")
    return value


def not_huge(value: Any) -> Any:
    if isinstance(value, str) and len(value) > MAX_TEXT_CHARACTERS:
        raise PydanticCustomError(
            "text_too_long",
            "has {length} characters; at most {limit} are taken: split the document",
            {"length": len(value), "limit": MAX_TEXT_CHARACTERS},
        )
    return value


def clash(field: str, fault: str) -> PydanticCustomError:
    """The error for fields that do not fit together. fault: which field to change, and how"""
    return PydanticCustomError("clash", "{field} {fault}", {"field": field, "fault": fault})


Number = BeforeValidator(is_number)
TruthValue = Annotated[bool, BeforeValidator(is_truth_value)]
Instant = Annotated[AwareDatetime, BeforeValidator(not_a_truth_value)]
JobId = Annotated[UUID, BeforeValidator(is_id)]
Storable = BeforeValidator(storable)
# The order is inside out: the last validator runs first.
Text = Annotated[str, BeforeValidator(not_blank), Storable, BeforeValidator(not_huge)]
Name = Annotated[str, StringConstraints(min_length=1, max_length=256), Storable]
ShortName = Annotated[str, StringConstraints(min_length=1, max_length=128), Storable]
Language = Annotated[
    str,
    # A BCP 47 tag, or a checkpoint's own code such as fra_Latn or en_XX.
    StringConstraints(pattern=r"^[A-Za-z]{2,8}([-_][A-Za-z0-9]{2,8})*$", max_length=32),
    Storable,
]
StopText = Annotated[str, StringConstraints(min_length=1, max_length=256), Storable]


class DecodeFields(BaseModel, SamplingParams, frozen=True):
    """The decoding parameters of a job: the fields and ranges of the engine's `SamplingParams`."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    stop: tuple[StopText, ...] | None = Field(  # type: ignore[assignment]  # None: not given
        default=None, max_length=16
    )

    @field_validator("do_sample", "early_stopping", mode="before")
    @classmethod
    def _is_truth_value(cls, value: Any, info: ValidationInfo) -> Any:
        return is_truth_value(value, info)

    @field_validator(
        *(name for name in PARAMS if name not in ("do_sample", "early_stopping", "stop")),
        mode="before",
    )
    @classmethod
    def _is_number(cls, value: Any, info: ValidationInfo) -> Any:
        return None if value is None else is_number(value, info)

    @model_validator(mode="before")
    @classmethod
    def _one_stop_is_a_list_of_one(cls, fields: Any) -> Any:
        if isinstance(fields, dict) and isinstance(fields.get("stop"), str):
            return {**fields, "stop": [fields["stop"]]}
        return fields

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.max_length is not None and self.max_new_tokens is not None:
            raise clash(
                "max_length", "is given beside max_new_tokens; both bound the length: give one"
            )
        if (self.min_new_tokens or 0) > (self.max_new_tokens or 10**9):
            raise clash("min_new_tokens", "is above max_new_tokens; lower it")
        if self.do_sample is False and (self.temperature or self.top_k or self.top_p):
            raise clash(
                "do_sample",
                "is false beside temperature, top_k or top_p, which only shape a sample; "
                "leave one out",
            )
        if self.do_sample and self.temperature == 0:
            raise clash("temperature", "is 0, which is greedy, beside do_sample; give more than 0")
        if self.temperature == 0 and (self.top_k is not None or self.top_p is not None):
            raise clash(
                "temperature", "is 0, which is greedy, beside top_k or top_p; leave one out"
            )
        if not self.samples and (self.num_return_sequences or 1) > (self.num_beams or 1):
            raise clash(
                "num_return_sequences",
                f"is {self.num_return_sequences}, but a greedy answer is only one; "
                "sample (temperature, top_k or top_p), or give num_beams at least as many",
            )
        return self

    @property
    def samples(self) -> bool:
        """Whether the job itself asks for sampling."""
        if self.do_sample is not None:
            return self.do_sample
        return bool(self.temperature) or self.top_k is not None or self.top_p is not None


class Contract(DecodeFields, frozen=True):
    """The fields that all tasks share; each task adds its own."""

    task: ClassVar[str]

    model: Annotated[ShortName, Field(description="alias in tidemill.toml")] | None = None
    lane: Lane | None = None  # None: interactive for one job, bulk within a batch
    priority: Annotated[int, Field(ge=-100, le=100), Number] = 0  # higher goes first in its lane
    tenant: ShortName = "default"
    custom_id: Name | None = None
    metadata: dict[
        Annotated[str, StringConstraints(min_length=1, max_length=64), Storable],
        Annotated[str, StringConstraints(max_length=512), Storable],
    ] = Field(default_factory=dict, max_length=MAX_METADATA_PAIRS)
    idempotency_key: Name | None = None
    # False: nothing is taken from the content cache, and nothing is added to it.
    use_cache: TruthValue | None = None
    deadline: Instant | None = None  # the job expires at this time
    time_limit_seconds: Annotated[float, Field(gt=0, le=86400), Number] | None = (
        None  # of one attempt
    )

    @classmethod
    def parse(cls, fields: dict[str, Any], *, exact_types: bool = True) -> Self:
        """Validate fields into a contract; raises ContractError, which names each wrong one.

        exact_types: as in JSON; otherwise "5" is a number and "true" or 1 is true, for sources that
                     have only texts. A boolean is never a number
        """
        # pydantic cannot encode such a name and stops at it, which would hide all other faults.
        broken = [name for name in fields if _holds_half_a_character(name)]
        problems = [cls._unknown(_printable(name)) for name in broken]
        try:
            contract = cls.model_validate(
                {name: value for name, value in fields.items() if name not in broken},
                context={"reads_texts": not exact_types},
            )
        except ValidationError as error:
            problems += [cls._problem(detail) for detail in _own_faults(error)]
        if problems:
            raise ContractError(cls.task, problems)
        return contract

    @classmethod
    def own_fields(cls) -> frozenset[str]:
        """The fields that define the work, as opposed to owner, urgency and place in line."""
        shared = frozenset(Contract.model_fields) - frozenset(PARAMS)
        return frozenset(cls.model_fields) - shared | {"use_cache"}

    def work(self) -> dict[str, Any]:
        """The part of the contract for the recipe: the task's fields and the given params."""
        return self.model_dump(mode="json", include=set(self.own_fields()), exclude_none=True)

    @property
    def num_characters(self) -> int:
        """The length of the input in characters; jobs of similar length share a message."""
        raise NotImplementedError

    @property
    def language_of_output(self) -> str | None:
        return None

    @classmethod
    def _problem(cls, detail: ErrorDetails) -> Problem:
        field = _field(detail)
        if detail["type"] == "extra_forbidden":
            return cls._unknown(field)
        if detail["type"] == "missing":
            return Problem(field, "is missing")
        if detail["type"] == "clash":
            return Problem(detail["ctx"]["field"], detail["ctx"]["fault"])
        if detail["type"] == "too_short":
            return Problem(field, f"must have at least {detail['ctx']['min_length']} item")
        if detail["type"] == "string_pattern_mismatch":
            return Problem(field, "must be a language code such as en, pt-BR or fra_Latn")
        if detail["type"] == "string_unicode":
            return Problem(
                field, "holds half a character (a lone surrogate); decode the source as UTF-8"
            )
        fault = detail["msg"].replace("Input should be", "must be").replace("Input should", "must")
        value = detail["input"]
        # Only numbers and truth values are quoted: texts belong to users.
        if isinstance(value, int | float):
            fault += f", not {_shown(value)}"
        return Problem(field or "contract", fault)

    @classmethod
    def _unknown(cls, field: str) -> Problem:
        near = difflib.get_close_matches(field, cls.model_fields, n=1)
        hint = f"did you mean {near[0]}?" if near else "known: " + ", ".join(cls.model_fields)
        return Problem(field, f"is not a field of {cls.task}; {hint}")


def _own_faults(error: ValidationError) -> list[ErrorDetails]:
    """Drop errors of lists that are too short only because of invalid items."""
    details = error.errors(include_url=False)
    within = {each["loc"][:depth] for each in details for depth in range(1, len(each["loc"]))}
    return [each for each in details if each["type"] != "too_short" or each["loc"] not in within]


def _field(detail: ErrorDetails) -> str:
    """The path of the faulty field, such as `metadata.station`."""
    parts: list[Any] = list(detail["loc"])
    if len(parts) > 2 and parts[-1] == "[key]":  # pydantic's word for: not the value, the name
        parts[-2:] = [detail["input"]]
    return ".".join(_printable(str(part)) for part in parts)


def _shown(value: int | float) -> str:
    # Python refuses to write a number of thousands of digits.
    huge = isinstance(value, int) and value.bit_length() > 128
    return "a number of that many digits" if huge else repr(value)


def _printable(name: str) -> str:
    """A name for use in a message: short, with printable characters only."""
    short = name if len(name) <= MAX_NAME_SHOWN else name[:MAX_NAME_SHOWN] + "..."
    return short if short and short.isprintable() else repr(short)


def _holds_half_a_character(name: Any) -> bool:
    return isinstance(name, str) and any("\ud800" <= each <= "\udfff" for each in name)
