"""Keys for sealing: one key-encryption key (KEK) per account and label, made on first use, sealed by a root key.

Invariants:
- What was sealed or wrapped for one account and label opens for no other, and only with the same context.
- Anything that does not open raises IntegrityFault; no plain bytes of it are ever returned.
- Key files are 0600 in a 0700 directory; a KEK on disk is sealed by the root key and bound to its account and label.

Every message is AES-256-GCM with a random 96-bit nonce, so one KEK may seal at most 2^32 messages (SP 800-38D §8.3).
Blobs do not count against it beyond one wrapped key each.

Source: ARCHITECTURE "ports/objects"; FIPS 197; SP 800-38D.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from honmaru.core.errors import IntegrityFault
from honmaru.security.crypto.secret_files import read_or_create

KEY_BYTES = 32
_NONCE_BYTES = 12
_TAG_BYTES = 16
_KEK = b"honmaru kek 1"
_WRAP = b"honmaru wrap 1"
_SEAL = b"honmaru seal 1"


class Keyring:
    """The keys of one enclave.

    Args:
        directory: Where key files lie; made with mode 0700 on first use.
        secret: Source of strong random bytes.
    """

    def __init__(self, directory: Path, secret: Callable[[int], bytes]) -> None:
        self._directory = directory
        self._secret = secret
        self._lock = threading.Lock()
        self._keks: dict[tuple[str, str], AESGCM] = {}
        self._root: AESGCM | None = None

    def wrap(self, account: str, label: str, dek: bytes, context: bytes) -> bytes:
        """A data key sealed by the KEK of (account, canonical label), bound to `context`: 28 bytes longer."""
        return self._encrypt(self._kek(account, label), dek, _bind(_WRAP, account, label, context))

    def unwrap(self, account: str, label: str, wrapped: bytes, context: bytes) -> bytes:
        """The inverse of `wrap`. Raises IntegrityFault when account, label, context or a byte differs."""
        return self._decrypt(self._kek(account, label), wrapped, _bind(_WRAP, account, label, context))

    def unwrap_into(self, account: str, label: str, wrapped: bytes, context: bytes) -> bytearray:
        """As `unwrap`, into a buffer that the caller overwrites when it is done with it."""
        bound = _bind(_WRAP, account, label, context)
        buffer = bytearray(max(0, len(wrapped) - _NONCE_BYTES - _TAG_BYTES))
        try:
            self._kek(account, label).decrypt_into(wrapped[:_NONCE_BYTES], wrapped[_NONCE_BYTES:], bound, buffer)
        except (InvalidTag, ValueError):
            raise IntegrityFault("sealed bytes do not open: they were changed, or moved from another place") from None
        return buffer

    def seal(self, account: str, label: str, plaintext: bytes, context: bytes) -> bytes:
        """`plaintext` (at most a few MiB) sealed by the KEK of (account, canonical label), bound to `context`."""
        return self._encrypt(self._kek(account, label), plaintext, _bind(_SEAL, account, label, context))

    def open(self, account: str, label: str, sealed: bytes, context: bytes) -> bytes:
        """The inverse of `seal`. Raises IntegrityFault when account, label, context or a byte differs."""
        return self._decrypt(self._kek(account, label), sealed, _bind(_SEAL, account, label, context))

    def _encrypt(self, key: AESGCM, plaintext: bytes, bound: bytes) -> bytes:
        nonce = self._secret(_NONCE_BYTES)
        return nonce + key.encrypt(nonce, plaintext, bound)

    def _decrypt(self, key: AESGCM, sealed: bytes, bound: bytes) -> bytes:
        if len(sealed) < _NONCE_BYTES + _TAG_BYTES:
            raise IntegrityFault("sealed bytes are too short to be whole; restore them from a backup")
        try:
            return key.decrypt(sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:], bound)
        except InvalidTag:
            raise IntegrityFault("sealed bytes do not open: they were changed, or moved from another place") from None

    def _kek(self, account: str, label: str) -> AESGCM:
        kek = self._keks.get((account, label))
        if kek is not None:
            return kek
        with self._lock:
            if (account, label) not in self._keks:
                self._keks[account, label] = AESGCM(self._load(account, label))
            return self._keks[account, label]

    def _load(self, account: str, label: str) -> bytes:
        if self._root is None:
            self._root = AESGCM(read_or_create(self._directory / "root.key", lambda: self._secret(KEY_BYTES)))
        root = self._root
        bound = _bind(_KEK, account, label, b"")
        name = hashlib.sha384(bound).hexdigest()[:40]
        sealed = read_or_create(
            self._directory / f"{name}.kek", lambda: self._encrypt(root, self._secret(KEY_BYTES), bound)
        )
        return self._decrypt(root, sealed, bound)


def _bind(purpose: bytes, account: str, label: str, context: bytes) -> bytes:
    """Associated data; each part is preceded by its length, so no two different tuples read the same."""
    parts = (purpose, account.encode(), label.encode(), context)
    return b"".join(len(part).to_bytes(4, "big") + part for part in parts)
