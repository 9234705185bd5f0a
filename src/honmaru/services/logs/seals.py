"""Log groups under a key of KMS: what their events are sealed under, and what opens them.

A group that has a key keeps a data key, wrapped by the key service, for each key that it ever had: events stay under
the key with which they were written, as with AWS. Every chunk is sealed at rest in any case; a chunk of such a group
holds its events sealed once more.

Invariants:
- CloudWatch Logs uses the key in its own name, at the group's own label: the key's policy must let
  `logs.<region>.amazonaws.com`, with the group's ARN as `aws:logs:arn` in the encryption context.
- A group whose key cannot be used takes no events and shows none of those under it. A key's destruction shreds them.
- An opened data key is kept in memory for `KEPT_S` at most, so a key that is disabled stops being used that soon.

Source: Amazon CloudWatch Logs user guide, "Encrypt log data in CloudWatch Logs using AWS KMS".
"""

from __future__ import annotations

import base64
import threading
from collections.abc import Mapping, Sequence
from typing import Any

import orjson
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from honmaru.core.errors import AccessDenied, IntegrityFault, RequestFault, ValidationFault
from honmaru.core.sessions import Session, platform_session
from honmaru.ports.keys import SessionKeys
from honmaru.ports.runtime import Clock, Ids
from honmaru.security.guard import Record

KEPT_S = 5.0
KEYS_LIMIT = 20
_SERVICE, _CONTEXT, _NONCE_BYTES = "logs", "aws:logs:arn", 12
_MEMORY = 256
EVENT_OVERHEAD = 26
"""Bytes that CloudWatch counts for an event besides its message."""


class Seals:
    """See the module. Thread-safe. `keys` None: groups take no keys."""

    def __init__(self, keys: SessionKeys | None, clock: Clock, ids: Ids) -> None:
        self._keys, self._clock, self._ids = keys, clock, ids
        self._opened: dict[str, tuple[float, bytes]] = {}
        self._lock = threading.Lock()

    def associated(self, session: Session, group: str, body: Mapping[str, Any], key: str) -> dict[str, Any]:
        """The members of a group's body once it has a key (an ARN). Raises ValidationFault."""
        held: dict[str, Any] = dict(body.get("seals") or {})
        if self._keys is None or not key.startswith("arn:") or ":key/" not in key:
            raise _invalid("kmsKeyId must be the ARN of a symmetric key of KMS")
        if key not in held:
            if len(held) >= KEYS_LIMIT:
                raise _invalid(f"a log group has had at most {KEYS_LIMIT} keys")
            with _worded(key):
                place, own = _place(session, group)
                held[key] = self._keys.data_key(own, key, {_CONTEXT: place}, _SERVICE).wrapped.hex()
        else:
            self._key(session, group, key, held[key], fresh=True)
        return {"seals": held, "key": key}

    def seal(self, session: Session, group: Record, name: str, events: Sequence[Any]) -> dict[str, Any]:
        """The members of a chunk that hold its events: plain where the group has no key. Raises ValidationFault."""
        key = group.body.get("key")
        if not key:
            return {"events": events}
        plain = self._key(session, group.name, key, group.body["seals"][key])
        nonce = self._ids.secret(_NONCE_BYTES)
        sealed = nonce + AESGCM(plain).encrypt(nonce, orjson.dumps(events), name.encode())
        return {
            "seal": key,
            "sealed": base64.b64encode(sealed).decode(),
            "bytes": sum(len(message.encode("utf-8", "replace")) + EVENT_OVERHEAD for _, message in events),
            "last_ms": max(timestamp_ms for timestamp_ms, _ in events),
        }

    def open(self, session: Session, group: Record | None, chunk: Record) -> list[Any]:
        """The events of a chunk. Raises ValidationFault when its key cannot be used, IntegrityFault."""
        body = chunk.body
        key = body.get("seal")
        if key is None:
            events: list[Any] = body["events"]
            return events
        wrapped = None if group is None else (group.body.get("seals") or {}).get(key)
        if group is None or wrapped is None:
            raise IntegrityFault("a log group lost the key of its events")
        sealed = base64.b64decode(body["sealed"])
        plain = self._key(session, group.name, key, wrapped)
        try:
            opened = AESGCM(plain).decrypt(sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:], chunk.name.encode())
        except InvalidTag:
            raise IntegrityFault("sealed events of a log group do not verify") from None
        return list(orjson.loads(opened))

    def _key(self, session: Session, group: str, key: str, wrapped: str, *, fresh: bool = False) -> bytes:
        now = self._clock.monotonic()
        with self._lock:
            known = self._opened.get(wrapped)
        if known is not None and not fresh and now - known[0] < KEPT_S:
            return known[1]
        if self._keys is None:
            raise _invalid("the log group is sealed under a key of KMS, and there is no key service")
        with _worded(key):
            place, own = _place(session, group)
            plain = self._keys.open(own, bytes.fromhex(wrapped), {_CONTEXT: place}, _SERVICE)
        with self._lock:
            if len(self._opened) >= _MEMORY:
                self._opened.clear()
            self._opened[wrapped] = (now, plain)
        return plain


def last_ms(chunk: Record) -> int:
    """The time of a chunk's latest event, which needs no key."""
    body = chunk.body
    return int(body["last_ms"]) if "seal" in body else max((at for at, _ in body["events"]), default=0)


def _place(session: Session, group: str) -> tuple[str, Session]:
    """A group's ARN, and CloudWatch Logs's own session at the label of `session`."""
    arn = f"arn:{session.partition}:logs:{session.region}:{session.account}:log-group:{group}"
    return arn, platform_session(session.account, session.partition, session.region, _SERVICE, session.label)


def _invalid(message: str) -> ValidationFault:
    return ValidationFault(message, code="InvalidParameterException")


class _worded:  # noqa: N801 - used as a function
    """Puts refusals of the key service into the words of CloudWatch Logs."""

    def __init__(self, key: str) -> None:
        self._key = key

    def __enter__(self) -> None:
        return None

    def __exit__(self, _kind: object, fault: BaseException | None, _trace: object) -> None:
        if isinstance(fault, AccessDenied):
            raise _invalid(
                f"The specified KMS key {self._key} could not be used: its policy must allow CloudWatch Logs in this "
                "Region to use it for this log group"
            ) from None
        if isinstance(fault, RequestFault):
            raise _invalid(f"The specified KMS key {self._key} could not be used: {fault.message}") from None
