"""S3 for the platform's own work: what jobs and deployments may do with buckets, as a session.

Invariants:
- Every call passes the same two gates as a client's: IAM (`identity.require`) and the guard at the session's label.
- Every call leaves a ledger entry, durable before `list` or `write` return or the first byte of `read` is given,
  refused calls too.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Protocol, TypeVar

from honmaru.core.errors import HonmaruError
from honmaru.core.sessions import Session
from honmaru.ports.buckets import StoredObject
from honmaru.ports.runtime import Clock, Ids
from honmaru.security.calls import Call
from honmaru.security.guard import Guard
from honmaru.security.guard.guard import EntryLog
from honmaru.security.ledger.entries import api_call
from honmaru.services.s3 import bucket as buckets
from honmaru.services.s3 import checksums
from honmaru.services.s3 import object as objects
from honmaru.services.s3.listing import walk
from honmaru.services.s3.requests import check_key

_OBJECT_LIMIT = 5 << 40
_Result = TypeVar("_Result")


class Authorizer(Protocol):
    """What this needs of `security.identity.Identity`."""

    def require(self, session: Session, action: str, resource: str, context: Mapping[str, Any]) -> object: ...


class S3Buckets:
    """A `ports.buckets.Buckets`. Thread-safe.

    Args:
        commits: The one that the S3 provider holds.
    """

    def __init__(
        self,
        guard: Guard,
        identity: Authorizer,
        ledger: EntryLog,
        clock: Clock,
        ids: Ids,
        commits: buckets.BucketCommits,
    ) -> None:
        self._guard = guard
        self._identity = identity
        self._ledger = ledger
        self._clock = clock
        self._ids = ids
        self._commits = commits

    def list(self, session: Session, bucket: str, prefix: str) -> Iterator[StoredObject]:
        """Every visible object with the prefix, by key. Raises NotFound (bucket) or AccessDenied, at once."""
        call = self._call(session, "ListObjectsV2")

        def work() -> Iterator[StoredObject]:
            owner = call.authorize("s3:ListBucket", self._arn(session, bucket), {"s3:prefix": prefix})
            there = call.within(owner)
            buckets.require(there.records, {"Bucket": bucket})
            return (
                StoredObject(bucket, entry.text, entry.record.body["size"], entry.record.body["etag"])
                for entry in walk(there.records, bucket, prefix, "", "", 256)
                if entry.record is not None
            )

        return self._recorded(call, [(self._arn(session, bucket), "AWS::S3::Bucket")], True, work)

    def read(self, session: Session, bucket: str, key: str) -> Iterator[bytes]:
        """The object's plain bytes in chunks. Raises NotFound or AccessDenied before the first chunk."""
        call = self._call(session, "GetObject")
        arn = self._arn(session, f"{bucket}/{key}")

        def work() -> Iterator[bytes]:
            there = call.within(call.authorize("s3:GetObject", arn))
            chunks: Iterator[bytes] = objects.get(there, {"Bucket": bucket, "Key": key}, self._commits)["Body"]
            return chunks

        return self._recorded(call, [(arn, "AWS::S3::Object")], True, work)

    def write(
        self,
        session: Session,
        bucket: str,
        key: str,
        chunks: Iterable[bytes],
        kms_key: str = "",
        kms_context: Mapping[str, str] | None = None,
    ) -> StoredObject:
        """Store an object at the session's label; durable on return. Raises NotFound (bucket) or AccessDenied.

        `kms_context` is added to the encryption context under `kms_key`.
        """
        call = self._call(session, "PutObject")
        arn = self._arn(session, f"{bucket}/{key}")

        def work() -> StoredObject:
            there = call.within(call.authorize("s3:PutObject", arn))
            check_key(key)
            request = {"Bucket": bucket, "Key": key}
            if kms_key:
                request |= {"ServerSideEncryption": "aws:kms", "SSEKMSKeyId": kms_key}
            if kms_context:
                stated = base64.b64encode(json.dumps(dict(kms_context)).encode()).decode()
                request["SSEKMSEncryptionContext"] = stated
            target = buckets.require(there.records, request)
            intake = checksums.Intake(chunks, checksums.DEFAULT, limit=_OBJECT_LIMIT)
            record = objects.keep(there, request, self._commits, target, intake, {}, request, {})
            return StoredObject(bucket, key, record.body["size"], record.body["etag"])

        return self._recorded(call, [(arn, "AWS::S3::Object")], False, work)

    def _call(self, session: Session, operation: str) -> Call:
        return Call(
            session=session,
            service="s3",
            operation=operation,
            request_id=self._ids.uuid(),
            now=self._clock.now(),
            guard=self._guard,
            headers={},
            query={},
            authorizer=lambda *question: self._require(*question),
        )

    def _require(self, session: Session, action: str, resource: str, context: Mapping[str, Any]) -> object:
        return self._identity.require(session, action, resource, context)

    def _recorded(
        self, call: Call, resources: Iterable[tuple[str, str]], read_only: bool, work: Callable[[], _Result]
    ) -> _Result:
        """Do the work, then make its entry durable, whether it succeeded or was refused."""
        try:
            result = work()
        except HonmaruError as fault:
            code = fault.code or type(fault).__name__
            self._append(call, resources, read_only, decision="Deny", error=(code, fault.message))
            raise
        self._append(call, resources, read_only, decision="Allow", error=(None, None))
        return result

    def _append(
        self,
        call: Call,
        resources: Iterable[tuple[str, str]],
        read_only: bool,
        *,
        decision: str,
        error: tuple[str | None, str | None],
    ) -> None:
        session = call.session
        entry = api_call(
            event_id=self._ids.uuid(),
            session=session,
            service="s3",
            event_source="s3.amazonaws.com",
            operation=call.operation,
            request_id=call.request_id,
            at=self._clock.now(),
            decision=decision,
            error_code=error[0],
            error_message=error[1],
            resources=[*resources, *call.resources],
            details=call.details,
            region=session.region,
            account=session.account,
            read_only=read_only,
        )
        self._ledger.append(session.label, entry).result()

    @staticmethod
    def _arn(session: Session, resource: str) -> str:
        return f"arn:{session.partition}:s3:::{resource}"
