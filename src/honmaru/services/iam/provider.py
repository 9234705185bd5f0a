"""IAM's operations and what each asks of IAM itself.

Operations whose user may be left out (then it is the caller's) authorise themselves: only they know the ARN. Of other
entities a request names no path; `resource` tells it, so policies see the ARN that IAM itself answers.

Server certificates, signing certificates, SSH keys and delegation requests are not written: no service here takes them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

from honmaru.security.calls import Provider, Resource, Target
from honmaru.security.guard import Sight
from honmaru.security.identity import Identity, entities
from honmaru.services.iam.account import Account
from honmaru.services.iam.groups import Groups
from honmaru.services.iam.identity_providers import IdentityProviders
from honmaru.services.iam.instance_profiles import InstanceProfiles
from honmaru.services.iam.mfa_devices import MfaDevices
from honmaru.services.iam.passwords import Passwords
from honmaru.services.iam.policies import Policies
from honmaru.services.iam.roles import Roles
from honmaru.services.iam.service_credentials import ServiceCredentials
from honmaru.services.iam.service_linked import ServiceLinkedRoles
from honmaru.services.iam.simulation import Simulation
from honmaru.services.iam.users import Users

_USER = "arn:{partition}:iam::{account}:user/{UserName}"
_ROLE = "arn:{partition}:iam::{account}:role/{RoleName}"
_GROUP = "arn:{partition}:iam::{account}:group/{GroupName}"
_NEW = "arn:{partition}:iam::{account}:"
_PROFILE = "arn:{partition}:iam::{account}:instance-profile/{InstanceProfileName}"
_SELF_AUTHORIZED = (
    "ChangePassword",
    "CreateAccessKey",
    "CreateLoginProfile",
    "CreateServiceSpecificCredential",
    "DeactivateMFADevice",
    "DeleteAccessKey",
    "DeleteLoginProfile",
    "DeleteServiceSpecificCredential",
    "GetAccessKeyLastUsed",
    "GetLoginProfile",
    "GetUser",
    "ListAccessKeys",
    "ListMFADevices",
    "ListServiceSpecificCredentials",
    "ResetServiceSpecificCredential",
    "UpdateAccessKey",
    "UpdateLoginProfile",
    "UpdateServiceSpecificCredential",
)

_RESOURCES: Mapping[str, Sequence[str]] = {
    _USER: (
        "AttachUserPolicy",
        "DeleteUser",
        "DeleteUserPermissionsBoundary",
        "DeleteUserPolicy",
        "EnableMFADevice",
        "ResyncMFADevice",
        "DetachUserPolicy",
        "GetUserPolicy",
        "ListAttachedUserPolicies",
        "ListGroupsForUser",
        "ListUserPolicies",
        "ListUserTags",
        "PutUserPermissionsBoundary",
        "PutUserPolicy",
        "TagUser",
        "UntagUser",
        "UpdateUser",
    ),
    _GROUP: (
        "AddUserToGroup",
        "AttachGroupPolicy",
        "DeleteGroup",
        "DeleteGroupPolicy",
        "DetachGroupPolicy",
        "GetGroup",
        "GetGroupPolicy",
        "UpdateGroup",
        "ListAttachedGroupPolicies",
        "ListGroupPolicies",
        "PutGroupPolicy",
        "RemoveUserFromGroup",
    ),
    _ROLE: (
        "AttachRolePolicy",
        "DeleteRole",
        "DeleteRolePermissionsBoundary",
        "DeleteRolePolicy",
        "DeleteServiceLinkedRole",
        "ListInstanceProfilesForRole",
        "DetachRolePolicy",
        "GetRole",
        "GetRolePolicy",
        "ListAttachedRolePolicies",
        "ListRolePolicies",
        "ListRoleTags",
        "PutRolePermissionsBoundary",
        "PutRolePolicy",
        "TagRole",
        "UntagRole",
        "UpdateAssumeRolePolicy",
        "UpdateRole",
        "UpdateRoleDescription",
    ),
    _PROFILE: (
        "AddRoleToInstanceProfile",
        "DeleteInstanceProfile",
        "GetInstanceProfile",
        "ListInstanceProfileTags",
        "RemoveRoleFromInstanceProfile",
        "TagInstanceProfile",
        "UntagInstanceProfile",
    ),
    _NEW + "user{Path=/}{UserName}": ("CreateUser",),
    _NEW + "group{Path=/}{GroupName}": ("CreateGroup",),
    _NEW + "role{Path=/}{RoleName}": ("CreateRole",),
    _NEW + "policy{Path=/}{PolicyName}": ("CreatePolicy",),
    _NEW + "instance-profile{Path=/}{InstanceProfileName}": ("CreateInstanceProfile",),
    _NEW + "mfa{Path=/}{VirtualMFADeviceName}": ("CreateVirtualMFADevice",),
    _NEW + "oidc-provider/*": ("CreateOpenIDConnectProvider",),
    _NEW + "saml-provider/{Name}": ("CreateSAMLProvider",),
    _NEW + "role/aws-service-role/{AWSServiceName}/*": ("CreateServiceLinkedRole",),
    "{SerialNumber}": (
        "DeleteVirtualMFADevice",
        "GetMFADevice",
        "ListMFADeviceTags",
        "TagMFADevice",
        "UntagMFADevice",
    ),
    "{OpenIDConnectProviderArn}": (
        "AddClientIDToOpenIDConnectProvider",
        "DeleteOpenIDConnectProvider",
        "GetOpenIDConnectProvider",
        "ListOpenIDConnectProviderTags",
        "RemoveClientIDFromOpenIDConnectProvider",
        "TagOpenIDConnectProvider",
        "UntagOpenIDConnectProvider",
        "UpdateOpenIDConnectProviderThumbprint",
    ),
    "{SAMLProviderArn}": (
        "DeleteSAMLProvider",
        "GetSAMLProvider",
        "ListSAMLProviderTags",
        "TagSAMLProvider",
        "UntagSAMLProvider",
        "UpdateSAMLProvider",
    ),
    "{PolicyArn}": (
        "CreatePolicyVersion",
        "DeletePolicy",
        "DeletePolicyVersion",
        "GetPolicy",
        "GetPolicyVersion",
        "ListEntitiesForPolicy",
        "ListPolicyTags",
        "ListPolicyVersions",
        "SetDefaultPolicyVersion",
        "TagPolicy",
        "UntagPolicy",
    ),
    "{PolicySourceArn}": ("GetContextKeysForPrincipalPolicy", "SimulatePrincipalPolicy"),
}


_WITH_PATH = frozenset((entities.USER, entities.GROUP, entities.ROLE, entities.INSTANCE_PROFILE))


class Iam(
    Users,
    Groups,
    Roles,
    Policies,
    InstanceProfiles,
    Passwords,
    MfaDevices,
    IdentityProviders,
    ServiceLinkedRoles,
    ServiceCredentials,
    Account,
    Simulation,
    Provider,
):
    """The IAM service of one enclave."""

    arn_services: ClassVar[tuple[str, ...]] = ("iam",)
    resource_kinds: ClassVar[frozenset[str]] = frozenset(_WITH_PATH)

    service: ClassVar[str] = "iam"
    targets: ClassVar[Mapping[str, Target | Sequence[Target]]] = {
        operation: Target(f"iam:{operation}", resource)
        for resource, operations in _RESOURCES.items()
        for operation in operations
    }
    unauthorized: ClassVar[frozenset[str]] = frozenset(_SELF_AUTHORIZED)

    def __init__(self, identity: Identity) -> None:
        self.identity = identity

    def resource_place(self, resource: str) -> str:
        """`user/a/path/ann` → `user/ann`; nothing for what has no path of its own."""
        kind, _, rest = resource.partition("/")
        return f"{kind}/{rest.rpartition('/')[2]}" if kind in _WITH_PATH else ""

    def resource(self, sight: Sight, place: str) -> Resource | None:
        """A user, group, role or instance profile: its account, tags, and ARN with the path."""
        kind, _, name = place.partition("/")
        record = sight.get(kind, name)
        if record is None:
            return None
        tags = record.body.get("tags") or {}
        return Resource(
            record.account,
            record.label,
            tags=tags,
            context={f"iam:ResourceTag/{key}": value for key, value in tags.items()},
            arn=entities.arn(self.identity.partition, record.account, kind, record.body["path"], name),
        )
