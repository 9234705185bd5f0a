"""Guarded blobs: sealed bytes at a label, each under a key of its own.

A blob is a header, then segments of 1 MiB sealed with AES-256-GCM (STREAM construction):

    "HMB1" | header length (4 bytes) | header JSON {account, label, id, key, sealed?} | segment 0 | segment 1 | ...

`key` is the blob's data key, wrapped for (account, label); where `sealed`, it was sealed under a further key before.
 Segment i has nonce (i, last?) and the header's digest as
associated data. The key seals one blob only, so counting nonces never repeat.

Invariants:
- Reading needs the session's label to dominate the label in the header, and that label is authenticated: the data
  key opens only under the account and label that the header states, for the id that the caller asked for.
- A flipped, missing, moved or foreign byte raises IntegrityFault before any byte of its segment is returned; a blob
  cut at a segment's border is found because its end is not marked as the end.
- What a session writes carries the session's label. Blobs never change; a new content is a new blob.
- Memory use of a read or write is a few segments, whatever the blob's size.
- A blob that is deleted while somebody reads it goes away after the last reader, in whichever process it reads.
- Of several processes of one enclave (`Peers`) one deletes; the others ask it to, and tell it what its sweep must
  spare.

Source: Hoang, Reyhanitabar, Rogaway, Vizár, "Online Authenticated-Encryption and its Nonce-Reuse Misuse-Resistance"
(STREAM); SP 800-38D.
"""

from __future__ import annotations

import functools
import hashlib
import re
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import orjson
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from honmaru.core.errors import AccessDenied, IntegrityFault, NotFound
from honmaru.core.labels import Label
from honmaru.core.sessions import Session
from honmaru.ports.blobs import BlobStore
from honmaru.ports.runtime import Ids
from honmaru.security.crypto.keyring import KEY_BYTES, Keyring
from honmaru.security.guard.orphans import orphans

SEGMENT_BYTES = 1 << 20
_TAG_BYTES = 16
_MAGIC = b"HMB1"
_SEAL = b"honmaru blob seal 1 "
_SEAL_NONCE = 12
_FIRST_READ = 16_384
"""Bytes of the read that finds the header. A blob that ends before is read once and asked for no size."""
_ID = re.compile(r"blob-([0-9a-f]{16})-([0-9a-f]{32})")
_ID_BYTES = re.compile(rb"blob-[0-9a-f]{16}-[0-9a-f]{32}")


@dataclass(frozen=True, slots=True)
class BlobRef:
    """A stored blob: its id for `read` and `delete`, its plain size in bytes, and the SHA-256 of the plain bytes."""

    id: str
    size: int
    sha256: str


class Peers(Protocol):
    """The other processes of an enclave, as the vault of one of them sees them."""

    def drop(self, path: str) -> None:
        """Nobody in this process reads the blob any more, and no record names it: it goes away once nobody reads it
        anywhere (`BlobVault.delete_now` in the process that deletes). Returns at once."""
        ...

    def spare(self, blob_ids: Sequence[str], /) -> None:
        """A record is about to name these. Returns when whoever sweeps knows of them. Raises StoreUnavailable."""
        ...

    def sweeping(self, on: bool, /) -> None:
        """This process begins to sweep (returns when every other one tells what it names), or has ended it."""
        ...


class GuardedBlobs:
    """The blobs of the session's account, as the session. Made by `Guard.blobs`."""

    def __init__(self, vault: BlobVault, session: Session) -> None:
        self._vault = vault
        self._session = session

    def write(self, chunks: Iterable[bytes], seal: bytes | None = None) -> BlobRef:
        """Store plain bytes at the session's label; durable on return. If `chunks` raises, nothing is stored.

        `seal` is a key of 32 bytes without which the blob opens for nobody, beside the keyring: a data key of the key
        service. It is kept nowhere here.
        The blob lives as long as some record's body contains its id: put it there before the request ends.
        """
        return self._vault.write(self._session.account, self._session.label, chunks, seal)

    def read(
        self, blob_id: str, start: int = 0, length: int | None = None, seal: bytes | None = None
    ) -> Iterator[bytes]:
        """Plain bytes `start` to `start + length` (None: to the end), in chunks of at most 1 MiB.

        `seal` is what the blob was written with.

        Raises:
            NotFound: there is no such blob at or below the session's label. Raised at once, not at the first chunk.
            IntegrityFault: stored bytes do not verify, or `seal` is another; no byte of that segment was returned.
            AccessDenied: the blob was written with a seal, and none was given.
        """
        return self._vault.read(self._session, blob_id, start, length, seal)

    def join(self, pieces: Sequence[tuple[str, int, int]], seal: bytes | None = None) -> Iterator[bytes]:
        """Several reads (blob id, start, length) as one. All blobs are held from the start, so none of them can go
        away between two pieces. Raises as `read`, for the first piece at once."""
        return self._vault.join(self._session, pieces, seal)

    def delete(self, blob_id: str) -> None:
        """Delete a blob at exactly the session's label; a missing or higher one is no error.

        Raises AccessDenied for a lower one (no write-down).
        """
        self._vault.delete(self._session, blob_id)


class BlobVault:
    """Seals, opens and sweeps the blobs of one enclave. Held by the guard only. Thread-safe."""

    def __init__(
        self,
        store: BlobStore,
        keyring: Keyring,
        ids: Ids,
        label: Callable[[str], Label],
        peers: Peers | None = None,
    ) -> None:
        self._store = store
        self._peers = peers
        self._awaited: dict[str, Callable[[], None]] = {}
        """Paths that another process asked for, to be told of when their last reader here has gone."""
        self._told = False
        """Whether another process sweeps, and must know what is named here."""
        self._keyring = keyring
        self._ids = ids
        self._label = label
        self._lock = threading.Lock()
        self._readers: dict[str, int] = {}
        self._doomed: set[str] = set()
        self._keeping = 0
        self._kept: list[str] = []
        # Ids that the sweep must spare: written by this process, or put into a record's body. None between sweeps.
        self._spared: set[str] | None = set()
        self._suspects: set[str] = set()

    def write(self, account: str, label: Label, chunks: Iterable[bytes], seal: bytes | None = None) -> BlobRef:
        blob_id = f"blob-{label.token}-{self._ids.secret(16).hex()}"
        self._spare([blob_id])
        dek = self._ids.secret(KEY_BYTES)
        header = self._header(account, label.canonical, blob_id, dek, seal)
        digest = hashlib.sha256()
        size = 0

        def plain() -> Iterator[bytes]:
            nonlocal size
            for chunk in chunks:
                digest.update(chunk)
                size += len(chunk)
                yield chunk

        self._store.write(_path(account, blob_id), _sealed(header, dek, plain()))
        return BlobRef(blob_id, size, digest.hexdigest())

    def join(
        self, session: Session, pieces: Sequence[tuple[str, int, int]], seal: bytes | None = None
    ) -> Iterator[bytes]:
        paths = [_path(session.account, blob_id) for blob_id, _, _ in pieces]
        self._hold(paths, pieces[0][0] if pieces else "")
        try:
            first = self._open(session, *pieces[0], seal) if pieces else iter(())
        except BaseException:
            self._release(paths)
            raise

        def chunks() -> Iterator[bytes]:
            yield from first
            for piece in pieces[1:]:
                yield from self._open(session, *piece, seal)

        return _Reader(chunks(), lambda: self._release(paths))

    def read(
        self, session: Session, blob_id: str, start: int, length: int | None, seal: bytes | None = None
    ) -> Iterator[bytes]:
        path = _path(session.account, blob_id)
        self._hold([path], blob_id)
        try:
            segments = self._open(session, blob_id, start, length, seal)
        except BaseException:
            self._release([path])
            raise
        return _Reader(segments, lambda: self._release([path]))

    def delete(self, session: Session, blob_id: str) -> None:
        path = _path(session.account, blob_id)
        try:
            header, _, _ = self._read_header(path)
        except FileNotFoundError:
            return
        label = self._label(header["label"])
        if label != session.label:
            if session.label.dominates(label):
                raise AccessDenied(f"the blob is at {label.banner} and this session is at {session.label.banner}")
            return
        self.doom(path)

    def doom(self, path: str) -> None:
        """Delete a blob that no record names, after its last reader."""
        with self._lock:
            if self._readers.get(path):
                self._doomed.add(path)
                return
        self._drop(path)

    def await_readers(self, path: str, free: Callable[[], None]) -> None:
        """Nobody may begin to read the blob in this process from now on; `free` is called, once, when nobody does.
        `gone` says that it is not there any more."""
        with self._lock:
            self._doomed.add(path)
            if self._readers.get(path):
                self._awaited[path] = free
                return
        free()

    def gone(self, path: str) -> None:
        """The blob was deleted, here or by another process."""
        with self._lock:
            self._doomed.discard(path)

    def tell_sweep(self, on: bool) -> None:
        """From now on another process's sweep must know (or need not know) what is written and named here."""
        self._told = on

    @contextmanager
    def keeping(self) -> Iterator[None]:
        """Blobs that are deleted meanwhile go away at the end only: what records named at one instant stays."""
        with self._lock:
            self._keeping += 1
        try:
            yield
        finally:
            with self._lock:
                self._keeping -= 1
                gone, self._kept = ([], self._kept) if self._keeping else (self._kept, [])
            for path in gone:
                self._store.delete(path)
                self.gone(path)

    def _drop(self, path: str) -> None:
        if self._peers is None:
            self.delete_now(path)
        else:
            self._peers.drop(path)

    def delete_now(self, path: str) -> None:
        """Delete a blob that nobody reads."""
        with self._lock:
            if self._keeping:
                self._kept.append(path)
                return
        self._store.delete(path)
        self.gone(path)

    def mention(self, body: bytes) -> None:
        """A record's body is about to be committed: the sweep must spare the blobs that it names."""
        if self._spared is not None or self._told:
            self._spare([found.decode() for found in _ID_BYTES.findall(body)])

    def sweep(self, bodies: Iterable[bytes], *, alone: bool) -> int:
        """Delete the blobs named by none of `bodies` (read after this call began) nor by anything newer."""
        with self._lock:
            if self._spared is None:
                self._spared = set()
        try:
            if self._peers is not None:
                self._peers.sweeping(True)
            left = [found for found in orphans(self._store.paths(""), bodies) if not self._is_spared(found[1])]
            # Somebody else may be about to name what was written a moment ago, but not for as long as between two
            # sweeps: so what was left over at the one before, and still is, goes.
            doomed = [(path, blob_id) for path, blob_id in left if alone or path in self._suspects]
            self._suspects = {path for path, _ in left} if not alone else set()
            swept = 0
            for path, blob_id in doomed:
                if not self._is_spared(blob_id):
                    self._drop(path)
                    swept += 1
            return swept
        finally:
            if self._peers is not None:
                self._peers.sweeping(False)
            with self._lock:
                self._spared = None

    def _is_spared(self, blob_id: str) -> bool:
        with self._lock:
            return self._spared is None or blob_id in self._spared

    def _spare(self, blob_ids: Sequence[str]) -> None:
        if self._told and self._peers is not None and blob_ids:
            self._peers.spare(blob_ids)
            return
        self.spare(blob_ids)

    def spare(self, blob_ids: Iterable[str]) -> None:
        """The sweep of this process, if there is one, must leave these alone: they are, or will be, named."""
        with self._lock:
            if self._spared is not None:
                self._spared.update(blob_ids)

    def _hold(self, paths: Sequence[str], blob_id: str) -> None:
        """Keep the blobs until `_release`. Raises NotFound for one that was deleted and only waits for its readers."""
        with self._lock:
            if self._doomed.intersection(paths):
                raise NotFound(f"there is no blob {blob_id!r}")
            for path in paths:
                self._readers[path] = self._readers.get(path, 0) + 1

    def _release(self, paths: Sequence[str]) -> None:
        gone: list[Callable[[], None]] = []
        with self._lock:
            for path in paths:
                self._readers[path] -= 1
                if not self._readers[path]:
                    del self._readers[path]
                    if path in self._awaited:
                        gone.append(self._awaited.pop(path))
                    elif path in self._doomed:
                        self._doomed.discard(path)
                        gone.append(functools.partial(self._drop, path))
        for each in gone:
            each()

    def _open(
        self, session: Session, blob_id: str, start: int, length: int | None, seal: bytes | None
    ) -> Iterator[bytes]:
        path = _path(session.account, blob_id)
        try:
            header, key, first = self._open_header(session, blob_id, path, seal)
            whole = first if len(first) < _FIRST_READ else None
            total = self._store.size(path) if whole is None else len(whole)
        except FileNotFoundError:
            raise NotFound(f"there is no blob {blob_id!r}") from None
        return self._segments(path, header, key, total, start, length, whole)

    def _open_header(
        self, session: Session, blob_id: str, path: str, seal: bytes | None
    ) -> tuple[bytes, AESGCM, bytes]:
        header, raw, first = self._read_header(path)
        account, label = header["account"], header["label"]
        # A header that states a lower label than the truth gets past this check, and then its key does not open.
        if account != session.account or not session.label.dominates(self._label(label)):
            raise NotFound(f"there is no blob {blob_id!r}")
        try:
            wrapped = bytes.fromhex(header["key"])
        except ValueError:
            raise IntegrityFault("a blob's header is damaged; restore the blob from a backup") from None
        dek = self._keyring.unwrap(account, label, wrapped, blob_id.encode())
        if header.get("sealed"):
            if seal is None:
                raise AccessDenied("the blob is sealed under a data key of the key service, and none was given")
            try:
                dek = AESGCM(seal).decrypt(dek[:_SEAL_NONCE], dek[_SEAL_NONCE:], _SEAL + blob_id.encode())
            except InvalidTag:
                raise IntegrityFault("a blob does not open under its data key; restore it from a backup") from None
        return raw, AESGCM(dek), first

    def _header(self, account: str, label: str, blob_id: str, dek: bytes, seal: bytes | None) -> bytes:
        inner = dek
        if seal is not None:
            nonce = self._ids.secret(_SEAL_NONCE)
            inner = nonce + AESGCM(seal).encrypt(nonce, dek, _SEAL + blob_id.encode())
        wrapped = self._keyring.wrap(account, label, inner, blob_id.encode())
        fields: dict[str, Any] = {"account": account, "label": label, "id": blob_id, "key": wrapped.hex()}
        if seal is not None:
            fields["sealed"] = True
        encoded = orjson.dumps(fields)
        return _MAGIC + len(encoded).to_bytes(4, "big") + encoded

    def _read_header(self, path: str) -> tuple[dict[str, str], bytes, bytes]:
        """The header's fields, its bytes, and the first bytes of the blob."""
        first = self._store.read(path, 0, _FIRST_READ)
        damaged = IntegrityFault("a blob's header is damaged; restore the blob from a backup")
        if first[:4] != _MAGIC or len(first) < 8:
            raise damaged
        end = 8 + int.from_bytes(first[4:8], "big")
        if end > 1 << 20:
            raise damaged
        raw = first[:end] if end <= len(first) else self._store.read(path, 0, end)
        try:
            header = orjson.loads(raw[8:])
        except orjson.JSONDecodeError:
            raise damaged from None
        if not isinstance(header, dict) or not all(isinstance(header.get(k), str) for k in ("account", "label", "key")):
            raise damaged
        return header, raw, first

    def _segments(
        self,
        path: str,
        header: bytes,
        key: AESGCM,
        total: int,
        start: int,
        length: int | None,
        whole: bytes | None,
    ) -> Iterator[bytes]:
        bound = hashlib.sha384(header).digest()
        sealed_size = SEGMENT_BYTES + _TAG_BYTES
        body = total - len(header)
        count = max(1, -(-body // sealed_size))
        end = None if length is None else start + length
        for index in range(start // SEGMENT_BYTES, count):
            begin = index * SEGMENT_BYTES
            if end is not None and begin >= end:
                return
            if whole is not None:
                sealed = whole[len(header) :]
            else:
                sealed = self._store.read(path, len(header) + index * sealed_size, sealed_size)
            try:
                plain = key.decrypt(_nonce(index, index == count - 1), sealed, bound)
            except (InvalidTag, ValueError):
                raise IntegrityFault(
                    "a stored blob was changed or cut; nothing of the damaged part was served; restore it from a backup"
                ) from None
            piece = plain[max(0, start - begin) : None if end is None else end - begin]
            if piece:
                yield piece


class _Reader(Iterator[bytes]):
    """An open read: releases the blob at the end, on a fault, on close, or when it is dropped."""

    def __init__(self, segments: Iterator[bytes], release: Callable[[], None]) -> None:
        self._segments = segments
        self._release: Callable[[], None] | None = release

    def __next__(self) -> bytes:
        try:
            return next(self._segments)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        release, self._release = self._release, None
        if release is not None:
            release()

    def __del__(self) -> None:
        self.close()


def _path(account: str, blob_id: str) -> str:
    match = _ID.fullmatch(blob_id)
    if match is None:
        raise NotFound(f"there is no blob {blob_id!r}")
    return f"{account}/{match[1]}/{match[2][:2]}/{match[2]}"


def _sealed(header: bytes, dek: bytes, chunks: Iterable[bytes]) -> Iterator[bytes]:
    """Header and sealed segments; the last segment is marked, and is the only one that may be short or empty."""
    key = AESGCM(dek)
    bound = hashlib.sha384(header).digest()
    yield header
    index = 0
    whole = b""  # a chunk that is exactly a segment waits as it is: whether it is the last one shows later
    buffer = bytearray()
    for chunk in chunks:
        if not chunk:
            continue
        if whole:
            yield key.encrypt(_nonce(index, False), whole, bound)
            index += 1
            whole = b""
        if not buffer and len(chunk) == SEGMENT_BYTES:
            whole = bytes(chunk)
            continue
        buffer += chunk
        while len(buffer) > SEGMENT_BYTES:
            yield key.encrypt(_nonce(index, False), bytes(memoryview(buffer)[:SEGMENT_BYTES]), bound)
            del buffer[:SEGMENT_BYTES]
            index += 1
    yield key.encrypt(_nonce(index, True), whole or buffer, bound)


def _nonce(index: int, last: bool) -> bytes:
    return index.to_bytes(11, "big") + (b"\x01" if last else b"\x00")
