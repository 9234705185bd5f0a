"""Amazon CloudWatch Logs: the operations.

Invariants:
- A group or stream above the session is answered exactly like one that does not exist.
- PutLogEvents takes what AWS takes: events in order of time, at most 24 hours apart, 10,000 events, 1 MiB.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any, ClassVar

from honmaru.core.errors import Conflict, NotFound, ValidationFault
from honmaru.ports.logs import LogEvent
from honmaru.security.calls import Call, Provider, Target
from honmaru.security.guard import Record
from honmaru.services.logs import queries, reading
from honmaru.services.logs.store import GROUP, LogStore, name_of

Request = Mapping[str, Any]

_GROUP = "arn:{partition}:logs:{region}:{account}:log-group:{logGroupName}"
_STREAM = f"{_GROUP}:log-stream:{{logStreamName}}"
_ANY = "arn:{partition}:logs:{region}:{account}:log-group:*"
_DAY_MS = 86_400_000
_PUT_BYTES = 1 << 20


class Logs(Provider):
    """Args:
    store: Shared with the jobs, which write to it as `ports.logs.LogSink`.
    """

    service: ClassVar[str] = "logs"

    targets: ClassVar[Mapping[str, Target]] = {
        "CreateLogGroup": Target("logs:CreateLogGroup", _GROUP),
        "DeleteLogGroup": Target("logs:DeleteLogGroup", _GROUP),
        "CreateLogStream": Target("logs:CreateLogStream", _GROUP),
        "DeleteLogStream": Target("logs:DeleteLogStream", _STREAM),
        "PutLogEvents": Target("logs:PutLogEvents", _STREAM),
        "DescribeLogGroups": Target("logs:DescribeLogGroups", _ANY),
        "DescribeLogStreams": Target("logs:DescribeLogStreams", _ANY),
        "GetLogEvents": Target("logs:GetLogEvents", _ANY),
        "FilterLogEvents": Target("logs:FilterLogEvents", _ANY),
        "StartQuery": Target("logs:StartQuery", _ANY),
    }

    def __init__(self, store: LogStore) -> None:
        self._store = store

    def create_log_group(self, call: Call, request: Request) -> dict[str, Any]:
        if request.get("kmsKeyId"):
            raise _invalid("kmsKeyId is not supported: everything is encrypted under the key of its label")
        try:
            self._store.create_group(call.records, request["logGroupName"], dict(request.get("tags") or {}))
        except Conflict:
            raise _exists("The specified log group already exists") from None
        return {}

    def delete_log_group(self, call: Call, request: Request) -> dict[str, Any]:
        self._store.delete_group(call.records, self._group(call, request))
        return {}

    def create_log_stream(self, call: Call, request: Request) -> dict[str, Any]:
        group, stream = self._group(call, request), request["logStreamName"]
        try:
            if group.label != call.session.label:
                self._store.own_group(call.records, group.name)
            self._store.create_stream(call.records, group.name, stream)
        except Conflict:
            raise _exists("The specified log stream already exists") from None
        return {}

    def delete_log_stream(self, call: Call, request: Request) -> dict[str, Any]:
        self._store.delete_stream(call.records, self._stream(call, request))
        return {}

    def put_log_events(self, call: Call, request: Request) -> dict[str, Any]:
        stream = self._stream(call, request)
        events = [LogEvent(event["timestamp"], event["message"]) for event in request["logEvents"]]
        times = [event.timestamp_ms for event in events]
        if times != sorted(times):
            raise _invalid("Log events in a single PutLogEvents request must be in chronological order.")
        if times and times[-1] - times[0] > _DAY_MS:
            raise _invalid("The batch of log events in a single PutLogEvents request cannot span more than 24 hours.")
        if sum(len(event.message.encode()) + 26 for event in events) > _PUT_BYTES:
            raise _invalid("Upload too large: at most 1048576 bytes a call")
        group, name = stream.name.split(":", 1)
        self._store.append(call.session, group, name, events)
        call.details["events"] = len(events)
        return {"nextSequenceToken": str(int(stream.body["events"]) + len(events))}

    def describe_log_groups(self, call: Call, request: Request) -> dict[str, Any]:
        prefix, pattern = request.get("logGroupNamePrefix") or "", request.get("logGroupNamePattern") or ""
        if prefix and pattern:
            raise _invalid("LogGroup name prefix and LogGroup name pattern are mutually exclusive parameters.")
        after = _decoded(request.get("nextToken"))
        limit = int(request.get("limit") or 50)
        found: list[Record] = []
        for record in call.records.iterate(GROUP, prefix=prefix, after=after):
            if pattern.lower() in record.name.lower():
                found.append(record)
            if len(found) > limit:
                break
        shown = found[:limit]
        return {
            "logGroups": [self._described_group(call, record) for record in shown],
            "nextToken": _encoded(shown[-1].name) if len(found) > limit else None,
        }

    def describe_log_streams(self, call: Call, request: Request) -> dict[str, Any]:
        group = self._group(call, request)
        prefix, limit = request.get("logStreamNamePrefix") or "", int(request.get("limit") or 50)
        by_time = request.get("orderBy") == "LastEventTime"
        if by_time and prefix:
            raise _invalid("Cannot order by LastEventTime with a logStreamNamePrefix.")

        def key(stream: Record) -> str:
            return f"{stream.body['last_ms'] or 0:020d} {name_of(stream)}" if by_time else name_of(stream)

        descending = bool(request.get("descending"))
        ordered = sorted(self._store.streams(call.records, group.name, prefix), key=key, reverse=descending)
        after = _decoded(request.get("nextToken"))
        if after:
            ordered = [stream for stream in ordered if (key(stream) < after if descending else key(stream) > after)]
        shown = ordered[:limit]
        return {
            "logStreams": [self._described_stream(call, group, stream) for stream in shown],
            "nextToken": _encoded(key(shown[-1])) if len(ordered) > limit else None,
        }

    def get_log_events(self, call: Call, request: Request) -> dict[str, Any]:
        return reading.get(self._store, call.records, self._stream(call, request), request)

    def filter_log_events(self, call: Call, request: Request) -> dict[str, Any]:
        group = self._group(call, request)
        names = request.get("logStreamNames")
        if names and request.get("logStreamNamePrefix"):
            raise _invalid("logStreamNames and logStreamNamePrefix are mutually exclusive parameters.")
        if names:
            streams = [self._stream(call, {**request, "logStreamName": name}) for name in names]
        else:
            streams = list(self._store.streams(call.records, group.name, request.get("logStreamNamePrefix") or ""))
        return reading.filtered(self._store, call.records, streams, request)

    def start_query(self, call: Call, request: Request) -> dict[str, Any]:
        names = [*(request.get("logGroupNames") or ()), *(request.get("logGroupIdentifiers") or ())]
        if request.get("logGroupName"):
            names.append(request["logGroupName"])
        if not names:
            raise _invalid("name at least one log group")
        return queries.start(call, request, [self._group(call, {"logGroupIdentifier": name}) for name in names])

    def get_query_results(self, call: Call, request: Request) -> dict[str, Any]:
        return queries.results(call, request, self._store, lambda name: self._group(call, {"logGroupIdentifier": name}))

    def _group(self, call: Call, request: Request) -> Record:
        name = request.get("logGroupName") or str(request.get("logGroupIdentifier") or "")
        if name.startswith("arn:"):
            name = name.removesuffix(":*").partition(":log-group:")[2]
        if not name:
            raise _invalid("Either logGroupName or logGroupIdentifier must be given.")
        record = self._store.group(call.records, name)
        if record is None:
            raise NotFound("The specified log group does not exist.", code="ResourceNotFoundException")
        call.resources.append((_arn(call, name), "AWS::Logs::LogGroup"))
        return record

    def _stream(self, call: Call, request: Request) -> Record:
        group = self._group(call, request)
        record = self._store.stream(call.records, group.name, request["logStreamName"])
        if record is None:
            raise NotFound("The specified log stream does not exist.", code="ResourceNotFoundException")
        return record

    def _described_group(self, call: Call, record: Record) -> dict[str, Any]:
        arn = _arn(call, record.name)
        stored = sum(int(stream.body["bytes"]) for stream in self._store.streams(call.records, record.name))
        return {
            "logGroupName": record.name,
            "creationTime": int(record.created.timestamp() * 1000),
            "metricFilterCount": 0,
            "arn": f"{arn}:*",
            "logGroupArn": arn,
            "storedBytes": stored,
            "logGroupClass": "STANDARD",
        }

    def _described_stream(self, call: Call, group: Record, stream: Record) -> dict[str, Any]:
        name, body = name_of(stream), stream.body
        return {
            "logStreamName": name,
            "creationTime": int(stream.created.timestamp() * 1000),
            "firstEventTimestamp": body["first_ms"],
            "lastEventTimestamp": body["last_ms"],
            "lastIngestionTime": body["ingested_ms"],
            "uploadSequenceToken": str(body["events"]),
            "arn": f"{_arn(call, group.name)}:log-stream:{name}",
            "storedBytes": 0,
        }


def _arn(call: Call, group: str) -> str:
    return call.arn("logs", f"log-group:{group}")


def _invalid(message: str) -> ValidationFault:
    return ValidationFault(message, code="InvalidParameterException")


def _exists(message: str) -> Conflict:
    return Conflict(message, code="ResourceAlreadyExistsException")


def _encoded(text: str) -> str:
    return base64.urlsafe_b64encode(text.encode()).decode()


def _decoded(token: str | None) -> str:
    try:
        return base64.urlsafe_b64decode((token or "").encode()).decode()
    except ValueError:
        raise _invalid("The specified nextToken is invalid.") from None
