"""The offline verifier of the audit ledger. It needs a copy of the ledger directory, Python, and `cryptography`.

It shares no code with the ledger that it checks: this file alone can be carried to another machine and run as
`python verify.py DIRECTORY [--checkpoint FILE ...] [--fingerprint HEX]`.

What it checks of each log:
- the checkpoint's ML-DSA-87 signature, over both roots, the size, the label and the time;
- every entry: index without gaps, time not before its predecessor's, and both Merkle trees recomputed from the entries;
- every tile and bundle file, full or partial, byte for byte against the recomputed trees; missing and foreign files;
- the tail: its frames are whole, and hold the same entries as the bundles.
- against every known checkpoint (given, or kept by the enclave): same key, no fewer entries, same roots at its size.

Entries in the tail behind the last checkpoint (`unsigned`) are durable, and nobody has signed them yet: an enclave that
was killed leaves at most a tenth of a second of them, and signs them at its next start if its own key made them.
A roll-back to an older valid copy, or a log rewritten and signed anew with another key, can only be seen by comparing
with something kept elsewhere: pass an earlier checkpoint, or the key's fingerprint.
Source: RFC 9162 §2.1, c2sp.org/tlog-tiles, c2sp.org/tlog-checkpoint, FIPS 204.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import json
import os
import re
import struct
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA87PublicKey

CONTEXT = b"honmaru ledger checkpoint v1"
_KEY_TYPE = b"\xffML-DSA-87"
_WIDTH = 256
_HASHES: dict[str, Callable[[bytes], Any]] = {"sha256": hashlib.sha256, "sha384": hashlib.sha384}
_TOPS = {"sha256": "tile", "sha384": "sha384/tile"}
_STAMP = re.compile(rb'\{"index":(0|[1-9]\d*),"recorded":"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z)"')
_FRAME = struct.Struct(">4sQII")
_FRAME_BYTES = _FRAME.size + 48 + 48
_TILE = re.compile(r"(tile|sha384/tile)/(\d+|entries)/((?:x\d{3}/)*\d{3})(?:\.p/([1-9]\d{0,2}))?")
_ATTEMPTS = 20


@dataclass(frozen=True, slots=True)
class Finding:
    """Something wrong. `code` is stable; `index` is the first entry concerned, where one can be named."""

    code: str
    message: str
    index: int | None = None


@dataclass(slots=True)
class LogReport:
    """One log. `size` entries are signed; `unsigned` more are in the tail, not yet under a checkpoint."""

    path: str
    label: str = ""
    origin: str = ""
    fingerprint: str = ""
    size: int = 0
    unsigned: int = 0
    sha384_root: str = ""
    first_time: str = ""
    last_time: str = ""
    seconds: float = 0.0
    findings: list[Finding] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def find(self, code: str, message: str, index: int | None = None) -> None:
        self.findings.append(Finding(code, message, index))


@dataclass(slots=True)
class Report:
    """All logs of a directory. `findings` are those that belong to no log."""

    directory: str
    logs: list[LogReport] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        return not self.findings and all(not log.findings for log in self.logs)

    def document(self) -> dict[str, Any]:
        """The report as JSON."""

        def plain(finding: Finding) -> dict[str, Any]:
            return {"code": finding.code, "message": finding.message, "index": finding.index}

        return {
            "directory": self.directory,
            "ok": self.ok,
            "findings": [plain(finding) for finding in self.findings],
            "logs": [
                {
                    "path": log.path,
                    "label": log.label,
                    "origin": log.origin,
                    "fingerprint": log.fingerprint,
                    "entries": log.size,
                    "unsigned": log.unsigned,
                    "sha384Root": log.sha384_root,
                    "firstTime": log.first_time,
                    "lastTime": log.last_time,
                    "seconds": round(log.seconds, 3),
                    "notes": log.notes,
                    "findings": [plain(finding) for finding in log.findings],
                }
                for log in self.logs
            ],
        }


@dataclass(frozen=True, slots=True)
class Head:
    """A checkpoint whose signature verified."""

    origin: str
    size: int
    roots: Mapping[str, bytes]
    label: str
    time: str
    note: bytes


class Invalid(ValueError):
    """A note, key or proof that does not verify."""


def verify(directory: Path | str, *, checkpoints: Iterable[bytes] = (), fingerprint: str | None = None) -> Report:
    """Check a ledger directory, or the directory of one log.

    `checkpoints` are signed notes known from elsewhere (each is compared with the log that it names); `fingerprint`
    is the SHA-384 of the trusted public key in hex. Never raises for what it finds; the report says it.
    """
    root = Path(directory)
    report = Report(str(root))
    known = list(checkpoints)
    single = (root / "checkpoint").exists() or (root / "label.json").exists()
    if not root.is_dir():
        report.findings.append(Finding("missing-directory", f"{root} is not a directory"))
        return report
    paths = [root] if single else sorted(root.iterdir())
    used: set[int] = set()
    for path in paths:
        if not path.is_dir():
            report.findings.append(Finding("foreign-file", f"{path.name} does not belong into a ledger"))
            continue
        report.logs.append(_verify_log(path, known, used, fingerprint))
    for number, note in enumerate(known):
        if number not in used and (not single or len(known) == 1):
            name = note.split(b"\n", 1)[0].decode(errors="replace")
            report.findings.append(Finding("missing-log", f"no log here is the one of the known checkpoint {name!r}"))
    return report


def check_proof(document: Mapping[str, Any], *, fingerprint: str | None = None) -> dict[str, Any]:
    """Check an inclusion proof; returns the proven entry. Raises Invalid.

    Without `fingerprint` the key inside the proof is believed; its fingerprint is in the answer, to be compared.
    """
    try:
        origin, key = read_key(str(document["publicKey"]))
        head = read_head(str(document["checkpoint"]).encode(), origin, key)
        entry, index = str(document["entry"]).encode(), int(document["index"])
        paths = {name: [base64.b64decode(text, validate=True) for text in document[name]] for name in _HASHES}
    except Invalid:
        raise
    except (KeyError, TypeError, ValueError) as error:
        raise Invalid(f"this is not an inclusion proof: {error!r}") from error
    found = key_fingerprint(key)
    if fingerprint is not None and found != fingerprint.lower():
        raise Invalid(f"the proof is signed by the key {found}, not by the trusted one")
    for name, path in paths.items():
        if _root_from_path(name, entry, index, head.size, path) != head.roots[name]:
            raise Invalid(f"the {name} path does not lead from the entry to the signed root")
    stamp = _STAMP.match(entry)
    if stamp is None or int(stamp[1]) != index:
        raise Invalid("the entry states another index than the proof")
    return {
        "index": index,
        "size": head.size,
        "origin": head.origin,
        "label": head.label,
        "time": head.time,
        "fingerprint": found,
        "entry": json.loads(entry),
    }


def check_consistency(
    first: int, second: int, roots: tuple[bytes, bytes], path: list[bytes], algorithm: str = "sha256"
) -> bool:
    """Whether a consistency proof shows that a tree of `second` entries extends one of `first` (RFC 9162 §2.1.4.2)."""
    if first == second:
        return not path and roots[0] == roots[1]
    if not 0 < first < second or not path:
        return False
    if first & (first - 1) == 0:
        path = [roots[0], *path]
    fn, sn = first - 1, second - 1
    while fn & 1:
        fn, sn = fn >> 1, sn >> 1
    left = right = path[0]
    for value in path[1:]:
        if sn == 0:
            return False
        if fn & 1 or fn == sn:
            left, right = _node(algorithm, value, left), _node(algorithm, value, right)
            while fn and not fn & 1:
                fn, sn = fn >> 1, sn >> 1
        else:
            right = _node(algorithm, right, value)
        fn, sn = fn >> 1, sn >> 1
    return sn == 0 and (left, right) == roots


def read_key(line: str) -> tuple[str, bytes]:
    """(origin, raw public key) of a verifier key line. Raises Invalid."""
    try:
        origin, identity, encoded = line.removesuffix("\n").split("+", 2)
        raw = base64.b64decode(encoded, validate=True)
        if not raw.startswith(_KEY_TYPE) or _key_id(origin, raw[len(_KEY_TYPE) :]).hex() != identity:
            raise ValueError("its type or id is wrong")
        if base64.b64encode(raw).decode() != encoded:
            raise ValueError("it is not in its one form")
    except ValueError as error:
        raise Invalid(f"this is not an ML-DSA-87 verifier key: {error}") from error
    return origin, raw[len(_KEY_TYPE) :]


def key_fingerprint(key: bytes) -> str:
    """SHA-384 of a raw public key, in hex."""
    return hashlib.sha384(key).hexdigest()


def read_head(note: bytes, origin: str, key: bytes) -> Head:
    """The checkpoint in a signed note, signed by `key` for the log `origin`. Raises Invalid."""
    try:
        text, separator, signatures = note.rpartition(b"\n\n")
        lines = text.decode().split("\n")
        if not separator or len(lines) != 6:
            raise ValueError("it has not the lines of a checkpoint")
        fields = dict(line.split(" ", 1) for line in lines[3:])
        roots = {
            "sha256": base64.b64decode(lines[2], validate=True),
            "sha384": base64.b64decode(fields["sha384"], validate=True),
        }
        head = Head(lines[0], int(lines[1]), roots, fields["label"], fields["time"], note)
        again = (
            f"{head.origin}\n{head.size}\n{base64.b64encode(roots['sha256']).decode()}\n"
            f"sha384 {base64.b64encode(roots['sha384']).decode()}\nlabel {head.label}\ntime {head.time}\n"
        )
        if again.encode() != text + b"\n" or head.size < 0:
            raise ValueError("it is not in its one form")
        if head.origin != origin:
            raise ValueError(f"it is of the log {head.origin!r}, not of {origin!r}")
        lead = f"— {origin} ".encode()
        if not signatures.startswith(lead) or not signatures.endswith(b"\n"):
            raise ValueError("its signature line is malformed")
        encoded = signatures[len(lead) : -1]
        signature = base64.b64decode(encoded, validate=True)
        if base64.b64encode(signature) != encoded or signature[:4] != _key_id(origin, key):
            raise ValueError("it is signed by another key")
        MLDSA87PublicKey.from_public_bytes(key).verify(signature[4:], again.encode(), CONTEXT)
    except InvalidSignature as error:
        raise Invalid("the signature does not verify") from error
    except (ValueError, KeyError) as error:
        raise Invalid(f"not a signed checkpoint: {error}") from error
    return head


# One log


@dataclass(slots=True)
class _Snapshot:
    """A log directory at one moment, although an enclave may be writing it.

    `small` holds what such an enclave replaces (checkpoint, partial tiles, tail), read between two looks at the same
    checkpoint. `files` lists every path. `live` says that the checkpoint has changed since: then full tiles may exist
    of entries that are not looked at.
    """

    files: set[str] = field(default_factory=set)
    small: dict[str, bytes] = field(default_factory=dict)
    live: bool = False


def _verify_log(path: Path, known: list[bytes], used: set[int], fingerprint: str | None) -> LogReport:
    started = time.perf_counter()
    report = LogReport(str(path))
    snapshot = _snapshot(path)
    try:
        _check(path, snapshot, report, known, used, fingerprint)
    except Invalid as error:
        report.find("unverifiable", str(error))
    except OSError as error:
        report.find("unreadable", f"{error.filename or path} cannot be read: {error.strerror}")
    report.seconds = time.perf_counter() - started
    return report


def _snapshot(path: Path) -> _Snapshot:
    snapshot = _Snapshot(small=_read_small(path))
    for folder, _, names in os.walk(path):
        relative = os.path.relpath(folder, path)
        snapshot.files |= {name if relative == "." else f"{relative}/{name}" for name in names}
    snapshot.live = _read(path / "checkpoint") != snapshot.small.get("checkpoint")
    for file in sorted(snapshot.files):
        replaced = ".p/" in file or "/" not in file or file.startswith("tail/")
        if replaced and file not in snapshot.small:
            content = None if snapshot.live else _read(path / file)
            if content is None:
                snapshot.files.discard(file)
            else:
                snapshot.small[file] = content
    snapshot.files |= snapshot.small.keys()
    return snapshot


def _read_small(path: Path) -> dict[str, bytes]:
    """The checkpoint with its partial tiles and the tail, as of one moment."""
    small: dict[str, bytes] = {}
    for attempt in range(_ATTEMPTS):
        names = ["label.json", "public-key", *_partial_paths(_read(path / "checkpoint"))]
        names += sorted(f"tail/{file.name}" for file in (path / "tail").iterdir()) if (path / "tail").is_dir() else []
        read = {name: _read(path / name) for name in ("checkpoint", *names)}
        small = {name: content for name, content in read.items() if content is not None}
        if _read(path / "checkpoint") == read["checkpoint"]:
            break
        time.sleep(0.002 * attempt)
    return small


def _partial_paths(note: bytes | None) -> Iterator[str]:
    """Paths of the partial tiles and bundle that a checkpoint needs; none when it is unreadable."""
    lines = (note or b"").split(b"\n")
    size = int(lines[1]) if len(lines) > 1 and lines[1].isdigit() and len(lines[1]) < 20 else 0
    level = 0
    while size >> (8 * level):
        index, width = divmod(size >> (8 * level), _WIDTH)
        if width:
            for where in (*(f"{top}/{level}" for top in _TOPS.values()), *(["tile/entries"] if level == 0 else [])):
                yield f"{where}/{_number(index)}.p/{width}"
        level += 1


def _read(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
        return None


def _check(
    path: Path, snapshot: _Snapshot, report: LogReport, known: list[bytes], used: set[int], fingerprint: str | None
) -> None:
    for name in ("public-key", "label.json", "checkpoint"):
        if name not in snapshot.files:
            report.find("missing-file", f"{name} is missing")
    if report.findings:
        return
    line = snapshot.small["public-key"].decode(errors="replace")
    origin, key = read_key(line)
    if not line.endswith("\n"):
        report.find("key", "public-key does not end its line")
    report.origin, report.fingerprint = origin, key_fingerprint(key)
    if origin.split("/")[1:2] != [report.fingerprint[:16]]:
        report.find("key", f"the log {origin!r} does not name the key in it, {report.fingerprint[:16]}…")
    if fingerprint is not None and report.fingerprint != fingerprint.lower():
        report.find("untrusted-key", f"the log's key is {report.fingerprint}, not the trusted one")
    head = read_head(snapshot.small["checkpoint"], origin, key)
    report.label, report.size = head.label, head.size
    report.sha384_root = head.roots["sha384"].hex()
    _check_label(snapshot.small["label.json"], head, report)

    heads = []
    for number, note in enumerate(known):
        if note.split(b"\n", 1)[0].decode(errors="replace").rpartition("/")[2] != origin.rpartition("/")[2]:
            continue
        used.add(number)
        try:
            heads.append(read_head(note, origin, key))
        except Invalid as error:
            report.find("foreign-checkpoint", f"a known checkpoint does not verify with this log's key: {error}")
    for other in heads:
        if other.size > head.size:
            report.find(
                "rolled-back",
                f"a checkpoint over {other.size} entries was signed on {other.time}, this log ends at {head.size}",
                head.size,
            )
    _check_entries(path, snapshot, report, head, [other for other in heads if other.size <= head.size])


def _check_label(text: bytes, head: Head, report: LogReport) -> None:
    try:
        about = json.loads(text)
        stated = (about["label"], about["origin"], about["token"])
    except (ValueError, KeyError, TypeError):
        report.find("label", "label.json does not state label, token and origin")
        return
    one_form = json.dumps(about, separators=(",", ":"), ensure_ascii=False).encode() + b"\n"
    if stated != (head.label, head.origin, head.origin.rpartition("/")[2]) or text != one_form or len(about) != 3:
        report.find("label", "label.json does not say what the signed checkpoint says")


def _check_entries(path: Path, snapshot: _Snapshot, report: LogReport, head: Head, heads: list[Head]) -> None:
    tail_first, tail = _read_tail(snapshot, report)
    trees = {name: _Tree(name, head.size) for name in _HASHES}
    sizes = sorted({head.size, *(other.size for other in heads)})
    expected: set[str] = {"checkpoint", "label.json", "public-key"} | {
        f for f in snapshot.files if f.startswith("tail/")
    }
    last, size, number, judged = "", 0, 0, False
    if sizes[0] == 0:
        judged = head.size == 0
        _check_roots(report, {name: _Tree(name, 0) for name in _HASHES}, sizes.pop(0), head, heads)
    total = max(head.size, tail_first + len(tail))
    while size < total:
        entries = _bundle(path, snapshot, report, number, head.size, tail_first, tail, expected)
        if entries is None:
            break
        for entry in entries:
            last = _check_stamp(report, entry, size, last)
            for tree in trees.values():
                tree.add(entry)
            size += 1
            if sizes and size == sizes[0]:
                judged = judged or size == head.size
                _check_roots(report, trees, sizes.pop(0), head, heads)
        _check_tiles(path, snapshot, report, trees, number, expected)
        number += 1
    report.last_time, report.unsigned = last, max(0, size - head.size)
    if not judged and not report.findings:
        report.find("truncated", f"the checkpoint covers {head.size} entries, only {size} are here", size)
    if last and head.time < last and size == head.size:
        report.find("time", f"the checkpoint of {head.time} covers an entry of {last}")
    _check_partials(path, snapshot, report, head, trees, expected)
    for file in sorted(snapshot.files - expected):
        if file.endswith(".incomplete"):
            report.notes.append(f"{file} was left by an interrupted write")
        elif (match := _TILE.fullmatch(file)) is None or (match[4] is None and not snapshot.live):
            report.find("foreign-file", f"{file} does not belong to this log")


def _bundle(
    path: Path,
    snapshot: _Snapshot,
    report: LogReport,
    number: int,
    signed: int,
    tail_first: int,
    tail: list[bytes],
    expected: set[str],
) -> list[bytes] | None:
    """Entries of bundle `number` as far as they exist; None when they cannot be found."""
    start = number * _WIDTH
    in_tail = tail[max(0, start - tail_first) : max(0, start + _WIDTH - tail_first)]
    full = f"tile/entries/{_number(number)}"
    if full in snapshot.files:
        expected.add(full)
        entries = _unpack((path / full).read_bytes())
        if entries is None or len(entries) != _WIDTH:
            report.find("bundle", f"{full} does not hold {_WIDTH} entries", start)
            return None
    elif start + _WIDTH <= signed:
        report.find("missing-file", f"{full} is missing", start)
        return None
    elif tail_first <= start:
        entries = in_tail
    else:
        partial = f"{full}.p/{signed % _WIDTH}"
        entries = _unpack(snapshot.small.get(partial, b"")) or []
        entries = entries[: tail_first - start] + in_tail
    overlap = entries[max(0, tail_first - start) :]
    if in_tail and overlap != in_tail[: len(overlap)]:
        report.find("tail", f"the tail and {full} hold different entries", max(start, tail_first))
    return entries or None


def _check_stamp(report: LogReport, entry: bytes, index: int, last: str) -> str:
    stamp = _STAMP.match(entry)
    if stamp is None:
        report.find("entry", f"entry {index} does not begin with its index and time", index)
        return last
    moment = stamp[2].decode()
    if int(stamp[1]) != index:
        report.find("index", f"entry {int(stamp[1])} stands where entry {index} belongs", index)
    if moment < last:
        report.find("time", f"entry {index} was recorded at {moment}, before its predecessor at {last}", index)
    report.first_time = report.first_time or moment
    return max(moment, last)


def _check_roots(report: LogReport, trees: Mapping[str, _Tree], size: int, head: Head, heads: list[Head]) -> None:
    for name, tree in trees.items():
        root = tree.root()
        if size == head.size and root != head.roots[name]:
            report.find("root", f"the entries do not give the signed {name} root at size {size}", None)
        for other in heads:
            if size == other.size and root != other.roots[name]:
                report.find("forked", f"the log differs from the one that was signed on {other.time} at size {size}")


def _check_tiles(
    path: Path, snapshot: _Snapshot, report: LogReport, trees: Mapping[str, _Tree], number: int, expected: set[str]
) -> None:
    """Compare the tiles that bundle `number` completed with their files."""
    for name, tree in trees.items():
        for level, index, hashes in tree.take_full():
            file = f"{_TOPS[name]}/{level}/{_number(index)}"
            expected.add(file)
            if file not in snapshot.files:
                if (index + 1) * _WIDTH ** (level + 1) <= report.size:
                    report.find("missing-file", f"{file} is missing", number * _WIDTH)
            elif (path / file).read_bytes() != hashes:
                report.find("tile", f"{file} is not what its entries hash to", index * _WIDTH ** (level + 1))


def _check_partials(
    path: Path,
    snapshot: _Snapshot,
    report: LogReport,
    head: Head,
    trees: Mapping[str, _Tree],
    expected: set[str],
) -> None:
    """Partial files on disk must be the beginning of what was recomputed, and those of the checkpoint must exist."""
    for file in _partial_paths(head.note):
        if file not in snapshot.files:
            report.find("missing-file", f"{file} is missing")
    for file in sorted(snapshot.files - expected):
        match = _TILE.fullmatch(file)
        if match is None or match[4] is None:
            continue
        width, index = int(match[4]), int(match[3].replace("x", "").replace("/", ""))
        if match[1] == "tile" and match[2] == "entries":
            leaves = _unpack(snapshot.small[file])
            hashes = [_leaf("sha256", entry) for entry in leaves] if leaves is not None else []
            name, level, size = "sha256", 0, 32
        elif match[2] != "entries":
            name = "sha256" if match[1] == "tile" else "sha384"
            size, level = trees[name].size, int(match[2])
            raw = snapshot.small[file]
            hashes = [raw[at : at + size] for at in range(0, len(raw), size)]
        else:
            report.find("foreign-file", f"{file} does not belong to this log")
            continue
        full = f"{_TOPS[name]}/{level}/{_number(index)}"  # checked above, when it is there
        truth = trees[name].hashes(level, index) or (_read(path / full) if full in snapshot.files else b"") or b""
        if width >= _WIDTH or len(hashes) != width or b"".join(hashes) != truth[: width * size]:
            report.find("partial-tile", f"{file} is not what its entries hash to", index * _WIDTH ** (level + 1))


def _read_tail(snapshot: _Snapshot, report: LogReport) -> tuple[int, list[bytes]]:
    """(first index, entries) of the tail's segments."""
    names = sorted(file for file in snapshot.files if file.startswith("tail/"))
    first: int | None = None
    entries: list[bytes] = []
    for position, name in enumerate(names):
        digits = name.removeprefix("tail/")
        if not re.fullmatch(r"\d{20}", digits):
            report.find("foreign-file", f"{name} does not belong to this log")
            continue
        first = int(digits) if first is None else first
        if int(digits) != first + len(entries):
            report.find("tail", f"{name} begins at entry {int(digits)}, {first + len(entries)} comes next")
            break
        content, at = snapshot.small[name], 0
        while at < len(content):
            found = _frame(content, at, first + len(entries))
            if found is None:
                if position == len(names) - 1 and not _frame_follows(content, at):
                    report.notes.append(f"{name} ends in a torn frame, which the next start cuts off")
                else:
                    report.find("tail", f"{name} is damaged", first + len(entries))
                break
            entries += found[1]
            at += found[0]
    if first is None:
        if report.size:
            report.find("missing-file", "the tail is missing")
        return report.size, []
    if first > report.size - report.size % _WIDTH:
        report.find("tail", f"the tail begins at entry {first}, behind the last full bundle")
    if first + len(entries) < report.size:
        report.find("tail", f"the tail ends at entry {first + len(entries)}, {report.size} are signed")
    return first, entries


def _frame(content: bytes, at: int, index: int | None) -> tuple[int, list[bytes]] | None:
    start = at + _FRAME_BYTES
    if start > len(content):
        return None
    head = content[at : at + _FRAME.size]
    magic, first, count, length = _FRAME.unpack(head)
    payload = content[start : start + length]
    if magic != b"HMF1" or count == 0 or len(payload) != length or (index is not None and first != index):
        return None
    digest, tag = content[at + _FRAME.size : at + _FRAME.size + 48], content[at + _FRAME.size + 48 : start]
    if hashlib.sha384(head + tag + payload).digest() != digest:
        return None
    entries = _unpack(payload)
    return (_FRAME_BYTES + length, entries) if entries is not None and len(entries) == count else None


def _frame_follows(content: bytes, at: int) -> bool:
    search = content.find(b"HMF1", at + 1)
    while search >= 0:
        if _frame(content, search, None) is not None:
            return True
        search = content.find(b"HMF1", search + 1)
    return False


def _unpack(bundle: bytes) -> list[bytes] | None:
    entries, at = [], 0
    while at < len(bundle):
        start = at + 2
        at = start + int.from_bytes(bundle[at:start], "big")
        if at > len(bundle):
            return None
        entries.append(bundle[start:at])
    return entries


def _number(index: int) -> str:
    groups = [f"{index % 1000:03d}"]
    while index := index // 1000:
        groups.append(f"x{index % 1000:03d}")
    return "/".join(reversed(groups))


def _key_id(origin: str, key: bytes) -> bytes:
    return hashlib.sha256(origin.encode() + b"\n" + _KEY_TYPE + key).digest()[:4]


# RFC 9162


def _leaf(algorithm: str, entry: bytes) -> bytes:
    digest: bytes = _HASHES[algorithm](b"\x00" + entry).digest()
    return digest


def _node(algorithm: str, left: bytes, right: bytes) -> bytes:
    digest: bytes = _HASHES[algorithm](b"\x01" + left + right).digest()
    return digest


class _Tree:
    """A Merkle tree grown leaf by leaf: a stack of perfect subtrees, and the tile hashes of every level."""

    def __init__(self, algorithm: str, signed: int) -> None:
        """Full tiles over the first `signed` leaves are not kept: their files are checked at once."""
        self.algorithm = algorithm
        self._signed = signed
        self.size = len(_HASHES[algorithm](b"").digest())
        self._new = _HASHES[algorithm]
        self._stack: list[tuple[int, bytes]] = []
        self._tiles: list[dict[int, bytearray]] = []
        self._counts: list[int] = []
        self._full: list[tuple[int, int, bytes]] = []

    def add(self, entry: bytes) -> None:
        new = self._new
        height, value = 0, new(b"\x00" + entry).digest()
        self._put(0, value)
        stack = self._stack
        while stack and stack[-1][0] == height:
            value = new(b"\x01" + stack.pop()[1] + value).digest()
            height += 1
            if not height % 8:
                self._put(height // 8, value)
        stack.append((height, value))

    def _put(self, level: int, value: bytes) -> None:
        if level == len(self._tiles):
            self._tiles.append({})
            self._counts.append(0)
        index = self._counts[level] // _WIDTH
        tile = self._tiles[level].setdefault(index, bytearray())
        tile += value
        self._counts[level] += 1
        if self._counts[level] % _WIDTH == 0:
            self._full.append((level, index, bytes(tile)))
            if index < self._signed >> (8 * (level + 1)):
                del self._tiles[level][index]

    def take_full(self) -> list[tuple[int, int, bytes]]:
        """Tiles that became full since the last call."""
        full, self._full = self._full, []
        return full

    def hashes(self, level: int, index: int) -> bytes:
        """Hashes of a partial or not yet signed tile; empty for any other."""
        return bytes(self._tiles[level].get(index, b"")) if level < len(self._tiles) else b""

    def root(self) -> bytes:
        if not self._stack:
            empty: bytes = self._new(b"").digest()
            return empty
        root = self._stack[-1][1]
        for _, left in reversed(self._stack[:-1]):
            root = self._new(b"\x01" + left + root).digest()
        return root


def _root_from_path(algorithm: str, entry: bytes, index: int, size: int, path: list[bytes]) -> bytes | None:
    """RFC 9162 §2.1.3.2; None when the path has the wrong length."""
    if not 0 <= index < size:
        return None
    fn, sn, root = index, size - 1, _leaf(algorithm, entry)
    for value in path:
        if sn == 0:
            return None
        if fn & 1 or fn == sn:
            root = _node(algorithm, value, root)
            while fn and not fn & 1:
                fn, sn = fn >> 1, sn >> 1
        else:
            root = _node(algorithm, root, value)
        fn, sn = fn >> 1, sn >> 1
    return root if sn == 0 else None


def _main() -> int:
    parser = argparse.ArgumentParser(description="Verify a honmaru audit ledger offline.")
    parser.add_argument("directory", type=Path)
    parser.add_argument(
        "--checkpoint", type=Path, action="append", default=[], help="a checkpoint known from elsewhere"
    )
    parser.add_argument("--fingerprint", help="SHA-384 of the trusted public key, in hex")
    arguments = parser.parse_args()
    notes = [path.read_bytes() for path in arguments.checkpoint]
    report = verify(arguments.directory, checkpoints=notes, fingerprint=arguments.fingerprint)
    print(json.dumps(report.document(), indent=2))
    return 0 if report.ok else 1


if __name__ == "__main__":
    sys.exit(_main())
