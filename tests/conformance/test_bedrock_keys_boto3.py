"""Keys of Bedrock by IAM (service-specific credentials): made, used as boto3 uses them, bounded, ended."""

from __future__ import annotations

from typing import Any

import boto3
import pytest
from botocore.exceptions import ClientError

from honmaru.testing.enclaves import LiveEnclave


def refused(code: str, run: Any) -> None:
    with pytest.raises(ClientError) as refusal:
        run()
    assert refusal.value.response["Error"]["Code"] == code, refusal.value


def with_key(enclave: LiveEnclave, secret: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    """boto3's own way with such a key: an environment variable."""
    monkeypatch.setenv("AWS_BEARER_TOKEN_BEDROCK", secret)
    session = boto3.Session(region_name=enclave.region)
    return session.client("bedrock", endpoint_url=enclave.endpoint, verify=enclave.facts["ca"] or None)


def test_a_key_of_bedrock_from_making_to_deletion(enclave: LiveEnclave, monkeypatch: pytest.MonkeyPatch) -> None:
    iam = enclave.client("iam")
    iam.create_user(UserName="caller")
    policy = f"arn:{enclave.facts['partition']}:iam::aws:policy/AmazonBedrockFullAccess"
    iam.attach_user_policy(UserName="caller", PolicyArn=policy)
    named = {"UserName": "caller", "ServiceName": "bedrock.amazonaws.com"}
    made = iam.create_service_specific_credential(**named, CredentialAgeDays=30)["ServiceSpecificCredential"]
    assert made["Status"] == "Active" and (made["ExpirationDate"] - made["CreateDate"]).days in (29, 30)
    key = {"UserName": "caller", "ServiceSpecificCredentialId": made["ServiceSpecificCredentialId"]}
    bedrock = with_key(enclave, made["ServiceCredentialSecret"], monkeypatch)
    assert "modelSummaries" in bedrock.list_foundation_models()
    listed = iam.list_service_specific_credentials(UserName="caller")["ServiceSpecificCredentials"]
    assert [each["ServiceSpecificCredentialId"] for each in listed] == [key["ServiceSpecificCredentialId"]]
    assert "ServiceCredentialSecret" not in listed[0]
    iam.update_service_specific_credential(**key, Status="Inactive")
    with pytest.raises(ClientError):
        bedrock.list_foundation_models()
    iam.update_service_specific_credential(**key, Status="Active")
    again = iam.reset_service_specific_credential(**key)["ServiceSpecificCredential"]
    with pytest.raises(ClientError):
        bedrock.list_foundation_models()
    assert "modelSummaries" in with_key(enclave, again["ServiceCredentialSecret"], monkeypatch).list_foundation_models()
    iam.create_service_specific_credential(**named)
    refused("LimitExceeded", lambda: iam.create_service_specific_credential(**named))
    refused(
        "NotSupportedService",
        lambda: iam.create_service_specific_credential(UserName="caller", ServiceName="codecommit.amazonaws.com"),
    )
    iam.detach_user_policy(UserName="caller", PolicyArn=policy)
    refused("DeleteConflict", lambda: iam.delete_user(UserName="caller"))
    everything = iam.list_service_specific_credentials(AllUsers=True)["ServiceSpecificCredentials"]
    for each in (one for one in everything if one["UserName"] == "caller"):
        iam.delete_service_specific_credential(
            UserName="caller", ServiceSpecificCredentialId=each["ServiceSpecificCredentialId"]
        )
    refused("NoSuchEntity", lambda: iam.delete_service_specific_credential(**key))
    iam.delete_user(UserName="caller")
    with pytest.raises(ClientError):
        bedrock.list_foundation_models()


def test_a_key_is_its_makers_label_and_clearance(enclave: LiveEnclave) -> None:
    high, named = enclave.client("iam", label="SECRET"), {"ServiceName": "bedrock.amazonaws.com"}
    made = high.create_service_specific_credential(UserName="alice", **named)["ServiceSpecificCredential"]
    refused("AccessDenied", lambda: high.create_service_specific_credential(UserName="carol", **named))
    low = enclave.client("iam").list_service_specific_credentials(UserName="alice")["ServiceSpecificCredentials"]
    assert made["ServiceSpecificCredentialId"] not in [each["ServiceSpecificCredentialId"] for each in low]
    high.delete_service_specific_credential(
        UserName="alice", ServiceSpecificCredentialId=made["ServiceSpecificCredentialId"]
    )
