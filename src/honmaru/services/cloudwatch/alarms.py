"""Metric alarms: made, described, switched, deleted; their history.

Invariants:
- An alarm begins in INSUFFICIENT_DATA, and is evaluated by the background step (`watching`) at its own label.
- A change of an alarm and the line of its history are one transaction.
- An action is an ARN that this enclave can keep but not carry out: the history says that it failed, never that it was
  done.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

import orjson

from honmaru.core.errors import Conflict, NotFound, QuotaExceeded
from honmaru.security.calls import Call
from honmaru.security.guard import Creation, GuardedChange, GuardedRecords, Record, Removal, Revision
from honmaru.services.cloudwatch.data import check_period
from honmaru.services.cloudwatch.evaluation import COMPARISONS, INSUFFICIENT, TREATMENTS
from honmaru.services.cloudwatch.faults import bad_token, contradictory, invalid, malformed, missing, unknown_alarm
from honmaru.services.cloudwatch.measuring import period_of, read_queries
from honmaru.services.cloudwatch.points import statistic
from honmaru.services.cloudwatch.putting import dimensions
from honmaru.services.cloudwatch.tokens import read_token, write_token

ALARM, HISTORY = "alarm", "alarm-history"
MAX_ALARMS = 5000
MAX_TAGS = 50
HISTORY_KEPT = timedelta(days=30)
_SEPARATOR = "\x1f"
_KINDS = (("MetricAlarms", False), ("CompositeAlarms", True))
Request = Mapping[str, Any]

_KEPT = (
    *("AlarmDescription", "MetricName", "Namespace", "Statistic", "ExtendedStatistic", "Dimensions", "Period", "Unit"),
    *("EvaluationPeriods", "DatapointsToAlarm", "Threshold", "ComparisonOperator", "TreatMissingData"),
    *("EvaluateLowSampleCountPercentile", "Metrics", "OKActions", "AlarmActions", "InsufficientDataActions"),
)
_REFUSED = (
    "ThresholdMetricId",
    "EvaluationCriteria",
    "EvaluationInterval",
    "WarmUpConfiguration",
    "ActionConfiguration",
)


def put(call: Call, request: Request) -> dict[str, Any]:
    _check(call, request)
    name, now = request["AlarmName"], call.now
    settings = {member: request[member] for member in _KEPT if request.get(member) is not None}
    settings["ActionsEnabled"] = request.get("ActionsEnabled") is not False
    old = own(call.records, name)
    if old is not None and is_composite(old):
        raise malformed(f"Could not save the metric alarm as a composite alarm has the name {name}")
    if old is None:
        if sum(1 for _ in call.records.iterate(ALARM)) >= MAX_ALARMS:
            raise QuotaExceeded(f"The account has {MAX_ALARMS} alarms, the most it may have.", code="LimitExceeded")
        tags = {tag["Key"]: tag["Value"] for tag in request.get("Tags") or ()}
        check_tags(tags)
        body = {
            "settings": settings,
            "tags": tags,
            "configured": now.isoformat(),
            "state": initial_state(now),
        }
        change: GuardedChange = Creation(ALARM, name, body, INSUFFICIENT)
        summary = f'Alarm "{name}" created'
    else:
        change = Revision(old, {**old.body, "settings": settings, "configured": now.isoformat()})
        summary = f'Alarm "{name}" updated'
    data = orjson.dumps({"version": "1.0", "type": "Update" if old else "Create"}).decode()
    apply(call.records, [change, line(name, now, "ConfigurationUpdate", summary, data, call.request_id)])
    call.resources.append((arn(call, name), "AWS::CloudWatch::Alarm"))
    return {}


def describe(call: Call, request: Request) -> dict[str, Any]:
    names, prefix = request.get("AlarmNames"), request.get("AlarmNamePrefix") or ""
    if names and prefix:
        raise contradictory("AlarmNames and AlarmNamePrefix are mutually exclusive.")
    types = request.get("AlarmTypes") or ["MetricAlarm"]
    after = str(read_token(request["NextToken"])) if request.get("NextToken") else ""
    most = int(request.get("MaxRecords") or 50)
    if names:
        found: Iterator[Record] = (
            each for name in sorted(set(names)) if name > after and (each := call.records.get(ALARM, name)) is not None
        )
    else:
        found = call.records.iterate(ALARM, prefix=prefix, after=after)
    page: list[Record] = []
    token: str | None = None
    for record in found:
        if request.get("StateValue") not in (None, record.state) or not _acts(record, request.get("ActionPrefix")):
            continue
        if ("CompositeAlarm" if is_composite(record) else "MetricAlarm") not in types:
            continue
        if len(page) == most:
            token = write_token(page[-1].name)
            break
        page.append(record)
    return {**shown(call, page), "NextToken": token}


def shown(call: Call, records: Sequence[Record]) -> dict[str, Any]:
    """Alarms as DescribeAlarms shows them, by their type."""
    return {kind: [described(call, each) for each in records if is_composite(each) is flag] for kind, flag in _KINDS}


def is_composite(record: Record) -> bool:
    """Whether an alarm's state follows from other alarms' states (`composite`)."""
    return "AlarmRule" in record.body["settings"]


def for_metric(call: Call, request: Request) -> dict[str, Any]:
    wanted = dimensions(request.get("Dimensions"))
    found = []
    for record in call.records.iterate(ALARM):
        settings = record.body["settings"]
        same = (settings.get("Namespace"), settings.get("MetricName")) == (request["Namespace"], request["MetricName"])
        if not same or dimensions(settings.get("Dimensions")) != wanted:
            continue
        if all(
            request.get(member) in (None, settings.get(member))
            for member in ("Statistic", "ExtendedStatistic", "Period", "Unit")
        ):
            found.append(described(call, record))
    return {"MetricAlarms": found}


def history(call: Call, request: Request) -> dict[str, Any]:
    name = request.get("AlarmName")
    types = request.get("AlarmTypes") or ("MetricAlarm", "CompositeAlarm")
    prefix = f"{name}{_SEPARATOR}" if name else ""
    start, end, kind = request.get("StartDate"), request.get("EndDate"), request.get("HistoryItemType")
    records = [
        record
        for record in call.records.iterate(HISTORY, prefix=prefix)
        if kind in (None, record.body["type"])
        and record.body["alarm_type"] in types
        and (start is None or datetime.fromisoformat(record.body["at"]) >= start)
        and (end is None or datetime.fromisoformat(record.body["at"]) <= end)
    ]
    ascending = request.get("ScanBy") == "TimestampAscending"
    records.sort(key=lambda record: (record.body["at"], record.name), reverse=not ascending)
    first = read_token(request["NextToken"]) if request.get("NextToken") else 0
    if not isinstance(first, int) or first < 0:
        raise bad_token()
    most = int(request.get("MaxRecords") or 50)
    page = records[first : first + most]
    items = [
        {
            "AlarmName": record.name.partition(_SEPARATOR)[0],
            "AlarmType": record.body["alarm_type"],
            "Timestamp": datetime.fromisoformat(record.body["at"]),
            "HistoryItemType": record.body["type"],
            "HistorySummary": record.body["summary"][:255],
            "HistoryData": record.body["data"][:4095],
        }
        for record in page
    ]
    return {
        "AlarmHistoryItems": items,
        "NextToken": write_token(first + most) if len(records) > first + most else None,
    }


def set_state(call: Call, request: Request) -> dict[str, Any]:
    """Until the next evaluation."""
    record = call.records.get(ALARM, request["AlarmName"])
    if record is None:
        raise unknown_alarm()
    data = request.get("StateReasonData") or ""
    if data:
        try:
            orjson.loads(data)
        except orjson.JSONDecodeError:
            raise invalid("StateReasonData was not valid JSON") from None
    apply(
        call.records,
        transition(record, request["StateValue"], request["StateReason"], data, call.now, call.request_id),
    )
    return {}


def switch(call: Call, request: Request, *, enabled: bool) -> dict[str, Any]:
    changes: list[GuardedChange] = []
    for name in dict.fromkeys(request["AlarmNames"]):
        record = call.records.get(ALARM, name)
        if record is not None and record.body["settings"]["ActionsEnabled"] is not enabled:
            settings = {**record.body["settings"], "ActionsEnabled": enabled}
            summary = f"Alarm actions {'enabled' if enabled else 'disabled'} for {name}"
            changes.append(Revision(record, {**record.body, "settings": settings}))
            changes.append(line(name, call.now, "ConfigurationUpdate", summary, "{}", call.request_id))
    if changes:
        apply(call.records, changes)
    return {}


def delete(call: Call, request: Request) -> dict[str, Any]:
    """All of the named alarms, or none when one does not exist."""
    removals: list[GuardedChange] = []
    for name in dict.fromkeys(request["AlarmNames"]):
        record = call.records.get(ALARM, name)
        if record is None:
            raise NotFound(f"Alarm {name} does not exist", code="ResourceNotFound")
        removals.append(Removal(record))
    if removals:
        apply(call.records, removals)
    return {}


# Tags


def tags_of(call: Call, request: Request) -> dict[str, Any]:
    return {
        "Tags": [{"Key": key, "Value": value} for key, value in sorted(_tagged(call, request).body["tags"].items())]
    }


def tag(call: Call, request: Request) -> dict[str, Any]:
    record = _tagged(call, request)
    tags = {**record.body["tags"], **{each["Key"]: each["Value"] for each in request["Tags"]}}
    check_tags(tags)
    call.records.update(record, {**record.body, "tags": tags})
    return {}


def untag(call: Call, request: Request) -> dict[str, Any]:
    record = _tagged(call, request)
    gone = set(request["TagKeys"])
    tags = {key: value for key, value in record.body["tags"].items() if key not in gone}
    call.records.update(record, {**record.body, "tags": tags})
    return {}


def _tagged(call: Call, request: Request) -> Record:
    own_prefix = arn(call, "")
    given = str(request["ResourceARN"])
    record = call.records.get(ALARM, given.removeprefix(own_prefix)) if given.startswith(own_prefix) else None
    if record is None:
        raise NotFound("The named resource does not exist.", code="ResourceNotFoundException")
    return record


def check_tags(tags: Mapping[str, str]) -> None:
    if len(tags) > MAX_TAGS or any(key.lower().startswith("aws:") for key in tags):
        raise invalid(f"an alarm has at most {MAX_TAGS} tags, and their keys may not begin with aws:")


# What alarms are made of


def own(records: GuardedRecords, name: str) -> Record | None:
    """The alarm at the session's own label; one below is another alarm, which stays as it is."""
    record = records.get(ALARM, name)
    return record if record is not None and record.label == records.session.label else None


def arn(call: Call, name: str) -> str:
    return call.arn("cloudwatch", f"alarm:{name}")


def transition(
    record: Record, state: str, reason: str, data: str, at: datetime, identifier: str
) -> list[GuardedChange]:
    """The changes that bring an alarm into a state: its record, its history, and what became of its actions."""
    body = {**record.body, "state": _state(reason, data, at, state, record)}
    if state == record.state:
        return [Revision(record, body)]
    told = {
        "version": "1.0",
        "oldState": {"stateValue": record.state, "stateReason": record.body["state"]["reason"]},
        "newState": {"stateValue": state, "stateReason": reason[:1023]},
    }
    summary = f"Alarm updated from {record.state} to {state}"
    text = orjson.dumps(told).decode()
    composite = is_composite(record)
    changes: list[GuardedChange] = [Revision(record, body, state)]
    changes.append(line(record.name, at, "StateUpdate", summary, text, identifier, composite=composite))
    settings = record.body["settings"]
    member = {"OK": "OKActions", "ALARM": "AlarmActions"}.get(state, "InsufficientDataActions")
    for place, action in enumerate(settings.get(member) or () if settings["ActionsEnabled"] else ()):
        failed = f"Failed to execute action {action}. This enclave carries out no actions of alarms"
        changes.append(line(record.name, at, "Action", failed, "{}", f"{identifier}-{place}", composite=composite))
    return changes


def initial_state(at: datetime) -> dict[str, str]:
    """The state of an alarm that was just made."""
    return _state("Unchecked: Initial alarm creation", "", at, INSUFFICIENT)


def _state(reason: str, data: str, at: datetime, state: str, old: Record | None = None) -> dict[str, str]:
    stamp = at.isoformat()
    moved = stamp if old is None or old.state != state else old.body["state"]["moved"]
    return {"reason": reason[:1023], "data": data[:4000], "updated": stamp, "moved": moved}


def line(
    name: str, at: datetime, kind: str, summary: str, data: str, identifier: str, *, composite: bool = False
) -> Creation:
    """A line of an alarm's history."""
    key = f"{name}{_SEPARATOR}{int(at.timestamp() * 1000):015d}:{kind}:{identifier}"
    of = "CompositeAlarm" if composite else "MetricAlarm"
    body = {"at": at.isoformat(), "type": kind, "summary": summary, "data": data, "alarm_type": of}
    return Creation(HISTORY, key, body)


def apply(records: GuardedRecords, changes: Sequence[GuardedChange]) -> None:
    """Raises Conflict (ConcurrentModificationException) when somebody else changed an alarm meanwhile."""
    try:
        records.apply(changes)
    except Conflict:
        raise Conflict(
            "A concurrent change of the alarm won; try again.", code="ConcurrentModificationException"
        ) from None


def described(call: Call, record: Record) -> dict[str, Any]:
    body = record.body
    return {
        **body["settings"],
        "OKActions": body["settings"].get("OKActions") or [],
        "AlarmActions": body["settings"].get("AlarmActions") or [],
        "InsufficientDataActions": body["settings"].get("InsufficientDataActions") or [],
        "Dimensions": None if is_composite(record) else body["settings"].get("Dimensions") or [],
        "AlarmName": record.name,
        "AlarmArn": arn(call, record.name),
        "AlarmConfigurationUpdatedTimestamp": datetime.fromisoformat(body["configured"]),
        "StateValue": record.state,
        "StateReason": body["state"]["reason"],
        "StateReasonData": body["state"]["data"] or None,
        "StateUpdatedTimestamp": datetime.fromisoformat(body["state"]["updated"]),
        "StateTransitionedTimestamp": datetime.fromisoformat(body["state"]["moved"]),
    }


def _acts(record: Record, prefix: str | None) -> bool:
    settings = record.body["settings"]
    actions = [
        action
        for member in ("OKActions", "AlarmActions", "InsufficientDataActions")
        for action in settings.get(member) or ()
    ]
    return not prefix or any(action.startswith(prefix) for action in actions)


def _check(call: Call, request: Request) -> None:
    for member in _REFUSED:
        if request.get(member):
            raise malformed(f"{member} is not carried by this enclave: leave it out")
    if not request["AlarmName"].isprintable():
        raise malformed("AlarmName must hold printable characters only")
    for member in ("EvaluationPeriods", "ComparisonOperator"):
        if request.get(member) is None:
            raise missing(f"The parameter {member} is required.")
    if request["ComparisonOperator"] not in COMPARISONS:
        raise malformed(f"ComparisonOperator must be one of {', '.join(COMPARISONS)}")
    if request.get("Threshold") is None:
        raise missing("The parameter Threshold is required.")
    if (request.get("TreatMissingData") or "missing") not in TREATMENTS:
        raise malformed(f"TreatMissingData must be one of {', '.join(TREATMENTS)}")
    if (request.get("EvaluateLowSampleCountPercentile") or "evaluate") not in ("evaluate", "ignore"):
        raise malformed("EvaluateLowSampleCountPercentile must be evaluate or ignore")
    periods = int(request["EvaluationPeriods"])
    if int(request.get("DatapointsToAlarm") or periods) > periods:
        raise malformed("DatapointsToAlarm must be less than or equal to EvaluationPeriods")
    queries = request.get("Metrics")
    if queries:
        _check_queries(call, request, queries, periods)
        return
    for member in ("Namespace", "MetricName", "Period"):
        if not request.get(member):
            raise missing(f"The parameter {member} is required.")
    if bool(request.get("Statistic")) == bool(request.get("ExtendedStatistic")):
        raise contradictory("Exactly one of Statistic and ExtendedStatistic must be specified.")
    if statistic(request.get("Statistic") or request["ExtendedStatistic"]) is None:
        raise malformed("ExtendedStatistic must be a percentile such as p99")
    dimensions(request.get("Dimensions"))
    check_period(int(request["Period"]))
    _check_range(int(request["Period"]), periods)


def _check_queries(call: Call, request: Request, queries: Sequence[Mapping[str, Any]], periods: int) -> None:
    for member in ("Namespace", "MetricName", "Period", "Statistic", "ExtendedStatistic", "Dimensions", "Unit"):
        if request.get(member):
            raise contradictory(f"Metrics and {member} are mutually exclusive.")
    if sum(1 for query in queries if query.get("ReturnData") is not False) != 1:
        raise malformed("Exactly one element of the metrics list should return data.")
    period = period_of(queries)
    read_queries(call.session.account, call.records, None, queries, 0, period * (periods + 1))
    _check_range(period, periods)


def _check_range(period: int, periods: int) -> None:
    longest = 7 * 86400 if period >= 3600 else 86400
    if period * periods > longest:
        raise malformed(
            f"Metrics cannot be checked across more than {'seven days' if longest > 86400 else 'a day'} "
            "(EvaluationPeriods * Period must be <= "
            f"{longest})."
        )
