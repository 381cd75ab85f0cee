"""Model cards: what answered, kept once and referred to by every result of it."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any
from uuid import UUID


def model_card_id(content: Mapping[str, Any]) -> UUID:
    """The id of a model card: half of the SHA-256 of its content, whatever the order of its keys.

    So two workers that load the same model write the same row without a word to each other.
    """
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return UUID(bytes=hashlib.sha256(text.encode()).digest()[:16])
