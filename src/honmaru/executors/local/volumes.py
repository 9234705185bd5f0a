"""Encrypted volumes of jobs by the file system's own encryption (fscrypt): a `ports.volumes.Volumes`.

Invariants:
- The key lives in the kernel, from `create` until `release` or the file system's unmounting; it is written nowhere.
- Contents are AES-256-XTS, names AES-256-CBC-CTS, each file under a key of its own derived from the volume's key.
- A directory is encrypted before anything is in it, and a file system that cannot encrypt is an error, never ignored.

The file system must have the feature (ext4: `tune2fs -O encrypt`; f2fs). The kernel's own structures are used, because
no library of Python's speaks them. Source: Linux, Documentation/filesystems/fscrypt.rst, "User API".
"""

from __future__ import annotations

import fcntl
import os
import struct
import tempfile
from contextlib import suppress
from pathlib import Path

from honmaru.core.errors import ExecutorLost

KEY_BYTES = 32
_ADD, _REMOVE, _SET_POLICY, _GET_POLICY = 0xC0506617, 0xC0406618, 0x800C6613, 0xC0096616
"""FS_IOC_ADD_ENCRYPTION_KEY, FS_IOC_REMOVE_ENCRYPTION_KEY, FS_IOC_SET_ENCRYPTION_POLICY,
FS_IOC_GET_ENCRYPTION_POLICY_EX"""
_BY_IDENTIFIER, _VERSION, _PAD_32 = 2, 2, 3
_XTS, _CTS = 1, 4
_SPECIFIER = struct.Struct("=II32s")
_POLICY = struct.Struct("=BBBB4s16s")


class FscryptVolumes:
    """See the module. Thread-safe."""

    def supported(self, folder: Path) -> bool:
        """Tried on a directory of its own: only the kernel knows what the file system has been built with."""
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        probe = Path(tempfile.mkdtemp(prefix=".probe-", dir=folder))
        probe.rmdir()
        try:
            self.create(probe, os.urandom(KEY_BYTES))
        except ExecutorLost:
            return False
        held = self.held(probe)
        probe.rmdir()
        self.release(folder, held)
        return True

    def create(self, folder: Path, key: bytes) -> None:
        """See the port."""
        if len(key) != KEY_BYTES:
            raise ExecutorLost(f"a volume's key has {KEY_BYTES} bytes, not {len(key)}")
        folder.mkdir(mode=0o700, parents=True)
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            stated = bytearray(_SPECIFIER.pack(_BY_IDENTIFIER, 0, b"") + struct.pack("=II32s", len(key), 0, b"") + key)
            fcntl.ioctl(handle, _ADD, stated, True)
            identifier = bytes(stated[8:24])
            stated[-len(key) :] = bytes(len(key))
            try:
                fcntl.ioctl(handle, _SET_POLICY, _POLICY.pack(_VERSION, _XTS, _CTS, _PAD_32, b"", identifier))
            except OSError:
                _forget(handle, identifier)
                raise
        except OSError as fault:
            with suppress(OSError):
                folder.rmdir()
            raise ExecutorLost(f"the file system of the jobs' scratch does not encrypt: {fault.strerror}") from fault
        finally:
            os.close(handle)

    def held(self, folder: Path) -> bytes:
        """See the port."""
        try:
            handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError:
            return b""
        try:
            answer = bytearray(struct.pack("=Q", _POLICY.size) + bytes(_POLICY.size))
            fcntl.ioctl(handle, _GET_POLICY, answer, True)
        except OSError:
            return b""
        finally:
            os.close(handle)
        version, *_, identifier = _POLICY.unpack(answer[8:])
        return bytes(identifier) if version == _VERSION else b""

    def release(self, parent: Path, held: bytes) -> None:
        """See the port."""
        if not held:
            return
        handle = os.open(parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            _forget(handle, held)
        finally:
            os.close(handle)


def _forget(handle: int, identifier: bytes) -> None:
    stated = bytearray(_SPECIFIER.pack(_BY_IDENTIFIER, 0, identifier) + bytes(24))
    with suppress(OSError):  # it was gone already
        fcntl.ioctl(handle, _REMOVE, stated, True)
