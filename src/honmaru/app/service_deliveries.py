"""Services that write into callers' buckets: allowed by the bucket's policy, and by nothing else.

Invariants:
- The decision is made on the bucket's policy at the moment of the write, for the service as principal
  (`{"Service": "cloudtrail.amazonaws.com"}`), with `aws:SourceArn`, `aws:SourceAccount` and `s3:x-amz-acl`.
- Where there is no such policy, or it cannot be read, the answer is no.
- Every write and every refused one leaves an entry, as a caller's would.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from honmaru.core.errors import AccessDenied, NotFound
from honmaru.core.sessions import Session
from honmaru.ports.buckets import StoredObject
from honmaru.ports.deliveries import NOTHING
from honmaru.ports.runtime import Clock, Ids
from honmaru.security.guard import Guard
from honmaru.security.identity import Identity
from honmaru.security.ledger import Ledger
from honmaru.security.policy import Caller, Effect, PolicyKind, PolicySet, ResourcePolicy, compile_policy, decide
from honmaru.services.s3.access import S3Buckets
from honmaru.services.s3.bucket import BucketCommits


class ServiceDeliveries:
    """A `ports.deliveries.Deliveries` of one service. Thread-safe.

    Args:
        principal: The service as policies name it, for example "cloudtrail.amazonaws.com".
    """

    def __init__(
        self,
        principal: str,
        guard: Guard,
        identity: Identity,
        ledger: Ledger,
        clock: Clock,
        ids: Ids,
        commits: BucketCommits,
    ) -> None:
        self._principal = principal
        self._guard = guard
        self._identity = identity
        self._rest = (ledger, clock, ids, commits)

    def check(self, session: Session, bucket: str, key: str, *, source_arn: str) -> None:
        """See `ports.deliveries.Deliveries`."""
        if self._guard.records(session, "s3").get("bucket", bucket) is None:
            raise NotFound("The specified bucket does not exist", code="NoSuchBucket")
        question = ServiceQuestion(self._identity, self._principal, source_arn)
        question.require(session, "s3:PutObject", f"arn:{session.partition}:s3:::{bucket}/{key}", {})

    def check_key(self, session: Session, kms_key: str, *, source_arn: str, context: Mapping[str, str]) -> None:
        """See `ports.deliveries.Deliveries`."""
        facts: dict[str, Any] = {f"kms:EncryptionContext:{name}": value for name, value in context.items()}
        facts["kms:EncryptionContextKeys"] = sorted(context)
        ServiceQuestion(self._identity, self._principal, source_arn).require(
            session, "kms:GenerateDataKey", kms_key, facts
        )

    def write(
        self,
        session: Session,
        bucket: str,
        key: str,
        chunks: Iterable[bytes],
        *,
        source_arn: str,
        kms_key: str = "",
        context: Mapping[str, str] = NOTHING,
    ) -> StoredObject:
        """See `ports.deliveries.Deliveries`."""
        question = ServiceQuestion(self._identity, self._principal, source_arn)
        return S3Buckets(self._guard, question, *self._rest).write(session, bucket, key, chunks, kms_key, context)


class ServiceQuestion:
    """Asks the policy of a resource whether a service may. `source_arn` "": what the encryption context names."""

    def __init__(self, identity: Identity, principal: str, source_arn: str = "") -> None:
        self._identity = identity
        self._principal = principal
        self._source_arn = source_arn

    def require(self, session: Session, action: str, resource: str, context: Mapping[str, Any]) -> str:
        found = self._identity.resources.find(resource.split(":", 5), session.label)
        policy = None if found is None or found.account != session.account else found.policy
        if policy is not None:
            asked = {
                **{key.lower(): value for key, value in context.items()},
                "aws:sourcearn": self._source_arn or context.get("kms:EncryptionContext:aws:logs:arn"),
                "aws:sourceaccount": session.account,
                "aws:principalisawsservice": "true",
                "aws:securetransport": "true",
                "s3:x-amz-acl": "bucket-owner-full-control",
            }
            policies = compile_policy(policy, "", PolicyKind.RESOURCE)
            side = ResourcePolicy(policies, Caller(service=self._principal), same_account=True)
            decision = decide(action, resource, asked, identity=PolicySet.union([]), of_resource=side)
            if decision.effect is Effect.ALLOWED:
                return session.account
        raise AccessDenied(f"The policy of {resource} does not allow {self._principal} to perform {action}")
