"""botocore serialises → we read and check → we write → botocore parses, over every operation of every service.

Nothing is lost, added or changed on the way, with minimal members and with all of them.
"""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import parse_qsl, urlencode, urlsplit

import botocore.loaders
import botocore.model
import botocore.parsers
import botocore.serialize
import pytest
from botocore.awsrequest import prepare_request_dict
from botocore.compat import HTTPHeaders

from honmaru.api.models import SERVICES
from honmaru.api.plans import WireRequest
from honmaru.gateway.aws.routing import RestRouter

sys.path.insert(0, str(Path(__file__).parent))
from sampling import SKIP, sample

LOADER = botocore.loaders.Loader()


def boto_model(name):
    return botocore.model.ServiceModel(LOADER.load_service_model(name, "service-2"), name)


def serialised(boto, operation, members):
    """botocore's request as our gateway sees it: (method, raw path, query pairs, headers, body)."""
    serializer = botocore.serialize.create_serializer(boto.protocol, include_validation=False)
    request = serializer.serialize_to_request(members, boto.operation_model(operation))
    prepare_request_dict(request, endpoint_url="https://127.0.0.1:8443", context={})
    return parts_of(request)


def parts_of(request):
    """A request of botocore's as our gateway sees it."""
    parts = urlsplit(request["url"])
    path, query = parts.path, parts.query
    body = request["body"]
    if isinstance(body, dict):
        body = urlencode(body).encode()
    if isinstance(body, str):
        body = body.encode()
    pairs: dict[str, list[str]] = {}
    for name, value in parse_qsl(query, keep_blank_values=True):
        pairs.setdefault(name, []).append(value)
    headers = {k.lower(): v if isinstance(v, str) else v.decode("latin-1") for k, v in request["headers"].items()}
    return request["method"], path, pairs, headers, body


def routed(service, operation, method, path, query, headers):
    if service.protocol not in ("rest-json", "rest-xml"):
        return {}
    found = RestRouter(service).match(method, path, query, headers)
    assert found is not None, (method, path, query)
    assert found[0].name == operation.name
    return found[1]


def normalised(value):
    if isinstance(value, datetime):
        return value.astimezone(UTC).replace(microsecond=0)
    if isinstance(value, dict):
        return {key: normalised(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [normalised(item) for item in value]
    return value


def header_safe(service, shape, value):
    """Headers carry no control or non-Latin text in these samples: botocore would encode it, HTTP would change it."""
    for member, reference in shape["members"].items():
        if member not in value:
            continue
        target = service.shapes[reference["shape"]]
        if reference.get("location") in ("header", "headers"):
            if reference.get("jsonvalue"):
                continue
            if target["type"] == "map":
                value[member] = {"meta": "value"}
            elif target["type"] == "string" and "enum" not in target and "pattern" not in target:
                value[member] = "plain"
            elif target["type"] == "list" and "enum" not in service.shapes[target["member"]["shape"]]:
                value[member] = ["plain"]
    return value


@pytest.mark.parametrize("full", [False, True], ids=["minimal", "full"])
@pytest.mark.parametrize("name", SERVICES)
def test_every_input_survives(models, name, full):
    service = models[name]
    boto = boto_model(name)
    done = 0
    skipped = []
    for operation in service.operations.values():
        if operation.unroutable or operation.deprecated:
            continue
        members = sample(service, operation.input, full=full) if operation.input else {}
        if members is SKIP:
            skipped.append(operation.name)
            continue
        members = header_safe(service, operation.input_shape, members)
        method, path, query, headers, body = serialised(boto, operation.name, members)
        labels = routed(service, operation, method, path, query, headers)
        request = WireRequest(query, headers, labels, body or b"")
        got = operation.plan.read(request)
        assert normalised(got) == normalised(members), operation.name
        operation.plan.check(got)
        done += 1
    assert done >= len(service.operations) - len(skipped) - 5
    assert len(skipped) <= max(1, len(service.operations) // 10), skipped


@pytest.mark.parametrize("full", [False, True], ids=["minimal", "full"])
@pytest.mark.parametrize("name", SERVICES)
def test_every_output_survives(models, name, full):
    service = models[name]
    boto = boto_model(name)
    parser = botocore.parsers.create_parser(boto.protocol)
    done = 0
    for operation in service.operations.values():
        shape = operation.output_shape
        if operation.plan.event_writer is not None or operation.deprecated:
            done += 1
            continue
        result = sample(service, operation.output, full=full) if operation.output else {}
        if result is SKIP:
            continue
        result = header_safe(service, shape, result)
        payload = shape.get("payload")
        raw = payload and service.shapes[shape["members"][payload]["shape"]]["type"] in ("blob", "string")
        answer = operation.plan.write(result, "request-1")
        headers = HTTPHeaders()
        for key, value in answer.headers:
            headers[key.decode()] = value.decode("latin-1")
        headers["x-amzn-requestid"] = "request-1"
        body = answer.body
        if raw and shape["members"][payload].get("streaming"):
            assert body == result.get(payload, b"")
            continue
        if raw and isinstance(result.get(payload), bytes):
            assert body == result[payload]
            continue
        parsed = parser.parse(
            {"status_code": answer.status, "headers": headers, "body": body, "context": {}},
            boto.operation_model(operation.name).output_shape,
        )
        # botocore's parser of CBOR leaves the request id in the header.
        assert parsed.pop("ResponseMetadata").get("RequestId", "request-1") == "request-1"
        if operation.name == "GetBucketLocation":
            assert b"</LocationConstraint>" in body
            continue
        assert normalised(unset(parsed, result)) == normalised(result), operation.name
        done += 1
    assert done > len(service.operations) * 0.75


def unset(parsed, result):
    """botocore shows an absent header map, payload or list of an XML answer as an empty one."""
    return {key: value for key, value in parsed.items() if key in result or value not in ({}, [], "", None)}
