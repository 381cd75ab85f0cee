"""Template switches: the field for variables of a chat template."""

import json
from typing import Self

from pydantic import Field, JsonValue, model_validator

from engine.protocol.template_switches import MAX_NAME_CHARACTERS, RESERVED, is_name
from tasks.contracts.contract import Contract, clash

MAX_TEMPLATE_KWARGS = 32
MAX_TEMPLATE_KWARGS_CHARACTERS = 8192  # as JSON


class SwitchesContract(Contract, frozen=True):
    """A task whose prompt a chat template may render."""

    # Switches of the model's chat template, such as {"enable_thinking": False}.
    chat_template_kwargs: dict[str, JsonValue] | None = Field(
        default=None, max_length=MAX_TEMPLATE_KWARGS
    )

    @model_validator(mode="after")
    def _switches_a_template_only(self) -> Self:
        switches = self.chat_template_kwargs or {}
        field = "chat_template_kwargs"
        for name in switches:
            if not is_name(name):
                raise clash(
                    field,
                    "has a name that is none: letters, digits and _, at most "
                    f"{MAX_NAME_CHARACTERS}",
                )
            if name in RESERVED:
                raise clash(field, f"may not hold {name}, which the worker sets; leave it out")
        try:
            text = json.dumps(switches, allow_nan=False, ensure_ascii=False)
            text.encode()
        except RecursionError:
            raise clash(field, "is nested too deeply; make it flat") from None
        except ValueError:
            raise clash(field, "holds NaN, infinity or half a character; leave it out") from None
        if "\\u0000" in text:
            raise clash(field, "holds a NUL byte; remove it")
        if len(text) > MAX_TEMPLATE_KWARGS_CHARACTERS:
            raise clash(
                field,
                f"has {len(text)} characters as JSON; "
                f"at most {MAX_TEMPLATE_KWARGS_CHARACTERS} are taken",
            )
        return self
