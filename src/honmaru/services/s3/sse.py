"""Server-side encryption with keys of the key service (SSE-KMS): what seals new content, and what opens it.

Every object has a data key of its own in any case, wrapped for its account and label. Under SSE-KMS that data key is
sealed first under a data key which the key service made, and of which the object's record keeps the wrapped form only.

Invariants:
- Writing asks kms:GenerateDataKey and reading kms:Decrypt, as the caller, by way of S3; a key that is disabled, waits
  for its deletion or is destroyed opens nothing, whoever asks, the platform too.
- What a request says wins over the bucket's default. A bucket key is made once for a bucket, key and label and kept
  wrapped in a record of kind "bucket-key"; its objects are bound to the bucket's ARN instead of their own.

Source: Amazon S3 user guide, "Using server-side encryption with AWS KMS keys", "S3 Bucket Keys".
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from honmaru.core.errors import AccessDenied, Conflict, HonmaruError, IntegrityFault, NotImplementedYet, ValidationFault
from honmaru.ports.keys import Keys
from honmaru.security.calls import Call
from honmaru.security.guard import Record
from honmaru.services.s3 import encryption

BUCKET_KEY = "bucket-key"
_SERVICE = "s3"
_OBJECT_ARN = "aws:s3:arn"


@dataclass(frozen=True, slots=True)
class Sealing:
    """How new content is sealed. `kept` goes into its record's body, `seal` to the blob that is written."""

    kept: Mapping[str, Any] = field(default_factory=dict)
    seal: bytes | None = field(default=None, repr=False)


def for_write(call: Call, keys: Keys[Call] | None, request: Mapping[str, Any], bucket: Record) -> Sealing:
    """What new content of a request's bucket and key is sealed under.

    Raises ValidationFault (InvalidArgument, or the key service's code after "KMS."), AccessDenied.
    """
    default = encryption.default_of(bucket)
    algorithm = request.get("ServerSideEncryption")
    key_id = request.get("SSEKMSKeyId")
    if key_id and algorithm != encryption.KMS:
        raise ValidationFault(
            "Server Side Encryption with AWS KMS managed key requires HTTP header x-amz-server-side-encryption : "
            "aws:kms",
            code="InvalidArgument",
        )
    if algorithm is None:
        algorithm = default.algorithm
    if algorithm == encryption.AES256:
        return Sealing()
    if algorithm != encryption.KMS or keys is None:
        raise NotImplementedYet(
            f"ServerSideEncryption {algorithm} is not implemented by honmaru; use AES256 or aws:kms",
            code="NotImplemented",
        )
    if key_id is None and default.algorithm == encryption.KMS:
        key_id = default.key_id
    stated = request.get("BucketKeyEnabled")
    shared = default.bucket_key if stated is None else bool(stated)
    context = _stated_context(request)
    place = f"arn:{call.session.partition}:s3:::{request['Bucket']}"
    context[_OBJECT_ARN] = place if shared else f"{place}/{request['Key']}"
    with _worded():
        if shared:
            arn, plain, wrapped = _bucket_key(call, keys, request["Bucket"], key_id or "", context)
        else:
            made = keys.data_key(call, key_id or "", context, _SERVICE)
            arn, plain, wrapped = made.arn, made.plain, made.wrapped
    call.details["kmsKey"] = arn
    return Sealing({"sse": {"key": arn, "wrapped": wrapped.hex(), "context": context, "bucket_key": shared}}, plain)


def _bucket_key(
    call: Call, keys: Keys[Call], bucket: str, key_id: str, context: Mapping[str, str]
) -> tuple[str, bytes, bytes]:
    arn = keys.resolve(call, key_id, _SERVICE).arn
    name = f"{bucket}/{arn.rpartition('/')[2]}/{json.dumps(sorted(context.items()))}"
    records = call.records
    for _ in range(3):
        held = next((one for one in records.instances(BUCKET_KEY, name) if one.label == call.session.label), None)
        if held is not None:
            wrapped = bytes.fromhex(held.body["wrapped"])
            return arn, keys.open(call, wrapped, context, _SERVICE), wrapped
        made = keys.data_key(call, arn, context, _SERVICE)
        try:
            records.create(BUCKET_KEY, name, {"wrapped": made.wrapped.hex()})
        except Conflict:
            continue  # another request made it at the same moment
        return arn, made.plain, made.wrapped
    raise Conflict("A conflicting operation is in progress against this resource. Try again.", code="OperationAborted")


def for_read(call: Call, keys: Keys[Call] | None, body: Mapping[str, Any]) -> bytes | None:
    """What opens the blobs of an object or an upload; None for those sealed under the enclave's key alone.

    Raises ValidationFault with the key service's code after "KMS.", AccessDenied.
    """
    kept = body.get("sse")
    if kept is None:
        return None
    if keys is None:
        raise NotImplementedYet("this object needs the key service, which is not here", code="NotImplemented")
    call.details["kmsKey"] = kept["key"]
    with _worded():
        return keys.open(call, bytes.fromhex(kept["wrapped"]), kept["context"], _SERVICE)


def described(body: Mapping[str, Any]) -> dict[str, Any]:
    """The members of an answer that say how an object is encrypted."""
    kept = body.get("sse")
    if kept is None:
        return {"ServerSideEncryption": encryption.AES256}
    return {
        "ServerSideEncryption": encryption.KMS,
        "SSEKMSKeyId": kept["key"],
        "BucketKeyEnabled": True if kept["bucket_key"] else None,
    }


def _stated_context(request: Mapping[str, Any]) -> dict[str, str]:
    """The x-amz-server-side-encryption-context header: base64 of a JSON object of strings."""
    text = request.get("SSEKMSEncryptionContext")
    if not text:
        return {}
    try:
        context = json.loads(base64.b64decode(text, validate=True))
    except (binascii.Error, ValueError):
        context = None
    if not isinstance(context, dict) or not all(isinstance(value, str) for value in context.values()):
        raise ValidationFault("The header x-amz-server-side-encryption-context is invalid", code="InvalidArgument")
    if _OBJECT_ARN in context:
        raise ValidationFault(f"the encryption context holds {_OBJECT_ARN}, which S3 sets", code="InvalidArgument")
    return context


class _worded:  # noqa: N801 - used as a function
    """Puts refusals of the key service into S3's words."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, _kind: object, fault: BaseException | None, _trace: object) -> None:
        if not isinstance(fault, HonmaruError) or isinstance(fault, AccessDenied | IntegrityFault | NotImplementedYet):
            return
        code = fault.code or ""
        if code == "InvalidCiphertextException":
            raise IntegrityFault("the wrapped key of an object does not open; restore the object from a backup")
        if code.endswith("Exception"):
            raise ValidationFault(fault.message, code=f"KMS.{code}") from None
