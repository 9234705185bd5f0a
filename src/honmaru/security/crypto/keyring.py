"""Keys for sealing: one key-encryption key (KEK) per account and label, made on first use, sealed by a root key.

A KEK's file states what it is for, and holds it sealed: "HMK2" | length (4) | account and label | sealed KEK.

Invariants:
- What was sealed or wrapped for one account and label opens for no other, and only with the same context.
- Anything that does not open raises IntegrityFault; no plain bytes of it are ever returned.
- Key files are 0600 in a 0700 directory; a KEK on disk is sealed by the root key and bound to its account and label.
- `rotate` seals every KEK under a new root key. Cut short anywhere, the next use of the ring finishes it: no KEK is
  ever without a root key on disk that opens it.

Every message is AES-256-GCM with a random 96-bit nonce, so one KEK may seal at most 2^32 messages (SP 800-38D §8.3).
Blobs do not count against it beyond one wrapped key each.

Source: ARCHITECTURE "ports/objects"; FIPS 197; SP 800-38D.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from honmaru.core.errors import ConfigurationFault, IntegrityFault
from honmaru.security.crypto.root_key import RootKey
from honmaru.security.crypto.secret_files import forget_secret, read_or_create, read_secret, replace_secret

KEY_BYTES = 32
_NONCE_BYTES = 12
_TAG_BYTES = 16
_MAGIC = b"HMK2"
_OWN = "enclave"
"""Stands for the enclave itself where a key belongs to an account."""
_KEK = b"honmaru kek 1"
_WRAP = b"honmaru wrap 1"
_SEAL = b"honmaru seal 1"


class Keyring:
    """The keys of one enclave.

    Args:
        directory: Where key files lie; made with mode 0700 on first use.
        secret: Source of strong random bytes.
        unlocking: What the lock of a sealed root key yields (`locks`); None where it is not sealed.
    """

    def __init__(self, directory: Path, secret: Callable[[int], bytes], unlocking: bytes | None = None) -> None:
        self._directory = directory
        self._secret = secret
        self._lock = threading.Lock()
        self._keks: dict[tuple[str, str], AESGCM] = {}
        self._root = RootKey(directory, secret, unlocking)

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
        bound = _bind(_KEK, account, label, b"")
        path = self._directory / f"{hashlib.sha384(bound).hexdigest()[:40]}.kek"
        with self._root.held():
            self._finish_rotation()
            root = AESGCM(self._root.load())
            try:
                stored = read_secret(path)
            except FileNotFoundError:
                kek = self._secret(KEY_BYTES)
                replace_secret(path, self._kek_file(root, kek, bound))
                return kek
            if not stored.startswith(_MAGIC):  # of a version before the first rotation: it did not say what it is for
                kek = self._decrypt(root, stored, bound)
                replace_secret(path, self._kek_file(root, kek, bound))
                return kek
            stated, sealed = _parted(stored)
            if stated != bound:
                raise IntegrityFault(f"{path} is the key of another account or label; restore it from a backup")
            return self._decrypt(root, sealed, bound)

    # The root key

    def check(self) -> None:
        """Open the root key, and finish what a crash cut short. Raises RootKeySealed or ConfigurationFault."""
        self._root.check()
        with self._root.held():
            self._finish_rotation()

    @contextmanager
    def still(self) -> Iterator[None]:
        """No file of the ring is made or replaced meanwhile, and no rotation is under way: it may be copied."""
        with self._root.held():
            if self._root.load_next() is not None:
                self._finish_rotation()
            yield

    def kept(self, path: Path, make: Callable[[], bytes]) -> bytes:
        """A secret of the enclave's own in a file, made where there is none: as `read_or_create`, and once the root key
        is sealed, sealed too (`<name>.sealed`); the plain file goes then."""
        sealed_path = path.with_name(f"{path.name}.sealed")
        context = path.name.encode()
        try:
            secret = self.open(_OWN, "", read_secret(sealed_path), context)
        except FileNotFoundError:
            if self._root.lock is None:
                return read_or_create(path, make)
            try:
                secret = read_secret(path)
            except FileNotFoundError:
                secret = make()
            replace_secret(sealed_path, self.seal(_OWN, "", secret, context))
        forget_secret(path)
        return secret

    def rotate(self) -> int:
        """Seal every KEK under a new root key, and forget the old one; returns how many KEKs.

        Raises ConfigurationFault, before anything is written, for a KEK file that does not say what it is for.
        """
        with self._root.held():
            self._finish_rotation()
            self._root.load()
            for path in self._kek_paths():
                if not read_secret(path).startswith(_MAGIC):
                    raise ConfigurationFault([f"{path} is of an older version: use what it protects once, then rotate"])
            self._root.begin()
            return self._finish_rotation()

    def _finish_rotation(self) -> int:
        following = self._root.load_next()
        if following is None:
            return 0
        old, new = AESGCM(self._root.load()), AESGCM(following)
        paths = self._kek_paths()
        for path in paths:
            bound, sealed = _parted(read_secret(path))
            try:
                self._decrypt(new, sealed, bound)
            except IntegrityFault:  # not reached yet
                replace_secret(path, self._kek_file(new, self._decrypt(old, sealed, bound), bound))
        self._root.finish()
        return len(paths)

    def _kek_paths(self) -> list[Path]:
        return sorted(path for path in self._directory.glob("*.kek") if not path.name.startswith("."))

    def _kek_file(self, root: AESGCM, kek: bytes, bound: bytes) -> bytes:
        return _MAGIC + len(bound).to_bytes(4, "big") + bound + self._encrypt(root, kek, bound)


def _parted(stored: bytes) -> tuple[bytes, bytes]:
    """(what a KEK is bound to, the sealed KEK)."""
    start = len(_MAGIC) + 4
    end = start + int.from_bytes(stored[len(_MAGIC) : start], "big")
    return stored[start:end], stored[end:]


def _bind(purpose: bytes, account: str, label: str, context: bytes) -> bytes:
    """Associated data; each part is preceded by its length, so no two different tuples read the same."""
    return _bound_to(purpose, account, label) + len(context).to_bytes(4, "big") + context


@lru_cache(4096)
def _bound_to(purpose: bytes, account: str, label: str) -> bytes:
    parts = (purpose, account.encode(), label.encode())
    return b"".join(len(part).to_bytes(4, "big") + part for part in parts)
