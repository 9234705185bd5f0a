"""PutMetricData: which observations are taken.

Invariants (Amazon CloudWatch API reference, PutMetricData and MetricDatum):
- At most 1,000 metrics a request and 150 values a metric; 30 dimensions; values from -2^360 to 2^360, no NaN and no
  infinity; times from two weeks ago to two hours ahead. One datum that breaks a rule refuses the whole request.
- Namespaces that begin with AWS/ are the platform's.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any

from honmaru.security.calls import Call
from honmaru.services.cloudwatch.faults import contradictory, invalid, missing
from honmaru.services.cloudwatch.points import Point
from honmaru.services.cloudwatch.store import Dimensions, MetricStore, Sample

MAX_METRICS = 1000
MAX_VALUES = 150
_LARGEST = 2.0**360
_OLDEST, _AHEAD = timedelta(weeks=2), timedelta(hours=2)


def put(call: Call, store: MetricStore, request: Mapping[str, Any]) -> dict[str, Any]:
    namespace = request["Namespace"]
    check_namespace(namespace)
    if namespace.startswith("AWS/"):
        raise invalid("The value AWS/ for parameter Namespace is invalid: it is the platform's; use a name of your own")
    data = list(request.get("MetricData") or ())
    for entity in request.get("EntityMetricData") or ():
        data += entity.get("MetricData") or ()
    if not data:
        raise missing("The parameter MetricData is required.")
    if len(data) > MAX_METRICS:
        raise invalid(f"The collection MetricData must not have a size greater than {MAX_METRICS}.")
    samples = [_sample(datum, call.now, place) for place, datum in enumerate(data, start=1)]
    store.put_samples(call.session, namespace, samples)
    call.details["metrics"] = len(data)
    return {}


def check_namespace(namespace: str) -> None:
    if namespace.startswith(":") or not namespace.isascii() or not namespace.isprintable():
        raise invalid("The parameter Namespace must be printable ASCII and not begin with a colon.")


def dimensions(given: Any) -> Dimensions:
    """Dimensions as a metric's identity. Raises ValidationFault."""
    pairs = [(each["Name"], each["Value"]) for each in given or ()]
    names = [name for name, _ in pairs]
    if len(pairs) > 30:
        raise invalid("The collection Dimensions must not have a size greater than 30.")
    if len(set(names)) != len(names):
        raise invalid("The parameter Dimensions holds a name twice.")
    if any(name.startswith(":") for name in names) or any(not value.strip() for _, value in pairs):
        raise invalid("Dimension names may not begin with a colon, and values may not be empty.")
    return tuple(sorted(pairs))


def _sample(datum: Mapping[str, Any], now: datetime, place: int) -> Sample:
    where = f"MetricData.member.{place}"
    at = datum.get("Timestamp") or now
    if at < now - _OLDEST or at > now + _AHEAD:
        raise invalid(
            f"The parameter {where}.Timestamp must specify a time no more than two weeks in the past and no more than "
            "two hours in the future."
        )
    if not datum["MetricName"].isascii() or not datum["MetricName"].isprintable():
        raise invalid(f"The parameter {where}.MetricName must be printable ASCII.")
    resolution = int(datum.get("StorageResolution") or 60)
    if resolution not in (1, 60):
        raise invalid(f"The parameter {where}.StorageResolution must be 1 or 60.")
    unit = datum.get("Unit") or "None"
    identity = dimensions(datum.get("Dimensions"))
    return Sample(datum["MetricName"], identity, at, _point(datum, where), unit, resolution)


def _point(datum: Mapping[str, Any], where: str) -> Point:
    value, values, statistics = datum.get("Value"), datum.get("Values"), datum.get("StatisticValues")
    if sum(each is not None for each in (value, values, statistics)) != 1:
        if value is None and values is None and statistics is None:
            raise missing(f"At least one of the parameters must be specified: {where}.Value, Values, StatisticValues.")
        raise contradictory(f"The parameters {where}.Value, Values and StatisticValues are mutually exclusive.")
    if value is not None:
        return Point.of(_number(value, f"{where}.Value"))
    if statistics is not None:
        count, total, low, high = (
            _number(statistics[name], f"{where}.StatisticValues.{name}")
            for name in ("SampleCount", "Sum", "Minimum", "Maximum")
        )
        if count <= 0 or low > high:
            raise invalid(f"The parameter {where}.StatisticValues needs SampleCount > 0 and Minimum <= Maximum.")
        return Point.statistics(count, total, low, high)
    counts = datum.get("Counts")
    if not values or len(values) > MAX_VALUES:
        raise invalid(f"The collection {where}.Values must have 1 to {MAX_VALUES} members.")
    if counts is not None and len(counts) != len(values):
        raise invalid(f"The parameters {where}.Values and {where}.Counts must be of the same size.")
    pairs = [
        (_number(each, f"{where}.Values"), _number(count, f"{where}.Counts"))
        for each, count in zip(values, counts or [1.0] * len(values), strict=True)
    ]
    if any(count <= 0 for _, count in pairs):
        raise invalid(f"The parameter {where}.Counts must be greater than 0.")
    return Point.of_many(pairs)


def _number(value: float, where: str) -> float:
    if not math.isfinite(value) or abs(value) > _LARGEST:
        raise invalid(f"The value {value} for parameter {where} is invalid.")
    return float(value)
