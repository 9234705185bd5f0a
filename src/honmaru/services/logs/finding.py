"""Log groups and streams by what requests call them, and the words for what is not there.

Invariant: a group or stream above the session is answered exactly like one that does not exist.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from honmaru.core.errors import Conflict, NotFound, ValidationFault
from honmaru.security.calls import Call
from honmaru.security.guard import Record
from honmaru.services.logs.store import LogStore

Request = Mapping[str, Any]


def group_name(request: Request) -> str:
    """The group that a request names, by name or ARN. Raises ValidationFault when it names none, or two."""
    name, identifier = request.get("logGroupName") or "", str(request.get("logGroupIdentifier") or "")
    if bool(name) == bool(identifier):
        raise invalid("Exactly one of logGroupName and logGroupIdentifier must be given.")
    return name or plain_name(identifier)


def plain_name(identifier: str) -> str:
    """The name in a group's ARN, or the name that it already is."""
    if identifier.startswith("arn:"):
        return identifier.removesuffix(":*").partition(":log-group:")[2]
    return identifier


def find_group(call: Call, store: LogStore, request: Request) -> Record:
    """Raises NotFound (ResourceNotFoundException), ValidationFault, and AccessDenied for one named by an identifier."""
    name = group_name(request)
    if not request.get("logGroupName"):
        # The door cannot spell a group that is named by an identifier: it asked about any. Here it is this one.
        stream = request.get("logStreamName") or ""
        call.authorize(f"logs:{call.operation}", f"{group_arn(call, name)}:log-stream:{stream}")
    record = store.group(call.records, name)
    if record is None:
        raise NotFound("The specified log group does not exist.", code="ResourceNotFoundException")
    call.resources.append((group_arn(call, name), "AWS::Logs::LogGroup"))
    return record


def find_stream(call: Call, store: LogStore, request: Request) -> Record:
    """Raises NotFound (ResourceNotFoundException), ValidationFault."""
    group = find_group(call, store, request)
    record = store.stream(call.records, group.name, request["logStreamName"])
    if record is None:
        raise NotFound("The specified log stream does not exist.", code="ResourceNotFoundException")
    return record


def group_arn(call: Call, group: str) -> str:
    return call.arn("logs", f"log-group:{group}")


def invalid(message: str) -> ValidationFault:
    return ValidationFault(message, code="InvalidParameterException")


def exists(message: str) -> Conflict:
    return Conflict(message, code="ResourceAlreadyExistsException")
