"""IAM and STS through unmodified boto3 against a live enclave: a workflow for each family."""

from __future__ import annotations

import csv
import io
import json
import secrets
import time
from typing import Any

import boto3
import pytest
from botocore.exceptions import ClientError
from cryptography.hazmat.primitives.hashes import SHA1
from cryptography.hazmat.primitives.twofactor.totp import TOTP

from honmaru.testing.enclaves import LiveEnclave

ANYBODY = {"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Principal": "*", "Action": "sts:AssumeRole"}]}


def document(*statements: dict[str, Any]) -> str:
    return json.dumps({"Version": "2012-10-17", "Statement": list(statements)})


def allow(action: Any, resource: Any = "*", **more: Any) -> dict[str, Any]:
    return {"Effect": "Allow", "Action": action, "Resource": resource, **more}


@pytest.fixture
def iam(enclave: LiveEnclave) -> Any:
    return enclave.client("iam")


@pytest.fixture
def sts(enclave: LiveEnclave) -> Any:
    return enclave.client("sts")


def signed_in(enclave: LiveEnclave, service: str, keys: dict[str, Any]) -> Any:
    return boto3.client(
        service,
        endpoint_url=enclave.endpoint,
        verify=enclave.facts["ca"] or None,
        region_name=enclave.region,
        aws_access_key_id=keys["AccessKeyId"],
        aws_secret_access_key=keys["SecretAccessKey"],
        aws_session_token=keys.get("SessionToken"),
    )


def refused(code: str, run: Any) -> str:
    with pytest.raises(ClientError) as refusal:
        run()
    assert refusal.value.response["Error"]["Code"] == code, refusal.value
    return str(refusal.value.response["Error"]["Message"])


def user_with_key(iam: Any, name: str, *statements: dict[str, Any]) -> dict[str, Any]:
    iam.create_user(UserName=name)
    if statements:
        iam.put_user_policy(UserName=name, PolicyName="own", PolicyDocument=document(*statements))
    key: dict[str, Any] = iam.create_access_key(UserName=name)["AccessKey"]
    return key


def test_users_with_paths_are_known_to_policies_by_their_whole_arn(enclave: LiveEnclave, iam: Any) -> None:
    arn = iam.create_user(UserName="deep", Path="/teams/red/")["User"]["Arn"]
    assert arn.endswith(":user/teams/red/deep")
    key = user_with_key(iam, "steward", allow("iam:*", "arn:*:iam::*:user/teams/red/*"))
    steward = signed_in(enclave, "iam", key)
    assert steward.get_user(UserName="deep")["User"]["Arn"] == arn
    assert steward.list_user_tags(UserName="deep")["Tags"] == []
    steward.tag_user(UserName="deep", Tags=[{"Key": "team", "Value": "red"}])
    steward.create_user(UserName="deeper", Path="/teams/red/")
    said = refused("AccessDenied", lambda: steward.create_user(UserName="stranger", Path="/teams/blue/"))
    assert "because no identity-based policy allows the iam:CreateUser action" in said
    refused("AccessDenied", lambda: steward.get_user(UserName="admin"))
    for name in ("deep", "deeper"):
        steward.delete_user(UserName=name)


def test_resource_tags_reach_conditions(enclave: LiveEnclave, iam: Any) -> None:
    tagged = allow("iam:TagUser", "*", Condition={"StringEquals": {"aws:ResourceTag/team": "${aws:PrincipalTag/team}"}})
    key = user_with_key(iam, "lead", tagged)
    iam.tag_user(UserName="lead", Tags=[{"Key": "team", "Value": "red"}])
    for name, team in (("mine", "red"), ("theirs", "blue")):
        iam.create_user(UserName=name, Tags=[{"Key": "team", "Value": team}])
    lead = signed_in(enclave, "iam", key)
    lead.tag_user(UserName="mine", Tags=[{"Key": "seen", "Value": "yes"}])
    refused("AccessDenied", lambda: lead.tag_user(UserName="theirs", Tags=[{"Key": "seen", "Value": "yes"}]))


def test_tags_of_a_services_resources_reach_conditions(enclave: LiveEnclave, iam: Any) -> None:
    admin = enclave.client("sagemaker")
    for name, team in (("red-models", "red"), ("blue-models", "blue")):
        admin.create_model_package_group(ModelPackageGroupName=name, Tags=[{"Key": "team", "Value": team}])
    own = allow("sagemaker:Describe*", Condition={"StringEquals": {"aws:ResourceTag/team": "red"}})
    made = allow("sagemaker:Create*", Condition={"StringEquals": {"aws:RequestTag/team": "red"}})
    red = signed_in(enclave, "sagemaker", user_with_key(iam, "redder", own, made))
    assert red.describe_model_package_group(ModelPackageGroupName="red-models")
    refused("AccessDeniedException", lambda: red.describe_model_package_group(ModelPackageGroupName="blue-models"))
    red.create_model_package_group(ModelPackageGroupName="new-red", Tags=[{"Key": "team", "Value": "red"}])
    refused("AccessDeniedException", lambda: red.create_model_package_group(ModelPackageGroupName="untagged"))
    arn = admin.describe_model_package_group(ModelPackageGroupName="blue-models")["ModelPackageGroupArn"]
    admin.add_tags(ResourceArn=arn, Tags=[{"Key": "team", "Value": "red"}])
    assert red.describe_model_package_group(ModelPackageGroupName="blue-models")


def test_instance_profiles(iam: Any) -> None:
    iam.create_role(RoleName="worker", AssumeRolePolicyDocument=json.dumps(ANYBODY))
    made = iam.create_instance_profile(InstanceProfileName="box", Path="/hosts/")["InstanceProfile"]
    assert made["Arn"].endswith(":instance-profile/hosts/box") and made["Roles"] == []
    iam.add_role_to_instance_profile(InstanceProfileName="box", RoleName="worker")
    refused("LimitExceeded", lambda: iam.add_role_to_instance_profile(InstanceProfileName="box", RoleName="worker"))
    assert "box" in [p["InstanceProfileName"] for p in iam.list_instance_profiles()["InstanceProfiles"]]
    held = iam.list_instance_profiles_for_role(RoleName="worker")["InstanceProfiles"]
    assert held[0]["Roles"][0]["RoleName"] == "worker"
    refused("DeleteConflict", lambda: iam.delete_instance_profile(InstanceProfileName="box"))
    refused("DeleteConflict", lambda: iam.delete_role(RoleName="worker"))
    iam.remove_role_from_instance_profile(InstanceProfileName="box", RoleName="worker")
    iam.delete_instance_profile(InstanceProfileName="box")
    iam.delete_role(RoleName="worker")
    refused("NoSuchEntity", lambda: iam.get_instance_profile(InstanceProfileName="box"))


def test_passwords_and_their_policy(enclave: LiveEnclave, iam: Any) -> None:
    refused("NoSuchEntity", iam.get_account_password_policy)
    iam.update_account_password_policy(MinimumPasswordLength=12, RequireNumbers=True, PasswordReusePrevention=3)
    assert iam.get_account_password_policy()["PasswordPolicy"]["MinimumPasswordLength"] == 12
    key = user_with_key(iam, "typist", allow("iam:ChangePassword", "arn:*:iam::*:user/${aws:username}"))
    refused("PasswordPolicyViolation", lambda: iam.create_login_profile(UserName="typist", Password="short1"))
    made = iam.create_login_profile(UserName="typist", Password="long enough 1", PasswordResetRequired=True)
    assert made["LoginProfile"]["PasswordResetRequired"] is True
    typist = signed_in(enclave, "iam", key)
    refused("AccessDenied", lambda: typist.change_password(OldPassword="wrong", NewPassword="another long 2"))
    typist.change_password(OldPassword="long enough 1", NewPassword="another long 2")
    refused("PasswordPolicyViolation", lambda: iam.update_login_profile(UserName="typist", Password="long enough 1"))
    assert iam.get_login_profile(UserName="typist")["LoginProfile"]["PasswordResetRequired"] is False
    refused("DeleteConflict", lambda: (iam.delete_user_policy(UserName="typist", PolicyName="own"),
                                       iam.delete_access_key(UserName="typist", AccessKeyId=key["AccessKeyId"]),
                                       iam.delete_user(UserName="typist")))  # fmt: skip
    iam.delete_login_profile(UserName="typist")
    iam.delete_user(UserName="typist")
    iam.delete_account_password_policy()


class Device:
    """An authenticator app."""

    def __init__(self, seed: bytes) -> None:
        import base64

        text = seed.decode()
        self.totp = TOTP(base64.b32decode(text + "=" * (-len(text) % 8)), 6, SHA1(), 30)
        self.now = int(time.time())

    def code(self, steps: int) -> str:
        return self.totp.generate(self.now + 30 * steps).decode()


def test_one_time_passwords_open_sessions_that_policies_ask_for(enclave: LiveEnclave, iam: Any, sts: Any) -> None:
    key = user_with_key(
        iam,
        "careful",
        allow("sts:AssumeRole"),
        allow("iam:ListUsers", Condition={"Bool": {"aws:MultiFactorAuthPresent": "true"}}),
        allow(["iam:EnableMFADevice", "iam:ListMFADevices"], "arn:*:iam::*:user/${aws:username}"),
    )
    made = iam.create_virtual_mfa_device(VirtualMFADeviceName="phone")["VirtualMFADevice"]
    serial, device = made["SerialNumber"], Device(made["Base32StringSeed"])
    careful, desk = signed_in(enclave, "iam", key), signed_in(enclave, "sts", key)
    wrong = {"AuthenticationCode1": device.code(-2), "AuthenticationCode2": device.code(-3)}
    refused(
        "InvalidAuthenticationCode", lambda: careful.enable_mfa_device(UserName="careful", SerialNumber=serial, **wrong)
    )
    careful.enable_mfa_device(
        UserName="careful",
        SerialNumber=serial,
        AuthenticationCode1=device.code(-3),
        AuthenticationCode2=device.code(-2),
    )
    assert [d["SerialNumber"] for d in careful.list_mfa_devices()["MFADevices"]] == [serial]
    assert (
        iam.list_virtual_mfa_devices(AssignmentStatus="Assigned")["VirtualMFADevices"][0]["User"]["UserName"]
        == "careful"
    )

    refused("AccessDenied", careful.list_users)
    refused("AccessDenied", lambda: desk.get_session_token(SerialNumber=serial, TokenCode="000000"))
    token = desk.get_session_token(SerialNumber=serial, TokenCode=device.code(0))["Credentials"]
    assert signed_in(enclave, "iam", token).list_users()["Users"]
    refused("AccessDenied", lambda: desk.get_session_token(SerialNumber=serial, TokenCode=device.code(0)))

    trust = json.loads(json.dumps(ANYBODY))
    trust["Statement"][0]["Condition"] = {"Bool": {"aws:MultiFactorAuthPresent": "true"}}
    role = iam.create_role(RoleName="vault", AssumeRolePolicyDocument=json.dumps(trust))["Role"]["Arn"]
    refused("AccessDenied", lambda: desk.assume_role(RoleArn=role, RoleSessionName="one"))
    desk.assume_role(RoleArn=role, RoleSessionName="one", SerialNumber=serial, TokenCode=device.code(1))
    with_token = signed_in(enclave, "sts", token)
    with_token.assume_role(RoleArn=role, RoleSessionName="two")
    iam.deactivate_mfa_device(UserName="careful", SerialNumber=serial)
    iam.delete_virtual_mfa_device(SerialNumber=serial)
    assert serial not in [each["SerialNumber"] for each in iam.list_virtual_mfa_devices()["VirtualMFADevices"]]


def test_roles_with_external_ids_sources_tags_and_session_policies(enclave: LiveEnclave, iam: Any, sts: Any) -> None:
    trust = document(
        {
            "Effect": "Allow",
            "Principal": {"AWS": f"arn:{sts.get_caller_identity()['Arn'].split(':')[1]}:iam::{enclave.account}:root"},
            "Action": ["sts:AssumeRole", "sts:TagSession", "sts:SetSourceIdentity"],
            "Condition": {"StringEquals": {"sts:ExternalId": "secret-handshake"}},
        }
    )
    role = iam.create_role(RoleName="partner", AssumeRolePolicyDocument=trust)["Role"]["Arn"]
    iam.put_role_policy(RoleName="partner", PolicyName="own", PolicyDocument=document(allow(["iam:List*", "sts:*"])))
    refused("AccessDenied", lambda: sts.assume_role(RoleArn=role, RoleSessionName="one"))
    narrow = document(allow("iam:ListRoles"))
    made = sts.assume_role(
        RoleArn=role,
        RoleSessionName="one",
        ExternalId="secret-handshake",
        SourceIdentity="ann",
        Tags=[{"Key": "team", "Value": "red"}],
        TransitiveTagKeys=["team"],
        Policy=narrow,
    )
    assert made["SourceIdentity"] == "ann" and 0 < made["PackedPolicySize"] < 100
    session = signed_in(enclave, "iam", made["Credentials"])
    assert session.list_roles()["Roles"]
    said = refused("AccessDenied", session.list_users)
    assert "because no session policy allows the iam:ListUsers action" in said
    wide = {"RoleArn": role, "RoleSessionName": "one", "ExternalId": "secret-handshake", "DurationSeconds": 3600}
    chained = signed_in(enclave, "sts", sts.assume_role(**wide)["Credentials"])
    iam.update_role(RoleName="partner", MaxSessionDuration=7200)
    said = refused("ValidationError", lambda: chained.assume_role(**{**wide, "DurationSeconds": 7200}))
    assert "role chaining" in said
    huge = [{"Key": f"k{n}", "Value": secrets.token_hex(125)} for n in range(49)]
    refused("PackedPolicyTooLarge", lambda: sts.assume_role(**wide, Tags=huge))


def test_older_sessions_of_a_role_are_revoked_by_a_policy(enclave: LiveEnclave, iam: Any, sts: Any) -> None:
    role = iam.create_role(RoleName="revoked", AssumeRolePolicyDocument=json.dumps(ANYBODY))["Role"]["Arn"]
    iam.put_role_policy(RoleName="revoked", PolicyName="own", PolicyDocument=document(allow("iam:ListUsers")))
    assert iam.get_role(RoleName="revoked")["Role"]["RoleLastUsed"] == {}
    session = signed_in(enclave, "iam", sts.assume_role(RoleArn=role, RoleSessionName="one")["Credentials"])
    assert session.list_users()["Users"]
    assert iam.get_role(RoleName="revoked")["Role"]["RoleLastUsed"]["Region"] == enclave.region
    older = {"DateLessThan": {"aws:TokenIssueTime": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + 1))}}
    deny = {"Effect": "Deny", "Action": "*", "Resource": "*", "Condition": older}
    iam.put_role_policy(RoleName="revoked", PolicyName="AWSRevokeOlderSessions", PolicyDocument=document(deny))
    assert "explicit deny in an identity-based policy" in refused("AccessDenied", session.list_users)


def test_federated_users_have_at_most_what_their_user_has(enclave: LiveEnclave, iam: Any) -> None:
    key = user_with_key(iam, "portal", allow(["sts:GetFederationToken", "s3:ListAllMyBuckets"]))
    portal = signed_in(enclave, "sts", key)
    made = portal.get_federation_token(Name="guest", Policy=document(allow("*")), DurationSeconds=900)
    assert made["FederatedUser"]["Arn"].endswith(":federated-user/guest")
    guest = made["Credentials"]
    assert signed_in(enclave, "sts", guest).get_caller_identity()["UserId"] == f"{enclave.account}:guest"
    assert signed_in(enclave, "s3", guest).list_buckets()["ResponseMetadata"]["HTTPStatusCode"] == 200
    refused("AccessDenied", lambda: signed_in(enclave, "s3", guest).create_bucket(Bucket="guest-bucket"))
    bare = portal.get_federation_token(Name="bare")["Credentials"]
    refused("AccessDenied", lambda: signed_in(enclave, "s3", bare).list_buckets())
    refused("AccessDenied", lambda: signed_in(enclave, "sts", guest).get_federation_token(Name="more"))


def test_a_refusal_explains_itself_to_who_may_decode_it(enclave: LiveEnclave, iam: Any, sts: Any) -> None:
    key = user_with_key(iam, "curious")
    with pytest.raises(ClientError) as refusal:
        signed_in(enclave, "iam", key).list_users()
    headers = refusal.value.response["ResponseMetadata"]["HTTPHeaders"]
    encoded = headers["x-honmaru-authorization-message"]
    told = json.loads(sts.decode_authorization_message(EncodedMessage=encoded)["DecodedMessage"])
    assert told["allowed"] is False and told["context"]["action"] == "iam:ListUsers"
    assert told["context"]["principal"]["arn"].endswith(":user/curious")
    refused(
        "InvalidAuthorizationMessageException", lambda: sts.decode_authorization_message(EncodedMessage=encoded[:-8])
    )
    refused("AccessDenied", lambda: signed_in(enclave, "sts", key).decode_authorization_message(EncodedMessage=encoded))


def test_service_linked_roles_are_the_services_own(iam: Any) -> None:
    role = iam.create_service_linked_role(AWSServiceName="guardduty.amazonaws.com")["Role"]
    assert role["Path"] == "/aws-service-role/guardduty.amazonaws.com/"
    name = role["RoleName"]
    text = document(allow("s3:*"))
    refused("UnmodifiableEntity", lambda: iam.put_role_policy(RoleName=name, PolicyName="x", PolicyDocument=text))
    refused("UnmodifiableEntity", lambda: iam.delete_role(RoleName=name))
    task = iam.delete_service_linked_role(RoleName=name)["DeletionTaskId"]
    assert iam.get_service_linked_role_deletion_status(DeletionTaskId=task)["Status"] == "SUCCEEDED"


def test_account_alias_summary_report_and_details(enclave: LiveEnclave, iam: Any) -> None:
    iam.create_account_alias(AccountAlias="red-team")
    assert iam.list_account_aliases()["AccountAliases"] == ["red-team"]
    iam.delete_account_alias(AccountAlias="red-team")
    key = user_with_key(iam, "reported", allow("iam:GetUser"))
    signed_in(enclave, "iam", key).get_user()
    used = iam.get_access_key_last_used(AccessKeyId=key["AccessKeyId"])
    assert used["UserName"] == "reported" and used["AccessKeyLastUsed"]["ServiceName"] == "iam"
    while iam.generate_credential_report()["State"] != "COMPLETE":
        pass
    report = iam.get_credential_report()
    rows = {row["user"]: row for row in csv.DictReader(io.StringIO(report["Content"].decode()))}
    assert rows["reported"]["access_key_1_active"] == "true" and rows["reported"]["mfa_active"] == "false"
    assert rows["reported"]["access_key_1_last_used_service"] == "iam"
    assert iam.get_account_summary()["SummaryMap"]["Users"] == len(iam.list_users()["Users"])
    pages = list(iam.get_paginator("get_account_authorization_details").paginate(PaginationConfig={"PageSize": 3}))
    names = {user["UserName"] for page in pages for user in page["UserDetailList"]}
    assert {"admin", "reported"} <= names
    entities = iam.list_entities_for_policy(
        PolicyArn=iam.list_attached_user_policies(UserName="admin")["AttachedPolicies"][0]["PolicyArn"]
    )
    assert "admin" in [user["UserName"] for user in entities["PolicyUsers"]]


def test_simulation_with_boundaries_resource_policies_and_context_keys(iam: Any, enclave: LiveEnclave) -> None:
    own = document(allow("s3:GetObject", "arn:*:s3:::b/${aws:username}/*"))
    asked = {"ActionNames": ["s3:GetObject"], "ResourceArns": ["arn:aws-iso-b:s3:::b/ann/x"]}
    assert iam.get_context_keys_for_custom_policy(PolicyInputList=[own])["ContextKeyNames"] == ["aws:username"]
    said = iam.simulate_custom_policy(PolicyInputList=[own], **asked)["EvaluationResults"][0]
    assert said["EvalDecision"] == "implicitDeny" and said["MissingContextValues"] == ["aws:username"]
    entry = {"ContextKeyName": "aws:username", "ContextKeyValues": ["ann"], "ContextKeyType": "string"}
    said = iam.simulate_custom_policy(PolicyInputList=[own], ContextEntries=[entry], **asked)["EvaluationResults"][0]
    assert said["EvalDecision"] == "allowed" and said["MatchedStatements"][0]["SourcePolicyId"] == "PolicyInputList.1"
    limit = document(allow("kms:*"))
    bound = iam.simulate_custom_policy(
        PolicyInputList=[own], ContextEntries=[entry], PermissionsBoundaryPolicyInputList=[limit], **asked
    )["EvaluationResults"][0]
    assert bound["EvalDecision"] == "implicitDeny"
    assert bound["PermissionsBoundaryDecisionDetail"] == {"AllowedByPermissionsBoundary": False}
    user_with_key(iam, "subject", allow("iam:ListUsers"))
    arn = iam.get_user(UserName="subject")["User"]["Arn"]
    group = iam.create_group(GroupName="simulated")["Group"]["Arn"]
    iam.put_group_policy(GroupName="simulated", PolicyName="own", PolicyDocument=document(allow("iam:ListRoles")))
    of_group = iam.simulate_principal_policy(PolicySourceArn=group, ActionNames=["iam:ListUsers", "iam:ListRoles"])
    assert [r["EvalDecision"] for r in of_group["EvaluationResults"]] == ["implicitDeny", "allowed"]
    deny = document({"Effect": "Deny", "Principal": "*", "Action": "iam:ListUsers", "Resource": "*"})
    plain = iam.simulate_principal_policy(PolicySourceArn=arn, ActionNames=["iam:ListUsers", "iam:ListRoles"])
    assert [r["EvalDecision"] for r in plain["EvaluationResults"]] == ["allowed", "implicitDeny"]
    denied = iam.simulate_principal_policy(PolicySourceArn=arn, ActionNames=["iam:ListUsers"], ResourcePolicy=deny)
    assert denied["EvaluationResults"][0]["EvalDecision"] == "explicitDeny"
    assert denied["EvaluationResults"][0]["MatchedStatements"][0]["SourcePolicyType"] == "Resource Policy"


def test_keys_and_roles_are_bound_to_networks(enclave: LiveEnclave, iam: Any, sts: Any) -> None:
    elsewhere = [{"Key": "honmaru:network", "Value": "10.99.0.0/16"}]
    here = [{"Key": "honmaru:network", "Value": "10.99.0.0/16 127.0.0.0/8"}]
    key = user_with_key(iam, "roaming")
    desk = signed_in(enclave, "sts", key)
    iam.tag_user(UserName="roaming", Tags=here)
    desk.get_caller_identity()
    iam.tag_user(UserName="roaming", Tags=elsewhere)
    refused("InvalidClientTokenId", desk.get_caller_identity)
    refused(
        "InvalidInput", lambda: iam.tag_user(UserName="roaming", Tags=[{"Key": "honmaru:network", "Value": "here"}])
    )
    role = iam.create_role(RoleName="outpost", AssumeRolePolicyDocument=json.dumps(ANYBODY))["Role"]["Arn"]
    away = sts.assume_role(RoleArn=role, RoleSessionName="one", Tags=elsewhere)["Credentials"]
    refused("InvalidClientTokenId", signed_in(enclave, "sts", away).get_caller_identity)


def test_what_is_made_high_is_not_found_low(enclave: LiveEnclave) -> None:
    high, low = enclave.client("iam", label="SECRET"), enclave.client("iam")
    high.create_instance_profile(InstanceProfileName="quiet")
    high.create_virtual_mfa_device(VirtualMFADeviceName="quiet")
    url = "https://quiet.example"
    arn = high.create_open_id_connect_provider(Url=url, ClientIDList=["a"])["OpenIDConnectProviderArn"]
    refused("NoSuchEntity", lambda: low.get_instance_profile(InstanceProfileName="quiet"))
    refused("NoSuchEntity", lambda: low.get_open_id_connect_provider(OpenIDConnectProviderArn=arn))
    assert all("quiet" not in d["SerialNumber"] for d in low.list_virtual_mfa_devices()["VirtualMFADevices"])
    assert arn not in [p["Arn"] for p in low.list_open_id_connect_providers()["OpenIDConnectProviderList"]]
    assert low.create_instance_profile(InstanceProfileName="quiet")["InstanceProfile"]
    assert arn in [p["Arn"] for p in high.list_open_id_connect_providers()["OpenIDConnectProviderList"]]


def test_transitive_tags_go_through_a_chain_and_stay(enclave: LiveEnclave, iam: Any, sts: Any) -> None:
    everybody = {"AWS": f"arn:{enclave.facts['partition']}:iam::{enclave.account}:root"}
    trust = document({"Effect": "Allow", "Principal": everybody, "Action": ["sts:AssumeRole", "sts:TagSession"]})
    roles = []
    for name in ("first-link", "second-link"):
        roles.append(iam.create_role(RoleName=name, AssumeRolePolicyDocument=trust)["Role"]["Arn"])
        red = {"StringEquals": {"aws:PrincipalTag/project": "red"}}
        statements = (allow("sts:*"), allow("iam:ListRoles", Condition=red), allow("iam:ListUsers", Condition=red))
        iam.put_role_policy(RoleName=name, PolicyName="own", PolicyDocument=document(*statements))
    tags = [{"Key": "project", "Value": "red"}, {"Key": "desk", "Value": "4"}]
    first = sts.assume_role(RoleArn=roles[0], RoleSessionName="one", Tags=tags, TransitiveTagKeys=["project"])
    inside = signed_in(enclave, "sts", first["Credentials"])
    second = inside.assume_role(RoleArn=roles[1], RoleSessionName="two")
    assert signed_in(enclave, "iam", second["Credentials"]).list_roles()["Roles"]  # it is red still
    for tag in ({"Key": "project", "Value": "blue"}, {"Key": "Project", "Value": "blue"}):
        refused(
            "ValidationError",
            lambda tag=tag: inside.assume_role(RoleArn=roles[1], RoleSessionName="two", Tags=[tag]),  # type: ignore[misc]
        )
    untagged = inside.assume_role(RoleArn=roles[1], RoleSessionName="two", Tags=[{"Key": "desk", "Value": "5"}])
    assert untagged["Credentials"]  # what is not transitive ends with its session


def test_the_wrong_nationality_is_refused_at_sign_in(enclave: LiveEnclave, iam: Any) -> None:
    enclave.user("gil", "SECRET nationality=GBR")
    trust = document(
        {
            "Effect": "Allow",
            "Principal": {"AWS": f"arn:{enclave.facts['partition']}:iam::{enclave.account}:root"},
            "Action": "sts:AssumeRole",
        }
    )
    role = iam.create_role(RoleName="national", AssumeRolePolicyDocument=trust)["Role"]["Arn"]

    def label(user: str, marking: str) -> str:
        made = enclave.client("sts", user).assume_role(
            RoleArn=role, RoleSessionName="one", Tags=[{"Key": "honmaru:label", "Value": marking}]
        )
        told = signed_in(enclave, "sts", made["Credentials"]).get_caller_identity()["ResponseMetadata"]
        return str(told["HTTPHeaders"]["x-honmaru-label"])

    assert label("gil", "SECRET//REL TO USA GBR").startswith("SECRET//REL")
    assert label("alice", "SECRET//NOFORN") == "SECRET//NOFORN"
    refused("AccessDenied", lambda: label("gil", "SECRET//NOFORN"))
    refused("AccessDenied", lambda: label("gil", "TOP SECRET"))
    refused("AccessDenied", lambda: label("carol", "SECRET//REL TO USA GBR"))
