"""Model packages: immutable versions, and approval by a second person whatever policies say."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from honmaru.core.errors import AccessDenied, Conflict, NotFound, ValidationFault
from honmaru.core.sessions import Session
from honmaru.security.calls import Call
from honmaru.services.sagemaker.people import person
from honmaru.testing.keep import session
from honmaru.testing.workshop import BUCKET, Workshop

URL = f"s3://{BUCKET}/model.tar.gz"


@pytest.fixture
def shop(tmp_path: Path) -> Iterator[Workshop]:
    made = Workshop(tmp_path / "shop")
    made.make_bucket()
    made.put("model.tar.gz", b"weights")
    made.sagemaker.create_model_package_group(made.call(), {"ModelPackageGroupName": "models"})
    yield made
    made.close()


def register(shop: Workshop, call: Call | None = None, **members: Any) -> str:
    request = {
        "ModelPackageGroupName": "models",
        "InferenceSpecification": {"Containers": [{"Image": "serve", "ModelDataUrl": URL}]},
        **members,
    }
    return str(shop.sagemaker.create_model_package(call or shop.call(), request)["ModelPackageArn"])


def approve(shop: Workshop, arn: str, call: Call) -> None:
    request = {"ModelPackageArn": arn, "ModelApprovalStatus": "Approved", "ApprovalDescription": "reviewed"}
    shop.sagemaker.update_model_package(call, request)


def described(shop: Workshop, arn: str) -> dict[str, Any]:
    return shop.sagemaker.describe_model_package(shop.call(), {"ModelPackageName": arn})


def test_versions_count_up_and_pin_their_artifact(shop: Workshop) -> None:
    first, second = register(shop), register(shop)
    assert (first.endswith("model-package/models/1"), second.endswith("model-package/models/2")) == (True, True)
    shown = described(shop, first)
    assert (shown["ModelPackageVersion"], shown["ModelApprovalStatus"]) == (1, "PendingManualApproval")
    etag = shown["InferenceSpecification"]["Containers"][0]["ModelDataETag"]
    shop.put("model.tar.gz", b"other weights")
    assert described(shop, first)["InferenceSpecification"]["Containers"][0]["ModelDataETag"] == etag
    assert described(shop, register(shop))["InferenceSpecification"]["Containers"][0]["ModelDataETag"] != etag
    shop.sagemaker.delete_model_package(shop.call(), {"ModelPackageName": f"{first[:-1]}3"})
    assert register(shop).endswith("/4")


def test_the_creator_cannot_approve_and_another_can(shop: Workshop) -> None:
    arn = register(shop, shop.call(name="author"))
    with pytest.raises(AccessDenied, match="another person"):
        approve(shop, arn, shop.call(name="author"))
    assert described(shop, arn)["ModelApprovalStatus"] == "PendingManualApproval"
    call = shop.call(name="approver")
    approve(shop, arn, call)
    shown = described(shop, arn)
    assert (shown["ModelApprovalStatus"], shown["ApprovalDescription"]) == ("Approved", "reviewed")
    assert shown["LastModifiedBy"]["IamIdentity"]["Arn"].endswith("user/approver")
    decision = call.details["approval"]
    assert decision["person"].endswith("user/approver")
    assert decision["creator"].endswith("user/author")
    assert (decision["why"], bool(decision["when"])) == ("reviewed", True)


def assumed(human: str) -> Session:
    plain = session("SECRET")
    arn = plain.principal_arn.replace("user/tester", "assumed-role/approvers/x")
    return Session(
        plain.account, plain.partition, plain.region, arn, "AROA", "assumed-role", plain.label, arn, human=human
    )


def test_a_role_does_not_make_the_author_another_person(shop: Workshop) -> None:
    author = shop.call(name="author")
    arn = register(shop, author)
    call = shop.call()
    call.session = assumed(author.session.principal_arn)
    with pytest.raises(AccessDenied):
        approve(shop, arn, call)
    call.session = assumed("")
    assert person(call.session) is None
    with pytest.raises(AccessDenied):
        approve(shop, arn, call)
    call.session = assumed(shop.call(name="approver").session.principal_arn)
    approve(shop, arn, call)


def test_what_nobody_is_known_to_have_made_nobody_approves(shop: Workshop) -> None:
    call = shop.call()
    call.session = assumed("")
    arn = register(shop, call)
    with pytest.raises(AccessDenied):
        approve(shop, arn, shop.call(name="approver"))


def test_a_version_is_not_created_approved(shop: Workshop) -> None:
    with pytest.raises(ValidationFault, match="another person"):
        register(shop, ModelApprovalStatus="Approved")


@pytest.mark.parametrize(
    "member", ["InferenceSpecification", "SourceUri", "ModelCard", "AdditionalInferenceSpecificationsToAdd"]
)
def test_a_version_is_immutable(shop: Workshop, member: str) -> None:
    arn = register(shop)
    with pytest.raises(ValidationFault, match="immutable"):
        shop.sagemaker.update_model_package(shop.call(), {"ModelPackageArn": arn, member: {"x": "y"}})


def test_an_artifact_that_is_not_there_is_refused(shop: Workshop) -> None:
    missing = {"Containers": [{"Image": "serve", "ModelDataUrl": f"s3://{BUCKET}/model.tar"}]}
    with pytest.raises(ValidationFault, match="Could not find model data"):
        register(shop, InferenceSpecification=missing)


def test_a_client_token_registers_once(shop: Workshop) -> None:
    assert register(shop, ClientToken="t") == register(shop, ClientToken="t")


def test_what_is_above_is_not_there(shop: Workshop) -> None:
    arn = register(shop)
    low = shop.call(marking="UNCLASSIFIED")
    for ask in (
        lambda: shop.sagemaker.describe_model_package(low, {"ModelPackageName": arn}),
        lambda: shop.sagemaker.describe_model_package_group(low, {"ModelPackageGroupName": "models"}),
        lambda: shop.sagemaker.list_model_packages(low, {"ModelPackageGroupName": "models"}),
    ):
        with pytest.raises(NotFound, match="does not exist"):
            ask()
    assert shop.sagemaker.list_model_package_groups(low, {})["ModelPackageGroupSummaryList"] == []


def test_a_low_group_deleted_leaves_the_versions_above(shop: Workshop) -> None:
    low = shop.call(marking="UNCLASSIFIED")
    shop.sagemaker.create_model_package_group(low, {"ModelPackageGroupName": "shared"})
    arn = register(shop, ModelPackageGroupName="shared")
    shop.sagemaker.delete_model_package_group(low, {"ModelPackageGroupName": "shared"})
    assert described(shop, arn)["ModelPackageVersion"] == 1
    assert shop.sagemaker.describe_model_package_group(shop.call(), {"ModelPackageGroupName": "shared"})


def test_groups_with_versions_are_not_deleted(shop: Workshop) -> None:
    arn = register(shop)
    with pytest.raises(Conflict):
        shop.sagemaker.delete_model_package_group(shop.call(), {"ModelPackageGroupName": "models"})
    shop.sagemaker.delete_model_package(shop.call(), {"ModelPackageName": arn})
    shop.sagemaker.delete_model_package_group(shop.call(), {"ModelPackageGroupName": "models"})


def test_lists_by_approval(shop: Workshop) -> None:
    arns = [register(shop, shop.call(name="author")) for _ in range(3)]
    approve(shop, arns[1], shop.call(name="approver"))
    request = {"ModelPackageGroupName": "models", "ModelApprovalStatus": "Approved"}
    shown = shop.sagemaker.list_model_packages(shop.call(), request)["ModelPackageSummaryList"]
    assert [each["ModelPackageArn"] for each in shown] == [arns[1]]
