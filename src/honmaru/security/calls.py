"""What a service is given to carry out one operation, and what a service must state about itself.

Invariants:
- A service sees records and blobs only through the guarded handles of its `Call`; there is no other way to a store.
- Each operation states the resource it acts on, so the door can ask IAM before the operation runs.
- What a session may do in another account is decided by the policy of the resource; the call then acts in the account
  of that resource (`Call.account`), at the session's own label.

How a resource policy reaches a decision
----------------------------------------
Every question to IAM (the door's, `Call.authorize`, the platform's own work) names an ARN. The service in the ARN
selects the provider that owns such resources (`Provider.arn_services`), and that provider's `resource` answers with a
`Resource`: owner, policy, tags, label. So S3's bucket policy binds a training job that reads the bucket, and KMS's key
policy binds S3 when it asks `call.authorize("kms:Decrypt", key_arn, ...)`, without either knowing the other.
`resource` is asked once for each (place, label) and the answer kept until a record of `resource_kinds` changes in any
account; it may read the database, decisions may not.

    class S3(Provider):
        arn_services = ("s3",)
        resource_kinds = frozenset({"bucket"})

        def resource_place(self, resource: str) -> str:          # "bucket/a/key" → "bucket"
            return resource.partition("/")[0]

        def resource(self, sight: Sight, place: str) -> Resource | None:
            record = sight.get("bucket", place)    # at or below the session's label; in the ARN's account, or any
            return None if record is None else Resource(
                record.account, record.label, policy=record.body.get("policy"), tags=record.body["tags"])

KMS answers `Resource(..., governs=True)`: access starts from the key policy alone, and identity policies (of any
account) count only where the key policy allows the account's root. A KMS grant is one more Allow statement in `policy`.
Role trust policies are the identity's own affair. A resource that nobody can see is None: then only the identity
policies of the ARN's own account decide, and the operation answers not found.

Condition keys of a request (any case; str, int, float, bool, datetime, bytes or a list of them; None is absent)
-----------------------------------------------------------------------------------------------------------------
- `Provider.context(operation, request)`: the service's own keys, `s3:prefix`, `kms:EncryptionContext:<key>` ...
- the door: `aws:RequestTag/<key>` and `aws:TagKeys` from the members Tags, tags, TagList, TagKeys, tagKeys; a provider
  whose tags travel otherwise (S3's x-amz-tagging and XML) returns these keys itself, and its values win.
- the resource: `aws:ResourceTag/<key>`, `aws:ResourceAccount`, `aws:ResourceOrgID`, `honmaru:ResourceLabel` (banner),
  `honmaru:ResourceLevel` (0 U .. 3 TS as in `Label.level`), and whatever `Resource.context` holds.
- the session: `aws:PrincipalArn`, `aws:PrincipalAccount`, `aws:PrincipalOrgID`, `aws:PrincipalOrgPaths`,
  `aws:PrincipalTag/<key>`, `aws:PrincipalType`, `aws:PrincipalIsAWSService`, `aws:userid`, `aws:username`,
  `aws:SourceIp`, `aws:SourceIdentity`, `aws:SecureTransport`, `aws:UserAgent`, `aws:RequestedRegion`,
  `aws:CurrentTime`, `aws:EpochTime`, `aws:TokenIssueTime`, `aws:MultiFactorAuthPresent`, `aws:MultiFactorAuthAge`,
  `aws:FederatedProvider`,
  `honmaru:SessionLabel`, `honmaru:SessionLevel`. These win over whatever a provider returns.
- a service that asks on behalf of its caller passes `aws:ViaAWSService`, `aws:CalledVia`, `kms:ViaService` itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any, ClassVar, Protocol

from honmaru.core.labels import Label
from honmaru.core.sessions import Session
from honmaru.security.guard import Guard, GuardedBlobs, GuardedRecords, Sight


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
    authorizer: Callable[[Session, str, str, Mapping[str, Any]], object]
    status: int | None = None
    response_headers: dict[str, str] = field(default_factory=dict)
    resources: list[tuple[str, str]] = field(default_factory=list)
    details: dict[str, Any] = field(default_factory=dict)
    """Further facts for the ledger entry (digests, token counts); never the content itself."""
    beside: dict[str, Any] = field(default_factory=dict)
    """What AWS's answer has no member for and another dialect's has; AWS's own wire never shows it."""
    owner: str = ""
    """Account of the resource that the door authorised; "" where the door knew of none: the session's own."""

    @property
    def account(self) -> str:
        """The account that the call acts in: that of the resource, which may be another than the session's."""
        return self.owner or self.session.account

    def within(self, account: str) -> Call:
        """This call in the account of another resource (a copy's source), which `authorize` has allowed."""
        return replace(self, owner=account)

    @property
    def acting(self) -> Session:
        """The session as the guard sees it: at the session's label, in the account that the call acts in."""
        session = self.session
        return session if self.owner in ("", session.account) else replace(session, account=self.owner)

    @property
    def records(self) -> GuardedRecords:
        """Records of this service at the session's label."""
        return self.guard.records(self.acting, self.service)

    def records_of(self, service: str) -> GuardedRecords:
        """Records of another service: what services share they meet at a record."""
        return self.guard.records(self.acting, service)

    @property
    def blobs(self) -> GuardedBlobs:
        return self.guard.blobs(self.acting)

    def sight(self, service: str = "") -> Sight:
        """Records of a service (this one's by default) at or below the session's label in every account, to find out
        whether a name that all accounts share is taken (S3's bucket names). Never to answer what is in them."""
        return self.guard.sight(self.session.label, service or self.service, asking=self.session.account)

    def authorize(self, action: str, resource: str, context: Mapping[str, Any] | None = None) -> str:
        """A second question to IAM (iam:PassRole, s3:GetObject of a copy source, kms:Decrypt).

        Returns the account of the resource, for `within`. Raises AccessDenied.
        """
        answer = self.authorizer(self.session, action, resource, context or {})
        return answer if isinstance(answer, str) and answer else self.session.account

    def arn(self, service: str, resource: str, *, region: bool = True) -> str:
        """An ARN in the session's partition and region, and the account that the call acts in."""
        s = self.session
        return f"arn:{s.partition}:{service}:{s.region if region else ''}:{self.account}:{resource}"


@dataclass(frozen=True, slots=True)
class Resource:
    """What one resource brings to every decision about it. See the module for how it gets there.

    `arn`: how policies know the resource, where a request cannot spell it (the path of an IAM user); "" as asked.
    `governs`: access starts from this policy alone (KMS keys); identity policies count only where it allows the
    account's root. `confined`: Allow statements for other accounts than the owner's do not count (S3's
    RestrictPublicBuckets on a public policy).
    """

    account: str
    label: Label
    policy: str | None = None
    tags: Mapping[str, str] = field(default_factory=dict)
    context: Mapping[str, Any] = field(default_factory=dict)
    arn: str = ""
    governs: bool = False
    confined: bool = False


@dataclass(frozen=True, slots=True)
class Target:
    """What an operation asks of IAM: an action and an ARN template.

    Template fields are input member names and {partition} {region} {account}; {Path=/} gives a default, else a member
    that the request leaves out stands for any ("*"). {AlarmNames[]} asks once for each member of a list. A member whose
    value is itself an ARN fills the whole template when the template is exactly that member.

    `given` names a member: only requests that state it are asked this (s3:GetObjectVersion for VersionId). `unless`
    names one: only requests that leave it out are. Use them in pairs, so that every request is asked something.
    """

    action: str
    resource: str = "*"
    given: str = ""
    unless: str = ""


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

    prompt: ClassVar[frozenset[str]] = frozenset()
    """Operations that touch no store, or read a few records by name and nothing else: where the record store is on
    this machine they run on the event loop itself, because a thread would cost more than they do."""

    anywhere: ClassVar[frozenset[str]] = frozenset()
    """Operations that every process of an enclave may carry out: they use records, blobs, identity and keys, rely on
    conditions of records rather than on locks, and keep nothing in memory that another process would have to know. All
    others are carried out by the enclave's first process."""

    unauthorized: ClassVar[frozenset[str]] = frozenset()
    """Operations that any authenticated principal may call (sts:GetCallerIdentity)."""

    unsigned: ClassVar[frozenset[str]] = frozenset()
    """Operations that carry their own proof and need no signature (sts:AssumeRoleWithWebIdentity). They run as nobody,
    at the lowest label, and must be among `unauthorized`."""

    arn_services: ClassVar[tuple[str, ...]] = ()
    """Services in ARNs (the third component) whose resources `resource` knows."""

    resource_kinds: ClassVar[frozenset[str]] = frozenset()
    """Kinds of this service's records from which `resource` is made: a change of one makes it ask again."""

    resource_bears_policy: ClassVar[bool] = True
    """False where resources have tags and a label but neither a policy nor an owner that their ARN does not tell: then
    `resource` is asked only when a condition asks for `aws:ResourceTag/...` or the label."""

    resource_makers: ClassVar[frozenset[str]] = frozenset()
    """IAM actions that make a resource (s3:CreateBucket): a namesake in another account has no say in them."""

    def context(self, operation: str, request: Mapping[str, Any]) -> Mapping[str, Any]:  # noqa: ARG002
        """Service-specific IAM condition keys of a request, for example {"s3:prefix": "a/"}."""
        return {}

    def resource_place(self, resource: str) -> str:
        """The part of an ARN's last component that names what bears the policy; "" when nothing of it does."""
        return resource

    def resource(self, sight: Sight, place: str) -> Resource | None:  # noqa: ARG002
        """Who owns a resource and what policy it bears; None when there is none at or below the sight's label.

        Pure but for reading through `sight`; asked once for each place and label until `resource_kinds` change.
        """
        return None
