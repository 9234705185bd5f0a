"""GetKeyLastUsage: when a key was last used, read from the ledger, which has every use.

Label: entries at or below the session's label; what a higher session did with a key is not told. A use through S3 is
the key operation that it stands for.

Source: AWS KMS API reference, GetKeyLastUsage.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any, Protocol

from honmaru.core.labels import Label
from honmaru.security.calls import Call
from honmaru.services.kms.keys import moment, permitted

_TRACKED = frozenset(
    [
        "Decrypt",
        "DeriveSharedSecret",
        "Encrypt",
        "GenerateDataKey",
        "GenerateDataKeyPair",
        "GenerateDataKeyPairWithoutPlaintext",
        "GenerateDataKeyWithoutPlaintext",
        "GenerateMac",
        "ReEncrypt",
        "Sign",
        "Verify",
        "VerifyMac",
        "Encapsulate",
        "Decapsulate",
    ]
)
_THROUGH_S3 = {
    "PutObject": "GenerateDataKey",
    "CreateMultipartUpload": "GenerateDataKey",
    "CopyObject": "GenerateDataKey",
    "GetObject": "Decrypt",
    "UploadPart": "Decrypt",
    "UploadPartCopy": "Decrypt",
}


class UsageLog(Protocol):
    """What this needs of the ledger."""

    def labels(self) -> list[Label]: ...

    def size(self, label: Label) -> int: ...

    def backward(
        self, label: Label, before: int, words: Sequence[str] = (), *, until: int = 0
    ) -> Iterator[tuple[int, Mapping[str, Any]]]: ...

    def position(self, label: Label, time: str) -> int: ...


def describe(call: Call, request: Mapping[str, Any], ledger: UsageLog) -> dict[str, Any]:
    _, key = permitted(call, request["KeyId"], "GetKeyLastUsage")
    created = moment(key.body["created"])
    found: list[tuple[datetime, str, Mapping[str, Any]]] = []
    for label in ledger.labels():
        if call.session.label.dominates(label):
            until = ledger.position(label, created.strftime("%Y-%m-%dT%H:%M:%S.000000Z"))
            entries = (entry for _, entry in ledger.backward(label, ledger.size(label), [key.name], until=until))
            used = ((entry, _operation(entry, key.body["arn"])) for entry in entries)
            last = next(((entry, operation) for entry, operation in used if operation), None)
            if last is not None:
                found.append((moment(last[0]["eventTime"]), last[1], last[0]))
    answer: dict[str, Any] = {"KeyId": key.body["arn"], "TrackingStartDate": created, "KeyCreationDate": created}
    if found:
        at, operation, entry = max(found, key=lambda one: one[0])
        answer["KeyLastUsage"] = {
            "Operation": operation,
            "Timestamp": at,
            "CloudTrailEventId": entry["eventID"],
            "KmsRequestId": entry.get("requestID"),
        }
    return answer


def _operation(entry: Mapping[str, Any], arn: str) -> str:
    """The tracked operation on a key that an entry tells of; "" for any other entry."""
    if entry.get("errorCode") or not any(one.get("ARN") == arn for one in entry.get("resources") or ()):
        return ""
    name, source = str(entry["eventName"]), entry["eventSource"]
    if source == "kms.amazonaws.com":
        return name if name in _TRACKED else ""
    return _THROUGH_S3.get(name, "") if source == "s3.amazonaws.com" else ""
