"""IAM's operations and what each asks of IAM itself.

Operations whose user may be left out (then it is the caller's) authorise themselves: only they know the ARN.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

from honmaru.security.calls import Provider, Target
from honmaru.security.identity import Identity
from honmaru.services.iam.groups import Groups
from honmaru.services.iam.policies import Policies
from honmaru.services.iam.roles import Roles
from honmaru.services.iam.simulation import Simulation
from honmaru.services.iam.users import Users

_USER = "arn:{partition}:iam::{account}:user/{UserName}"
_ROLE = "arn:{partition}:iam::{account}:role/{RoleName}"
_GROUP = "arn:{partition}:iam::{account}:group/{GroupName}"
_POLICY = "arn:{partition}:iam::{account}:policy/{PolicyName}"
_SELF_AUTHORIZED = ("GetUser", "CreateAccessKey", "ListAccessKeys", "UpdateAccessKey", "DeleteAccessKey")

_RESOURCES: Mapping[str, Sequence[str]] = {
    _USER: (
        "AttachUserPolicy",
        "CreateUser",
        "DeleteUser",
        "DeleteUserPermissionsBoundary",
        "DeleteUserPolicy",
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
        "CreateGroup",
        "DeleteGroup",
        "DeleteGroupPolicy",
        "DetachGroupPolicy",
        "GetGroup",
        "GetGroupPolicy",
        "ListAttachedGroupPolicies",
        "ListGroupPolicies",
        "PutGroupPolicy",
        "RemoveUserFromGroup",
    ),
    _ROLE: (
        "AttachRolePolicy",
        "CreateRole",
        "DeleteRole",
        "DeleteRolePermissionsBoundary",
        "DeleteRolePolicy",
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
    ),
    _POLICY: ("CreatePolicy",),
    "{PolicyArn}": (
        "CreatePolicyVersion",
        "DeletePolicy",
        "DeletePolicyVersion",
        "GetPolicy",
        "GetPolicyVersion",
        "ListPolicyTags",
        "ListPolicyVersions",
        "SetDefaultPolicyVersion",
        "TagPolicy",
        "UntagPolicy",
    ),
    "{PolicySourceArn}": ("SimulatePrincipalPolicy",),
}


class Iam(Users, Groups, Roles, Policies, Simulation, Provider):
    """The IAM service of one enclave."""

    service: ClassVar[str] = "iam"
    targets: ClassVar[Mapping[str, Target | Sequence[Target]]] = {
        operation: Target(f"iam:{operation}", resource)
        for resource, operations in _RESOURCES.items()
        for operation in operations
    }
    unauthorized: ClassVar[frozenset[str]] = frozenset(_SELF_AUTHORIZED)

    def __init__(self, identity: Identity) -> None:
        self.identity = identity
