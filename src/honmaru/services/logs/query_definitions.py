"""Saved queries: PutQueryDefinition, DescribeQueryDefinitions, DeleteQueryDefinition."""

from __future__ import annotations

from typing import Any

from honmaru.core.errors import NotFound
from honmaru.security.calls import Call
from honmaru.services.logs.finding import Request, invalid
from honmaru.services.logs.insights import parse

KIND = "query-definition"


def put(call: Call, request: Request) -> dict[str, Any]:
    if (request.get("queryLanguage") or "CWLI") != "CWLI" or request.get("parameters"):
        raise invalid("only CWLI queries without parameters are carried")
    parse(request["queryString"])
    body = {
        "name": request["name"],
        "text": request["queryString"],
        "groups": list(request.get("logGroupNames") or ()),
        "modified_ms": int(call.now.timestamp() * 1000),
    }
    identifier = request.get("queryDefinitionId")
    if identifier:
        record = call.records.get(KIND, identifier)
        if record is None:
            raise _unknown()
        call.records.update(record, body)
        return {"queryDefinitionId": identifier}
    call.records.create(KIND, call.request_id, body)
    return {"queryDefinitionId": call.request_id}


def describe(call: Call, request: Request) -> dict[str, Any]:
    prefix = request.get("queryDefinitionNamePrefix") or ""
    found = sorted(
        (record for record in call.records.iterate(KIND) if record.body["name"].startswith(prefix)),
        key=lambda record: (record.body["name"], record.name),
    )
    after, size = (request.get("nextToken") or ""), int(request.get("maxResults") or 1000)
    rest = [record for record in found if f"{record.body['name']}\n{record.name}" > after]
    page = rest[:size]
    return {
        "queryDefinitions": [
            {
                "queryLanguage": "CWLI",
                "queryDefinitionId": record.name,
                "name": record.body["name"],
                "queryString": record.body["text"],
                "lastModified": record.body["modified_ms"],
                "logGroupNames": record.body["groups"],
            }
            for record in page
        ],
        "nextToken": f"{page[-1].body['name']}\n{page[-1].name}" if len(rest) > size else None,
    }


def delete(call: Call, request: Request) -> dict[str, Any]:
    record = call.records.get(KIND, request["queryDefinitionId"])
    if record is None:
        raise _unknown()
    call.records.delete(record)
    return {"success": True}


def _unknown() -> NotFound:
    return NotFound("The specified query definition does not exist.", code="ResourceNotFoundException")
