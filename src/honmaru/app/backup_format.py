"""What a backup file looks like, written and read in constant memory.

    "HMBK1" | length (4) | lock (JSON) | sealed stream of: entry ... entry | end

An entry is length (4) | {"path", "size"} | content. The end is an entry header {"manifest", "signature"}: the manifest
counts the entries, digests them in their order (SHA-384 over each header and its content's SHA-384) and names the
enclave; the signature is the ledger key's (ML-DSA-87) over it.

Invariants:
- Nothing of a backup is believed before all of it was read: each segment opens, the digest is the manifest's, and the
  key that signed the manifest is the one whose public half every log inside the backup states.
- A path leads below the data directory and into one of its known places.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

import orjson

from honmaru.core.errors import ConfigurationFault, IntegrityFault
from honmaru.security.crypto import locks
from honmaru.security.crypto.sealed_stream import OpeningReader, SealingWriter
from honmaru.security.ledger.checkpoints import Signer, Verifier

_PUBLIC_KEY = re.compile(r"ledger/[^/]+/public-key")
_MAGIC = b"HMBK1"
_CHUNK = 1 << 20
_LINE = 1 << 14
_CONTEXT = b"honmaru backup v1"
_PLACES = re.compile(
    r"(enclave\.json|environments\.json|engines\.json|records\.sqlite|(blobs|keys|ledger|tls)(/[A-Za-z0-9][A-Za-z0-9._+-]*)+)"
)


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a backup says of itself. `signer` is the ledger key's fingerprint; `digest` covers every entry."""

    region: str
    account: str
    made: str
    version: str
    entries: int
    size: int
    digest: str
    signer: str


class BackupWriter:
    """Writes entries, then the end. The file is complete only after `finish`."""

    def __init__(self, file: BinaryIO, passphrase: str, secret: Callable[[int], bytes]) -> None:
        locked = locks.with_passphrase(passphrase, secret)
        lock = orjson.dumps(locked.lock)
        header = _MAGIC + len(lock).to_bytes(4, "big") + lock
        file.write(header)
        self._stream = SealingWriter(file, locked.key, header)
        self._digest = hashlib.sha384()
        self._entries = 0
        self._size = 0

    def add(self, path: str, source: BinaryIO, size: int) -> None:
        """The first `size` bytes of `source` as the content of `path`. Raises IntegrityFault when there are fewer."""
        _check_path(path)
        header = orjson.dumps({"path": path, "size": size})
        self._stream.write(len(header).to_bytes(4, "big") + header)
        content = hashlib.sha384()
        left = size
        while left:
            chunk = source.read(min(left, _CHUNK))
            if not chunk:
                raise IntegrityFault(f"{path} became shorter while it was backed up")
            left -= len(chunk)
            content.update(chunk)
            self._stream.write(chunk)
        self._digest.update(len(header).to_bytes(4, "big") + header + content.digest())
        self._entries += 1
        self._size += size

    def finish(self, signer: Signer, *, region: str, account: str, made: str, version: str) -> Manifest:
        """Sign what was written, and end the stream."""
        manifest = Manifest(
            region=region,
            account=account,
            made=made,
            version=version,
            entries=self._entries,
            size=self._size,
            digest=self._digest.hexdigest(),
            signer=signer.verifier.fingerprint,
        )
        signature = signer.sign_bytes(_signed(manifest), _CONTEXT)
        end = orjson.dumps({"manifest": manifest, "signature": base64.b64encode(signature).decode()})
        self._stream.write(len(end).to_bytes(4, "big") + end)
        self._stream.close()
        return manifest


@dataclass(frozen=True, slots=True)
class Entry:
    """One file of a backup; `chunks` must be drawn to their end before the next entry."""

    path: str
    size: int
    chunks: Iterator[bytes]


class BackupReader:
    """Reads a backup once. Raises IntegrityFault for anything that is not as it was written."""

    def __init__(self, file: BinaryIO, passphrase: str) -> None:
        magic, length = file.read(len(_MAGIC)), int.from_bytes(file.read(4), "big")
        if magic != _MAGIC or not 0 < length < 1 << 16:
            raise ConfigurationFault(["this is no backup of honmaru"])
        lock = file.read(length)
        try:
            stated = orjson.loads(lock)
        except orjson.JSONDecodeError:
            raise IntegrityFault("the head of the backup is damaged") from None
        if not isinstance(stated, dict):
            raise IntegrityFault("the head of the backup is damaged")
        key = locks.by_passphrase(stated, passphrase)
        self._stream = OpeningReader(file, key, magic + length.to_bytes(4, "big") + lock)
        self.manifest: Manifest | None = None
        """Known, and checked, after the last entry."""

    def entries(self) -> Iterator[Entry]:
        """Every file, in order; at the end the manifest and its signature have been checked."""
        digest = hashlib.sha384()
        entries = total = 0
        signers: dict[str, Verifier] = {}
        while True:
            length = int.from_bytes(self._stream.read(4), "big")
            if length > 1 << 16:
                raise IntegrityFault("an entry of the backup is damaged")
            header = self._stream.read(length)
            try:
                stated = orjson.loads(header)
                if "manifest" in stated:
                    self._check_end(stated, digest, entries, total, signers)
                    return
                path, size = str(stated["path"]), int(stated["size"])
            except (ValueError, KeyError, TypeError):
                raise IntegrityFault("an entry of the backup is damaged") from None
            _check_path(path)
            content = hashlib.sha384()
            kept: list[bytes] | None = [] if _PUBLIC_KEY.fullmatch(path) and size < _LINE else None
            yield Entry(path, size, self._chunks(size, content, kept))
            if kept is not None:
                verifier = _verifier(b"".join(kept))
                signers[verifier.fingerprint] = verifier
            digest.update(length.to_bytes(4, "big") + header + content.digest())
            entries += 1
            total += size

    def _chunks(self, size: int, content: Any, kept: list[bytes] | None) -> Iterator[bytes]:
        while size:
            chunk = self._stream.read(min(size, _CHUNK))
            size -= len(chunk)
            content.update(chunk)
            if kept is not None:
                kept.append(chunk)
            yield chunk

    def _check_end(
        self, stated: dict[str, Any], digest: Any, entries: int, total: int, signers: dict[str, Verifier]
    ) -> None:
        manifest = Manifest(**stated["manifest"])
        if (manifest.entries, manifest.size, manifest.digest) != (entries, total, digest.hexdigest()):
            raise IntegrityFault("the backup does not hold what its manifest says")
        if not signers:
            raise IntegrityFault("the backup holds no ledger")
        verifier = signers.get(manifest.signer)
        signature = base64.b64decode(stated["signature"])
        if verifier is None or len(signers) > 1 or not verifier.holds(signature, _signed(manifest), _CONTEXT):
            raise IntegrityFault("the backup is not signed by the ledger key of its enclave")
        self._stream.end()
        self.manifest = manifest


def _verifier(line: bytes) -> Verifier:
    try:
        return Verifier.of_line(line.decode())
    except (ValueError, IndexError):
        raise IntegrityFault("a log of the backup states no key") from None


def _signed(manifest: Manifest) -> bytes:
    return orjson.dumps(manifest, option=orjson.OPT_SORT_KEYS)


def _check_path(path: str) -> None:
    if not _PLACES.fullmatch(path) or ".." in path:
        raise IntegrityFault(f"a backup has no place for {path[:200]!r}")
