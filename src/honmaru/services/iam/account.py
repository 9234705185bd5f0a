"""What IAM says of the whole account: alias, summary, credential report, authorisation details.

Invariant: it counts and lists what the session sees, and nothing above it.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime, timedelta
from typing import Any

from honmaru.core.errors import Conflict, NotFound, NotReady, ValidationFault
from honmaru.security.calls import Call
from honmaru.security.guard import Record
from honmaru.security.identity import entities
from honmaru.services.iam import groups, instance_profiles, policies, roles, users
from honmaru.services.iam.entities import Part, boundary, encoded, page, tag_list
from honmaru.services.iam.passwords import account_record, change_account, policy_of
from honmaru.services.iam.permissions import ATTACHED_LIMIT
from honmaru.services.iam.policies import POLICY_LIMIT, VERSIONS_LIMIT
from honmaru.services.iam.users import KEYS_LIMIT

REPORT_HOURS = 4
_ALIAS = re.compile(r"[a-z0-9](?:[a-z0-9]|-(?!-)){1,61}[a-z0-9]")
_COLUMNS = (
    "user",
    "arn",
    "user_creation_time",
    "password_enabled",
    "password_last_used",
    "password_last_changed",
    "password_next_rotation",
    "mfa_active",
    *(
        f"access_key_{number}_{fact}"
        for number in (1, 2)
        for fact in ("active", "last_rotated", "last_used_date", "last_used_region", "last_used_service")
    ),
    *(f"cert_{number}_{fact}" for number in (1, 2) for fact in ("active", "last_rotated")),
)
Request = Mapping[str, Any]
_KINDS = {
    "Users": entities.USER,
    "Groups": entities.GROUP,
    "Roles": entities.ROLE,
    "Policies": entities.POLICY,
    "InstanceProfiles": entities.INSTANCE_PROFILE,
    "MFADevices": entities.MFA_DEVICE,
}


class Account(Part):
    """Operations on the account."""

    def get_account_summary(self, call: Call, _request: Request) -> dict[str, Any]:
        counts = {name: sum(1 for _ in call.records.iterate(kind)) for name, kind in _KINDS.items()}
        used = sum(1 for device in call.records.iterate(entities.MFA_DEVICE) if device.body["user_id"])
        providers = sum(
            1 for kind in (entities.OIDC_PROVIDER, entities.SAML_PROVIDER) for _ in call.records.iterate(kind)
        )
        quotas = {
            "AccessKeysPerUserQuota": KEYS_LIMIT,
            "AccountMFAEnabled": 0,
            "AttachedPoliciesPerGroupQuota": ATTACHED_LIMIT,
            "AttachedPoliciesPerUserQuota": ATTACHED_LIMIT,
            "AttachedPoliciesPerRoleQuota": ATTACHED_LIMIT,
            "PolicySizeQuota": POLICY_LIMIT,
            "VersionsPerPolicyQuota": VERSIONS_LIMIT,
        }
        return {"SummaryMap": counts | {"MFADevicesInUse": used, "Providers": providers} | quotas}

    def create_account_alias(self, call: Call, request: Request) -> None:
        alias = request["AccountAlias"]
        if not _ALIAS.fullmatch(alias):
            raise ValidationFault(f"The account alias {alias[:63]!r} is invalid", code="ValidationError")
        record = account_record(call)
        if record is not None and record.body.get("alias") == alias:
            raise Conflict(f"The account alias {alias} already exists.", code="EntityAlreadyExists")
        change_account(call, alias=alias)

    def list_account_aliases(self, call: Call, _request: Request) -> dict[str, Any]:
        record = account_record(call)
        alias = None if record is None else record.body.get("alias")
        return {"AccountAliases": [alias] if alias else [], "IsTruncated": False}

    def delete_account_alias(self, call: Call, request: Request) -> None:
        record = account_record(call)
        if record is None or record.body.get("alias") != request["AccountAlias"]:
            raise NotFound(f"The account alias {request['AccountAlias']} does not exist.", code="NoSuchEntity")
        change_account(call, alias=None)

    # The credential report

    def generate_credential_report(self, call: Call, _request: Request) -> dict[str, Any]:
        record = account_record(call)
        made = None if record is None else record.body.get("report")
        if (
            made
            and record is not None
            and record.label == call.session.label
            and _age(call, made) < timedelta(hours=REPORT_HOURS)
        ):
            return {"State": "COMPLETE"}
        rows = [self._row(call, user) for user in call.records.iterate(entities.USER)]
        out = io.StringIO()
        writer = csv.DictWriter(out, _COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        change_account(call, report={"content": out.getvalue(), "at": call.now.isoformat()})
        return {"State": "STARTED", "Description": "No report exists. Starting a new report generation task"}

    def get_credential_report(self, call: Call, _request: Request) -> dict[str, Any]:
        record = account_record(call)
        made = None if record is None else record.body.get("report")
        if not made:
            raise NotFound("No report exists: call GenerateCredentialReport", code="ReportNotPresent")
        if _age(call, made) >= timedelta(hours=REPORT_HOURS):
            raise NotReady("The report has expired: call GenerateCredentialReport", code="ReportExpired")
        return {
            "Content": made["content"].encode(),
            "ReportFormat": "text/csv",
            "GeneratedTime": datetime.fromisoformat(made["at"]),
        }

    def _row(self, call: Call, user: Record) -> dict[str, str]:
        row = dict.fromkeys(_COLUMNS, "N/A")
        profile = call.records.get(entities.LOGIN_PROFILE, user.name)
        has_password = profile is not None and profile.body["user_id"] == user.body["id"]
        devices = (d for d in call.records.iterate(entities.MFA_DEVICE) if d.body["user_id"] == user.body["id"])
        row |= {
            "user": user.name,
            "arn": users.describe(call, user)["Arn"],
            "user_creation_time": _stamp(user.created),
            "password_enabled": str(has_password).lower(),
            "mfa_active": str(any(True for _ in devices)).lower(),
            "access_key_1_active": "false",
            "access_key_2_active": "false",
            "cert_1_active": "false",
            "cert_2_active": "false",
        }
        if profile is not None and has_password:
            row["password_last_changed"] = _stamp(datetime.fromisoformat(profile.body["changed"]))
            age = (policy_of(call) or {}).get("MaxPasswordAge")
            changed = datetime.fromisoformat(profile.body["changed"])
            row["password_next_rotation"] = _stamp(changed + timedelta(days=age)) if age else "not_supported"
        for number, key in enumerate(users.keys_of(call, user)[:2], start=1):
            use = self.identity.last_use(key, call.session.label)
            row |= {
                f"access_key_{number}_active": str(key.state == entities.ACTIVE).lower(),
                f"access_key_{number}_last_rotated": _stamp(key.created),
                f"access_key_{number}_last_used_date": _stamp(use["LastUsedDate"]) if use["LastUsedDate"] else "N/A",
                f"access_key_{number}_last_used_region": use["Region"],
                f"access_key_{number}_last_used_service": use["ServiceName"],
            }
        return row

    # Everything at once

    def get_account_authorization_details(self, call: Call, request: Request) -> dict[str, Any]:
        wanted = set(request.get("Filter") or ("User", "Role", "Group", "LocalManagedPolicy", "AWSManagedPolicy"))
        found, more = page(list(_details(call, wanted)), request, lambda entry: entry[0])
        lists: dict[str, list[dict[str, Any]]] = {
            name: [] for name in ("UserDetailList", "GroupDetailList", "RoleDetailList", "Policies")
        }
        for _, name, detail in found:
            lists[name].append(detail)
        return {**lists, **more}


def _details(call: Call, wanted: set[str]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """(place in the order, member of the answer, shape) of every entity, in order."""
    if "Group" in wanted:
        for record in call.records.iterate(entities.GROUP):
            yield (
                f"1/{record.name}",
                "GroupDetailList",
                {**groups.describe(call, record), **_permissions(record, "GroupPolicyList")},
            )
    if "Role" in wanted:
        profiles = list(call.records.iterate(entities.INSTANCE_PROFILE))
        for record in call.records.iterate(entities.ROLE):
            held = [instance_profiles.describe(call, each) for each in profiles if record.name in each.body["roles"]]
            shape = roles.describe(call, record)
            del shape["Description"], shape["MaxSessionDuration"]
            yield (
                f"2/{record.name}",
                "RoleDetailList",
                {**shape, **_permissions(record, "RolePolicyList"), "InstanceProfileList": held},
            )
    if "User" in wanted:
        for record in call.records.iterate(entities.USER):
            detail = {
                **users.describe(call, record),
                **_permissions(record, "UserPolicyList"),
                "GroupList": record.body["groups"],
                "PermissionsBoundary": boundary(record.body),
                "Tags": tag_list(record.body["tags"]) or None,
            }
            yield f"3/{record.name}", "UserDetailList", detail
    if wanted & {"LocalManagedPolicy", "AWSManagedPolicy"}:
        for detail in policies.details(call, local="LocalManagedPolicy" in wanted, aws="AWSManagedPolicy" in wanted):
            yield f"4/{detail['Arn']}", "Policies", detail


def _permissions(record: Record, inline: str) -> dict[str, Any]:
    texts: Iterable[tuple[str, str]] = sorted(record.body["inline"].items())
    return {
        inline: [{"PolicyName": name, "PolicyDocument": encoded(text)} for name, text in texts],
        "AttachedManagedPolicies": [
            {"PolicyName": arn.rpartition("/")[2], "PolicyArn": arn} for arn in record.body["attached"]
        ],
    }


def _age(call: Call, made: Mapping[str, Any]) -> timedelta:
    return call.now - datetime.fromisoformat(made["at"])


def _stamp(at: datetime) -> str:
    return at.strftime("%Y-%m-%dT%H:%M:%S+00:00")
