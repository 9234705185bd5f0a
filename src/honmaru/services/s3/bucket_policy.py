"""Bucket policies: their documents checked as S3 checks them, and whether one is public.

Decisions are taken at the door (`security.policy`) from what `provider.S3.resource` says of a bucket; this file keeps
what may be put there.

Invariants:
- A document names this bucket only, actions of S3 only, and each statement's actions fit at least one of its resources.
- A condition on a key of S3's that honmaru never supplies is refused (`condition_keys`).
- A policy is public when it allows everybody with no condition that pins the caller to fixed values; with
  BlockPublicPolicy on it is not stored.
- A policy that would keep its own author from changing it again is not stored unless the author confirms.

Source: S3 user guide, "Policies and permissions in Amazon S3", "The meaning of public"; IAM grammar.
"""

from __future__ import annotations

import fnmatch
import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

from honmaru.core.errors import AccessDenied, NotImplementedYet, ValidationFault
from honmaru.security.calls import Call
from honmaru.security.guard import Record
from honmaru.security.policy.documents import Document, MalformedPolicy, PolicyKind, Statement, read_policy
from honmaru.services.s3 import bucket as buckets
from honmaru.services.s3 import condition_keys, public_access, settings

LIMIT_BYTES = 20 * 1024

_OBJECT_ACTIONS = (
    "AbortMultipartUpload BypassGovernanceRetention DeleteObject DeleteObjectTagging DeleteObjectVersion "
    "DeleteObjectVersionTagging GetObject GetObjectAcl GetObjectAttributes GetObjectLegalHold GetObjectRetention "
    "GetObjectTagging GetObjectTorrent GetObjectVersion GetObjectVersionAcl GetObjectVersionAttributes "
    "GetObjectVersionForReplication GetObjectVersionTagging GetObjectVersionTorrent ListMultipartUploadParts "
    "ObjectOwnerOverrideToBucketOwner PutObject PutObjectAcl PutObjectLegalHold PutObjectRetention "
    "PutObjectTagging PutObjectVersionAcl PutObjectVersionTagging ReplicateDelete ReplicateObject ReplicateTags "
    "RestoreObject UpdateObjectEncryption"
)
_BUCKET_ACTIONS = (
    "CreateBucket DeleteBucket DeleteBucketPolicy DeleteBucketWebsite GetAccelerateConfiguration "
    "GetAnalyticsConfiguration GetBucketAcl GetBucketCORS GetBucketLocation GetBucketLogging "
    "GetBucketNotification GetBucketObjectLockConfiguration GetBucketOwnershipControls GetBucketPolicy "
    "GetBucketPolicyStatus GetBucketPublicAccessBlock GetBucketRequestPayment GetBucketTagging "
    "GetBucketVersioning GetBucketWebsite GetEncryptionConfiguration GetIntelligentTieringConfiguration "
    "GetInventoryConfiguration GetLifecycleConfiguration GetMetricsConfiguration GetReplicationConfiguration "
    "ListBucket ListBucketMultipartUploads ListBucketVersions PutAccelerateConfiguration "
    "PutAnalyticsConfiguration PutBucketAcl PutBucketCORS PutBucketLogging PutBucketNotification "
    "PutBucketObjectLockConfiguration PutBucketOwnershipControls PutBucketPolicy PutBucketPublicAccessBlock "
    "PutBucketRequestPayment PutBucketTagging PutBucketVersioning PutBucketWebsite PutEncryptionConfiguration "
    "PutIntelligentTieringConfiguration PutInventoryConfiguration PutLifecycleConfiguration "
    "PutMetricsConfiguration PutReplicationConfiguration"
)
_OBJECT_LOWER = frozenset(f"s3:{name.lower()}" for name in _OBJECT_ACTIONS.split())
_BUCKET_LOWER = frozenset(f"s3:{name.lower()}" for name in _BUCKET_ACTIONS.split())

_PINNING_KEYS = frozenset(
    {
        "aws:principalorgid",
        "aws:principalorgpaths",
        "aws:principalaccount",
        "aws:principalarn",
        "aws:sourcearn",
        "aws:sourcevpc",
        "aws:sourcevpce",
        "aws:sourceowner",
        "aws:sourceaccount",
        "aws:userid",
        "s3:x-amz-server-side-encryption-aws-kms-key-id",
        "s3:dataaccesspointarn",
        "s3:dataaccesspointaccount",
    }
)
"""Conditions on these with fixed values keep a statement for everybody from being public."""

_EXACT = re.compile(r"(ForAnyValue:|ForAllValues:)?(String|Arn)(Equals|EqualsIgnoreCase|Like)")


def get(call: Call, request: Mapping[str, Any]) -> dict[str, Any]:
    _check_owner(call)
    return {"Policy": settings.required(call, request, "policy")}


def status(call: Call, request: Mapping[str, Any]) -> dict[str, Any]:
    return {"PolicyStatus": {"IsPublic": is_public(settings.required(call, request, "policy"))}}


def delete(call: Call, request: Mapping[str, Any]) -> dict[str, Any]:
    """Deleting a policy that is not there succeeds, as in S3."""
    _check_owner(call)
    settings.keep(call, request, "policy", None)
    return {}


def put(call: Call, request: Mapping[str, Any]) -> dict[str, Any]:
    """Raises ValidationFault (MalformedPolicy) or AccessDenied (a public policy where those are blocked)."""
    _check_owner(call)
    bucket = buckets.require(call.records, request)
    text = request["Policy"]
    document = check(text, bucket.name, call.session.partition)
    if is_public(text) and public_access.blocks(bucket, "BlockPublicPolicy"):
        raise AccessDenied(
            f"User: {call.session.principal_arn} is not authorized to perform: s3:PutBucketPolicy on resource: "
            f'"arn:{call.session.partition}:s3:::{bucket.name}" because public policies are prevented by the '
            "BlockPublicPolicy setting in S3 Block Public Access."
        )
    if not request.get("ConfirmRemoveSelfBucketAccess") and call.session.kind != "root":
        _check_self(document, call, bucket)
    settings.keep(call, request, "policy", text)
    return {}


def _check_owner(call: Call) -> None:
    """A bucket's policy is its own account's affair, whomever it lets in. Raises ValidationFault (MethodNotAllowed)."""
    if call.account != call.session.account:
        raise ValidationFault("The specified method is not allowed against this resource.", code="MethodNotAllowed")


def check(text: str, bucket: str, partition: str) -> Document:
    """The document, if it may be the policy of this bucket. Raises ValidationFault in S3's words."""
    if len(text.encode()) > LIMIT_BYTES:
        raise _malformed(f"Policy document exceeds the maximum allowed size of {LIMIT_BYTES} bytes")
    if not text.lstrip().startswith("{"):
        raise _malformed("Policies must be valid JSON and the first byte must be '{'")
    try:
        document = read_policy(text, PolicyKind.RESOURCE)
    except MalformedPolicy as fault:
        raise _malformed(fault.message) from None
    own = f"arn:{partition}:s3:::{bucket}"
    for statement in document.statements:
        for principal in statement.principals.get("AWS", ()):
            if principal.startswith("arn:") and not principal.startswith(f"arn:{partition}:"):
                raise _malformed(f'Invalid principal in policy: "AWS":"{principal[:256]}"')
        _check_statement(statement, own)
    return document


def _check_statement(statement: Statement, own: str) -> None:
    unsupplied = condition_keys.unsupplied(key for keys in statement.condition.values() for key in keys)
    if unsupplied is not None:
        raise NotImplementedYet(
            f"The condition key {unsupplied} is not implemented by honmaru, and the policy would not do what it says: "
            "leave it out",
            code="NotImplemented",
        )
    actions = [action.lower() for action in statement.actions]
    for action in actions:
        if action != "*" and not _known(action):
            raise _malformed("Policy has invalid action")
    if any(resource != "*" and not _within(resource, own) for resource in statement.resources):
        raise _malformed("Policy has invalid resource")
    if "*" in statement.resources:
        raise _malformed("Policy has invalid resource")
    if statement.negated_actions or statement.negated_resources:
        return
    of_objects = any(_may_be_object(resource, own) for resource in statement.resources)
    of_bucket = any(_may_be_bucket(resource, own) for resource in statement.resources)
    for action in actions:
        fits = (of_objects and _matches_any(action, _OBJECT_LOWER)) or (
            of_bucket and _matches_any(action, _BUCKET_LOWER)
        )
        if not fits:
            raise _malformed("Action does not apply to any resource(s) in statement")


def _known(action: str) -> bool:
    return _matches_any(action, _OBJECT_LOWER) or _matches_any(action, _BUCKET_LOWER)


def _matches_any(action: str, known: Iterable[str]) -> bool:
    if action == "*" or action in known:
        return True
    # `[` is no wildcard of the policy language and no action holds one, so fnmatch's classes cannot come in.
    return ("*" in action or "?" in action) and any(fnmatch.fnmatchcase(name, action) for name in known)


def _within(resource: str, own: str) -> bool:
    """This bucket or something in it; a wildcard may stand in the bucket's place as long as it can match the bucket."""
    head = resource.partition("/")[0]
    return head == own or fnmatch.fnmatchcase(own, head.replace("[", "[[]"))


def _may_be_object(resource: str, own: str) -> bool:
    return "/" in resource or (resource.endswith("*") and _within(resource, own))


def _may_be_bucket(resource: str, own: str) -> bool:
    return "/" not in resource and _within(resource, own)


def _malformed(message: str) -> ValidationFault:
    return ValidationFault(message, code="MalformedPolicy")


def _check_self(document: Document, call: Call, bucket: Record) -> None:
    """Raises AccessDenied for a policy that plainly denies its author s3:PutBucketPolicy on this bucket."""
    arn = f"arn:{call.session.partition}:s3:::{bucket.name}"
    for statement in document.statements:
        if statement.allow or statement.negated_principals or statement.negated_actions or statement.condition:
            continue
        named = set(statement.principals.get("AWS", ()))
        author = {"*", call.session.principal_arn, call.session.issuer_arn}
        actions = [action.lower() for action in statement.actions]
        acts = any(_matches_any(action, ("s3:putbucketpolicy",)) for action in actions)
        on_it = any(_within(resource, arn) and _may_be_bucket(resource, arn) for resource in statement.resources)
        if named & author and acts and on_it and not statement.negated_resources:
            raise AccessDenied(
                "The policy would deny you s3:PutBucketPolicy on this bucket: send "
                "x-amz-confirm-remove-self-bucket-access: true if you mean it"
            )


def is_public(text: str) -> bool:
    """Whether a checked policy allows everybody, as S3 judges it. Source: "The meaning of 'public'", S3 user guide."""
    given = json.loads(text)["Statement"]
    statements = [given] if isinstance(given, dict) else given
    return any(_opens(statement) for statement in statements)


def _opens(statement: Mapping[str, Any]) -> bool:
    if statement.get("Effect") != "Allow":
        return False
    principal = statement.get("Principal")
    listed = principal.get("AWS", ()) if isinstance(principal, dict) else principal
    everybody = listed == "*" or (isinstance(listed, list) and "*" in listed) or "NotPrincipal" in statement
    return everybody and not any(
        _pins(operator, key, values)
        for operator, keys in (statement.get("Condition") or {}).items()
        for key, values in keys.items()
    )


def _pins(operator: str, key: str, values: Any) -> bool:
    """Whether one condition ties the caller to fixed values."""
    given = [str(value) for value in (values if isinstance(values, list) else [values])]
    key = key.lower()
    if key == "aws:sourceip":
        return operator == "IpAddress" and not any(_is_broad(value) for value in given)
    if key not in _PINNING_KEYS or not _EXACT.fullmatch(operator):
        return False
    if operator.startswith("ForAllValues:"):
        return False  # true for a request that has no such key
    if key == "aws:userid":
        return not any("${" in value or value.partition(":")[0].strip("*") == "" for value in given)
    return not any("*" in value or "?" in value or "${" in value for value in given)


def _is_broad(network: str) -> bool:
    """Ranges that S3 takes for everybody: wider than /8 of IPv4 or /32 of IPv6."""
    address, _, bits = network.partition("/")
    if not bits:
        return False
    return not bits.isdigit() or int(bits) < (32 if ":" in address else 8)
