"""Dashboards: documents that are kept and given back; what they show is read through GetMetricData."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import orjson

from honmaru.core.errors import NotFound, ValidationFault
from honmaru.security.calls import Call
from honmaru.security.guard import Removal
from honmaru.services.cloudwatch.tokens import read_token, write_token

DASHBOARD = "dashboard"
_PAGE = 1000
_LARGEST = 1 << 20
Request = Mapping[str, Any]


def put(call: Call, request: Request) -> dict[str, Any]:
    name, text = request["DashboardName"], request["DashboardBody"]
    problem = ""
    if not 1 <= len(name) <= 255 or not name.isascii() or not name.replace("-", "a").replace("_", "a").isalnum():
        problem = "DashboardName must be 1 to 255 letters, digits, - and _"
    elif len(text) > _LARGEST:
        problem = f"DashboardBody must be at most {_LARGEST} characters"
    else:
        try:
            document = orjson.loads(text)
        except orjson.JSONDecodeError:
            document = None
        if not isinstance(document, dict) or not isinstance(document.get("widgets", []), list):
            problem = "The body is not a JSON document with widgets"
    if problem:
        raise ValidationFault(problem, code="InvalidParameterInput")
    body = {"text": text, "modified": call.now.isoformat()}
    old = call.records.get(DASHBOARD, name)
    if old is not None and old.label == call.session.label:
        call.records.update(old, body)
    else:
        call.records.create(DASHBOARD, name, body)
    return {"DashboardValidationMessages": []}


def get(call: Call, request: Request) -> dict[str, Any]:
    record = call.records.get(DASHBOARD, request["DashboardName"])
    if record is None:
        raise _unknown(request["DashboardName"])
    return {"DashboardArn": arn(call, record.name), "DashboardBody": record.body["text"], "DashboardName": record.name}


def listed(call: Call, request: Request) -> dict[str, Any]:
    after = str(read_token(request["NextToken"])) if request.get("NextToken") else ""
    found = call.records.list(DASHBOARD, prefix=request.get("DashboardNamePrefix") or "", after=after, limit=_PAGE + 1)
    entries = [
        {
            "DashboardName": record.name,
            "DashboardArn": arn(call, record.name),
            "LastModified": record.updated,
            "Size": len(record.body["text"].encode("utf-8", "replace")),
        }
        for record in found[:_PAGE]
    ]
    return {
        "DashboardEntries": entries,
        "NextToken": write_token(found[_PAGE - 1].name) if len(found) > _PAGE else None,
    }


def delete(call: Call, request: Request) -> dict[str, Any]:
    """All of them, or none when one does not exist."""
    removals = []
    for name in dict.fromkeys(request["DashboardNames"]):
        record = call.records.get(DASHBOARD, name)
        if record is None:
            raise _unknown(name)
        removals.append(Removal(record))
    if removals:
        call.records.apply(removals)
    return {}


def arn(call: Call, name: str) -> str:
    return f"arn:{call.session.partition}:cloudwatch::{call.session.account}:dashboard/{name}"


def _unknown(name: str) -> NotFound:
    return NotFound(f"Dashboard {name} does not exist", code="ResourceNotFound")
