"""Amazon CloudWatch Logs: the operations.

Invariant: each operation states the log group or stream that it acts on, as AWS names it to IAM: a group's ARN ends in
`:log-stream:` there, which is why policies for groups end in `:*`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from honmaru.ports.runtime import Clock
from honmaru.security.calls import Call, Provider, Resource, Target
from honmaru.security.guard import Record, Sight
from honmaru.services.logs import groups, metric_filters, putting, queries, query_definitions, reading, streams
from honmaru.services.logs.finding import Request, find_group, find_stream, invalid
from honmaru.services.logs.live_tail import LiveTails
from honmaru.services.logs.store import GROUP, LogStore

_NAMED = "arn:{partition}:logs:{region}:{account}:log-group:{logGroupName}"
_GROUP = f"{_NAMED}:log-stream:"
_STREAM = f"{_NAMED}:log-stream:{{logStreamName}}"
_ANY = "arn:{partition}:logs:{region}:{account}:log-group:*"


class Logs(Provider):
    """Args:
    store: Shared with the jobs, which write to it as `ports.logs.LogSink`.
    clock: How long Live Tail sessions last.
    """

    service: ClassVar[str] = "logs"
    arn_services: ClassVar[tuple[str, ...]] = ("logs",)
    resource_kinds: ClassVar[frozenset[str]] = frozenset({GROUP})

    targets: ClassVar[Mapping[str, Target]] = {
        **{
            name: Target(f"logs:{name}", _GROUP)
            for name in (
                *("CreateLogGroup", "DeleteLogGroup", "CreateLogStream", "DescribeLogStreams", "FilterLogEvents"),
                *("PutRetentionPolicy", "DeleteRetentionPolicy", "PutMetricFilter", "DeleteMetricFilter"),
                *("DescribeMetricFilters", "StartQuery"),
                *("GetLogGroupFields", "AssociateKmsKey", "DisassociateKmsKey"),
            )
        },
        **{name: Target(f"logs:{name}", _NAMED) for name in ("TagLogGroup", "UntagLogGroup", "ListTagsLogGroup")},
        **{name: Target(f"logs:{name}", _STREAM) for name in ("DeleteLogStream", "PutLogEvents", "GetLogEvents")},
        **{
            name: Target(f"logs:{name}", "{resourceArn}")
            for name in ("TagResource", "UntagResource", "ListTagsForResource")
        },
        "DescribeLogGroups": Target("logs:DescribeLogGroups", f"{_ANY}:log-stream:"),
        "ListLogGroups": Target("logs:ListLogGroups", f"{_ANY}:log-stream:"),
        "StartLiveTail": Target("logs:StartLiveTail", f"{_ANY}:log-stream:"),
        "PutLogGroupDeletionProtection": Target("logs:PutLogGroupDeletionProtection", f"{_ANY}:log-stream:"),
    }

    def __init__(self, store: LogStore, clock: Clock) -> None:
        self._store = store
        self._tails = LiveTails(store, clock)

    def resource_place(self, resource: str) -> str:
        """`log-group:NAME:log-stream:...` → NAME."""
        return resource.removeprefix("log-group:").partition(":")[0]

    def resource(self, sight: Sight, place: str) -> Resource | None:
        """A log group, with its tags."""
        record = sight.get(GROUP, place)
        return None if record is None else Resource(record.account, record.label, tags=record.body["tags"])

    # Groups

    def create_log_group(self, call: Call, request: Request) -> dict[str, Any]:
        return groups.create(call, self._store, request)

    def delete_log_group(self, call: Call, request: Request) -> dict[str, Any]:
        return groups.delete(call, self._store, request)

    def describe_log_groups(self, call: Call, request: Request) -> dict[str, Any]:
        return groups.describe(call, self._store, request)

    def list_log_groups(self, call: Call, request: Request) -> dict[str, Any]:
        return groups.names(call, request)

    def put_retention_policy(self, call: Call, request: Request) -> dict[str, Any]:
        return groups.put_retention(call, self._store, request)

    def delete_retention_policy(self, call: Call, request: Request) -> dict[str, Any]:
        return groups.delete_retention(call, self._store, request)

    def put_log_group_deletion_protection(self, call: Call, request: Request) -> dict[str, Any]:
        return groups.protect(call, self._store, request)

    def associate_kms_key(self, call: Call, request: Request) -> dict[str, Any]:
        return groups.associate(call, self._store, request)

    def disassociate_kms_key(self, call: Call, request: Request) -> dict[str, Any]:
        return groups.disassociate(call, self._store, request)

    # Tags, of the newer and the older operations

    def tag_resource(self, call: Call, request: Request) -> dict[str, Any]:
        return groups.tag(call, groups.tagged_group(call, self._store, request), request["tags"])

    def untag_resource(self, call: Call, request: Request) -> dict[str, Any]:
        return groups.untag(call, groups.tagged_group(call, self._store, request), request["tagKeys"])

    def list_tags_for_resource(self, call: Call, request: Request) -> dict[str, Any]:
        return {"tags": dict(groups.tagged_group(call, self._store, request).body["tags"])}

    def tag_log_group(self, call: Call, request: Request) -> dict[str, Any]:
        return groups.tag(call, find_group(call, self._store, request), request["tags"])

    def untag_log_group(self, call: Call, request: Request) -> dict[str, Any]:
        return groups.untag(call, find_group(call, self._store, request), request["tags"])

    def list_tags_log_group(self, call: Call, request: Request) -> dict[str, Any]:
        return {"tags": dict(find_group(call, self._store, request).body["tags"])}

    # Streams and events

    def create_log_stream(self, call: Call, request: Request) -> dict[str, Any]:
        return streams.create(call, self._store, request)

    def delete_log_stream(self, call: Call, request: Request) -> dict[str, Any]:
        return streams.delete(call, self._store, request)

    def describe_log_streams(self, call: Call, request: Request) -> dict[str, Any]:
        return streams.describe(call, self._store, request)

    def put_log_events(self, call: Call, request: Request) -> dict[str, Any]:
        return putting.put(call, self._store, request)

    def get_log_events(self, call: Call, request: Request) -> dict[str, Any]:
        return reading.get(self._store, call.records, find_stream(call, self._store, request), request)

    def filter_log_events(self, call: Call, request: Request) -> dict[str, Any]:
        group = find_group(call, self._store, request)
        names = request.get("logStreamNames")
        if names and request.get("logStreamNamePrefix"):
            raise invalid("logStreamNames and logStreamNamePrefix are mutually exclusive parameters.")
        if names:
            found = [
                find_stream(call, self._store, {**request, "logStreamName": name}) for name in dict.fromkeys(names)
            ]
        else:
            found = list(self._store.streams(call.records, group.name, request.get("logStreamNamePrefix") or ""))
        return reading.filtered(self._store, call.records, found, request)

    async def start_live_tail(self, call: Call, request: Request) -> dict[str, Any]:
        return await self._tails.start(call, request)

    # Metric filters

    def put_metric_filter(self, call: Call, request: Request) -> dict[str, Any]:
        return metric_filters.put(call, self._store, request)

    def delete_metric_filter(self, call: Call, request: Request) -> dict[str, Any]:
        return metric_filters.delete(call, self._store, request)

    def describe_metric_filters(self, call: Call, request: Request) -> dict[str, Any]:
        return metric_filters.describe(call, self._store, request)

    def test_metric_filter(self, call: Call, request: Request) -> dict[str, Any]:
        call.details["messages"] = len(request["logEventMessages"])
        return metric_filters.test(request)

    # Insights

    def start_query(self, call: Call, request: Request) -> dict[str, Any]:
        names = [*(request.get("logGroupNames") or ()), *(request.get("logGroupIdentifiers") or ())]
        if request.get("logGroupName"):
            names.append(request["logGroupName"])
        return queries.start(call, request, [self._identified(call, name) for name in dict.fromkeys(names)])

    def get_query_results(self, call: Call, request: Request) -> dict[str, Any]:
        return queries.results(call, request, self._store)

    def stop_query(self, call: Call, request: Request) -> dict[str, Any]:
        return queries.stop(call, request)

    def describe_queries(self, call: Call, request: Request) -> dict[str, Any]:
        return queries.describe(call, request)

    def get_log_record(self, call: Call, request: Request) -> dict[str, Any]:
        return queries.record_of(call, request, self._store)

    def get_log_group_fields(self, call: Call, request: Request) -> dict[str, Any]:
        return queries.fields_of(call, request, self._store, find_group(call, self._store, request))

    def put_query_definition(self, call: Call, request: Request) -> dict[str, Any]:
        return query_definitions.put(call, request)

    def describe_query_definitions(self, call: Call, request: Request) -> dict[str, Any]:
        return query_definitions.describe(call, request)

    def delete_query_definition(self, call: Call, request: Request) -> dict[str, Any]:
        return query_definitions.delete(call, request)

    def _identified(self, call: Call, name: str) -> Record:
        return find_group(call, self._store, {"logGroupIdentifier": name})
