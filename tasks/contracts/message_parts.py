"""Message parts: a message's content as a list, of which only text is accepted."""

from collections.abc import Iterator, Mapping
from typing import Any

from pydantic_core import PydanticCustomError

from tasks.contracts.contract import clash

# Types and keys of parts that are not text, with the word that an error uses.
NOT_TEXT = {"image": "an image", "audio": "a sound", "video": "a video", "file": "a file"}
TEXT = ("text", "input_text", "output_text")
# The languages of a translator's template: it reads them from the part of the user's message.
LANGUAGE_FIELDS = ("source_lang_code", "target_lang_code")
SWITCHES = "chat_template_kwargs"


def text_of(content: Any) -> Any:
    """The text of a list of parts; other values are unchanged. Refuses other parts by type."""
    if not isinstance(content, list | tuple):
        return content
    texts = []
    for part in content:
        if not isinstance(part, Mapping):
            raise PydanticCustomError("no_part", "holds a part that is no object")
        for word in (part.get("type"), *part):
            for kind, name in NOT_TEXT.items():
                if isinstance(word, str) and kind in word:
                    raise PydanticCustomError(
                        "not_text",
                        "holds {name}; models read text alone here: leave it out, or send what it "
                        "says as text",
                        {"name": name},
                    )
        text = part.get("text")
        if part.get("type", "text") not in TEXT or not isinstance(text, str):
            raise PydanticCustomError("no_part", "holds a part that is no text; leave it out")
        if extra := set(part) - {"type", "text", *LANGUAGE_FIELDS}:
            raise PydanticCustomError(
                "no_part",
                "holds a part with {num} fields beside type and text; leave them out",
                {"num": len(extra)},
            )
        texts.append(text)
    return "\n".join(texts)


def with_languages(fields: Any) -> Any:
    """Return a contract's fields with the languages of message parts as template switches."""
    if not isinstance(fields, dict):
        return fields
    named: dict[str, Any] = {}
    for field, code in _languages(fields.get("messages")):
        if named.setdefault(field, code) != code:
            raise clash("messages", f"have more than one {field}; send a job for each")
    switches = fields.get(SWITCHES)
    if not named or not isinstance(switches, dict | None):
        return fields
    return {**fields, SWITCHES: {**named, **(switches or {})}}


def _languages(messages: Any) -> Iterator[tuple[str, Any]]:
    for message in messages if isinstance(messages, list | tuple) else ():
        content = message.get("content") if isinstance(message, Mapping) else None
        for part in content if isinstance(content, list | tuple) else ():
            if isinstance(part, Mapping):
                yield from ((each, part[each]) for each in LANGUAGE_FIELDS if each in part)
