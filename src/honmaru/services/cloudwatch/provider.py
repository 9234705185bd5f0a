"""Amazon CloudWatch: the operations.

Invariant: metrics and alarms above the session are answered exactly like ones that do not exist.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from honmaru.security.calls import Call, Provider, Resource, Target
from honmaru.security.guard import Sight
from honmaru.services.cloudwatch import alarms, composite, dashboards, data, listing, putting
from honmaru.services.cloudwatch.store import MetricStore

Request = Mapping[str, Any]
_ALARM = "arn:{partition}:cloudwatch:{region}:{account}:alarm:{AlarmName}"
_NAMED = "arn:{partition}:cloudwatch:{region}:{account}:alarm:{AlarmNames[]}"
_ALARMS = "arn:{partition}:cloudwatch:{region}:{account}:alarm:*"
_DASHBOARDS = "arn:{partition}:cloudwatch::{account}:dashboard/{DashboardNames[]}"
_DASHBOARD = "arn:{partition}:cloudwatch::{account}:dashboard/{DashboardName}"


class CloudWatch(Provider):
    """Args:
    store: Shared with the jobs and services, which write to it as `ports.metrics.MetricSink`.
    """

    service: ClassVar[str] = "cloudwatch"
    arn_services: ClassVar[tuple[str, ...]] = ("cloudwatch",)
    resource_kinds: ClassVar[frozenset[str]] = frozenset({alarms.ALARM})

    targets: ClassVar[Mapping[str, Target | Sequence[Target]]] = {
        **{
            name: Target(f"cloudwatch:{name}")
            for name in ("PutMetricData", "GetMetricData", "GetMetricStatistics", "ListMetrics", "ListDashboards")
        },
        **{
            name: Target(f"cloudwatch:{name}", _ALARM)
            for name in ("PutMetricAlarm", "PutCompositeAlarm", "SetAlarmState")
        },
        "DescribeAlarms": (
            Target("cloudwatch:DescribeAlarms", _NAMED, given="AlarmNames"),
            Target("cloudwatch:DescribeAlarms", _ALARMS, unless="AlarmNames"),
        ),
        "DescribeAlarmHistory": (
            Target("cloudwatch:DescribeAlarmHistory", _ALARM, given="AlarmName"),
            Target("cloudwatch:DescribeAlarmHistory", _ALARMS, unless="AlarmName"),
        ),
        "DescribeAlarmsForMetric": Target("cloudwatch:DescribeAlarmsForMetric", _ALARMS),
        **{
            name: Target(f"cloudwatch:{name}", _NAMED)
            for name in ("EnableAlarmActions", "DisableAlarmActions", "DeleteAlarms")
        },
        **{
            name: Target(f"cloudwatch:{name}", "{ResourceARN}")
            for name in ("ListTagsForResource", "TagResource", "UntagResource")
        },
        "PutDashboard": Target("cloudwatch:PutDashboard", _DASHBOARD),
        "GetDashboard": Target("cloudwatch:GetDashboard", _DASHBOARD),
        "DeleteDashboards": Target("cloudwatch:DeleteDashboards", _DASHBOARDS),
    }

    def __init__(self, store: MetricStore) -> None:
        self._store = store

    def context(self, operation: str, request: Mapping[str, Any]) -> Mapping[str, Any]:
        """cloudwatch:namespace, for PutMetricData."""
        return {"cloudwatch:namespace": request["Namespace"]} if operation == "PutMetricData" else {}

    def resource_place(self, resource: str) -> str:
        """`alarm:NAME` → NAME; dashboards have neither tags nor policies."""
        return resource.removeprefix("alarm:") if resource.startswith("alarm:") else ""

    def resource(self, sight: Sight, place: str) -> Resource | None:
        """An alarm, with its tags."""
        record = sight.get(alarms.ALARM, place)
        return None if record is None else Resource(record.account, record.label, tags=record.body["tags"])

    # Metrics

    def put_metric_data(self, call: Call, request: Request) -> dict[str, Any]:
        return putting.put(call, self._store, request)

    def get_metric_data(self, call: Call, request: Request) -> dict[str, Any]:
        return data.get_data(call, self._store, request)

    def get_metric_statistics(self, call: Call, request: Request) -> dict[str, Any]:
        return data.get_statistics(call, self._store, request)

    def list_metrics(self, call: Call, request: Request) -> dict[str, Any]:
        return listing.list_metrics(call, self._store, request)

    # Alarms

    def put_metric_alarm(self, call: Call, request: Request) -> dict[str, Any]:
        return alarms.put(call, request)

    def put_composite_alarm(self, call: Call, request: Request) -> dict[str, Any]:
        return composite.put(call, request)

    def describe_alarms(self, call: Call, request: Request) -> dict[str, Any]:
        kin = composite.family(call.records, request)
        return alarms.describe(call, request) if kin is None else alarms.shown(call, kin)

    def describe_alarms_for_metric(self, call: Call, request: Request) -> dict[str, Any]:
        return alarms.for_metric(call, request)

    def describe_alarm_history(self, call: Call, request: Request) -> dict[str, Any]:
        return alarms.history(call, request)

    def set_alarm_state(self, call: Call, request: Request) -> dict[str, Any]:
        return alarms.set_state(call, request)

    def enable_alarm_actions(self, call: Call, request: Request) -> dict[str, Any]:
        return alarms.switch(call, request, enabled=True)

    def disable_alarm_actions(self, call: Call, request: Request) -> dict[str, Any]:
        return alarms.switch(call, request, enabled=False)

    def delete_alarms(self, call: Call, request: Request) -> dict[str, Any]:
        return alarms.delete(call, request)

    def list_tags_for_resource(self, call: Call, request: Request) -> dict[str, Any]:
        return alarms.tags_of(call, request)

    def tag_resource(self, call: Call, request: Request) -> dict[str, Any]:
        return alarms.tag(call, request)

    def untag_resource(self, call: Call, request: Request) -> dict[str, Any]:
        return alarms.untag(call, request)

    # Dashboards

    def put_dashboard(self, call: Call, request: Request) -> dict[str, Any]:
        return dashboards.put(call, request)

    def get_dashboard(self, call: Call, request: Request) -> dict[str, Any]:
        return dashboards.get(call, request)

    def list_dashboards(self, call: Call, request: Request) -> dict[str, Any]:
        return dashboards.listed(call, request)

    def delete_dashboards(self, call: Call, request: Request) -> dict[str, Any]:
        return dashboards.delete(call, request)
