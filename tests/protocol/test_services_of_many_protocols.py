"""A service that speaks RPC v2 CBOR, JSON 1.0 and query (CloudWatch): one meaning, three wires, the same errors."""

from __future__ import annotations

import gzip
import json
from datetime import UTC, datetime

import boto3
import botocore.model
import pytest
from botocore.config import Config
from botocore.exceptions import ClientError

from honmaru.api import cbor, cbor_codec
from honmaru.core.errors import AccessDenied, NotFound, QuotaExceeded, ValidationFault
from honmaru.gateway.limits import Limits
from honmaru.security.calls import Provider
from honmaru.testing.gateways import REGION, GatewayUnderTest

AT = datetime(2026, 1, 2, 3, 4, 5, 500_000, tzinfo=UTC)
ERRORS = {
    "missing": NotFound("nope"),
    "value": ValidationFault("bad", code="InvalidParameterValueException"),
    "value-by-query-code": ValidationFault("bad", code="InvalidParameterValue"),
    "quota": QuotaExceeded("full"),
    "crash": KeyError("secret"),
    "denied": AccessDenied("no"),
}


class Metrics(Provider):
    service = "cloudwatch"

    def __init__(self):
        self.put = []

    def put_metric_data(self, call, request):
        self.put.append(request)

    def list_metrics(self, call, request):
        if request.get("Namespace") in ERRORS:
            raise ERRORS[request["Namespace"]]
        return {"Metrics": [{"Namespace": "é", "MetricName": "m", "Dimensions": [{"Name": "n", "Value": "v"}]}]}

    def get_metric_statistics(self, call, request):
        return {"Label": "l", "Datapoints": [{"Timestamp": request["StartTime"], "Average": 0.1, "Unit": "Count"}]}


@pytest.fixture(scope="module")
def metrics(tmp_path_factory):
    provider = Metrics()
    gateway = GatewayUnderTest(tmp_path_factory.mktemp("gateway"), [provider], limits=Limits(body_bytes=200_000))
    with gateway.served() as port:
        yield provider, gateway, port
    gateway.close()


@pytest.fixture(scope="module", params=["smithy-rpc-v2-cbor", "json", "query"])
def spoken(request, metrics):
    """(protocol, provider, boto3 client that speaks it)."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(botocore.model, "PRIORITY_ORDERED_SUPPORTED_PROTOCOLS", (request.param,))
        return _spoken(request.param, metrics)


def _spoken(protocol, metrics):
    provider, gateway, port = metrics
    client = boto3.client(
        "cloudwatch",
        endpoint_url=f"http://127.0.0.1:{port}",
        region_name=REGION,
        aws_access_key_id=gateway.high[0],
        aws_secret_access_key=gateway.high[1],
        config=Config(retries={"total_max_attempts": 1}),
    )
    assert client.meta.service_model.resolved_protocol == protocol
    return protocol, provider, client


def test_values_survive(spoken):
    _, provider, client = spoken
    assert client.list_metrics()["Metrics"][0]["Namespace"] == "é"
    asked = {"Namespace": "n", "MetricName": "m", "StartTime": AT, "EndTime": AT, "Period": 60}
    (point,) = client.get_metric_statistics(**asked, Statistics=["Average"])["Datapoints"]
    assert (point["Timestamp"], point["Average"], point["Unit"]) == (AT, 0.1, "Count")
    datum = {"MetricName": "m", "Value": 1.25, "Timestamp": AT, "Values": [1.0, 2.5], "Counts": [1.0, 3.0]}
    client.put_metric_data(Namespace="n", MetricData=[datum])
    assert provider.put[-1] == {"Namespace": "n", "MetricData": [datum]}


def test_large_bodies_come_compressed(spoken):
    """boto3 compresses PutMetricData from 10 KiB on; the signature covers the compressed bytes."""
    _, provider, client = spoken
    data = [{"MetricName": f"metric-{number}" * 10, "Value": 1.0} for number in range(200)]
    client.put_metric_data(Namespace="n", MetricData=data)
    assert provider.put[-1]["MetricData"] == data


@pytest.mark.parametrize(
    ("namespace", "code", "status", "kind"),
    [
        ("missing", "ResourceNotFound", 404, "Sender"),
        ("value", "InvalidParameterValue", 400, "Sender"),
        ("value-by-query-code", "InvalidParameterValue", 400, "Sender"),
        ("quota", "LimitExceeded", 400, "Sender"),
        ("crash", "InternalServiceError", 500, "Receiver"),
        ("denied", "AccessDenied", 403, "Sender"),
    ],
)
def test_errors_keep_the_codes_that_query_had(spoken, namespace, code, status, kind):
    protocol, _, client = spoken
    with pytest.raises(ClientError) as caught:
        client.list_metrics(Namespace=namespace)
    said = caught.value.response
    assert said["Error"]["Code"] == code
    assert said["Error"]["Type"] == kind
    assert "secret" not in str(said)
    expected = 400 if status == 403 and protocol != "query" else status  # RPC answers refusals with 400
    assert said["ResponseMetadata"]["HTTPStatusCode"] == expected
    if namespace.startswith("value"):
        assert isinstance(caught.value, client.exceptions.InvalidParameterValueException)


def rpc(gateway, body, *, operation="ListMetrics", headers=(), path=None, method="POST"):
    named = [("smithy-protocol", "rpc-v2-cbor"), ("Content-Type", "application/cbor"), *headers]
    path = path or f"/service/GraniteServiceVersion20100801/operation/{operation}"
    return gateway.send(gateway.signed("monitoring", method, path, headers=named, body=body))


def encoded(value):
    out = bytearray()
    cbor_codec.write_any(out, value)
    return bytes(out)


def test_an_rpc_answer_names_its_protocol(metrics):
    _, gateway, _ = metrics
    reply = rpc(gateway, b"\xbf\xff")
    assert reply.status == 200
    assert reply.headers["smithy-protocol"] == "rpc-v2-cbor"
    assert reply.headers["content-type"] == "application/cbor"
    assert cbor.decode(reply.body)["Metrics"][0]["Namespace"] == "é"
    assert rpc(gateway, b"").status == 200  # no body: no members


def test_rpc_errors(metrics):
    _, gateway, _ = metrics
    for body, code in (
        (b"\x9f", "SerializationException"),
        (encoded({"Namespace": 1}), "SerializationException"),
        (encoded({"Unknown": 1}), "SerializationException"),
        (encoded({"Namespace": ""}), "InvalidParameterValueException"),
    ):
        reply = rpc(gateway, body)
        said = cbor.decode(reply.body)
        assert (reply.status, reply.headers["smithy-protocol"]) == (400, "rpc-v2-cbor"), said
        assert said["__type"].rpartition("#")[2] in (code, "ValidationException"), said
        assert said["message"]
        assert "x-amzn-query-error" not in reply.headers  # asked for with x-amzn-query-mode only
    reply = rpc(gateway, encoded({"Namespace": "missing"}), headers=[("x-amzn-query-mode", "true")])
    assert cbor.decode(reply.body)["__type"] == "com.amazonaws.cloudwatch#ResourceNotFound"
    assert reply.headers["x-amzn-query-error"] == "ResourceNotFound;Sender"


@pytest.mark.parametrize(
    "change",
    [
        {"operation": "MakeCoffee"},
        {"path": "/service/Other/operation/ListMetrics"},
        {"path": "/operation/ListMetrics"},
        {"path": "/"},
        {"method": "GET"},
        {"headers": [("X-Amz-Target", "GraniteServiceVersion20100801.ListMetrics")]},
    ],
)
def test_what_is_no_rpc_request_is_refused_in_cbor(metrics, change):
    _, gateway, _ = metrics
    reply = rpc(gateway, b"\xa0", **change)
    assert reply.status == 400
    assert cbor.decode(reply.body)["__type"] == "com.amazon.coral.service#UnknownOperationException"


def test_a_prefix_of_the_rpc_path_is_allowed(metrics):
    _, gateway, _ = metrics
    path = "/some/prefix/service/GraniteServiceVersion20100801/operation/ListMetrics"
    assert rpc(gateway, b"\xa0", path=path).status == 200


def test_json_1_0_names_its_errors_by_shape(metrics):
    _, gateway, _ = metrics
    headers = [
        ("Content-Type", "application/x-amz-json-1.0"),
        ("X-Amz-Target", "GraniteServiceVersion20100801.ListMetrics"),
        ("x-amzn-query-mode", "true"),
    ]
    reply = gateway.send(gateway.signed("monitoring", "POST", "/", headers=headers, body=b'{"Namespace": "value"}'))
    assert reply.headers["content-type"] == "application/x-amz-json-1.0"
    assert json.loads(reply.body)["__type"] == "com.amazonaws.cloudwatch#InvalidParameterValueException"
    assert reply.headers["x-amzn-query-error"] == "InvalidParameterValue;Sender"


@pytest.mark.parametrize("damage", ["bomb", "cut", "not gzip", "two members"])
def test_compressed_bodies_are_bounded_and_whole(metrics, damage):
    provider, gateway, _ = metrics
    whole = encoded({"Namespace": "n", "MetricData": []})
    body = {
        "bomb": gzip.compress(b"\x00" * 50_000_000),
        "cut": gzip.compress(whole)[:-4],
        "not gzip": whole,
        "two members": gzip.compress(whole) * 2,
    }[damage]
    before = len(provider.put)
    reply = rpc(gateway, body, operation="PutMetricData", headers=[("Content-Encoding", "gzip")])
    assert reply.status == (413 if damage == "bomb" else 400), reply.body
    assert len(provider.put) == before
