"""Signed checkpoints: C2SP tlog-checkpoint notes, signed with ML-DSA-87 (CNSA 2.0).

    <origin>                       honmaru/<first 16 hex of the key's fingerprint>/<label token>
    <size>
    <SHA-256 root, base64>
    sha384 <SHA-384 root, base64>
    label <canonical label>
    time <ISO 8601, UTC, microseconds>

    — <origin> <base64 of key id and signature>

Invariants:
- The signature covers both roots, the label and the time; a checkpoint of another log, label or key does not verify.
- A fingerprint is the SHA-384 of the raw public key, in hex.
Source: c2sp.org/tlog-checkpoint, c2sp.org/signed-note (type 0xff with a longer identifier), FIPS 204.
"""

from __future__ import annotations

import base64
import hashlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from honmaru.core.errors import IntegrityFault

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA87PrivateKey, MLDSA87PublicKey

CONTEXT = b"honmaru ledger checkpoint v1"
"""FIPS 204 context string: a signature made here is valid for nothing else."""

_TYPE = b"\xffML-DSA-87"


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A tree head. `size` counts entries; `time` is ISO 8601; `note` is the signed text as stored."""

    origin: str
    size: int
    sha256: bytes
    sha384: bytes
    label: str
    time: str
    note: str = ""

    @property
    def text(self) -> str:
        return (
            f"{self.origin}\n{self.size}\n{base64.b64encode(self.sha256).decode()}\n"
            f"sha384 {base64.b64encode(self.sha384).decode()}\nlabel {self.label}\ntime {self.time}\n"
        )


class Verifier:
    """A ledger's public key: names logs and reads their checkpoints."""

    def __init__(self, public_key: bytes) -> None:
        from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA87PublicKey

        self._key: MLDSA87PublicKey = MLDSA87PublicKey.from_public_bytes(public_key)
        self.public_key = public_key
        self.fingerprint = hashlib.sha384(public_key).hexdigest()

    @staticmethod
    def stored(path: Path) -> Verifier:
        """The key in a log's `public-key` file. Raises IntegrityFault."""
        try:
            return Verifier.of_line(path.read_text())
        except (OSError, ValueError, IndexError) as error:
            raise IntegrityFault(f"{path} does not hold an ML-DSA-87 verifier key: {error}") from error

    @staticmethod
    def of_line(line: str) -> Verifier:
        """The key in a signed-note verifier key line (`line`). Raises ValueError or IndexError."""
        raw = base64.b64decode(line.strip().split("+", 2)[2], validate=True)
        return Verifier(raw.removeprefix(_TYPE))

    def origin(self, token: str) -> str:
        """Name of a label's log, unique among enclaves."""
        return f"honmaru/{self.fingerprint[:16]}/{token}"

    def holds(self, signature: bytes, content: bytes, context: bytes) -> bool:
        """Whether this key signed `content` for a purpose other than checkpoints (`Signer.sign_bytes`)."""
        from cryptography.exceptions import InvalidSignature

        try:
            self._key.verify(signature, content, context)
        except InvalidSignature:
            return False
        return True

    def line(self, origin: str) -> str:
        """The public key as a signed-note verifier key line."""
        identity = _key_id(origin, self.public_key)
        return f"{origin}+{identity.hex()}+{base64.b64encode(_TYPE + self.public_key).decode()}\n"

    def read(self, path: Path, origin: str, label: str) -> Checkpoint | None:
        """The checkpoint in a file; None without one. Raises IntegrityFault unless this key signed it for this log."""
        try:
            note = path.read_bytes()
        except FileNotFoundError:
            return None
        try:
            checkpoint = self._parse(note.decode())
        except ValueError as error:  # UnicodeDecodeError and binascii.Error are ValueErrors
            raise IntegrityFault(f"{path} is not a signed checkpoint of this enclave: {error}") from error
        if (checkpoint.origin, checkpoint.label) != (origin, label):
            raise IntegrityFault(f"{path} is the checkpoint of another log, {checkpoint.origin}")
        return checkpoint

    def _parse(self, note: str) -> Checkpoint:
        from cryptography.exceptions import InvalidSignature

        text, separator, signature_line = note.rpartition("\n\n")
        lines = text.split("\n")
        names = [line.partition(" ")[0] for line in lines[3:]]
        if not separator or names != ["sha384", "label", "time"]:
            raise ValueError("it does not have the lines of a checkpoint")
        origin, size, root, *rest = lines
        values = [line.partition(" ")[2] for line in rest]
        sha256, sha384 = base64.b64decode(root, validate=True), base64.b64decode(values[0], validate=True)
        checkpoint = Checkpoint(origin, int(size), sha256, sha384, values[1], values[2], note)
        dash, _, tail = signature_line.rstrip("\n").partition(" ")
        name, _, encoded = tail.rpartition(" ")
        raw = base64.b64decode(encoded, validate=True)
        if dash != "—" or name != origin or raw[:4] != _key_id(origin, self.public_key):
            raise ValueError("the signature is by another key")
        if checkpoint.text != text + "\n":
            raise ValueError("the text is not in its one form")
        try:
            self._key.verify(raw[4:], checkpoint.text.encode(), CONTEXT)
        except InvalidSignature as error:
            raise ValueError("the signature does not verify") from error
        return checkpoint


class Signer:
    """The ledger's signing key. One key signs the checkpoints of all logs of an enclave."""

    def __init__(self, seed: bytes) -> None:
        from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA87PrivateKey

        self._key: MLDSA87PrivateKey = MLDSA87PrivateKey.from_seed_bytes(seed)
        self.verifier = Verifier(self._key.public_key().public_bytes_raw())

    def sign(self, checkpoint: Checkpoint) -> Checkpoint:
        """The same checkpoint with its signed note. Takes about 0.8 ms."""
        text = checkpoint.text
        identity = _key_id(checkpoint.origin, self.verifier.public_key)
        signature = identity + self._key.sign(text.encode(), CONTEXT)
        return replace(checkpoint, note=f"{text}\n— {checkpoint.origin} {base64.b64encode(signature).decode()}\n")

    def sign_bytes(self, content: bytes, context: bytes) -> bytes:
        """A signature for another purpose than checkpoints, which `context` names; it is valid for nothing else."""
        if context == CONTEXT:
            raise ValueError("checkpoints are signed by `sign`")
        return self._key.sign(content, context)


def _key_id(origin: str, public_key: bytes) -> bytes:
    return hashlib.sha256(origin.encode() + b"\n" + _TYPE + public_key).digest()[:4]
