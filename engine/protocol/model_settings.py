"""ModelSettings: the settings of a model's table in `tidemill.toml` that concern its engine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from engine.errors import SpecError
from engine.protocol import prompt_texts, template_switches
from engine.protocol.task_names import TASK_NAMES, TaskName

Engine = Literal["auto", "inflight", "exact", "ctranslate2", "vllm", "fake"]
Quantization = Literal["none", "int8", "bfloat16"]
DType = Literal["auto", "float32", "bfloat16", "float16"]

# What a prompt template may hold: languages by English name and by code, and a job's options.
TEMPLATE_NAMES = (
    "text", "source_language", "target_language", "source_code", "target_code", "options",
)  # fmt: skip
COUNTS = (
    "threads",
    "max_sequences",
    "max_step_tokens",
    "max_cache_tokens",
    "max_input_tokens",
    "max_new_tokens",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSettings:
    """The settings that a producer's catalog and an engine process share.

    Raises SpecError if they contradict themselves.
    """

    alias: str
    checkpoint: str  # a folder or a name on the hub
    revision: str | None = None
    engine: Engine = "auto"  # in flight what is proved to be exact there, else exact
    dtype: DType = "auto"  # float32 on a CPU, the checkpoint's own half type on a GPU
    quantization: Quantization = "none"  # of the weights, on a CPU; the rest stays in float32
    cpu_kernels: bool = True  # on a CPU, use the kernels that are compiled here; False: plain torch
    device: str = "auto"  # a GPU if there is one
    gpu_memory_utilization: float = 0.9  # the share of a GPU that a model may fill
    threads: int | None = None  # None: what torch finds
    trust_remote_code: bool = False

    # None: the engine chooses for the model and the machine; `tidemill models` shows the choice.
    max_sequences: int | None = None  # rows in one step
    max_step_tokens: int | None = None  # prompt tokens and decoded rows in one step
    max_cache_tokens: int | None = None  # keys and values kept between steps, of all rows
    kv_cache: str | float | None = None  # the same as "2GiB", or as a share of what is free
    prefix_caching: bool = True  # in flight, prompts that begin alike are read once
    max_input_tokens: int | None = None  # None: what the checkpoint takes
    max_new_tokens: int | None = None  # for requests that name no length; None: the checkpoint's

    prompt: Mapping[TaskName, str] = field(default_factory=dict)  # task -> template with {text} ...
    prompts: Mapping[str, str] = field(default_factory=dict)  # see engine/protocol/prompt_texts.py

    # Switches of the chat template, where a job does not set them.
    chat_template_kwargs: Mapping[str, Any] = field(default_factory=dict)

    # For tests and demonstrations; only the fake engine reads them.
    fake_step_seconds: float = 0.0  # how long a step pretends to compute
    fake_fail_on: str | None = None  # a prompt with this text fails in the middle of its group
    fake_out_of_memory_on: str | None = None  # a prompt with this text finds no memory
    fake_crash_on: str | None = None  # a prompt with this text kills the process when it joins

    def __post_init__(self) -> None:
        self._one_of("engine", self.engine, get_args(Engine))
        self._one_of("dtype", self.dtype, get_args(DType))
        self._one_of("quantization", self.quantization, get_args(Quantization))
        device, _, index = self.device.partition(":")
        if device not in ("auto", "cpu", "cuda") or (index and not index.isdecimal()):
            raise SpecError(
                f"device of model {self.alias!r} is {self.device!r}; "
                'use "auto", "cpu", "cuda" or "cuda:N"'
            )
        if not 0 < self.gpu_memory_utilization <= 1:
            raise SpecError(
                f"gpu_memory_utilization of model {self.alias!r} is "
                f"{self.gpu_memory_utilization}; it is a share, above 0 and at most 1"
            )
        for name in COUNTS:
            self._at_least_one(name)
        if (
            self.max_step_tokens is not None
            and self.max_sequences is not None
            and self.max_step_tokens < self.max_sequences
        ):
            raise SpecError(
                f"max_step_tokens of model {self.alias!r} is {self.max_step_tokens}, below its "
                f"max_sequences of {self.max_sequences}, so some sequences could never advance"
            )
        if isinstance(self.kv_cache, str):
            try:
                bytes_of(self.kv_cache)
            except ValueError as error:
                raise SpecError(f"kv_cache of model {self.alias!r} is {error}") from None
        elif self.kv_cache is not None and not 0 < self.kv_cache <= 1:
            raise SpecError(
                f"kv_cache of model {self.alias!r} is {self.kv_cache}; a share of the free "
                'memory is above 0 and at most 1; write bytes as "2GiB"'
            )
        for task, template in self.prompt.items():
            self._one_of("a task under prompt", task, TASK_NAMES)
            self._check_template(task, template)
        for name in self.chat_template_kwargs:
            if not template_switches.is_name(name) or name in template_switches.RESERVED:
                raise SpecError(
                    f"chat_template_kwargs of model {self.alias!r} may not hold {name[:64]!r}; "
                    "it holds switches of the template, such as enable_thinking"
                )
        fault = prompt_texts.fault_of(self.prompts)
        if fault is not None:
            raise SpecError(f"of the prompts of model {self.alias!r} {fault}")

    def _one_of(self, name: str, value: str, allowed: tuple[str, ...]) -> None:
        if value not in allowed:
            raise SpecError(
                f"{name} of model {self.alias!r} is {value!r}; it is one of {', '.join(allowed)}"
            )

    def _at_least_one(self, name: str) -> None:
        value = getattr(self, name)
        if value is not None and value < 1:
            raise SpecError(f"{name} of model {self.alias!r} is {value}; it is at least 1")

    def _check_template(self, task: str, template: str) -> None:
        allowed = dict.fromkeys(TEMPLATE_NAMES, "")
        try:
            template.format_map(allowed)
        except (KeyError, ValueError, IndexError, AttributeError) as error:
            raise SpecError(
                f"the prompt for {task} of model {self.alias!r} cannot be filled in ({error}); "
                "it may hold " + ", ".join(f"{{{each}}}" for each in TEMPLATE_NAMES)
            ) from error
        if "{text}" not in template:
            raise SpecError(f"the prompt for {task} of model {self.alias!r} has no {{text}}")


UNITS = {"B": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}


def bytes_of(size: str) -> int:
    """The number of bytes of a size such as "512MiB". Raises ValueError with the fault in words."""
    number = size.rstrip("KMGiB")
    unit = size[len(number) :]
    try:
        num_bytes = int(float(number) * UNITS[unit])
    except (KeyError, ValueError, OverflowError):
        num_bytes = 0
    if num_bytes < 1:
        raise ValueError(
            f'{size!r}; write a size such as "512MiB" or "2GiB", or a share such as 0.25'
        )
    return num_bytes
