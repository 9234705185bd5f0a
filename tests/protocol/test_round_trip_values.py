"""Every implemented operation of every carried service, in every protocol that its clients may speak: what botocore's
serialiser writes our parser reads, what our serialiser writes botocore's parser reads, by value.

Values are drawn from the shapes: minimal, full, and by chance with extremes (empty and unicode texts, bounds of
numbers, infinities, times before 1970, empty lists and maps, each member of a union). HONMARU_LONG=1 draws more.
"""

from __future__ import annotations

import importlib
import inspect
import math
import os
import random
import sys
from datetime import UTC, datetime
from pathlib import Path

import botocore.parsers
import botocore.serialize
import pytest
from botocore.awsrequest import prepare_request_dict
from botocore.compat import HTTPHeaders

from honmaru.api.models import SERVICES
from honmaru.api.names import method_name
from honmaru.api.plans import WireRequest
from honmaru.gateway.aws.routing import RestRouter, rpc_v2_names
from honmaru.security.calls import Provider

sys.path.insert(0, str(Path(__file__).parent))
from sampling import SKIP
from test_round_trip import boto_model, parts_of, unset
from values import INPUTS, OUTPUTS, Values

DRAWS = 500 if os.environ.get("HONMARU_LONG") else 6


def implemented(service):
    """Operations of a service that its provider carries out."""
    module = importlib.import_module(f"honmaru.services.{service.name.replace('-', '_')}.provider")
    classes = [
        item
        for item in vars(module).values()
        if inspect.isclass(item) and issubclass(item, Provider) and item.__module__ == module.__name__
    ]
    assert classes, service
    return [
        operation
        for operation in service.operations.values()
        if any(hasattr(provider, method_name(operation.name)) for provider in classes)
    ]


def difference(left, right, path=""):
    """Where two values differ, None when they do not: NaN equals NaN, times are compared as moments."""
    if isinstance(left, float) and isinstance(right, float) and math.isnan(left):
        equal = math.isnan(right)
    elif isinstance(left, datetime) and isinstance(right, datetime):
        equal = abs((left.astimezone(UTC) - right.astimezone(UTC)).total_seconds()) < 0.000_01
    elif isinstance(left, dict) and isinstance(right, dict):
        if left.keys() != right.keys():
            return f"{path}: {sorted(left.keys() ^ right.keys())}"
        found = (difference(item, right[key], f"{path}.{key}") for key, item in left.items())
        return next((each for each in found if each), None)
    elif isinstance(left, list) and isinstance(right, list) and len(left) == len(right):
        found = (difference(*pair, f"{path}[{at}]") for at, pair in enumerate(zip(left, right, strict=True)))
        return next((each for each in found if each), None)
    else:
        equal = type(left) is type(right) and left == right
    return None if equal else f"{path}: {left!r} != {right!r}"


def hows():
    yield "minimal"
    yield "full"
    yield from ["some"] * DRAWS


def takes_events(service, shape):
    payload = shape.get("payload")
    return payload is not None and service.shapes[shape["members"][payload]["shape"]].get("eventstream", False)


@pytest.fixture(scope="module")
def routers(models):
    return {s.name: RestRouter(s) for s in models if s.protocol in ("rest-json", "rest-xml")}


@pytest.mark.parametrize("name", SERVICES)
def test_inputs(models, routers, name):
    service = models[name]
    boto = boto_model(name)
    wanted = implemented(service)
    for protocol in service.protocols:
        serializer = botocore.serialize.create_serializer(protocol, include_validation=False)
        reached = set()
        for operation in wanted:
            shape = operation.input_shape
            if takes_events(service, shape):
                reached.add(operation)  # botocore writes no event streams: tests/protocol/test_event_streams.py does
                continue
            for number, how in enumerate(hows()):
                values = Values(random.Random(f"{operation}{number}"), service, INPUTS[protocol])
                members = values.members(shape, how)
                if members is SKIP:
                    continue
                request = serializer.serialize_to_request(dict(members), boto.operation_model(operation.name))
                prepare_request_dict(request, endpoint_url="https://127.0.0.1:8443", context={})
                method, path, query, headers, body = parts_of(request)
                labels = {}
                if name in routers:
                    found = routers[name].match(method, path, query, headers)
                    assert found is not None, (operation, method, path, query)
                    assert found[0] is operation
                    labels = found[1]
                elif protocol == "smithy-rpc-v2-cbor":
                    assert rpc_v2_names(path) == (service.target_prefix, operation.name)
                plan = operation.plan_for(protocol)
                got = plan.read(WireRequest(query, headers, labels, body or b""))
                payload = shape.get("payload")
                if payload and members.get(payload) in (b"", ""):
                    got.setdefault(payload, members[payload])  # no body is an empty body
                assert difference(members, got) is None, (operation, protocol, how, difference(members, got))
                plan.check(got)
                reached.add(operation)
        assert len(reached) >= len(wanted) * 0.95, set(wanted) - reached


@pytest.mark.parametrize("name", SERVICES)
def test_outputs(models, name):
    service = models[name]
    boto = boto_model(name)
    for protocol in service.protocols:
        parser = botocore.parsers.create_parser(protocol)
        for operation in implemented(service):
            plan = operation.plan_for(protocol)
            if plan.event_writer is not None:
                continue  # tests/protocol/test_event_streams.py
            shape = operation.output_shape
            for number, how in enumerate(hows()):
                values = Values(random.Random(f"{operation}{number}"), service, OUTPUTS[protocol])
                result = values.members(shape, how)
                if result is SKIP:
                    continue
                answer = plan.write(result, "request-1")
                payload = shape.get("payload")
                if payload and service.shapes[shape["members"][payload]["shape"]]["type"] in ("blob", "string"):
                    sent = result.pop(payload, b"")
                    assert answer.body == (sent.encode() if isinstance(sent, str) else sent)
                    answer.body = b""
                headers = HTTPHeaders()
                for key, value in (*answer.headers, (b"x-amzn-requestid", b"request-1")):
                    headers[key.decode()] = value.decode("latin-1")
                parsed = parser.parse(
                    {"status_code": answer.status, "headers": headers, "body": answer.body, "context": {}},
                    boto.operation_model(operation.name).output_shape,
                )
                metadata = parsed.pop("ResponseMetadata", {})
                for member in {"ContentType", "contentType"} & (parsed.keys() - result.keys()):
                    del parsed[member]  # raw bytes always have a type on the wire
                if operation.output is not None or protocol != "smithy-rpc-v2-cbor":
                    assert metadata["RequestId"] == "request-1"
                if operation.name == "GetBucketLocation":
                    continue  # botocore's S3 handler, not its parser, reads the root's text
                kept = {key: value for key, value in result.items() if value not in ({}, [])}
                parsed = unset(parsed, kept)
                found = difference(result, parsed) and difference(kept, parsed)
                assert found is None, (operation, protocol, how, found)


def test_sabotage_a_changed_value_is_seen():
    """What clients would tell apart is a difference."""
    for left, right in (
        ({"a": 1}, {"a": 1.0}),
        ({"a": ""}, {}),
        ({"a": True}, {"a": 1}),
        ([b"a"], ["a"]),
        ([], [1]),
        ({"a": {}}, {"a": []}),
        (datetime(2026, 1, 1, tzinfo=UTC), datetime(2026, 1, 1, microsecond=500, tzinfo=UTC)),
    ):
        assert difference(left, right) is not None
        assert difference(right, left) is not None
    assert difference({"a": [math.nan]}, {"a": [math.nan]}) is None
