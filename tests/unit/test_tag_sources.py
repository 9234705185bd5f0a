"""The table behind the tagging API: every row names a service, operations that it has, and ARNs that it owns."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from honmaru.api.names import method_name
from honmaru.app.enclave import Enclave
from honmaru.app.settings import Settings
from honmaru.app.tag_sources import ROWS, BucketTags, ServiceTags, tag_sources
from honmaru.security.calls import Provider
from honmaru.testing.keep import quick_directory, session


def test_every_row_is_of_a_carried_service_and_writes_through_its_operations() -> None:
    with quick_directory() as directory:
        enclave = Enclave(Settings(directory, region="us-iso-east-1"))
        try:
            carried = {provider.service: provider for provider in enclave.providers}
            assert len({row.resource_type for row in ROWS}) == len(ROWS)
            assert len(tag_sources(enclave.providers)) == len(ROWS) + 1
            call: Any = SimpleNamespace(session=session("SECRET"), account="123456789012")
            for row in ROWS:
                provider = carried[row.service]
                operations = enclave.gateway.models[row.service].operations
                arn = row.arn.format(
                    partition="aws-iso", region="us-iso-east-1", account="123456789012", name="a1b2c3d4e5f6"
                )
                assert ServiceTags(row, provider).owns(call, arn)
                for name, request in (
                    (row.tag_operation, row.tag(arn, {"a": "b"})),
                    (row.untag_operation, row.untag(arn, ["a"])),
                ):
                    assert hasattr(provider, method_name(name)), row
                    operations[name].plan.check(request)  # what the service's own model asks for
        finally:
            enclave.gateway.close()
            enclave.ledger.close()
            enclave.records.close()


def test_only_the_bucket_that_iam_is_asked_about_is_a_bucket() -> None:
    call: Any = SimpleNamespace(session=session("SECRET"), account="123456789012")
    source = BucketTags(Provider())
    assert source.owns(call, "arn:aws-iso:s3:::mine")
    for arn in (
        "arn:aws-iso:s3:::mine:victim",
        "arn:aws-iso:s3:::mine:::victim",
        "arn:aws-iso:s3:::",
        "arn:aws:s3:::x",
    ):
        assert not source.owns(call, arn), arn
