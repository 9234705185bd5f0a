"""AssumeRoleWithSAML through unmodified boto3: a local identity provider, its assertions, and their limits."""

from __future__ import annotations

import base64
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore import UNSIGNED
from botocore.config import Config
from botocore.exceptions import ClientError

from honmaru.testing.enclaves import LiveEnclave
from honmaru.testing.saml_provider import RECIPIENT, SamlProvider, encoded

IDP = SamlProvider()


class Federated:
    """A role that trusts a SAML provider of one enclave."""

    def __init__(self, enclave: LiveEnclave) -> None:
        self.enclave = enclave
        self.iam = iam = enclave.client("iam")
        made = iam.create_saml_provider(Name="idp", SAMLMetadataDocument=IDP.metadata())
        self.provider = str(made["SAMLProviderArn"])
        trust = {
            "Version": "2012-10-17",
            "Statement": [
                {
                    "Effect": "Allow",
                    "Principal": {"Federated": self.provider},
                    "Action": ["sts:AssumeRoleWithSAML", "sts:TagSession", "sts:SetSourceIdentity"],
                    "Condition": {
                        "StringEquals": {"SAML:aud": RECIPIENT, "SAML:iss": IDP.entity, "SAML:sub_type": "persistent"},
                        "StringLike": {"SAML:sub": "*@example"},
                        "ForAnyValue:StringEqualsIfExists": {"SAML:eduPersonAffiliation": "staff"},
                    },
                }
            ],
        }
        made = iam.create_role(RoleName="saml", AssumeRolePolicyDocument=json.dumps(trust))
        self.role = str(made["Role"]["Arn"])
        own = {"Effect": "Allow", "Action": "iam:ListRoles", "Resource": "*"}
        red = {"StringEquals": {"aws:PrincipalTag/team": "red"}}
        users = {"Effect": "Allow", "Action": "iam:ListUsers", "Resource": "*", "Condition": red}
        policy = json.dumps({"Version": "2012-10-17", "Statement": [own, users]})
        iam.put_role_policy(RoleName="saml", PolicyName="own", PolicyDocument=policy)
        self.sts = boto3.client(
            "sts",
            endpoint_url=enclave.endpoint,
            verify=enclave.facts["ca"] or None,
            region_name=enclave.region,
            config=Config(signature_version=UNSIGNED),
        )

    def send(self, response: str, **further: Any) -> dict[str, Any]:
        made: dict[str, Any] = self.sts.assume_role_with_saml(
            RoleArn=self.role, PrincipalArn=self.provider, SAMLAssertion=encoded(response), **further
        )
        return made

    def sign_in(self, *, idp: SamlProvider = IDP, further: dict[str, Any] | None = None, **stated: Any) -> Any:
        return self.send(idp.response(idp.signed(idp.assertion(self.role, self.provider, **stated))), **(further or {}))

    def client(self, service: str, made: dict[str, Any]) -> Any:
        keys = made["Credentials"]
        session = boto3.Session(keys["AccessKeyId"], keys["SecretAccessKey"], keys["SessionToken"], self.enclave.region)
        return session.client(service, endpoint_url=self.enclave.endpoint, verify=self.enclave.facts["ca"] or None)


@pytest.fixture(scope="module")
def federated(enclave: LiveEnclave) -> Federated:
    return Federated(enclave)


def refused(code: str, run: Any) -> None:
    with pytest.raises(ClientError) as refusal:
        run()
    assert refusal.value.response["Error"]["Code"] == code, refusal.value


def test_an_assertion_opens_the_role_with_its_tags(federated: Federated) -> None:
    made = federated.sign_in(
        attributes={
            "PrincipalTag:team": ["red"],
            "TransitiveTagKeys": ["team"],
            "SourceIdentity": ["ann"],
            "urn:oid:1.3.6.1.4.1.5923.1.1.1.1": ["student", "staff"],
        }
    )
    assert made["AssumedRoleUser"]["Arn"].endswith(":assumed-role/saml/ann")
    assert (made["Subject"], made["SubjectType"], made["Issuer"]) == ("ann@example", "persistent", IDP.entity)
    assert (made["Audience"], made["SourceIdentity"]) == (RECIPIENT, "ann")
    assert len(base64.b64decode(made["NameQualifier"])) == 20
    assert federated.client("iam", made).list_users()["Users"]
    plain = federated.sign_in()
    assert federated.client("iam", plain).list_roles()["Roles"]
    refused("AccessDenied", lambda: federated.client("iam", plain).list_users())
    blue = federated.sign_in(attributes={"PrincipalTag:team": ["blue"]})
    refused("AccessDenied", lambda: federated.client("iam", blue).list_users())


def test_the_trust_policy_reads_the_assertion(federated: Federated) -> None:
    refused("AccessDenied", lambda: federated.sign_in(subject="eve@elsewhere"))
    student = {"urn:oid:1.3.6.1.4.1.5923.1.1.1.1": ["student"]}
    refused("AccessDenied", lambda: federated.sign_in(attributes=student))
    regional = f"https://{federated.enclave.region}.signin.sc2s.sgov.gov/saml"
    refused("AccessDenied", lambda: federated.sign_in(recipient=regional))  # SAML:aud asks for the other one
    other = federated.iam.create_role(
        RoleName="other",
        AssumeRolePolicyDocument=json.dumps(
            {
                "Version": "2012-10-17",
                "Statement": [
                    {
                        "Effect": "Allow",
                        "Principal": {"Federated": federated.provider.replace("/idp", "/another")},
                        "Action": "sts:AssumeRoleWithSAML",
                    }
                ],
            }
        ),
    )["Role"]["Arn"]
    response = IDP.response(IDP.signed(IDP.assertion(other, federated.provider)))
    refused(
        "AccessDenied",
        lambda: federated.sts.assume_role_with_saml(
            RoleArn=other, PrincipalArn=federated.provider, SAMLAssertion=encoded(response)
        ),
    )
    # The assertion must name the pair that is asked for.
    for role, provider in ((other, federated.provider), (federated.role, federated.provider + "2")):
        bad = IDP.response(IDP.signed(IDP.assertion(role, provider)))
        refused("InvalidIdentityToken", lambda bad=bad: federated.send(bad))  # type: ignore[misc]


def test_an_assertion_is_taken_once(federated: Federated) -> None:
    response = IDP.response(IDP.signed(IDP.assertion(federated.role, federated.provider)))
    federated.send(response)
    for _ in range(2):
        refused("InvalidIdentityToken", lambda: federated.send(response))
    other = SamlProvider()
    arn = federated.iam.create_saml_provider(Name="second", SAMLMetadataDocument=other.metadata())["SAMLProviderArn"]
    refused(
        "InvalidIdentityToken",
        lambda: federated.sts.assume_role_with_saml(
            RoleArn=federated.role, PrincipalArn=arn, SAMLAssertion=encoded(response)
        ),
    )
    federated.iam.delete_saml_provider(SAMLProviderArn=arn)


def test_who_is_not_the_provider_opens_nothing(federated: Federated) -> None:
    impostor = SamlProvider()
    refused("InvalidIdentityToken", lambda: federated.sign_in(idp=impostor))
    refused(
        "InvalidIdentityToken", lambda: federated.send(IDP.response(IDP.assertion(federated.role, federated.provider)))
    )
    refused("InvalidIdentityToken", lambda: federated.sign_in(audience="urn:somebody:else"))
    refused("InvalidIdentityToken", lambda: federated.sign_in(recipient="https://signin.aws.amazon.com/saml"))
    long_ago = datetime.now(UTC) - timedelta(minutes=10)
    refused("ExpiredTokenException", lambda: federated.sign_in(issued=long_ago, lasts=timedelta(hours=1)))
    stranger = SamlProvider("https://another.example/saml")
    stranger.key, stranger.certificate = IDP.key, IDP.certificate
    refused("InvalidIdentityToken", lambda: federated.sign_in(idp=stranger))
    refused("InvalidIdentityToken", lambda: federated.send("no xml"))
    refused(
        "InvalidIdentityToken",
        lambda: federated.sts.assume_role_with_saml(
            RoleArn=federated.role, PrincipalArn=federated.provider, SAMLAssertion="<<<<"
        ),
    )


def test_the_provider_bounds_the_session(federated: Federated) -> None:
    def seconds(made: dict[str, Any]) -> float:
        return float((made["Credentials"]["Expiration"] - datetime.now(UTC)).total_seconds())

    assert 1700 < seconds(federated.sign_in(attributes={"SessionDuration": ["1800"]})) <= 1800
    asked = {"DurationSeconds": 900}
    assert seconds(federated.sign_in(further=asked, attributes={"SessionDuration": ["1800"]})) <= 900
    assert seconds(federated.sign_in(session=timedelta(minutes=2))) <= 120
    refused("ValidationError", lambda: federated.sign_in(further={"DurationSeconds": 40000}))


def test_the_providers_word_about_labels_needs_a_clearance(federated: Federated) -> None:
    secret = {"PrincipalTag:honmaru:label": ["SECRET"]}
    refused("AccessDenied", lambda: federated.sign_in(attributes=secret))
    clearance = [{"Key": "honmaru:clearance", "Value": "SECRET"}]
    federated.iam.tag_saml_provider(SAMLProviderArn=federated.provider, Tags=clearance)
    sts = federated.client("sts", federated.sign_in(attributes=secret))
    told = sts.get_caller_identity()["ResponseMetadata"]["HTTPHeaders"]
    assert told["x-honmaru-label"].startswith("SECRET")
    above = {"PrincipalTag:honmaru:label": ["TOP SECRET"]}
    refused("AccessDenied", lambda: federated.sign_in(attributes=above))
    # Whoever is not cleared gives no clearance, and replaces no keys that are believed up to one.
    iam = federated.iam
    iam.create_user(UserName="clerk")
    iam.attach_user_policy(
        UserName="clerk", PolicyArn=f"arn:{federated.provider.split(':')[1]}:iam::aws:policy/AdministratorAccess"
    )
    keys = iam.create_access_key(UserName="clerk")["AccessKey"]
    clerk = boto3.client(
        "iam",
        endpoint_url=federated.enclave.endpoint,
        verify=federated.enclave.facts["ca"] or None,
        region_name=federated.enclave.region,
        aws_access_key_id=keys["AccessKeyId"],
        aws_secret_access_key=keys["SecretAccessKey"],
    )
    document = SamlProvider().metadata()
    named = {"SAMLProviderArn": federated.provider}
    refused("AccessDenied", lambda: clerk.update_saml_provider(**named, SAMLMetadataDocument=document))
    refused(
        "AccessDenied", lambda: clerk.create_saml_provider(Name="own", SAMLMetadataDocument=document, Tags=clearance)
    )
    iam.untag_saml_provider(SAMLProviderArn=federated.provider, TagKeys=["honmaru:clearance"])
    refused("InvalidClientTokenId", sts.get_caller_identity)


def test_providers_are_kept_and_their_keys_replaced(federated: Federated) -> None:
    iam, first, second = federated.iam, SamlProvider(), SamlProvider(curve=True)
    arn = iam.create_saml_provider(Name="kept", SAMLMetadataDocument=first.metadata())["SAMLProviderArn"]
    assert iam.get_saml_provider(SAMLProviderArn=arn)["ValidUntil"].year == 2040
    assert arn in [each["Arn"] for each in iam.list_saml_providers()["SAMLProviderList"]]
    for bad in (
        '<!DOCTYPE x [<!ENTITY a "b">]>' + first.metadata(),
        first.metadata(valid_until="soon"),
        first.metadata().replace("IDPSSODescriptor", "SPSSODescriptor"),
    ):
        refused("InvalidInput", lambda bad=bad: iam.update_saml_provider(SAMLProviderArn=arn, SAMLMetadataDocument=bad))  # type: ignore[misc]
    refused("InvalidInput", lambda: iam.update_saml_provider(SAMLProviderArn=arn, AssertionEncryptionMode="Required"))
    named = {"SAMLProviderArn": federated.provider}
    iam.update_saml_provider(**named, SAMLMetadataDocument=second.metadata())
    refused("InvalidIdentityToken", federated.sign_in)
    made = federated.sign_in(idp=second)
    iam.update_saml_provider(**named, SAMLMetadataDocument=second.metadata(valid_until="2020-01-01T00:00:00Z"))
    refused("ExpiredTokenException", lambda: federated.sign_in(idp=second))
    iam.update_saml_provider(**named, SAMLMetadataDocument=IDP.metadata())
    federated.client("sts", made).get_caller_identity()
    iam.delete_saml_provider(SAMLProviderArn=arn)


@pytest.mark.long
def test_spent_assertions_stay_spent_after_a_kill(tmp_path: Path) -> None:
    own = LiveEnclave(tmp_path / "enclave").up()
    try:
        _spent_for_good(own)
    finally:
        own.down()


def _spent_for_good(own: LiveEnclave) -> None:
    federated = Federated(own)
    response = IDP.response(IDP.signed(IDP.assertion(federated.role, federated.provider)))
    made = federated.send(response)
    own.kill()
    own.up()
    federated.sts = boto3.client(
        "sts",
        endpoint_url=own.endpoint,
        verify=own.facts["ca"] or None,
        region_name=own.region,
        config=Config(signature_version=UNSIGNED),
    )
    refused("InvalidIdentityToken", lambda: federated.send(response))
    federated.client("sts", made).get_caller_identity()
    federated.iam = own.client("iam")
    federated.iam.delete_saml_provider(SAMLProviderArn=federated.provider)
    refused("InvalidClientTokenId", federated.client("sts", made).get_caller_identity)
