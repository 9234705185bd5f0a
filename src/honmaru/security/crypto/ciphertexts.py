"""The ciphertexts of symmetric keys: what `Encrypt` and `GenerateDataKey` hand out and `Decrypt` takes back.

    "HMK1" | key id (16) | material id (32) | label length (2) | label | salt (16) | nonce (12) | AES-256-GCM | tag (16)

Each message is sealed under a key of its own: KBKDF in counter mode with HMAC-SHA-384 over the key's material, the
purpose `honmaru kms 1` and the salt. So no number of messages wears a key out (SP 800-38D's 2^32 holds per salt).

Invariants:
- Key, material, label of the session that sealed, salt and encryption context are authenticated: a bit changed in any
  of them, or in the ciphertext, and it does not open.
- The label is the sealing session's, not the key's: who opens must dominate it, whatever key sealed.
- The context is bound as a set of pairs: their order means nothing, everything else about them does.

Source: SP 800-108r1 (KBKDF), SP 800-38D (GCM); AWS KMS cryptographic details, "Key derivation".
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.kbkdf import KBKDFHMAC, CounterLocation, Mode

_MAGIC = b"HMK1"
_PURPOSE = b"honmaru kms 1"
_SALT, _NONCE, _TAG = 16, 12, 16
_FIXED = len(_MAGIC) + 16 + 32 + 2


class Unreadable(ValueError):
    """The bytes are no ciphertext of this form, or do not open under the key and context given."""


@dataclass(frozen=True, slots=True)
class Ciphertext:
    """A ciphertext taken apart. `label` is canonical; `material_id` is 64 hexadecimal digits."""

    key_id: str
    material_id: str
    label: str
    header: bytes
    salt: bytes
    sealed: bytes


def seal(
    material: bytes | bytearray,
    key_id: str,
    material_id: str,
    label: str,
    context: Mapping[str, str],
    plaintext: bytes,
    secret: Callable[[int], bytes],
) -> bytes:
    """`plaintext` sealed under 32 bytes of material, bound to all that is named. `secret` makes random bytes."""
    text = label.encode()
    header = b"".join((_MAGIC, uuid.UUID(key_id).bytes, bytes.fromhex(material_id), len(text).to_bytes(2, "big"), text))
    salt, nonce = secret(_SALT), secret(_NONCE)
    sealed = AESGCM(_message_key(material, salt)).encrypt(nonce, plaintext, _bound(header, salt, context))
    return header + salt + nonce + sealed


def read(blob: bytes) -> Ciphertext:
    """Take a ciphertext apart. Raises Unreadable. What it says is trusted only once it has opened."""
    if len(blob) < _FIXED or blob[: len(_MAGIC)] != _MAGIC:
        raise Unreadable("not a ciphertext of this enclave's keys")
    end = _FIXED + int.from_bytes(blob[_FIXED - 2 : _FIXED], "big")
    if len(blob) < end + _SALT + _NONCE + _TAG:
        raise Unreadable("the ciphertext is cut short")
    try:
        label = blob[_FIXED:end].decode()
    except UnicodeDecodeError:
        raise Unreadable("the ciphertext is damaged") from None
    return Ciphertext(
        key_id=str(uuid.UUID(bytes=blob[4:20])),
        material_id=blob[20:52].hex(),
        label=label,
        header=blob[:end],
        salt=blob[end : end + _SALT],
        sealed=blob[end + _SALT :],
    )


def unseal(material: bytes | bytearray, found: Ciphertext, context: Mapping[str, str]) -> bytes:
    """The plaintext. Raises Unreadable when material, context or a bit differs."""
    key = AESGCM(_message_key(material, found.salt))
    try:
        return key.decrypt(found.sealed[:_NONCE], found.sealed[_NONCE:], _bound(found.header, found.salt, context))
    except InvalidTag:
        raise Unreadable("the ciphertext does not open") from None


def _message_key(material: bytes | bytearray, salt: bytes) -> bytes:
    derivation = KBKDFHMAC(
        algorithm=hashes.SHA384(),
        mode=Mode.CounterMode,
        length=32,
        rlen=4,
        llen=4,
        location=CounterLocation.BeforeFixed,
        label=_PURPOSE,
        context=salt,
        fixed=None,
    )
    return derivation.derive(material)


def _bound(header: bytes, salt: bytes, context: Mapping[str, str]) -> bytes:
    pairs = sorted((key.encode(), value.encode()) for key, value in context.items())
    parts = [header, salt, *(part for pair in pairs for part in pair)]
    return b"".join(len(part).to_bytes(4, "big") + part for part in parts)
