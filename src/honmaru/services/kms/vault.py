"""Custody of key material: the only place where it is taken out of its seal, and for the length of one use.

A key's material lies in records of kind "material" named `key id/material id`, wrapped by the keyring for the key's
account and label and for that name. The record's body is sealed once more by the guard, so material is under two seals
on disk, and under one wherever a record's body goes in memory.

Invariants:
- Plain material is never in a record, a log, a ledger entry or an answer; `opened` overwrites its copy after use.
- Material that was destroyed is gone with its record: there is no second copy.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from honmaru.core.errors import IntegrityFault
from honmaru.core.labels import Label
from honmaru.ports.runtime import Ids
from honmaru.security.crypto.keyring import Keyring
from honmaru.security.guard import Creation, GuardedRecords, Record

MATERIAL = "material"
_TOKEN = b"kms import token"


def material_name(key_id: str, material_id: str) -> str:
    return f"{key_id}/{material_id}"


class Vault:
    """Wraps and opens material. Holds the keyring for it, and nothing else of the enclave."""

    def __init__(self, keyring: Keyring, ids: Ids) -> None:
        self._keyring = keyring
        self.ids = ids

    def stored(self, account: str, label: Label, key_id: str, material_id: str, material: bytes) -> Creation:
        """The creation of a material record, to be applied together with the key's own change."""
        name = material_name(key_id, material_id)
        wrapped = self._keyring.wrap(account, label.canonical, material, _context(name))
        return Creation(MATERIAL, name, {"wrapped": wrapped.hex()})

    @contextmanager
    def opened(self, records: GuardedRecords, key: Record, material_id: str) -> Iterator[bytearray]:
        """Plain material for one use; its buffer is overwritten at the end.

        Raises IntegrityFault when it is missing although the key says that it is there, or does not open.
        Label: reads at or below the session's label.
        """
        record = self.find(records, key, material_id)
        if record is None:
            raise IntegrityFault("the material of a key is missing; restore it from a backup")
        buffer = self._keyring.unwrap_into(
            record.account, record.label.canonical, bytes.fromhex(record.body["wrapped"]), _context(record.name)
        )
        try:
            yield buffer
        finally:
            buffer[:] = bytes(len(buffer))

    @staticmethod
    def find(records: GuardedRecords, key: Record, material_id: str) -> Record | None:
        """The record of a key's material: the instance at the key's own label."""
        name = material_name(key.name, material_id)
        return next((one for one in records.instances(MATERIAL, name) if one.label == key.label), None)

    def token(self, account: str, label: Label, plain: bytes) -> bytes:
        """Bytes for a caller to bring back, sealed for an account and label."""
        return self._keyring.seal(account, label.canonical, plain, _TOKEN)

    def opened_token(self, account: str, label: Label, token: bytes) -> bytes:
        """The inverse of `token`. Raises IntegrityFault."""
        return self._keyring.open(account, label.canonical, token, _TOKEN)


def _context(name: str) -> bytes:
    return b"kms material " + name.encode()
