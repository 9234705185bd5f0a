"""The root key on disk: plain in a file of its owner, or sealed under a lock; and its rotation.

    root.key      32 bytes, when nothing locks it
    root.sealed   {"lock": ..., "key": nonce and AES-256-GCM of the 32 bytes}, bound to the lock
    root.next     the next root key in the same form, while keys are being re-wrapped
    lock          held while a file here is made or replaced

Invariants:
- At every instant each wrapped key opens under root.key (or root.sealed) or under root.next, whichever crash comes.
- A sealed root key is never written in plain; while both forms are there, the sealed one counts, and the plain one goes
  as soon as the sealed one has been opened.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import orjson
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from honmaru.core.errors import ConfigurationFault, IntegrityFault
from honmaru.security.crypto.locks import KEY_BYTES, Lock
from honmaru.security.crypto.secret_files import (
    forget_secret,
    private_directory,
    read_secret,
    replace_secret,
    sync_directory,
)

PLAIN, SEALED, NEXT = "root.key", "root.sealed", "root.next"
_NONCE = 12


class RootKeySealed(ConfigurationFault):
    """The root key is sealed and nothing that unlocks it was given."""

    def __init__(self) -> None:
        super().__init__(["the root key is sealed: run `honmaru unseal`"])


class RootKey:
    """The files of one ring's root key.

    Args:
        directory: Where they lie.
        secret: Makes strong random bytes.
        unlocking: What the lock of a sealed root key yields (`locks`); None when it is not sealed.
    """

    def __init__(self, directory: Path, secret: Callable[[int], bytes], unlocking: bytes | None = None) -> None:
        self._directory = directory
        self._secret = secret
        self._unlocking = unlocking

    @property
    def lock(self) -> Lock | None:
        """What the root key is sealed under; None when it lies in plain or is not made yet."""
        return sealed_lock(self._directory)

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Nobody else makes or replaces a file here meanwhile."""
        private_directory(self._directory)
        descriptor = os.open(self._directory / "lock", os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def load(self) -> bytes:
        """The root key, made where there is none. Call it with the lock held.

        Raises RootKeySealed, ConfigurationFault (it does not open), IntegrityFault (root.key is damaged).
        """
        if self.lock is not None:
            return self._opened(SEALED)
        try:
            return _whole(read_secret(self._directory / PLAIN))
        except FileNotFoundError:
            made = self._secret(KEY_BYTES)
            replace_secret(self._directory / PLAIN, made)
            return made

    def load_next(self) -> bytes | None:
        """The root key that a rotation turns to, while one is under way or was cut short."""
        try:
            content = read_secret(self._directory / NEXT)
        except FileNotFoundError:
            return None
        return _whole(content) if self.lock is None else self._opened(NEXT)

    def begin(self) -> bytes:
        """Lay the next root key down, durably; returns it."""
        made = self._secret(KEY_BYTES)
        lock = self.lock
        content = made if lock is None else self._sealed(lock, made, self._key())
        replace_secret(self._directory / NEXT, content)
        return made

    def finish(self) -> None:
        """Everything is wrapped under the next root key: it becomes the root key."""
        os.replace(self._directory / NEXT, self._directory / (PLAIN if self.lock is None else SEALED))  # noqa: PTH105
        sync_directory(self._directory)

    def seal(self, lock: Lock, unlocking: bytes) -> None:
        """Put the root key under a (new) lock. The enclave must not run: what it unlocked with is over."""
        with self.held():
            if self.load_next() is not None:
                raise ConfigurationFault(
                    ["a rotation of the root key was cut short: start the enclave once, then seal"]
                )
            key = self.load()
            replace_secret(self._directory / SEALED, self._sealed(lock, key, unlocking))
            self._unlocking = unlocking
            if self._opened(SEALED) != key:
                raise IntegrityFault("the sealed root key does not read back as it was")
            forget_secret(self._directory / PLAIN)

    def check(self) -> None:
        """Raises as `load` does. Finishes a sealing that was cut short."""
        with self.held():
            self.load()
            if self.lock is not None:
                forget_secret(self._directory / PLAIN)

    def _key(self) -> bytes:
        if self._unlocking is None:
            raise RootKeySealed
        return self._unlocking

    def _sealed(self, lock: Lock, key: bytes, unlocking: bytes) -> bytes:
        nonce = self._secret(_NONCE)
        sealed = nonce + AESGCM(unlocking).encrypt(nonce, key, _bound(lock))
        return orjson.dumps({"lock": lock, "key": sealed.hex()})

    def _opened(self, name: str) -> bytes:
        unlocking = self._key()
        stored = orjson.loads(read_secret(self._directory / name))
        sealed = bytes.fromhex(stored["key"])
        try:
            return AESGCM(unlocking).decrypt(sealed[:_NONCE], sealed[_NONCE:], _bound(stored["lock"]))
        except InvalidTag:
            raise ConfigurationFault(["that does not open the root key"]) from None


def sealed_lock(directory: Path) -> Lock | None:
    """The lock of a sealed root key in a directory; None when there is none. Raises ConfigurationFault."""
    try:
        stored = orjson.loads(read_secret(directory / SEALED))
        lock: Lock = stored["lock"]
        return lock
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError):
        raise ConfigurationFault([f"{directory / SEALED} is damaged: put it back from a backup"]) from None


def _bound(lock: Lock) -> bytes:
    return b"honmaru root key 1 " + orjson.dumps(lock, option=orjson.OPT_SORT_KEYS)


def _whole(key: bytes) -> bytes:
    if len(key) != KEY_BYTES:
        raise IntegrityFault(f"the root key has {len(key)} bytes, not {KEY_BYTES}: put it back from a backup")
    return key
