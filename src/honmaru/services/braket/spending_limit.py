"""Spending limits: per-account quotas on a device, held against what its tasks cost.

Cost is simulated time at the price that the device states; no money moves. See `jobs.quantum_spending` for labels.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

from honmaru.core.errors import ValidationFault
from honmaru.jobs.quantum_devices import Device, Devices
from honmaru.jobs.quantum_spending import Limit, Spending
from honmaru.ports.runtime import Ids
from honmaru.security import idempotency
from honmaru.security.calls import Call
from honmaru.security.guard import Record
from honmaru.security.guard.records import Creation, GuardedChange
from honmaru.services.braket import tags
from honmaru.services.braket.device import permitted
from honmaru.services.braket.searching import search as search_records

KIND = "spending-limit"
_END = datetime(9999, 12, 31, tzinfo=UTC)
_USD = re.compile(r"\d{1,12}(\.\d{1,2})?")


def create(call: Call, request: Mapping[str, Any], devices: Devices, ids: Ids) -> dict[str, Any]:
    device = permitted(call, "braket:CreateSpendingLimit", request["deviceArn"], devices)  # before anything is repeated
    return idempotency.once(call, request, lambda: _made(call, request, device, ids))


def _made(
    call: Call, request: Mapping[str, Any], device: Device, ids: Ids
) -> tuple[list[GuardedChange], dict[str, Any]]:
    name = ids.uuid()
    arn = call.arn("braket", f"spending-limit/{name}")
    body = {
        "arn": arn,
        "device": device.name,
        "device_arn": request["deviceArn"],
        "usd": _amount(request["spendingLimit"]),
        **_period(request.get("timePeriod"), call.now),
        "tags": tags.checked(call.session.label, request.get("tags")),
    }
    call.resources.append((arn, tags.KINDS[KIND]))
    return [Creation(KIND, name, body)], {"spendingLimitArn": arn}


def search(call: Call, request: Mapping[str, Any], spending: Spending) -> dict[str, Any]:
    shown, token = search_records(call.records.iterate(KIND), request, _facts, ("deviceArn",))
    summaries = []
    for record in shown:
        queued, total = spending.sums(record.account, call.session.label, _limit(record))
        summaries.append(
            {
                "spendingLimitArn": record.body["arn"],
                "deviceArn": record.body["device_arn"],
                "timePeriod": {"startAt": _moment(record, "start"), "endAt": _moment(record, "end")},
                "spendingLimit": record.body["usd"],
                "queuedSpend": f"{queued:.6f}",
                "totalSpend": f"{total:.6f}",
                "createdAt": record.created,
                "updatedAt": record.updated,
                "tags": dict(record.body["tags"]),
            }
        )
    return {"spendingLimits": summaries, "nextToken": token}


def update(call: Call, request: Mapping[str, Any]) -> dict[str, Any]:
    record = tags.resource(call, request["spendingLimitArn"], KIND)
    body = dict(record.body)
    if request.get("spendingLimit"):
        body["usd"] = _amount(request["spendingLimit"])
    if request.get("timePeriod"):
        body |= _period(request["timePeriod"], call.now)
    call.records.update(record, body)
    return {}


def delete(call: Call, request: Mapping[str, Any]) -> dict[str, Any]:
    call.records.delete(tags.resource(call, request["spendingLimitArn"], KIND))
    return {}


def enforced(call: Call, devices: Devices) -> list[Limit]:
    """The limits that hold for a session: all that it sees."""
    known = {device.name for device in devices.all}
    return [_limit(record) for record in call.records.iterate(KIND) if record.body["device"] in known]


def _limit(record: Record) -> Limit:
    body = record.body
    return Limit(body["arn"], body["device"], Decimal(body["usd"]), _moment(record, "start"), _moment(record, "end"))


def _facts(record: Record) -> dict[str, Any]:
    return {"deviceArn": record.body["device_arn"]}


def _moment(record: Record, name: str) -> datetime:
    return datetime.fromisoformat(record.body[name])


def _amount(text: str) -> str:
    if not _USD.fullmatch(text):
        raise ValidationFault(f"spendingLimit {text!r} is not an amount in USD, for example 12.50")
    return text


def _period(period: Mapping[str, Any] | None, now: datetime) -> dict[str, str]:
    start, end = (period or {}).get("startAt") or now, (period or {}).get("endAt") or _END
    if end <= start:
        raise ValidationFault("timePeriod.endAt must lie after startAt")
    return {"start": start.isoformat(), "end": end.isoformat()}
