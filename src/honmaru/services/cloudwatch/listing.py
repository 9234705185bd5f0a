"""ListMetrics: which metrics there are.

Invariant: metrics without data in the past two weeks are not listed, and none above the session ever.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from honmaru.security.calls import Call
from honmaru.security.guard import Record
from honmaru.services.cloudwatch.faults import bad_token
from honmaru.services.cloudwatch.store import MetricStore
from honmaru.services.cloudwatch.tokens import read_token, write_token

PAGE = 500
_WEEKS_S, _RECENT_S = 14 * 86400, 3 * 3600


def list_metrics(call: Call, store: MetricStore, request: Mapping[str, Any]) -> dict[str, Any]:
    wanted = [(each["Name"], each.get("Value")) for each in request.get("Dimensions") or ()]
    within = _RECENT_S if request.get("RecentlyActive") else _WEEKS_S
    oldest = int(call.now.timestamp()) - within
    after = ""
    if request.get("NextToken"):
        after = str(read_token(request["NextToken"]))
        if not after:
            raise bad_token()
    metrics: list[Record] = []
    more = False
    for record in store.metrics(
        store.records(call.session), request.get("Namespace") or "", request.get("MetricName") or "", after
    ):
        if int(record.body["last"]) + 3600 < oldest or not _has(record, wanted):
            continue
        if len(metrics) == PAGE:
            more = True
            break
        metrics.append(record)
    return {
        "Metrics": [described(record) for record in metrics],
        "NextToken": write_token(metrics[-1].name) if more else None,
    }


def described(record: Record) -> dict[str, Any]:
    return {
        "Namespace": record.body["namespace"],
        "MetricName": record.body["name"],
        "Dimensions": [{"Name": name, "Value": value} for name, value in record.body["dimensions"]],
    }


def _has(record: Record, wanted: list[tuple[str, str | None]]) -> bool:
    own = dict(record.body["dimensions"])
    return all(name in own and value in (None, own[name]) for name, value in wanted)
