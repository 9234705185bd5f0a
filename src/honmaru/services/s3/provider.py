"""Amazon S3: the operations. Their meaning lives in the files beside this one, one per resource.

Operations without a method here answer a modelled 501 (replication, select, websites, inventories, ...).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from honmaru.core.errors import AccessDenied
from honmaru.ports.events import Destinations
from honmaru.ports.runtime import Ids
from honmaru.security.calls import Call, Provider, Resource, Target
from honmaru.security.guard import Sight
from honmaru.services.s3 import (
    bucket,
    bucket_policy,
    condition_keys,
    cors,
    encryption,
    lifecycle,
    listing,
    multipart,
    notification,
    object_lock,
    ownership,
    public_access,
    settings,
    tagging,
    version_listing,
)
from honmaru.services.s3 import object as objects

Request = Mapping[str, Any]
Answer = Mapping[str, Any]

_BUCKET = "arn:{partition}:s3:::{Bucket}"
_OBJECT = "arn:{partition}:s3:::{Bucket}/{Key}"


def _on(resource: str, actions: Mapping[str, str]) -> dict[str, Target]:
    return {operation: Target(f"s3:{action}", resource) for operation, action in actions.items()}


def _versioned(current: str, version: str) -> list[Target]:
    """S3 asks for another action when a request names a version."""
    return [Target(f"s3:{current}", _OBJECT, unless="VersionId"), Target(f"s3:{version}", _OBJECT, given="VersionId")]


def _noted(call: Call, request: Request) -> Call:
    """The call, with the bucket or object that it is about put down for its ledger entry, and what CORS adds."""
    if "Bucket" in request:
        if "origin" in call.headers:
            cors.answer(call, call.records.get("bucket", request["Bucket"]))
        key = request.get("Key")
        path = request["Bucket"] if key is None else f"{request['Bucket']}/{key}"
        kind = "AWS::S3::Bucket" if key is None else "AWS::S3::Object"
        call.resources.append((f"arn:{call.session.partition}:s3:::{path}", kind))
        if request.get("ExpectedBucketOwner") not in (None, call.account):
            raise AccessDenied("Access Denied")
    return call


class S3(Provider):
    """One instance serves every session.

    Args:
        ids: Makes upload ids.
        commits: Shared with `access.S3Buckets`, so that both sides respect a bucket's deletion.
        destinations: What takes events beside the event bus.
    """

    service: ClassVar[str] = "s3"

    anywhere: ClassVar[frozenset[str]] = frozenset(
        {
            "AbortMultipartUpload", "CompleteMultipartUpload", "CopyObject", "CreateMultipartUpload", "DeleteObject",
            "DeleteObjectTagging", "DeleteObjects", "GetObject", "GetObjectAttributes", "GetObjectTagging",
            "HeadBucket", "HeadObject", "ListBuckets", "ListMultipartUploads", "ListObjectVersions", "ListObjects",
            "ListObjectsV2", "ListParts", "PutObject", "PutObjectTagging", "UploadPart", "UploadPartCopy",
        }
    )  # fmt: skip
    """Conditions of the store keep a bucket's deletion and its objects' changes apart, in every process (`bucket`)."""

    targets: ClassVar[Mapping[str, Target | list[Target]]] = {
        "ListBuckets": Target("s3:ListAllMyBuckets", "arn:{partition}:s3:::*"),
        "GetObjectAttributes": [
            *_versioned("GetObject", "GetObjectVersion"),
            *_versioned("GetObjectAttributes", "GetObjectVersionAttributes"),
        ],
        "GetObject": _versioned("GetObject", "GetObjectVersion"),
        "GetObjectAcl": _versioned("GetObjectAcl", "GetObjectVersionAcl"),
        "PutObjectAcl": _versioned("PutObjectAcl", "PutObjectVersionAcl"),
        "HeadObject": _versioned("GetObject", "GetObjectVersion"),
        "DeleteObject": _versioned("DeleteObject", "DeleteObjectVersion"),
        "GetObjectTagging": _versioned("GetObjectTagging", "GetObjectVersionTagging"),
        "PutObjectTagging": _versioned("PutObjectTagging", "PutObjectVersionTagging"),
        "DeleteObjectTagging": _versioned("DeleteObjectTagging", "DeleteObjectVersionTagging"),
        **_on(
            _BUCKET,
            {
                "CreateBucket": "CreateBucket",
                "DeleteBucket": "DeleteBucket",
                "HeadBucket": "ListBucket",
                "ListObjects": "ListBucket",
                "ListObjectsV2": "ListBucket",
                "ListObjectVersions": "ListBucketVersions",
                "ListMultipartUploads": "ListBucketMultipartUploads",
                "GetBucketLocation": "GetBucketLocation",
                "GetBucketTagging": "GetBucketTagging",
                "PutBucketTagging": "PutBucketTagging",
                "DeleteBucketTagging": "PutBucketTagging",
                "GetBucketVersioning": "GetBucketVersioning",
                "PutBucketVersioning": "PutBucketVersioning",
                "GetBucketLogging": "GetBucketLogging",
                "GetBucketAccelerateConfiguration": "GetAccelerateConfiguration",
                "GetBucketNotificationConfiguration": "GetBucketNotification",
                "PutBucketNotificationConfiguration": "PutBucketNotification",
                "GetBucketRequestPayment": "GetBucketRequestPayment",
                "GetBucketPolicyStatus": "GetBucketPolicyStatus",
                "GetBucketAcl": "GetBucketAcl",
                "PutBucketAcl": "PutBucketAcl",
                "GetBucketOwnershipControls": "GetBucketOwnershipControls",
                "PutBucketOwnershipControls": "PutBucketOwnershipControls",
                "DeleteBucketOwnershipControls": "PutBucketOwnershipControls",
                "GetBucketEncryption": "GetEncryptionConfiguration",
                "PutBucketEncryption": "PutEncryptionConfiguration",
                "DeleteBucketEncryption": "PutEncryptionConfiguration",
                "GetPublicAccessBlock": "GetBucketPublicAccessBlock",
                "PutPublicAccessBlock": "PutBucketPublicAccessBlock",
                "DeletePublicAccessBlock": "PutBucketPublicAccessBlock",
                "GetBucketPolicy": "GetBucketPolicy",
                "PutBucketPolicy": "PutBucketPolicy",
                "DeleteBucketPolicy": "DeleteBucketPolicy",
                "GetBucketCors": "GetBucketCORS",
                "PutBucketCors": "PutBucketCORS",
                "DeleteBucketCors": "PutBucketCORS",
                "GetBucketLifecycleConfiguration": "GetLifecycleConfiguration",
                "PutBucketLifecycleConfiguration": "PutLifecycleConfiguration",
                "DeleteBucketLifecycle": "PutLifecycleConfiguration",
                "GetBucketWebsite": "GetBucketWebsite",
                "GetBucketReplication": "GetReplicationConfiguration",
                "GetObjectLockConfiguration": "GetBucketObjectLockConfiguration",
                "PutObjectLockConfiguration": "PutBucketObjectLockConfiguration",
            },
        ),
        **_on(
            _OBJECT,
            {
                "PutObject": "PutObject",
                "CopyObject": "PutObject",
                "GetObjectRetention": "GetObjectRetention",
                "PutObjectRetention": "PutObjectRetention",
                "GetObjectLegalHold": "GetObjectLegalHold",
                "PutObjectLegalHold": "PutObjectLegalHold",
                "CreateMultipartUpload": "PutObject",
                "UploadPart": "PutObject",
                "UploadPartCopy": "PutObject",
                "CompleteMultipartUpload": "PutObject",
                "AbortMultipartUpload": "AbortMultipartUpload",
                "ListParts": "ListMultipartUploadParts",
            },
        ),
    }

    unauthorized: ClassVar[frozenset[str]] = frozenset({"DeleteObjects"})
    """DeleteObjects asks IAM for s3:DeleteObject on each key by itself, and answers key by key."""

    arn_services: ClassVar[tuple[str, ...]] = ("s3",)
    resource_kinds: ClassVar[frozenset[str]] = frozenset({"bucket"})
    resource_makers: ClassVar[frozenset[str]] = frozenset({"s3:CreateBucket"})

    def __init__(self, ids: Ids, commits: bucket.BucketCommits, destinations: Destinations | None = None) -> None:
        self._ids = ids
        self._destinations: Destinations = destinations or notification.NoDestinations()
        self._commits = commits
        commits.events.on(notification.listener)

    def resource_place(self, resource: str) -> str:
        """A bucket bears the policy of everything in it."""
        return resource.partition("/")[0]

    def resource(self, sight: Sight, place: str) -> Resource | None:
        record = sight.get("bucket", place)
        if record is None:
            return None
        policy = settings.stored(record, "policy")
        return Resource(
            record.account,
            record.label,
            policy=policy,
            tags=record.body["tags"],
            context={"s3:resourceaccount": record.account},
            confined=policy is not None
            and public_access.blocks(record, "RestrictPublicBuckets")
            and bucket_policy.is_public(policy),
        )

    def context(self, operation: str, request: Request) -> Mapping[str, Any]:
        return condition_keys.of_request(operation, request)

    # Buckets

    def create_bucket(self, call: Call, request: Request) -> Answer:
        return bucket.create(_noted(call, request), request)

    def delete_bucket(self, call: Call, request: Request) -> Answer:
        return bucket.delete(_noted(call, request), request)

    def head_bucket(self, call: Call, request: Request) -> Answer:
        return bucket.head(_noted(call, request), request)

    def list_buckets(self, call: Call, request: Request) -> Answer:
        return bucket.list_all(_noted(call, request), request)

    def get_bucket_location(self, call: Call, request: Request) -> Answer:
        return bucket.location(_noted(call, request), request)

    def get_bucket_tagging(self, call: Call, request: Request) -> Answer:
        return tagging.get_bucket(_noted(call, request), request)

    def put_bucket_tagging(self, call: Call, request: Request) -> Answer:
        return tagging.put_bucket(_noted(call, request), request)

    def delete_bucket_tagging(self, call: Call, request: Request) -> Answer:
        return tagging.delete_bucket(_noted(call, request), request)

    # Settings of buckets

    def get_bucket_notification_configuration(self, call: Call, request: Request) -> Answer:
        return notification.get(_noted(call, request), request)

    def put_bucket_notification_configuration(self, call: Call, request: Request) -> Answer:
        return notification.put(_noted(call, request), request, self._destinations)

    def get_bucket_ownership_controls(self, call: Call, request: Request) -> Answer:
        return ownership.get(_noted(call, request), request)

    def put_bucket_ownership_controls(self, call: Call, request: Request) -> Answer:
        return ownership.put(_noted(call, request), request)

    def delete_bucket_ownership_controls(self, call: Call, request: Request) -> Answer:
        return ownership.delete(_noted(call, request), request)

    def get_bucket_acl(self, call: Call, request: Request) -> Answer:
        return ownership.bucket_acl(_noted(call, request), request)

    def put_bucket_acl(self, call: Call, request: Request) -> Answer:
        return ownership.refuse_acl(_noted(call, request), request)

    def put_object_acl(self, call: Call, request: Request) -> Answer:
        return ownership.refuse_acl(_noted(call, request), request)

    def get_bucket_encryption(self, call: Call, request: Request) -> Answer:
        return encryption.get(_noted(call, request), request)

    def put_bucket_encryption(self, call: Call, request: Request) -> Answer:
        return encryption.put(_noted(call, request), request)

    def delete_bucket_encryption(self, call: Call, request: Request) -> Answer:
        return encryption.delete(_noted(call, request), request)

    def get_public_access_block(self, call: Call, request: Request) -> Answer:
        return public_access.get(_noted(call, request), request)

    def put_public_access_block(self, call: Call, request: Request) -> Answer:
        return public_access.put(_noted(call, request), request)

    def delete_public_access_block(self, call: Call, request: Request) -> Answer:
        return public_access.delete(_noted(call, request), request)

    def get_bucket_cors(self, call: Call, request: Request) -> Answer:
        return cors.get(_noted(call, request), request)

    def put_bucket_cors(self, call: Call, request: Request) -> Answer:
        return cors.put(_noted(call, request), request)

    def delete_bucket_cors(self, call: Call, request: Request) -> Answer:
        return cors.delete(_noted(call, request), request)

    def get_bucket_lifecycle_configuration(self, call: Call, request: Request) -> Answer:
        return lifecycle.get(_noted(call, request), request)

    def put_bucket_lifecycle_configuration(self, call: Call, request: Request) -> Answer:
        return lifecycle.put(_noted(call, request), request)

    def delete_bucket_lifecycle(self, call: Call, request: Request) -> Answer:
        return lifecycle.delete(_noted(call, request), request)

    # Settings of buckets that have one possible value

    def get_bucket_versioning(self, call: Call, request: Request) -> Answer:
        return bucket.get_versioning(_noted(call, request), request)

    def put_bucket_versioning(self, call: Call, request: Request) -> Answer:
        return bucket.put_versioning(_noted(call, request), request)

    def get_bucket_logging(self, call: Call, request: Request) -> Answer:
        return bucket.setting(_noted(call, request), request, "GetBucketLogging")

    def get_bucket_accelerate_configuration(self, call: Call, request: Request) -> Answer:
        return bucket.setting(_noted(call, request), request, "GetBucketAccelerateConfiguration")

    def get_bucket_request_payment(self, call: Call, request: Request) -> Answer:
        return bucket.setting(_noted(call, request), request, "GetBucketRequestPayment")

    def get_bucket_policy_status(self, call: Call, request: Request) -> Answer:
        return bucket_policy.status(_noted(call, request), request)

    def get_bucket_policy(self, call: Call, request: Request) -> Answer:
        return bucket_policy.get(_noted(call, request), request)

    def put_bucket_policy(self, call: Call, request: Request) -> Answer:
        return bucket_policy.put(_noted(call, request), request)

    def delete_bucket_policy(self, call: Call, request: Request) -> Answer:
        return bucket_policy.delete(_noted(call, request), request)

    def get_bucket_website(self, call: Call, request: Request) -> Answer:
        return bucket.setting(_noted(call, request), request, "GetBucketWebsite")

    def get_bucket_replication(self, call: Call, request: Request) -> Answer:
        return bucket.setting(_noted(call, request), request, "GetBucketReplication")

    def get_object_lock_configuration(self, call: Call, request: Request) -> Answer:
        return bucket.get_lock(_noted(call, request), request)

    def put_object_lock_configuration(self, call: Call, request: Request) -> Answer:
        return bucket.put_lock(_noted(call, request), request)

    def get_object_retention(self, call: Call, request: Request) -> Answer:
        return object_lock.get_retention(_noted(call, request), request)

    def put_object_retention(self, call: Call, request: Request) -> Answer:
        return object_lock.put_retention(_noted(call, request), request)

    def get_object_legal_hold(self, call: Call, request: Request) -> Answer:
        return object_lock.get_hold(_noted(call, request), request)

    def put_object_legal_hold(self, call: Call, request: Request) -> Answer:
        return object_lock.put_hold(_noted(call, request), request)

    # Objects

    def put_object(self, call: Call, request: Request) -> Answer:
        return objects.put(_noted(call, request), request, self._commits)

    def copy_object(self, call: Call, request: Request) -> Answer:
        return objects.copy(_noted(call, request), request, self._commits)

    def get_object(self, call: Call, request: Request) -> Answer:
        return objects.get(_noted(call, request), request, self._commits)

    def head_object(self, call: Call, request: Request) -> Answer:
        return objects.head(_noted(call, request), request)

    def get_object_attributes(self, call: Call, request: Request) -> Answer:
        return objects.attributes(_noted(call, request), request)

    def get_object_acl(self, call: Call, request: Request) -> Answer:
        objects.head(_noted(call, request), {k: v for k, v in request.items() if k in ("Bucket", "Key", "VersionId")})
        return ownership.acl(call)

    def delete_object(self, call: Call, request: Request) -> Answer:
        return objects.delete(_noted(call, request), request, self._commits)

    def delete_objects(self, call: Call, request: Request) -> Answer:
        return objects.delete_several(_noted(call, request), request, self._commits)

    def list_objects(self, call: Call, request: Request) -> Answer:
        return listing.list_v1(_noted(call, request), request)

    def list_objects_v2(self, call: Call, request: Request) -> Answer:
        return listing.list_v2(_noted(call, request), request)

    def list_object_versions(self, call: Call, request: Request) -> Answer:
        return version_listing.list_versions(_noted(call, request), request)

    def get_object_tagging(self, call: Call, request: Request) -> Answer:
        return tagging.get_object(_noted(call, request), request)

    def put_object_tagging(self, call: Call, request: Request) -> Answer:
        return tagging.put_object(_noted(call, request), request, self._commits)

    def delete_object_tagging(self, call: Call, request: Request) -> Answer:
        return tagging.delete_object(_noted(call, request), request, self._commits)

    # Multipart uploads

    def create_multipart_upload(self, call: Call, request: Request) -> Answer:
        return multipart.create(_noted(call, request), request, self._ids.token("", 48), self._commits)

    def upload_part(self, call: Call, request: Request) -> Answer:
        return multipart.upload_part(_noted(call, request), request, self._commits)

    def upload_part_copy(self, call: Call, request: Request) -> Answer:
        return multipart.upload_part_copy(_noted(call, request), request, self._commits)

    def complete_multipart_upload(self, call: Call, request: Request) -> Answer:
        return multipart.complete(_noted(call, request), request, self._commits)

    def abort_multipart_upload(self, call: Call, request: Request) -> Answer:
        return multipart.abort(_noted(call, request), request)

    def list_parts(self, call: Call, request: Request) -> Answer:
        return multipart.list_parts(_noted(call, request), request)

    def list_multipart_uploads(self, call: Call, request: Request) -> Answer:
        return multipart.list_uploads(_noted(call, request), request)
