"""The blob store on a local directory (default) or on any object store that obstore reaches (S3, GCS, Azure).

Invariants (beside those of the port, `ports.blobs`):
- obstore's local `put` does not call fsync (seen with strace, obstore 0.12), so a local write is done here: written
  to a temporary file, fsynced, renamed, and the directory fsynced before `write` returns. Local reads are done here
  too: a read is three system calls, and obstore's way through its own threads costs many times that.
- Temporary files of a crashed process are deleted at start (`forget` deletes those of one of several) and never listed.
- If the chunks raise, nothing is stored.
- What a remote store refuses or does not answer is StoreUnavailable; what it does not have is FileNotFoundError.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl

from honmaru.core.errors import StoreUnavailable

if TYPE_CHECKING:
    from obstore.store import ObjectStore, RetryConfig

_INCOMING = ".incoming"
_RETRIES: RetryConfig = {"max_retries": 4, "retry_timeout": timedelta(seconds=20)}
"""A caller waits behind a store that does not answer: obstore's own three minutes would hold its thread too long."""


class ObstoreBlobStore:
    """A `ports.blobs.BlobStore`.

    Args:
        location: A directory (made when absent), or a URL such as
            `s3://bucket/prefix?endpoint=https://s3.example:8443&region=r`: what stands behind the question mark are
            settings of the remote store as obstore names them; keys, which are secret, it takes from `options` or from
            the variables that every client of that store reads (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY).
        options: Further settings; they win.
        writer: Which of several processes this is; "" for the first one, which starts before all others.
    """

    def __init__(self, location: str | Path, options: Mapping[str, Any] | None = None, *, writer: str = "") -> None:
        from obstore import store as stores

        self._store: ObjectStore
        self._directory: Path | None = None
        self._mark = f"{writer}-" if writer else ""
        if isinstance(location, str) and "://" in location and not location.startswith("file://"):
            url, _, query = location.partition("?")
            stated = {**dict(parse_qsl(query)), **(options or {})}
            plain = str(stated.get("endpoint", "")).startswith("http://")
            self._store = stores.from_url(
                url,
                **({"config": stated} if stated else {}),
                **(
                    {}
                    if url.startswith("memory:")
                    else {"client_options": {"allow_http": plain}, "retry_config": _RETRIES}
                ),
            )
            return
        self._directory = Path(str(location).removeprefix("file://")).absolute()
        incoming = self._directory / _INCOMING
        incoming.mkdir(parents=True, exist_ok=True, mode=0o700)
        if not writer:
            self._clear("*")
        self._store = stores.LocalStore(self._directory)

    def forget(self, writer: str) -> None:
        """A process that wrote here has ended: what it did not finish goes."""
        self._clear(f"{writer}-*")

    def _clear(self, pattern: str) -> None:
        if self._directory is not None:
            for leftover in (self._directory / _INCOMING).glob(pattern):
                leftover.unlink(missing_ok=True)

    def write(self, path: str, chunks: Iterable[bytes]) -> int:
        """Store the chunks under a new path; durable on return. Raises StoreUnavailable, or what `chunks` raises."""
        if self._directory is not None:
            return self._write_file(self._directory, path, chunks)
        size = 0

        def counted() -> Iterator[bytes]:
            nonlocal size
            for chunk in chunks:
                size += len(chunk)
                yield chunk

        with _remote_faults():
            self._store.put(path, counted())
        return size

    def read(self, path: str, start: int, length: int) -> bytes:
        """Exactly `length` bytes from `start` (fewer at the end). Raises FileNotFoundError."""
        if self._directory is not None:
            return _read_file(f"{self._directory}/{path}", start, length)
        available = max(0, min(length, self.size(path) - start))
        with _remote_faults():
            return bytes(self._store.get_range(path, start=start, length=available)) if available else b""

    def size(self, path: str) -> int:
        """Bytes stored under a path. Raises FileNotFoundError."""
        if self._directory is not None:
            with _local_faults():
                return (self._directory / path).stat().st_size
        with _remote_faults():
            return int(self._store.head(path)["size"])

    def delete(self, path: str) -> None:
        """Deleting a missing path is no error."""
        if self._directory is not None:
            with suppress(FileNotFoundError), _local_faults():
                (self._directory / path).unlink()
            return
        with suppress(FileNotFoundError), _remote_faults():
            self._store.delete(path)

    def paths(self, prefix: str) -> Iterator[str]:
        """Every stored path that starts with `prefix`, in no particular order."""
        # obstore lists whole path segments, so the part after the last slash is matched here.
        directory = prefix.rpartition("/")[0]
        for batch in self._pages(directory):
            for entry in batch:
                if entry["path"].startswith(prefix) and not entry["path"].startswith(_INCOMING + "/"):
                    yield entry["path"]

    def _pages(self, directory: str) -> Iterator[Sequence[Mapping[str, Any]]]:
        with _remote_faults():
            yield from self._store.list(prefix=directory or None)

    def _write_file(self, directory: Path, path: str, chunks: Iterable[bytes]) -> int:
        target = f"{directory}/{path}"
        parent = os.path.dirname(target)  # noqa: PTH120 - plain text: a path object costs more than the system call
        temporary = f"{directory}/{_INCOMING}/{self._mark}{secrets.token_hex(16)}"
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        size = 0
        try:
            try:
                for chunk in chunks:
                    size += _write(descriptor, chunk)
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            try:
                os.rename(temporary, target)  # noqa: PTH104
            except FileNotFoundError:
                _make_directories(directory, Path(parent))
                os.rename(temporary, target)  # noqa: PTH104
            _sync(parent)
        except OSError as fault:
            Path(temporary).unlink(missing_ok=True)
            raise StoreUnavailable(f"a blob could not be stored: {fault.strerror}; see `honmaru doctor`") from fault
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
        return size


def _write(descriptor: int, chunk: bytes) -> int:
    view = memoryview(chunk)
    while view:
        view = view[os.write(descriptor, view) :]
    return len(chunk)


def _read_file(path: str, start: int, length: int) -> bytes:
    with _local_faults():
        descriptor = os.open(path, os.O_RDONLY)
        try:
            content = os.pread(descriptor, length, start)
            while 0 < len(content) < length:
                more = os.pread(descriptor, length - len(content), start + len(content))
                if not more:
                    break
                content += more
            return content
        finally:
            os.close(descriptor)


@contextmanager
def _local_faults() -> Iterator[None]:
    """A missing file stays a FileNotFoundError; what else the disk says is StoreUnavailable."""
    try:
        yield
    except (FileNotFoundError, NotADirectoryError) as missing:
        raise FileNotFoundError(missing.errno, "there is no such blob") from missing
    except OSError as fault:
        raise StoreUnavailable(f"a blob could not be read: {fault.strerror}; see `honmaru doctor`") from fault


@contextmanager
def _remote_faults() -> Iterator[None]:
    """What is not there stays a FileNotFoundError; what else the store says, or fails to say, is StoreUnavailable."""
    from obstore.exceptions import BaseError

    try:
        yield
    except FileNotFoundError as missing:
        raise FileNotFoundError("there is no such blob") from missing
    except (BaseError, OSError) as fault:
        raise StoreUnavailable("the blob store refused or did not answer; see `honmaru doctor`") from fault


def _make_directories(root: Path, directory: Path) -> None:
    """Make the missing directories between root and `directory`, each durable in its parent."""
    if directory.is_dir() or directory == root:
        return
    _make_directories(root, directory.parent)
    directory.mkdir(exist_ok=True, mode=0o700)
    _sync(directory.parent)


def _sync(directory: str | Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
