"""IAM and STS as services: every answer fits AWS's shapes, and errors carry IAM's codes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import botocore.session
import pytest
from botocore import xform_name
from botocore.validate import ParamValidator

from honmaru.core.errors import AccessDenied, AuthenticationFailed, HonmaruError, ValidationFault
from honmaru.core.labels import Label
from honmaru.core.sessions import Session
from honmaru.security.calls import Provider, Target
from honmaru.security.identity import Identity, entities
from honmaru.security.policy import MalformedPolicy
from honmaru.services.iam import Iam
from honmaru.services.sts import Sts
from honmaru.testing.keep import ACCOUNT, Keep

MODELS = {name: botocore.session.get_session().get_service_model(name) for name in ("iam", "sts")}
ALLOW = json.dumps({"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": "s3:*", "Resource": "*"}]})
TRUST = json.dumps(
    {"Statement": [{"Effect": "Allow", "Principal": {"AWS": ACCOUNT}, "Action": ["sts:AssumeRole", "sts:TagSession"]}]}
)
S3_FULL = "arn:aws-iso-b:iam::aws:policy/AmazonS3FullAccess"


def strip(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: strip(item) for key, item in value.items() if item is not None}
    return [strip(item) for item in value] if isinstance(value, list) else value


class Account:
    """A keep with an identity and its two services, called as the gateway calls them."""

    def __init__(self, directory: Path) -> None:
        self.keep = Keep(directory)
        self.identity = Identity(
            self.keep.guard,
            partition="aws-iso-b",
            region="us-isob-east-1",
            account=ACCOUNT,
            clock=self.keep.clock,
            ids=self.keep.ids,
            keyring=self.keep.keyring,
        )
        self.identity.bootstrap()
        self.providers: dict[str, Provider] = {"iam": Iam(self.identity), "sts": Sts(self.identity)}

    def sign_in(self, user: str, marking: str = "UNCLASSIFIED") -> Session:
        return self.identity.credential(self.identity.access_key(user, Label.parse(marking))[0], None).session

    def __call__(self, who: Session, operation: str, service: str = "iam", **request: Any) -> Any:
        model = MODELS[service].operation_model(operation)
        if model.input_shape is not None:
            faults = ParamValidator().validate(request, model.input_shape)
            assert not faults.has_errors(), faults.generate_report()
        provider = self.providers[service]
        if operation not in provider.unauthorized:
            target = provider.targets.get(operation, Target(f"{service}:{operation}"))
            assert isinstance(target, Target)
            fields = {"Path": "/", "partition": "aws-iso-b", "region": "", "account": ACCOUNT, **request}
            template = target.resource.replace("{Path=/}", "{Path}")
            self.identity.require(who, target.action, template.format(**fields), {})
        call = self.keep.call(who, operation, service=service, authorizer=self.identity.require)
        answer = strip(getattr(provider, xform_name(operation))(call, request) or {})
        if model.output_shape is None:
            assert answer == {}
        else:
            faults = ParamValidator().validate(answer, model.output_shape)
            assert not faults.has_errors(), faults.generate_report()
            unknown = set(answer) - set(model.output_shape.members)
            assert not unknown
        return answer


@pytest.fixture
def account(tmp_path: Path) -> Iterator[Account]:
    made = Account(tmp_path)
    yield made
    made.keep.close()


@pytest.fixture
def admin(account: Account) -> Session:
    return account.sign_in("admin")


def refused(code: str | None, run: Any) -> HonmaruError:
    with pytest.raises(HonmaruError) as refusal:
        run()
    assert refusal.value.code == code, refusal.value
    return refusal.value


def test_every_operation_of_the_providers_is_modelled(account: Account) -> None:
    for name, provider in account.providers.items():
        modelled = {xform_name(operation) for operation in MODELS[name].operation_names}
        public = {m for m in dir(provider) if not m.startswith("_")}
        written = public & modelled
        assert public - modelled <= {m for m in dir(Provider) if not m.startswith("_")} | {"service", "identity"}
        assert {xform_name(o) for o in (*provider.targets, *provider.unauthorized)} <= written


def test_users_from_creation_to_deletion(account: Account, admin: Session) -> None:
    tags = [{"Key": "team", "Value": "a"}, {"Key": entities.CLEARANCE_TAG, "Value": "SECRET"}]
    user = account(admin, "CreateUser", UserName="ann", Path="/lab/", Tags=tags)["User"]
    assert user["Arn"] == f"arn:aws-iso-b:iam::{ACCOUNT}:user/lab/ann" and user["UserId"].startswith("AIDA")
    assert account(admin, "GetUser", UserName="ann")["User"] == user
    assert account(admin, "GetUser")["User"]["UserName"] == "admin"
    assert [u["UserName"] for u in account(admin, "ListUsers")["Users"]] == ["admin", "ann"]
    assert [u["UserName"] for u in account(admin, "ListUsers", PathPrefix="/lab/")["Users"]] == ["ann"]
    first = account(admin, "ListUsers", MaxItems=1)
    assert first["IsTruncated"]
    assert account(admin, "ListUsers", MaxItems=1, Marker=first["Marker"])["Users"][0]["UserName"] == "ann"
    refused("EntityAlreadyExists", lambda: account(admin, "CreateUser", UserName="ann"))
    refused("NoSuchEntity", lambda: account(admin, "GetUser", UserName="eve"))
    refused("ValidationError", lambda: account(admin, "CreateUser", UserName="a/b"))
    account(admin, "TagUser", UserName="ann", Tags=[{"Key": "team", "Value": "b"}])
    account(admin, "UntagUser", UserName="ann", TagKeys=[entities.CLEARANCE_TAG])
    assert account(admin, "ListUserTags", UserName="ann")["Tags"] == [{"Key": "team", "Value": "b"}]
    account(admin, "PutUserPolicy", UserName="ann", PolicyName="p", PolicyDocument=ALLOW)
    answer = account(admin, "GetUserPolicy", UserName="ann", PolicyName="p")
    assert unquote(answer["PolicyDocument"]) == ALLOW
    assert account(admin, "ListUserPolicies", UserName="ann")["PolicyNames"] == ["p"]
    account(admin, "AttachUserPolicy", UserName="ann", PolicyArn=S3_FULL)
    account(admin, "AttachUserPolicy", UserName="ann", PolicyArn=S3_FULL)
    attached = account(admin, "ListAttachedUserPolicies", UserName="ann")["AttachedPolicies"]
    assert attached == [{"PolicyName": "AmazonS3FullAccess", "PolicyArn": S3_FULL}]
    key = account(admin, "CreateAccessKey", UserName="ann")["AccessKey"]
    refused("DeleteConflict", lambda: account(admin, "DeleteUser", UserName="ann"))
    account(admin, "DetachUserPolicy", UserName="ann", PolicyArn=S3_FULL)
    refused("NoSuchEntity", lambda: account(admin, "DetachUserPolicy", UserName="ann", PolicyArn=S3_FULL))
    refused("DeleteConflict", lambda: account(admin, "DeleteUser", UserName="ann"))
    account(admin, "DeleteUserPolicy", UserName="ann", PolicyName="p")
    refused("NoSuchEntity", lambda: account(admin, "GetUserPolicy", UserName="ann", PolicyName="p"))
    refused("DeleteConflict", lambda: account(admin, "DeleteUser", UserName="ann"))
    account(admin, "DeleteAccessKey", UserName="ann", AccessKeyId=key["AccessKeyId"])
    account(admin, "DeleteUser", UserName="ann")
    refused("NoSuchEntity", lambda: account(admin, "GetUser", UserName="ann"))


def test_access_keys_are_bound_to_the_session_that_made_them(account: Account, admin: Session) -> None:
    clearance = [{"Key": entities.CLEARANCE_TAG, "Value": "SECRET"}]
    account(admin, "CreateUser", UserName="ann", Tags=clearance)
    account(admin, "CreateUser", UserName="eve")
    high = account.sign_in("admin", "SECRET")
    low_key = account(admin, "CreateAccessKey", UserName="ann")["AccessKey"]
    high_key = account(high, "CreateAccessKey", UserName="ann")["AccessKey"]
    for key, label in ((low_key, admin.label), (high_key, high.label)):
        credential = account.identity.credential(key["AccessKeyId"], None)
        assert (credential.session.label, credential.secret_access_key) == (label, key["SecretAccessKey"])
    assert len(account(admin, "ListAccessKeys", UserName="ann")["AccessKeyMetadata"]) == 1
    assert len(account(high, "ListAccessKeys", UserName="ann")["AccessKeyMetadata"]) == 2
    assert "SecretAccessKey" not in str(account(high, "ListAccessKeys", UserName="ann"))
    refused(None, lambda: account(high, "CreateAccessKey", UserName="eve"))
    account(admin, "CreateAccessKey", UserName="ann")
    refused("LimitExceeded", lambda: account(admin, "CreateAccessKey", UserName="ann"))
    refused(
        "NoSuchEntity", lambda: account(admin, "DeleteAccessKey", UserName="ann", AccessKeyId=high_key["AccessKeyId"])
    )
    refused(
        "NoSuchEntity", lambda: account(admin, "DeleteAccessKey", UserName="eve", AccessKeyId=low_key["AccessKeyId"])
    )
    account(admin, "UpdateAccessKey", UserName="ann", AccessKeyId=low_key["AccessKeyId"], Status="Inactive")
    with pytest.raises(AuthenticationFailed):
        account.identity.credential(low_key["AccessKeyId"], None)


def test_making_a_key_for_somebody_does_not_lend_their_clearance(account: Account, admin: Session) -> None:
    account.identity.create_user("ann", "SECRET", ["AdministratorAccess"])
    account.identity.create_user("eve", "UNCLASSIFIED", ["AdministratorAccess"])
    arn = account(admin, "CreateRole", RoleName="job", AssumeRolePolicyDocument=TRUST)["Role"]["Arn"]
    tags = [{"Key": entities.LABEL_TAG, "Value": "SECRET"}]

    def key_for_ann(maker: Session) -> Session:
        key = account(maker, "CreateAccessKey", UserName="ann")["AccessKey"]
        return account.identity.credential(key["AccessKeyId"], None).session

    eve = account.sign_in("eve")
    stolen = key_for_ann(eve)
    again = key_for_ann(stolen)
    through = account(stolen, "AssumeRole", "sts", RoleArn=arn, RoleSessionName="work")["Credentials"]
    assumed = account.identity.credential(through["AccessKeyId"], through["SessionToken"]).session
    temporary = account(again, "GetSessionToken", "sts")["Credentials"]
    token = account.identity.credential(temporary["AccessKeyId"], temporary["SessionToken"]).session
    clearance = [{"Key": entities.CLEARANCE_TAG, "Value": "SECRET"}]
    for session in (stolen, again, token):
        with pytest.raises(AccessDenied):
            account(session, "AssumeRole", "sts", RoleArn=arn, RoleSessionName="work", Tags=tags)
        with pytest.raises(AccessDenied):
            account(session, "TagUser", UserName="eve", Tags=clearance)
    with pytest.raises(AccessDenied):
        account(assumed, "AssumeRole", "sts", RoleArn=arn, RoleSessionName="work", Tags=tags)
    for key in account(admin, "ListAccessKeys", UserName="ann")["AccessKeyMetadata"]:
        account(admin, "DeleteAccessKey", UserName="ann", AccessKeyId=key["AccessKeyId"])
    honest = key_for_ann(admin)
    account(honest, "AssumeRole", "sts", RoleArn=arn, RoleSessionName="work", Tags=tags)
    account(honest, "TagUser", UserName="eve", Tags=clearance)


def test_nobody_grants_more_than_they_hold(account: Account, admin: Session) -> None:
    def tag(text: str) -> list[dict[str, str]]:
        return [{"Key": entities.CLEARANCE_TAG, "Value": text}]

    account(admin, "CreateUser", UserName="ann", Tags=tag("UNCLASSIFIED"))
    account(admin, "AttachUserPolicy", UserName="ann", PolicyArn="arn:aws-iso-b:iam::aws:policy/IAMFullAccess")
    ann = account.sign_in("ann")
    account(ann, "CreateUser", UserName="low", Tags=tag("UNCLASSIFIED"))
    for text in ("SECRET", "CUI", "UNCLASSIFIED nationality=GBR"):
        with pytest.raises(AccessDenied):
            account(ann, "CreateUser", UserName="high", Tags=tag(text))
        with pytest.raises(AccessDenied):
            account(ann, "TagUser", UserName="ann", Tags=tag(text))
        with pytest.raises(AccessDenied):
            account(ann, "CreateRole", RoleName="r", AssumeRolePolicyDocument=TRUST, Tags=tag(text))
    with pytest.raises(AccessDenied):
        account(admin, "TagUser", UserName="ann", Tags=tag("TOP SECRET"))
    refused("InvalidInput", lambda: account(admin, "TagUser", UserName="ann", Tags=tag("SEKRET")))
    refused("InvalidInput", lambda: account(admin, "CreateUser", UserName="x", Tags=tag("CUI") + tag("CUI")))


def test_groups_give_their_policies_to_their_members(account: Account, admin: Session) -> None:
    arn = account(admin, "CreateGroup", GroupName="lab")["Group"]["Arn"]
    assert arn == f"arn:aws-iso-b:iam::{ACCOUNT}:group/lab"
    account(admin, "CreateUser", UserName="ann")
    ann = account.sign_in("ann")
    account(admin, "PutGroupPolicy", GroupName="lab", PolicyName="p", PolicyDocument=ALLOW)
    logs = "arn:aws-iso-b:iam::aws:policy/CloudWatchLogsFullAccess"
    account(admin, "AttachGroupPolicy", GroupName="lab", PolicyArn=logs)

    def may() -> list[bool]:
        return [
            account.identity.authorize(ann, action, "*", {}).allowed for action in ("s3:GetObject", "logs:GetLogEvents")
        ]

    assert may() == [False, False]
    account(admin, "AddUserToGroup", GroupName="lab", UserName="ann")
    assert may() == [True, True]
    assert [u["UserName"] for u in account(admin, "GetGroup", GroupName="lab")["Users"]] == ["ann"]
    assert [g["GroupName"] for g in account(admin, "ListGroupsForUser", UserName="ann")["Groups"]] == ["lab"]
    assert [g["GroupName"] for g in account(admin, "ListGroups")["Groups"]] == ["lab"]
    assert account(admin, "ListGroupPolicies", GroupName="lab")["PolicyNames"] == ["p"]
    assert account(admin, "ListAttachedGroupPolicies", GroupName="lab")["AttachedPolicies"][0]["PolicyArn"] == logs
    assert unquote(account(admin, "GetGroupPolicy", GroupName="lab", PolicyName="p")["PolicyDocument"]) == ALLOW
    account(admin, "DeleteGroupPolicy", GroupName="lab", PolicyName="p")
    assert may() == [False, True]
    refused("DeleteConflict", lambda: account(admin, "DeleteGroup", GroupName="lab"))
    refused("DeleteConflict", lambda: account(admin, "DeleteUser", UserName="ann"))
    account(admin, "RemoveUserFromGroup", GroupName="lab", UserName="ann")
    assert may() == [False, False]
    refused("DeleteConflict", lambda: account(admin, "DeleteGroup", GroupName="lab"))
    account(admin, "DetachGroupPolicy", GroupName="lab", PolicyArn=logs)
    account(admin, "DeleteGroup", GroupName="lab")
    refused("NoSuchEntity", lambda: account(admin, "GetGroup", GroupName="lab"))


def test_roles_from_creation_to_deletion(account: Account, admin: Session) -> None:
    role = account(admin, "CreateRole", RoleName="job", AssumeRolePolicyDocument=TRUST, Description="d")["Role"]
    assert role["RoleId"].startswith("AROA") and role["MaxSessionDuration"] == 3600
    assert json.loads(unquote(role["AssumeRolePolicyDocument"])) == json.loads(TRUST)
    assert account(admin, "GetRole", RoleName="job")["Role"] == {**role, "RoleLastUsed": {}}
    assert [r["RoleName"] for r in account(admin, "ListRoles")["Roles"]] == ["job"]
    refused("EntityAlreadyExists", lambda: account(admin, "CreateRole", RoleName="job", AssumeRolePolicyDocument=TRUST))
    for text in (ALLOW, "{", json.dumps({"Statement": []})):
        with pytest.raises(MalformedPolicy):
            account(admin, "CreateRole", RoleName="bad", AssumeRolePolicyDocument=text)
        with pytest.raises(MalformedPolicy):
            account(admin, "UpdateAssumeRolePolicy", RoleName="job", PolicyDocument=text)
    with pytest.raises(MalformedPolicy):
        account(admin, "PutRolePolicy", RoleName="job", PolicyName="p", PolicyDocument=TRUST)
    service = TRUST.replace(f'"AWS": "{ACCOUNT}"', '"Service": "sagemaker.amazonaws.com"')
    account(admin, "UpdateAssumeRolePolicy", RoleName="job", PolicyDocument=service)
    assert "sagemaker" in account(admin, "GetRole", RoleName="job")["Role"]["AssumeRolePolicyDocument"]
    account(admin, "UpdateRole", RoleName="job", Description="e", MaxSessionDuration=7200)
    assert account(admin, "GetRole", RoleName="job")["Role"]["MaxSessionDuration"] == 7200
    account(admin, "PutRolePolicy", RoleName="job", PolicyName="p", PolicyDocument=ALLOW)
    account(admin, "AttachRolePolicy", RoleName="job", PolicyArn=S3_FULL)
    refused("NoSuchEntity", lambda: account(admin, "AttachRolePolicy", RoleName="job", PolicyArn=S3_FULL + "x"))
    big = ALLOW.replace("s3:*", "s3:" + "A" * 11000)
    refused(
        "LimitExceeded", lambda: account(admin, "PutRolePolicy", RoleName="job", PolicyName="q", PolicyDocument=big)
    )
    account(admin, "PutRolePermissionsBoundary", RoleName="job", PermissionsBoundary=S3_FULL)
    assert account(admin, "GetRole", RoleName="job")["Role"]["PermissionsBoundary"]["PermissionsBoundaryArn"] == S3_FULL
    account(admin, "DeleteRolePermissionsBoundary", RoleName="job")
    refused("NoSuchEntity", lambda: account(admin, "DeleteRolePermissionsBoundary", RoleName="job"))
    account(admin, "TagRole", RoleName="job", Tags=[{"Key": "k", "Value": "v"}])
    assert account(admin, "ListRoleTags", RoleName="job")["Tags"] == [{"Key": "k", "Value": "v"}]
    account(admin, "UntagRole", RoleName="job", TagKeys=["k"])
    refused("DeleteConflict", lambda: account(admin, "DeleteRole", RoleName="job"))
    account(admin, "DetachRolePolicy", RoleName="job", PolicyArn=S3_FULL)
    refused("DeleteConflict", lambda: account(admin, "DeleteRole", RoleName="job"))
    account(admin, "DeleteRolePolicy", RoleName="job", PolicyName="p")
    account(admin, "DeleteRole", RoleName="job")
    refused("NoSuchEntity", lambda: account(admin, "GetRole", RoleName="job"))


def test_managed_policies_and_their_versions(account: Account, admin: Session) -> None:
    policy = account(admin, "CreatePolicy", PolicyName="p", PolicyDocument=ALLOW, Description="d")["Policy"]
    arn = policy["Arn"]
    assert account(admin, "GetPolicy", PolicyArn=arn)["Policy"] == policy
    for _ in range(4):
        account(admin, "CreatePolicyVersion", PolicyArn=arn, PolicyDocument=ALLOW)
    refused("LimitExceeded", lambda: account(admin, "CreatePolicyVersion", PolicyArn=arn, PolicyDocument=ALLOW))
    deny = ALLOW.replace("Allow", "Deny")
    account(admin, "DeletePolicyVersion", PolicyArn=arn, VersionId="v2")
    account(admin, "CreatePolicyVersion", PolicyArn=arn, PolicyDocument=deny, SetAsDefault=True)
    versions = account(admin, "ListPolicyVersions", PolicyArn=arn)["Versions"]
    assert [v["VersionId"] for v in versions if v["IsDefaultVersion"]] == ["v6"] and len(versions) == 5
    document = account(admin, "GetPolicyVersion", PolicyArn=arn, VersionId="v6")["PolicyVersion"]["Document"]
    assert unquote(document) == deny
    refused("DeleteConflict", lambda: account(admin, "DeletePolicyVersion", PolicyArn=arn, VersionId="v6"))
    refused("NoSuchEntity", lambda: account(admin, "GetPolicyVersion", PolicyArn=arn, VersionId="v9"))
    account(admin, "CreateUser", UserName="ann")
    account(admin, "AttachUserPolicy", UserName="ann", PolicyArn=arn)
    ann = account.sign_in("ann")
    assert account.identity.authorize(ann, "s3:GetObject", "*", {}).effect.value == "explicitDeny"
    account(admin, "SetDefaultPolicyVersion", PolicyArn=arn, VersionId="v1")
    assert account.identity.authorize(ann, "s3:GetObject", "*", {}).allowed
    assert account(admin, "GetPolicy", PolicyArn=arn)["Policy"]["AttachmentCount"] == 1
    refused("DeleteConflict", lambda: account(admin, "DeletePolicy", PolicyArn=arn))
    account(admin, "DetachUserPolicy", UserName="ann", PolicyArn=arn)
    refused("DeleteConflict", lambda: account(admin, "DeletePolicy", PolicyArn=arn))
    for version in ("v3", "v4", "v5", "v6"):
        account(admin, "DeletePolicyVersion", PolicyArn=arn, VersionId=version)
    account(admin, "DeletePolicy", PolicyArn=arn)
    refused("NoSuchEntity", lambda: account(admin, "GetPolicy", PolicyArn=arn))
    assert account(admin, "GetPolicy", PolicyArn=S3_FULL)["Policy"]["DefaultVersionId"] == "v1"
    assert "s3" in account(admin, "GetPolicyVersion", PolicyArn=S3_FULL, VersionId="v1")["PolicyVersion"]["Document"]
    refused(None, lambda: account(admin, "DeletePolicy", PolicyArn=S3_FULL))
    listed = account(admin, "ListPolicies", Scope="AWS", MaxItems=5)
    assert listed["IsTruncated"] and len(listed["Policies"]) == 5
    assert account(admin, "ListPolicies", Scope="Local")["Policies"] == []
    names = [p["PolicyName"] for p in account(admin, "ListPolicies", OnlyAttached=True)["Policies"]]
    assert names == ["AdministratorAccess"]


def test_simulation_asks_the_same_evaluator(account: Account, admin: Session) -> None:
    account(admin, "CreateRole", RoleName="job", AssumeRolePolicyDocument=TRUST)
    account(admin, "AttachRolePolicy", RoleName="job", PolicyArn=S3_FULL)
    arn = f"arn:aws-iso-b:iam::{ACCOUNT}:role/job"
    answer = account(
        admin, "SimulatePrincipalPolicy", PolicySourceArn=arn, ActionNames=["s3:GetObject", "iam:CreateUser"]
    )
    decisions = [(r["EvalActionName"], r["EvalDecision"]) for r in answer["EvaluationResults"]]
    assert decisions == [("s3:GetObject", "allowed"), ("iam:CreateUser", "implicitDeny")]
    refused(
        "NoSuchEntity",
        lambda: account(admin, "SimulatePrincipalPolicy", PolicySourceArn=arn + "x", ActionNames=["s3:X"]),
    )
    condition = ALLOW[:-3] + ', "Condition": {"NumericLessThan": {"app:n": "5"}}}]}'
    for value, decision in (("4", "allowed"), ("6", "implicitDeny")):
        answer = account(
            admin,
            "SimulateCustomPolicy",
            PolicyInputList=[condition],
            ActionNames=["s3:GetObject"],
            ContextEntries=[{"ContextKeyName": "app:n", "ContextKeyValues": [value], "ContextKeyType": "numeric"}],
        )
        assert answer["EvaluationResults"][0]["EvalDecision"] == decision
    assert account(admin, "GetAccountSummary")["SummaryMap"]["Roles"] == 1


def test_what_is_made_high_is_not_found_low_and_low_things_are_not_changed_high(
    account: Account, admin: Session
) -> None:
    high = account.sign_in("admin", "SECRET")
    account(high, "CreateUser", UserName="spy")
    refused("NoSuchEntity", lambda: account(admin, "GetUser", UserName="spy"))
    assert [u["UserName"] for u in account(admin, "ListUsers")["Users"]] == ["admin"]
    assert account(admin, "GetAccountSummary")["SummaryMap"]["Users"] == 1
    account(admin, "CreateUser", UserName="spy")  # the low name was free
    account(admin, "CreateUser", UserName="low")
    refused("EntityAlreadyExists", lambda: account(high, "CreateUser", UserName="low"))
    with pytest.raises(AccessDenied):
        account(high, "TagUser", UserName="low", Tags=[{"Key": "k", "Value": "v"}])
    with pytest.raises(AccessDenied):
        account(high, "DeleteUser", UserName="low")


def test_sts(account: Account, admin: Session) -> None:
    assert account(admin, "GetCallerIdentity", "sts") == {
        "UserId": admin.principal_id,
        "Account": ACCOUNT,
        "Arn": f"arn:aws-iso-b:iam::{ACCOUNT}:user/admin",
    }
    arn = account(admin, "CreateRole", RoleName="job", AssumeRolePolicyDocument=TRUST)["Role"]["Arn"]
    tags = [{"Key": entities.LABEL_TAG, "Value": "SECRET"}, {"Key": "team", "Value": "a"}]
    made = account(admin, "AssumeRole", "sts", RoleArn=arn, RoleSessionName="work", Tags=tags)
    credentials = made["Credentials"]
    session = account.identity.credential(credentials["AccessKeyId"], credentials["SessionToken"]).session
    assert session.label is Label.parse("SECRET") and session.human == admin.principal_arn
    who = account(session, "GetCallerIdentity", "sts")
    assert who["Arn"] == made["AssumedRoleUser"]["Arn"] == f"arn:aws-iso-b:sts::{ACCOUNT}:assumed-role/job/work"
    assert account(admin, "GetSessionToken", "sts")["Credentials"]["AccessKeyId"].startswith("ASIA")
    key = admin.access_key_id
    assert account(admin, "GetAccessKeyInfo", "sts", AccessKeyId=key)["Account"] == ACCOUNT
    with pytest.raises(ValidationFault):
        account(admin, "GetAccessKeyInfo", "sts", AccessKeyId="AKIAAAAAAAAAAAAAAAAA")
    with pytest.raises(AccessDenied):
        account(session, "AssumeRole", "sts", RoleArn=arn, RoleSessionName="work", Tags=[{**tags[0], "Value": "CUI"}])
    refused(
        "ValidationError",
        lambda: account(admin, "AssumeRole", "sts", RoleArn=arn, RoleSessionName="wo", Tags=tags[:1] * 2),
    )


def test_iam_asks_iam(account: Account, admin: Session) -> None:
    account(admin, "CreateUser", UserName="ann")
    ann = account.sign_in("ann")
    for operation, request in (
        ("GetUser", {}),
        ("ListUsers", {}),
        ("CreateAccessKey", {}),
        ("ListAccessKeys", {"UserName": "admin"}),
        ("CreateUser", {"UserName": "x"}),
        ("UpdateAccessKey", {"AccessKeyId": admin.access_key_id, "Status": "Inactive", "UserName": "admin"}),
    ):
        with pytest.raises(AccessDenied) as refusal:
            account(ann, operation, **request)
        assert f"is not authorized to perform: iam:{operation} on resource: " in refusal.value.message


def test_nobody_puts_themselves_where_control_policies_do_not_bind(account: Account, admin: Session) -> None:
    path = "/aws-service-role/guardduty.amazonaws.com/"
    account(admin, "CreateUser", UserName="ann")
    account(admin, "CreateGroup", GroupName="people")
    for operation, named in (
        ("CreateUser", {"UserName": "eve", "Path": path}),
        ("UpdateUser", {"UserName": "ann", "NewPath": path}),
        ("CreateRole", {"RoleName": "eve", "Path": path, "AssumeRolePolicyDocument": TRUST}),
        ("UpdateGroup", {"GroupName": "people", "NewPath": path}),
    ):
        refused("ValidationError", lambda operation=operation, named=named: account(admin, operation, **named))
    ann = account.identity.directory.principal(entities.USER, "ann", Label.parse("UNCLASSIFIED"))
    assert ann is not None and not replace(ann, path=path).service_linked
    role = account(admin, "CreateServiceLinkedRole", AWSServiceName="guardduty.amazonaws.com")["Role"]
    assert role["Path"] == path
