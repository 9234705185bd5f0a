"""AWS Service Quotas: the limits that this enclave really has, and requests to change them.

Invariants:
- A value is the one that the code enforces: it is read from there, not stated twice.
- A request changes nothing. It is kept, at its asker's label, as PENDING for an administrator of the enclave, who
  changes settings; no answer says that a limit was raised when it was not.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, ClassVar

from honmaru.core.errors import Conflict, NotFound, ValidationFault
from honmaru.security.calls import Call, Provider, Target
from honmaru.security.guard import Record

REQUEST = "quota-request"
Request = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Quota:
    """`adjustable`: an administrator can change it by settings."""

    service: str
    code: str
    name: str
    value: float
    description: str = ""
    unit: str = "None"
    adjustable: bool = False


class ServiceQuotas(Provider):
    """Args:
    names: Service code → its name.
    quotas: Every limit of the enclave.
    """

    service: ClassVar[str] = "service-quotas"

    targets: ClassVar[Mapping[str, Target]] = {
        **{
            name: Target(f"servicequotas:{name}")
            for name in (
                *("ListServices", "ListServiceQuotas", "GetServiceQuota"),
                *("GetAWSDefaultServiceQuota", "ListAWSDefaultServiceQuotas"),
                *("ListRequestedServiceQuotaChangeHistory", "ListRequestedServiceQuotaChangeHistoryByQuota"),
                "GetRequestedServiceQuotaChange",
            )
        },
        "RequestServiceQuotaIncrease": Target(
            "servicequotas:RequestServiceQuotaIncrease",
            "arn:{partition}:servicequotas:{region}:{account}:{ServiceCode}/{QuotaCode}",
        ),
    }

    def __init__(self, names: Mapping[str, str], quotas: Sequence[Quota]) -> None:
        self._names = names
        self._quotas = sorted(quotas, key=lambda quota: (quota.service, quota.code))

    def list_services(self, call: Call, request: Request) -> dict[str, Any]:  # noqa: ARG002 - the same for everybody
        codes = sorted({quota.service for quota in self._quotas})
        page, token = _paged(codes, request)
        return {"Services": [{"ServiceCode": c, "ServiceName": self._names[c]} for c in page], "NextToken": token}

    def list_service_quotas(self, call: Call, request: Request) -> dict[str, Any]:
        found = self._of_service(request["ServiceCode"])
        if request.get("QuotaCode"):
            found = [quota for quota in found if quota.code == request["QuotaCode"]]
        if request.get("QuotaAppliedAtLevel") == "RESOURCE":
            found = []
        page, token = _paged([quota.code for quota in found], request)
        return {"Quotas": [self._shown(call, q) for q in found if q.code in set(page)], "NextToken": token}

    def list_aws_default_service_quotas(self, call: Call, request: Request) -> dict[str, Any]:
        return self.list_service_quotas(
            call, {key: request.get(key) for key in ("ServiceCode", "NextToken", "MaxResults")}
        )

    def get_service_quota(self, call: Call, request: Request) -> dict[str, Any]:
        if request.get("ContextId"):
            raise _unknown()
        return {"Quota": self._shown(call, self._quota(request))}

    def get_aws_default_service_quota(self, call: Call, request: Request) -> dict[str, Any]:
        return {"Quota": self._shown(call, self._quota(request))}

    def request_service_quota_increase(self, call: Call, request: Request) -> dict[str, Any]:
        quota, desired = self._quota(request), float(request["DesiredValue"])
        if request.get("ContextId"):
            raise _unknown()
        if not quota.adjustable:
            raise ValidationFault(f"The quota {quota.name} is not adjustable", code="InvalidResourceStateException")
        if desired <= quota.value:
            raise ValidationFault(
                f"DesiredValue must be over the current value, {quota.value:g}", code="IllegalArgumentException"
            )
        open_already = any(
            record.state == "PENDING" and (record.body["service"], record.body["code"]) == (quota.service, quota.code)
            for record in call.records.iterate(REQUEST)
            if record.label == call.session.label
        )
        if open_already:
            raise Conflict(
                "Only one open service quota increase request is allowed per quota",
                code="ResourceAlreadyExistsException",
            )
        body = {
            "service": quota.service,
            "code": quota.code,
            "desired": desired,
            "by": call.session.principal_arn,
            "at": call.now.isoformat(),
        }
        record = call.records.create(REQUEST, call.request_id, body, "PENDING")
        call.details["quota"] = f"{quota.service}/{quota.code}"
        return {"RequestedQuota": self._asked(call, record)}

    def list_requested_service_quota_change_history(self, call: Call, request: Request) -> dict[str, Any]:
        return self._history(call, request)

    def list_requested_service_quota_change_history_by_quota(self, call: Call, request: Request) -> dict[str, Any]:
        self._quota(request)
        return self._history(call, request)

    def get_requested_service_quota_change(self, call: Call, request: Request) -> dict[str, Any]:
        record = call.records.get(REQUEST, request["RequestId"])
        if record is None:
            raise _unknown()
        return {"RequestedQuota": self._asked(call, record)}

    def _history(self, call: Call, request: Request) -> dict[str, Any]:
        found = {
            record.name: record
            for record in call.records.iterate(REQUEST)
            if request.get("ServiceCode") in (None, record.body["service"])
            and request.get("QuotaCode") in (None, record.body["code"])
            and request.get("Status") in (None, record.state)
        }
        page, token = _paged(sorted(found), request)
        return {"RequestedQuotas": [self._asked(call, found[name]) for name in page], "NextToken": token}

    def _of_service(self, code: str) -> list[Quota]:
        found = [quota for quota in self._quotas if quota.service == code]
        if not found:
            raise _unknown()
        return found

    def _quota(self, request: Request) -> Quota:
        for quota in self._of_service(request["ServiceCode"]):
            if quota.code == request["QuotaCode"]:
                return quota
        raise _unknown()

    def _named(self, call: Call, quota: Quota) -> dict[str, Any]:
        return {
            "ServiceCode": quota.service,
            "ServiceName": self._names[quota.service],
            "QuotaArn": call.arn("servicequotas", f"{quota.service}/{quota.code}"),
            "QuotaCode": quota.code,
            "QuotaName": quota.name,
            "Unit": quota.unit,
            "GlobalQuota": False,
        }

    def _shown(self, call: Call, quota: Quota) -> dict[str, Any]:
        return self._named(call, quota) | {
            "Value": float(quota.value),
            "Adjustable": quota.adjustable,
            "QuotaAppliedAtLevel": "ACCOUNT",
            "Description": quota.description or None,
        }

    def _asked(self, call: Call, record: Record) -> dict[str, Any]:
        body = record.body
        quota = next((q for q in self._quotas if (q.service, q.code) == (body["service"], body["code"])), None)
        named = (
            self._named(call, quota)
            if quota is not None
            else {"ServiceCode": body["service"], "QuotaCode": body["code"]}
        )
        return named | {
            "Id": record.name,
            "DesiredValue": body["desired"],
            "Status": record.state,
            "Created": datetime.fromisoformat(body["at"]),
            "LastUpdated": record.updated,
            "Requester": body["by"],
            "QuotaRequestedAtLevel": "ACCOUNT",
        }


def _paged(names: Sequence[str], request: Request) -> tuple[list[str], str | None]:
    after = request.get("NextToken") or ""
    size = int(request.get("MaxResults") or 100)
    rest = [name for name in names if name > after]
    page = rest[:size]
    return page, page[-1] if len(rest) > size else None


def _unknown() -> NotFound:
    return NotFound(
        "The request failed because the specified service or quota does not exist.", code="NoSuchResourceException"
    )
