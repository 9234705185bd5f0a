"""What a service is given to carry out one operation, and what a service must state about itself.

Invariants:
- A service sees records and blobs only through the guarded handles of its `Call`; there is no other way to a store.
- Each operation states the resource it acts on, so the door can ask IAM before the operation runs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, ClassVar, Protocol

from honmaru.core.sessions import Session
from honmaru.security.guard import Guard, GuardedBlobs, GuardedRecords


class ByteStream(Protocol):
    """The body of a streaming upload, read by the worker thread; the gateway feeds it with back-pressure."""

    length: int | None
    """Decoded length as the client declared it; None when unknown."""

    def read(self, size: int = 1 << 20) -> bytes:
        """The next at most `size` bytes; b"" at the end. Raises a RequestFault when the upload is broken, its
        signature or trailing checksum is wrong, or the client is too slow."""
        ...

    def __iter__(self) -> Iterator[bytes]: ...

    @property
    def trailers(self) -> Mapping[str, str]:
        """Trailing headers by lower-case name (checksums), known once read() has returned b""."""
        ...


@dataclass(slots=True)
class Call:
    """One authenticated, authorised, parsed operation.

    `headers` are the raw request headers by lower-case name (for what the model does not carry).
    Set `status` to answer another success status than the model's (206 for a range).
    `resources` collects (ARN, AWS type) pairs for the ledger entry.
    """

    session: Session
    service: str
    operation: str
    request_id: str
    now: datetime
    guard: Guard
    headers: Mapping[str, str]
    query: Mapping[str, str]
    authorizer: Callable[[Session, str, str, Mapping[str, Any]], None]
    status: int | None = None
    response_headers: dict[str, str] = field(default_factory=dict)
    resources: list[tuple[str, str]] = field(default_factory=list)
    details: dict[str, Any] = field(default_factory=dict)
    """Further facts for the ledger entry (digests, token counts); never the content itself."""

    @property
    def records(self) -> GuardedRecords:
        """Records of this service at the session's label."""
        return self.guard.records(self.session, self.service)

    def records_of(self, service: str) -> GuardedRecords:
        """Records of another service: what services share they meet at a record."""
        return self.guard.records(self.session, service)

    @property
    def blobs(self) -> GuardedBlobs:
        return self.guard.blobs(self.session)

    def authorize(self, action: str, resource: str, context: Mapping[str, Any] | None = None) -> None:
        """A second question to IAM (iam:PassRole, s3:GetObject of a copy source). Raises AccessDenied."""
        self.authorizer(self.session, action, resource, context or {})

    def arn(self, service: str, resource: str, *, region: bool = True) -> str:
        """An ARN in the session's partition, region and account."""
        s = self.session
        return f"arn:{s.partition}:{service}:{s.region if region else ''}:{s.account}:{resource}"


@dataclass(frozen=True, slots=True)
class Target:
    """What an operation asks of IAM: an action and an ARN template.

    Template fields are input member names and {partition} {region} {account}. A member whose value is itself an ARN
    fills the whole template when the template is exactly that member.
    """

    action: str
    resource: str = "*"


class Provider:
    """Base of every service: one public method per operation, named in snake case, taking (call, request).

    `request` holds parsed, validated members under their AWS names (timestamps as aware datetimes, blobs as bytes,
    streaming blobs as ByteStream). The answer is a mapping of AWS names; None values are left out. An event stream
    member is an iterator or async iterator of {event: {members}}; a streaming blob is bytes or an iterator of bytes.
    A method may be `async def`, then it runs on the event loop; all others run in a worker thread.
    """

    service: ClassVar[str]
    """botocore's service name, for example "bedrock-runtime"."""

    targets: ClassVar[Mapping[str, Target | Sequence[Target]]] = {}
    """AWS operation name → what to ask IAM. Absent: `<iam prefix>:<Operation>` on "*"."""

    unauthorized: ClassVar[frozenset[str]] = frozenset()
    """Operations that any authenticated principal may call (sts:GetCallerIdentity)."""

    def context(self, operation: str, request: Mapping[str, Any]) -> Mapping[str, Any]:  # noqa: ARG002
        """Service-specific IAM condition keys of a request, for example {"s3:prefix": "a/"}."""
        return {}
