"""Object ownership and access control lists.

honmaru's buckets know one ownership, S3's default: BucketOwnerEnforced. Access control lists are disabled: reading one
answers the owner's full control, and setting one is refused as S3 refuses it. A ValidationFault says what to use.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from honmaru.core.errors import NotImplementedYet, ValidationFault
from honmaru.security.calls import Call
from honmaru.services.s3 import bucket as buckets
from honmaru.services.s3 import settings
from honmaru.services.s3.requests import canonical_id

ENFORCED = "BucketOwnerEnforced"


def get(call: Call, request: Mapping[str, Any]) -> dict[str, Any]:
    found = settings.required(call, request, "ownership", ENFORCED)
    return {"OwnershipControls": {"Rules": [{"ObjectOwnership": found}]}}


def put(call: Call, request: Mapping[str, Any]) -> dict[str, Any]:
    rules = request["OwnershipControls"]["Rules"]
    if len(rules) != 1:
        raise ValidationFault(
            "The XML you provided was not well-formed or did not validate against our published schema",
            code="MalformedXML",
        )
    wanted = rules[0]["ObjectOwnership"]
    if wanted != ENFORCED:
        buckets.require(call.records, request)
        raise NotImplementedYet(
            f"ObjectOwnership {wanted} would enable access control lists, which honmaru does not implement; "
            f"use {ENFORCED} and bucket policies",
            code="NotImplemented",
        )
    settings.keep(call, request, "ownership", ENFORCED)
    return {}


def delete(call: Call, request: Mapping[str, Any]) -> dict[str, Any]:
    """Forgets the stated rule. Access control lists stay disabled all the same."""
    settings.keep(call, request, "ownership", False)
    return {}


def acl(call: Call) -> dict[str, Any]:
    """The list of a bucket or object whose lists are disabled: its owner, with full control."""
    owner = {"ID": canonical_id(call.acting)}
    return {
        "Owner": owner,
        "Grants": [{"Grantee": {**owner, "Type": "CanonicalUser"}, "Permission": "FULL_CONTROL"}],
    }


def bucket_acl(call: Call, request: Mapping[str, Any]) -> dict[str, Any]:
    buckets.require(call.records, request)
    return acl(call)


def refuse_acl(call: Call, request: Mapping[str, Any]) -> dict[str, Any]:
    """PutBucketAcl and PutObjectAcl."""
    buckets.require(call.records, request)
    raise ValidationFault("The bucket does not allow ACLs", code="AccessControlListNotSupported")
