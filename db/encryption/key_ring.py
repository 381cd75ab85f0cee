"""Key ring: the encryption keys of a process, and encryption of single values.

A sealed value is `tm1$KEY$` and, in base64, a random nonce of 96 bits and the AES-256-GCM
ciphertext of the plain bytes. Its place (table, column, row) is authenticated with it: a value that
is moved to another place cannot be opened.

The keys are in the environment variable `TIDEMILL_KEYS`, or in the file that `TIDEMILL_KEYS_FILE`
names; without either, [encryption] says where they are (`db/encryption/settings.py`). A key is
`NAME:BASE64` of 32 bytes; commas or line breaks separate keys. The first one seals, all can open.
"""

import base64
import hashlib
import hmac
import os
import re
from binascii import a2b_base64, b2a_base64
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from db.errors import DatabaseError

KEY_BYTES = 32
NONCE_BYTES = 12
MARK = "tm1$"
NAME = re.compile(r"[A-Za-z0-9_-]{1,32}")


class EncryptionError(DatabaseError):
    """A text cannot be sealed or opened; the message says what to do and quotes no text."""


class KeysUnusable(EncryptionError):
    pass


class Unopenable(EncryptionError):
    """A value was changed, or moved from the place that it was sealed for."""


@dataclass(frozen=True, slots=True)
class KeyRing:
    """Keys by name; the first one seals."""

    keys: Mapping[str, bytes] = field(repr=False)
    _ciphers: dict[str, Any] = field(default_factory=dict, repr=False, compare=False)

    @property
    def primary(self) -> str:
        return next(iter(self.keys))

    def seal(self, plain: bytes, place: str) -> str:
        nonce = os.urandom(NONCE_BYTES)
        name = self.primary
        sealed = self._cipher(name).encrypt(nonce, plain, _associated(name, place))
        return f"{MARK}{name}${b2a_base64(nonce + sealed, newline=False).decode()}"

    def open(self, name: str, sealed: str, place: str) -> bytes:
        """Decrypt the part of a sealed value after the key's name."""
        from cryptography.exceptions import InvalidTag

        if name not in self.keys:
            raise KeysUnusable(
                f"a text is sealed with the key {name}, which is not among "
                f"{', '.join(self.keys)}; add it to TIDEMILL_KEYS or the file of TIDEMILL_KEYS_FILE"
            )
        try:
            data = a2b_base64(sealed)  # may raise: the value may have been changed
            plain: bytes = self._cipher(name).decrypt(
                data[:NONCE_BYTES], data[NONCE_BYTES:], _associated(name, place)
            )
        except (InvalidTag, ValueError) as error:
            raise Unopenable(
                f"what is in {place} was not sealed for that place by the key {name}: "
                "somebody changed or moved it, or this is another key of that name"
            ) from error
        return plain

    def fingerprint(self, data: bytes) -> bytes:
        """An HMAC-SHA256 under a key derived from the first; without it, it reveals nothing."""
        digest = hmac.digest(self.keys[self.primary], b"tidemill fingerprint", hashlib.sha256)
        return hmac.digest(digest, data, hashlib.sha256)

    def _cipher(self, name: str) -> Any:
        cipher = self._ciphers.get(name)
        if cipher is None:
            try:
                from cryptography.hazmat.primitives.ciphers.aead import AESGCM
            except ImportError as error:
                raise KeysUnusable(
                    'there are keys, and no library to use them: pip install "tidemill[privacy]"'
                ) from error
            cipher = self._ciphers[name] = AESGCM(self.keys[name])
        return cipher

    @classmethod
    def parse(cls, text: str, source: str) -> Self:
        """Parse keys; raises KeysUnusable with the number of the faulty line, never a key."""
        keys: dict[str, bytes] = {}
        for number, line in enumerate(re.split(r"[\n,]", text), start=1):
            if not line.strip() or line.strip().startswith("#"):
                continue
            name, _, encoded = line.strip().partition(":")
            try:
                key = base64.b64decode(encoded, validate=True)
            except ValueError:
                key = b""
            if not NAME.fullmatch(name) or len(key) != KEY_BYTES:
                raise KeysUnusable(
                    f"key {number} of {source} is none: write NAME:BASE64 of 32 bytes, "
                    "as `tidemill keys generate` does"
                )
            if name in keys:
                raise KeysUnusable(f"{source} has two keys {name}; a name is used once")
            keys[name] = key
        if not keys:
            raise KeysUnusable(f"{source} has no key; `tidemill keys generate` makes one")
        return cls(keys)


def _associated(key: str, place: str) -> bytes:
    return f"{MARK}{key}${place}".encode()


def new_key(name: str) -> str:
    """A new random key as a line of a ring."""
    return f"{name}:{base64.b64encode(os.urandom(KEY_BYTES)).decode()}"


def key_ring(environment: Mapping[str, str]) -> KeyRing | None:
    """The keys of this process; None: texts are not encrypted. Raises KeysUnusable."""
    written, file = environment.get("TIDEMILL_KEYS"), environment.get("TIDEMILL_KEYS_FILE")
    if written and file:
        raise KeysUnusable("TIDEMILL_KEYS and TIDEMILL_KEYS_FILE are both set; set one")
    if written:
        return KeyRing.parse(written, "TIDEMILL_KEYS")
    if not file:
        return None
    try:
        return KeyRing.parse(Path(file).read_text(), file)
    except OSError as error:
        raise KeysUnusable(f"the keys in {file} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise KeysUnusable(f"{file} is no file of keys") from error
