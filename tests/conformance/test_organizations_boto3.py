"""Organizations through unmodified boto3: accounts are apart from each other, and control policies bind them."""

from __future__ import annotations

import contextlib
import json
import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.exceptions import ClientError

from honmaru.testing.enclaves import LiveEnclave

LONG = os.environ.get("HONMARU_LONG") == "1"
SCP, RCP = "SERVICE_CONTROL_POLICY", "RESOURCE_CONTROL_POLICY"


def document(*statements: dict[str, Any]) -> str:
    return json.dumps({"Version": "2012-10-17", "Statement": list(statements)})


def refused(code: str, run: Any) -> str:
    with pytest.raises(ClientError) as refusal:
        run()
    assert refusal.value.response["Error"]["Code"] == code, refusal.value
    return str(refusal.value.response["Error"]["Message"])


class Site:
    """An enclave with an organisation, and sessions in its accounts."""

    def __init__(self, enclave: LiveEnclave) -> None:
        self.enclave = enclave
        self.org = enclave.client("organizations")
        with contextlib.suppress(self.org.exceptions.AlreadyInOrganizationException):  # other modules share the enclave
            self.org.create_organization(FeatureSet="ALL")
        self.root = self.org.list_roots()["Roots"][0]["Id"]

    def account(self, name: str) -> str:
        made = self.org.create_account(Email=f"{name}@site.example", AccountName=name)["CreateAccountStatus"]
        status = self.org.describe_create_account_status(CreateAccountRequestId=made["Id"])["CreateAccountStatus"]
        assert status["State"] == "SUCCEEDED"
        return str(status["AccountId"])

    def role(self, account: str) -> str:
        return f"arn:aws-iso-b:iam::{account}:role/OrganizationAccountAccessRole"

    def within(self, account: str, service: str, label: str = "") -> Any:
        """A client of the account's administrator."""
        made = self.enclave.client("sts", label=label).assume_role(RoleArn=self.role(account), RoleSessionName="site")
        return self.client(service, made["Credentials"])

    def client(self, service: str, keys: dict[str, Any]) -> Any:
        return boto3.client(
            service,
            endpoint_url=self.enclave.endpoint,
            verify=self.enclave.facts["ca"] or None,
            region_name=self.enclave.region,
            aws_access_key_id=keys["AccessKeyId"],
            aws_secret_access_key=keys["SecretAccessKey"],
            aws_session_token=keys.get("SessionToken"),
        )

    def control(self, kind: str, name: str, target: str, *statements: dict[str, Any]) -> str:
        made = self.org.create_policy(Content=document(*statements), Description="", Name=name, Type=kind)
        policy = str(made["Policy"]["PolicySummary"]["Id"])
        self.org.attach_policy(PolicyId=policy, TargetId=target)
        return policy


@pytest.fixture(scope="module")
def site(enclave: LiveEnclave) -> Site:
    made = Site(enclave)
    for kind in (SCP, RCP):
        made.org.enable_policy_type(RootId=made.root, PolicyType=kind)
    return made


def test_accounts_are_apart(site: Site) -> None:
    red, blue = site.account("red"), site.account("blue")
    assert site.within(red, "sts").get_caller_identity()["Account"] == red
    iam = site.within(red, "iam")
    assert [role["RoleName"] for role in iam.list_roles()["Roles"]] == ["OrganizationAccountAccessRole"]
    iam.create_user(UserName="ann")
    policy = document({"Effect": "Allow", "Action": ["s3:*", "sts:AssumeRole"], "Resource": "*"})
    iam.put_user_policy(UserName="ann", PolicyName="own", PolicyDocument=policy)
    key = iam.create_access_key(UserName="ann")["AccessKey"]
    ann = site.client("s3", key)
    ann.create_bucket(Bucket="red-bucket")
    ann.put_object(Bucket="red-bucket", Key="k", Body=b"red")
    assert [b["Name"] for b in ann.list_buckets()["Buckets"]] == ["red-bucket"]
    other = site.within(blue, "s3")
    assert other.list_buckets()["Buckets"] == []
    refused("AccessDenied", lambda: other.get_object(Bucket="red-bucket", Key="k"))
    refused(
        "AccessDenied", lambda: site.client("sts", key).assume_role(RoleArn=site.role(blue), RoleSessionName="intruder")
    )
    assert site.within(blue, "iam").list_users()["Users"] == []
    refused("BucketAlreadyExists", lambda: other.create_bucket(Bucket="red-bucket"))


def test_a_bucket_policy_opens_a_bucket_to_another_account_and_both_sides_must_allow(site: Site) -> None:
    owner, guest = site.account("owner"), site.account("guest")
    ours, theirs = site.within(owner, "s3"), site.within(guest, "s3")
    ours.create_bucket(Bucket="shared-bucket")
    ours.put_object(Bucket="shared-bucket", Key="k", Body=b"shared")
    refused("AccessDenied", lambda: theirs.get_object(Bucket="shared-bucket", Key="k"))
    opened = {
        "Effect": "Allow",
        "Principal": {"AWS": guest},
        "Action": "s3:GetObject",
        "Resource": "arn:aws-iso-b:s3:::shared-bucket/*",
    }
    ours.put_bucket_policy(Bucket="shared-bucket", Policy=document(opened))
    assert theirs.get_object(Bucket="shared-bucket", Key="k")["Body"].read() == b"shared"
    said = refused("AccessDenied", lambda: theirs.put_object(Bucket="shared-bucket", Key="k", Body=b"x"))
    assert "because no resource-based policy allows the s3:PutObject action" in said
    iam = site.within(guest, "iam")
    iam.create_user(UserName="poor")
    poor = site.client("s3", iam.create_access_key(UserName="poor")["AccessKey"])
    said = refused("AccessDenied", lambda: poor.get_object(Bucket="shared-bucket", Key="k"))
    assert "because no identity-based policy allows the s3:GetObject action" in said


def test_service_control_policies_bind_members_at_every_level_and_not_the_management_account(site: Site) -> None:
    account = site.account("bound")
    unit = site.org.create_organizational_unit(ParentId=site.root, Name="Sandbox")["OrganizationalUnit"]["Id"]
    site.org.move_account(AccountId=account, SourceParentId=site.root, DestinationParentId=unit)
    assert site.org.list_parents(ChildId=account)["Parents"] == [{"Id": unit, "Type": "ORGANIZATIONAL_UNIT"}]
    iam, s3 = site.within(account, "iam"), site.within(account, "s3")
    iam.list_users()
    policy = site.control(SCP, "no-iam", unit, {"Effect": "Deny", "Action": "iam:*", "Resource": "*"})
    assert "with an explicit deny in a service control policy" in refused("AccessDenied", iam.list_users)
    s3.list_buckets()
    site.enclave.client("iam").list_users()
    site.org.detach_policy(PolicyId=policy, TargetId=unit)
    iam.list_users()
    only = {"Effect": "Allow", "Action": ["iam:*", "sts:*"], "Resource": "*"}
    narrow = site.control(SCP, "only-iam", unit, only)
    s3.list_buckets()
    site.org.detach_policy(PolicyId="p-FullAWSAccess", TargetId=unit)
    said = refused("AccessDenied", s3.list_buckets)
    assert "because no service control policy allows the s3:ListAllMyBuckets action" in said
    refused("ConstraintViolationException", lambda: site.org.detach_policy(PolicyId=narrow, TargetId=unit))
    refused("PolicyInUseException", lambda: site.org.delete_policy(PolicyId=narrow))
    site.org.attach_policy(PolicyId="p-FullAWSAccess", TargetId=unit)
    site.org.detach_policy(PolicyId=narrow, TargetId=unit)
    site.org.delete_policy(PolicyId=narrow)
    targets = site.org.list_targets_for_policy(PolicyId="p-FullAWSAccess")
    assert targets["Targets"]


def test_resource_control_policies_bind_the_resources_of_an_account(site: Site) -> None:
    account = site.account("guarded")
    s3 = site.within(account, "s3")
    s3.create_bucket(Bucket="guarded-bucket")
    deny = {
        "Effect": "Deny",
        "Principal": "*",
        "Action": "s3:PutObject",
        "Resource": "*",
        "Condition": {"StringNotEqualsIfExists": {"aws:PrincipalOrgID": "o-another"}},
    }
    site.control(RCP, "nothing-in", account, deny)
    said = refused("AccessDenied", lambda: s3.put_object(Bucket="guarded-bucket", Key="k", Body=b"x"))
    assert "with an explicit deny in a resource control policy" in said
    malformed = {"Effect": "Allow", "Principal": "*", "Action": "s3:*", "Resource": "*"}
    refused(
        "MalformedPolicyDocumentException",
        lambda: site.org.create_policy(Content=document(malformed), Description="", Name="x", Type=RCP),
    )


def test_delegated_administrators_read_and_members_do_not(site: Site) -> None:
    delegate = site.account("delegate")
    org = site.within(delegate, "organizations")
    assert org.describe_organization()["Organization"]["MasterAccountId"] == site.enclave.account
    refused("AccessDeniedException", org.list_accounts)
    site.org.register_delegated_administrator(AccountId=delegate, ServicePrincipal="guardduty.amazonaws.com")
    assert org.list_accounts()["Accounts"]
    refused("AccessDeniedException", lambda: org.create_account(Email="x@y.example", AccountName="x"))
    listed = site.org.list_delegated_administrators()["DelegatedAdministrators"]
    assert [each["Id"] for each in listed] == [delegate]
    site.org.deregister_delegated_administrator(AccountId=delegate, ServicePrincipal="guardduty.amazonaws.com")
    refused("AccessDeniedException", org.list_accounts)


def test_closed_accounts_open_nothing_and_emails_are_taken_once(site: Site) -> None:
    account = site.account("closing")
    iam = site.within(account, "iam")
    iam.create_user(UserName="left")
    key = iam.create_access_key(UserName="left")["AccessKey"]
    left = site.client("sts", key)
    left.get_caller_identity()
    again = site.org.create_account(Email="closing@site.example", AccountName="again")["CreateAccountStatus"]
    assert (again["State"], again["FailureReason"]) == ("FAILED", "EMAIL_ALREADY_EXISTS")
    site.org.close_account(AccountId=account)
    refused("InvalidClientTokenId", left.get_caller_identity)
    refused("InvalidClientTokenId", iam.list_users)
    assert site.org.describe_account(AccountId=account)["Account"]["Status"] == "SUSPENDED"


def test_tags_and_pages(site: Site) -> None:
    account = site.account("tagged")
    site.org.tag_resource(ResourceId=account, Tags=[{"Key": "team", "Value": "red"}])
    assert site.org.list_tags_for_resource(ResourceId=account)["Tags"] == [{"Key": "team", "Value": "red"}]
    site.org.untag_resource(ResourceId=account, TagKeys=["team"])
    pages = site.org.get_paginator("list_accounts").paginate(PaginationConfig={"PageSize": 2})
    numbers = [each["Id"] for page in pages for each in page["Accounts"]]
    assert account in numbers and len(set(numbers)) == len(numbers)
    below = site.org.get_paginator("list_children").paginate(ParentId=site.root, ChildType="ACCOUNT")
    assert account in [child["Id"] for page in below for child in page["Children"]]


def test_what_is_made_high_is_not_found_low(site: Site) -> None:
    high, low = site.enclave.client("organizations", label="SECRET"), site.org
    made = high.create_account(Email="quiet@site.example", AccountName="quiet")["CreateAccountStatus"]
    account = made["AccountId"]
    assert high.describe_account(AccountId=account)["Account"]["Name"] == "quiet"
    refused("AccountNotFoundException", lambda: low.describe_account(AccountId=account))
    refused(
        "CreateAccountStatusNotFoundException",
        lambda: low.describe_create_account_status(CreateAccountRequestId=made["Id"]),
    )
    assert account not in [
        each["Id"] for page in low.get_paginator("list_accounts").paginate() for each in page["Accounts"]
    ]
    refused("AccessDenied", lambda: site.within(account, "sts"))
    assert site.within(account, "sts", label="SECRET").get_caller_identity()["Account"] == account


@pytest.mark.long
@pytest.mark.timeout(900)
def test_eleven_thousand_accounts_in_two_minutes_and_none_slows_another(tmp_path: Any) -> None:
    if not LONG:
        pytest.skip("set HONMARU_LONG=1")
    enclave = LiveEnclave(tmp_path / "e").up()
    try:
        site = Site(enclave)
        first = site.account("first")
        sts = site.within(first, "sts")

        def cpu_s() -> float:
            """User and system time of the enclave: what it does, whatever else the machine does."""
            fields = Path(f"/proc/{enclave.pid}/stat").read_text().rpartition(")")[2].split()
            return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

        def each() -> float:
            begun = cpu_s()
            for _ in range(300):
                sts.get_caller_identity()
            return (cpu_s() - begun) / 300

        before = each()
        begun = time.perf_counter()
        with ThreadPoolExecutor(8) as pool:
            list(
                pool.map(
                    lambda n: site.org.create_account(Email=f"a{n}@site.example", AccountName=f"a{n}"), range(10_999)
                )
            )
        took = time.perf_counter() - begun
        time.sleep(10)  # the ledger signs behind what it has acknowledged
        after = each()
        print(f"11,000 accounts in {took:.0f} s; CPU of a call {before * 1e3:.2f} ms before, {after * 1e3:.2f} after")
        assert took < 120
        assert after < before * 2
    finally:
        enclave.down()
