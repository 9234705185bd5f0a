"""AWS KMS: the operations. Their meaning lives in the files beside this one, one per resource.

Invariants:
- Every operation on a key asks IAM by itself (`keys.permitted`), about the ARN of the key that its KeyId stands for:
  only it knows which key an alias names. The rest asks at the door.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from honmaru.security.calls import Call, Provider, Resource, Target
from honmaru.security.guard import Sight
from honmaru.services.kms import (
    agreement,
    alias,
    custom_store,
    data_key,
    encryption,
    grant,
    import_material,
    key,
    key_policy,
    last_usage,
    rotation,
    signing,
    tags,
)
from honmaru.services.kms.keys import ALIAS, GRANT, KEY, permitted, unsupported
from honmaru.services.kms.last_usage import UsageLog
from honmaru.services.kms.vault import Vault

Request = Mapping[str, Any]
Answer = Mapping[str, Any]


class Kms(Provider):
    """The key service of one enclave."""

    service: ClassVar[str] = "kms"
    arn_services: ClassVar[tuple[str, ...]] = ("kms",)
    resource_kinds: ClassVar[frozenset[str]] = frozenset({KEY, GRANT, ALIAS})

    anywhere: ClassVar[frozenset[str]] = frozenset(
        {
            "Decrypt", "DescribeKey", "Encrypt", "GenerateDataKey", "GenerateDataKeyWithoutPlaintext", "GenerateMac",
            "ReEncrypt", "Sign", "Verify", "VerifyMac",
        }
    )  # fmt: skip

    targets: ClassVar[Mapping[str, Target]] = {}
    unauthorized: ClassVar[frozenset[str]] = frozenset(
        {
            "CancelKeyDeletion", "CreateAlias", "CreateGrant", "Decapsulate", "Decrypt", "DeleteAlias",
            "DeleteImportedKeyMaterial", "DeriveSharedSecret", "DescribeKey", "DisableKey", "DisableKeyRotation",
            "EnableKey", "EnableKeyRotation", "Encapsulate", "Encrypt", "GenerateDataKey", "GenerateDataKeyPair",
            "GenerateDataKeyPairWithoutPlaintext", "GenerateDataKeyWithoutPlaintext", "GenerateMac", "GetKeyLastUsage",
            "GetKeyPolicy", "GetKeyRotationStatus", "GetParametersForImport", "GetPublicKey", "ImportKeyMaterial",
            "ListGrants",
            "ListKeyPolicies", "ListKeyRotations", "ListResourceTags", "PutKeyPolicy", "ReEncrypt", "ReplicateKey",
            "RetireGrant", "RevokeGrant", "RotateKeyOnDemand", "ScheduleKeyDeletion", "Sign", "TagResource",
            "UntagResource", "UpdateAlias", "UpdateKeyDescription", "UpdatePrimaryRegion", "Verify", "VerifyMac",
        }
    )  # fmt: skip
    """They ask by themselves: see the module."""

    def __init__(self, vault: Vault, ledger: UsageLog) -> None:
        self._vault = vault
        self._ledger = ledger

    def context(self, operation: str, request: Request) -> Mapping[str, Any]:
        """Condition keys of CreateKey; the others ask by themselves."""
        if operation != "CreateKey":
            return {}
        return {
            "kms:KeySpec": request.get("KeySpec") or request.get("CustomerMasterKeySpec") or "SYMMETRIC_DEFAULT",
            "kms:KeyUsage": request.get("KeyUsage") or "ENCRYPT_DECRYPT",
            "kms:KeyOrigin": request.get("Origin") or "AWS_KMS",
            "kms:MultiRegion": bool(request.get("MultiRegion")),
            "kms:BypassPolicyLockoutSafetyCheck": bool(request.get("BypassPolicyLockoutSafetyCheck")),
        }

    def resource(self, sight: Sight, place: str) -> Resource | None:
        return key_policy.resource(sight, place)

    # Keys

    def create_key(self, call: Call, request: Request) -> Answer:
        return key.create(call, request, self._vault)

    def describe_key(self, call: Call, request: Request) -> Answer:
        return alias.describe_key(call, request, self._vault)

    def get_key_last_usage(self, call: Call, request: Request) -> Answer:
        return last_usage.describe(call, request, self._ledger)

    def list_keys(self, call: Call, request: Request) -> Answer:
        return key.list_all(call, request)

    def enable_key(self, call: Call, request: Request) -> None:
        key.enable(call, request)

    def disable_key(self, call: Call, request: Request) -> None:
        key.disable(call, request)

    def update_key_description(self, call: Call, request: Request) -> None:
        key.update_description(call, request)

    def schedule_key_deletion(self, call: Call, request: Request) -> Answer:
        return key.schedule_deletion(call, request)

    def cancel_key_deletion(self, call: Call, request: Request) -> Answer:
        return key.cancel_deletion(call, request)

    def replicate_key(self, call: Call, request: Request) -> Answer:
        permitted(call, request["KeyId"], "ReplicateKey")
        raise unsupported("multi-Region keys do not exist in honmaru: an enclave is one Region and shares no key")

    def update_primary_region(self, call: Call, request: Request) -> Answer:
        permitted(call, request["KeyId"], "UpdatePrimaryRegion")
        raise unsupported("multi-Region keys do not exist in honmaru: an enclave is one Region and shares no key")

    # Tags, policies, aliases, grants

    def tag_resource(self, call: Call, request: Request) -> None:
        tags.tag(call, request)

    def untag_resource(self, call: Call, request: Request) -> None:
        tags.untag(call, request)

    def list_resource_tags(self, call: Call, request: Request) -> Answer:
        return tags.list_all(call, request)

    def get_key_policy(self, call: Call, request: Request) -> Answer:
        return key_policy.get(call, request)

    def put_key_policy(self, call: Call, request: Request) -> None:
        key_policy.put(call, request)

    def list_key_policies(self, call: Call, request: Request) -> Answer:
        return key_policy.names(call, request)

    def create_alias(self, call: Call, request: Request) -> None:
        alias.create(call, request)

    def update_alias(self, call: Call, request: Request) -> None:
        alias.update(call, request)

    def delete_alias(self, call: Call, request: Request) -> None:
        alias.delete(call, request)

    def list_aliases(self, call: Call, request: Request) -> Answer:
        return alias.list_all(call, request)

    def create_grant(self, call: Call, request: Request) -> Answer:
        return grant.create(call, request, self._vault)

    def list_grants(self, call: Call, request: Request) -> Answer:
        return grant.list_all(call, request)

    def list_retirable_grants(self, call: Call, request: Request) -> Answer:
        return grant.list_retirable(call, request)

    def retire_grant(self, call: Call, request: Request) -> None:
        grant.retire(call, request)

    def revoke_grant(self, call: Call, request: Request) -> None:
        grant.revoke(call, request)

    # What keys do

    def encrypt(self, call: Call, request: Request) -> Answer:
        return encryption.encrypt(call, request, self._vault)

    def decrypt(self, call: Call, request: Request) -> Answer:
        return encryption.decrypt(call, request, self._vault)

    def re_encrypt(self, call: Call, request: Request) -> Answer:
        return encryption.reencrypt(call, request, self._vault)

    def generate_random(self, _call: Call, request: Request) -> Answer:
        return encryption.random_bytes(request, self._vault)

    def generate_data_key(self, call: Call, request: Request) -> Answer:
        return data_key.generate(call, request, self._vault, plaintext=True)

    def generate_data_key_without_plaintext(self, call: Call, request: Request) -> Answer:
        return data_key.generate(call, request, self._vault, plaintext=False)

    def generate_data_key_pair(self, call: Call, request: Request) -> Answer:
        return data_key.generate_pair(call, request, self._vault, plaintext=True)

    def generate_data_key_pair_without_plaintext(self, call: Call, request: Request) -> Answer:
        return data_key.generate_pair(call, request, self._vault, plaintext=False)

    def sign(self, call: Call, request: Request) -> Answer:
        return signing.sign(call, request, self._vault)

    def verify(self, call: Call, request: Request) -> Answer:
        return signing.verify(call, request)

    def generate_mac(self, call: Call, request: Request) -> Answer:
        return signing.generate_mac(call, request, self._vault)

    def verify_mac(self, call: Call, request: Request) -> Answer:
        return signing.verify_mac(call, request, self._vault)

    def get_public_key(self, call: Call, request: Request) -> Answer:
        return signing.public_key(call, request)

    def derive_shared_secret(self, call: Call, request: Request) -> Answer:
        return agreement.derive(call, request, self._vault)

    def encapsulate(self, call: Call, request: Request) -> Answer:
        return agreement.encapsulate(call, request)

    def decapsulate(self, call: Call, request: Request) -> Answer:
        return agreement.decapsulate(call, request, self._vault)

    # Imported material and rotation

    def get_parameters_for_import(self, call: Call, request: Request) -> Answer:
        return import_material.parameters(call, request, self._vault)

    def import_key_material(self, call: Call, request: Request) -> Answer:
        return import_material.import_material(call, request, self._vault)

    def delete_imported_key_material(self, call: Call, request: Request) -> Answer:
        return import_material.delete(call, request, self._vault)

    def enable_key_rotation(self, call: Call, request: Request) -> None:
        rotation.enable(call, request)

    def disable_key_rotation(self, call: Call, request: Request) -> None:
        rotation.disable(call, request)

    def get_key_rotation_status(self, call: Call, request: Request) -> Answer:
        return rotation.status(call, request)

    def rotate_key_on_demand(self, call: Call, request: Request) -> Answer:
        return rotation.on_demand(call, request, self._vault)

    def list_key_rotations(self, call: Call, request: Request) -> Answer:
        return rotation.list_all(call, request)

    # Custom key stores: there are none

    def create_custom_key_store(self, _call: Call, _request: Request) -> Answer:
        custom_store.refuse()

    def describe_custom_key_stores(self, _call: Call, request: Request) -> Answer:
        return custom_store.describe(request)

    def delete_custom_key_store(self, _call: Call, request: Request) -> Answer:
        custom_store.missing(request)

    def connect_custom_key_store(self, _call: Call, request: Request) -> Answer:
        custom_store.missing(request)

    def disconnect_custom_key_store(self, _call: Call, request: Request) -> Answer:
        custom_store.missing(request)

    def update_custom_key_store(self, _call: Call, request: Request) -> Answer:
        custom_store.missing(request)
