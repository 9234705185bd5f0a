"""The organisation itself, its root and its organisational units."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from typing import Any

from honmaru.core.errors import Conflict, NotFound
from honmaru.security.calls import Call
from honmaru.security.guard import Creation, GuardedRecords, Record, Removal
from honmaru.security.identity import organization as control
from honmaru.services.organizations.places import (
    Part,
    Request,
    arn,
    constraint,
    invalid,
    kind_of,
    listed,
    new_policies,
    organization,
    page,
    parent,
    records_of,
    tags_of,
    target,
    target_arn,
    update,
)

DEPTH_LIMIT = 5


def _described(call: Call, records: GuardedRecords, record: Record) -> dict[str, Any]:
    management, body = records.session.account, record.body
    return {
        "Id": body["id"],
        "Arn": arn(call, records, f"organization/{body['id']}"),
        "FeatureSet": "ALL",
        "MasterAccountArn": arn(call, records, f"account/{body['id']}/{management}"),
        "MasterAccountId": management,
        "MasterAccountEmail": body["email"],
        "AvailablePolicyTypes": [{"Type": kind, "Status": "ENABLED"} for kind in body["enabled"]],
    }


def unit_shape(call: Call, records: GuardedRecords, record: Record) -> dict[str, Any]:
    """The OrganizationalUnit shape."""
    return {"Id": record.name, "Arn": target_arn(call, records, record), "Name": record.body["name"]}


def root_shape(call: Call, records: GuardedRecords, record: Record) -> dict[str, Any]:
    """The Root shape."""
    enabled = organization(records).body["enabled"]
    return {
        "Id": record.name,
        "Arn": target_arn(call, records, record),
        "Name": "Root",
        "PolicyTypes": [{"Type": kind, "Status": "ENABLED"} for kind in enabled],
    }


def units(records: GuardedRecords, above: str) -> Iterator[Record]:
    """The units directly below a root or unit."""
    return (unit for unit in records.iterate(control.UNIT) if unit.body["parent"] == above)


def accounts(records: GuardedRecords, above: str, after: str = "") -> Iterator[Record]:
    """The accounts directly below a root or unit, by number."""
    return (each for each in records.iterate(control.ACCOUNT, after=after) if each.body["parent"] == above)


def _check_free(records: GuardedRecords, above: str, name: str) -> None:
    if any(unit.body["name"] == name for unit in units(records, above)):
        raise Conflict("An OU with the same name already exists.", code="DuplicateOrganizationalUnitException")


class Tree(Part):
    """Operations on the organisation, roots and units."""

    def create_organization(self, call: Call, request: Request) -> dict[str, Any]:
        if (request.get("FeatureSet") or "ALL") != "ALL":
            raise invalid("This enclave has organizations with all features only.", "INVALID_ENUM")
        management = self.identity.organization.management
        if call.session.account != management:
            raise Conflict(
                "The AWS account is already a member of an organization.", code="AlreadyInOrganizationException"
            )
        records = call.records
        taken = Conflict(
            "The AWS account is already a member of an organization.", code="AlreadyInOrganizationException"
        )
        if records.get(control.ORGANIZATION, control.SELF) is not None:
            raise taken
        ids = self.identity.ids
        suffix, root = ids.token("", 10).lower(), f"r-{ids.token('', 4).lower()}"
        email = f"management@{management}.invalid"
        body = {"id": f"o-{suffix}", "email": email, "enabled": [], "services": {}, "root": root, "tags": {}}
        try:
            made = records.apply(
                [
                    Creation(control.ORGANIZATION, control.SELF, body),
                    Creation(
                        control.UNIT, root, {"name": "Root", "parent": "", "policies": new_policies(), "tags": {}}
                    ),
                    Creation(
                        control.ACCOUNT,
                        management,
                        {
                            "name": "management",
                            "email": email,
                            "status": "ACTIVE",
                            "joined": call.now.isoformat(),
                            "joined_method": "INVITED",
                            "parent": root,
                            "policies": new_policies(),
                            "tags": {},
                            "delegated": {},
                        },
                    ),
                ]
            )
        except Conflict:
            raise taken from None
        return {"Organization": _described(call, records, made[0])}

    def describe_organization(self, call: Call, _request: Request) -> dict[str, Any]:
        records = call.within(self.identity.organization.management).records
        return {"Organization": _described(call, records, organization(records))}

    def delete_organization(self, call: Call, _request: Request) -> None:
        records = records_of(call, self.identity, write=True)
        found = organization(records)
        others = [each for each in records.list(control.ACCOUNT, limit=2) if each.name != records.session.account]
        below = list(units(records, found.body["root"]))
        if others or below or records.list(control.POLICY, limit=1):
            raise Conflict(
                "The organization still has member accounts, units or policies.", code="OrganizationNotEmptyException"
            )
        own = records.get(control.ACCOUNT, records.session.account)
        root = parent(records, found.body["root"])
        records.apply([Removal(found), Removal(root), *([Removal(own)] if own else [])])

    def list_roots(self, call: Call, _request: Request) -> dict[str, Any]:
        records = records_of(call, self.identity)
        root = parent(records, organization(records).body["root"])
        return {"Roots": [root_shape(call, records, root)]}

    def create_organizational_unit(self, call: Call, request: Request) -> dict[str, Any]:
        records = records_of(call, self.identity, write=True)
        above = parent(records, request["ParentId"])
        depth, at = 1, above
        while at.body["parent"]:
            depth, at = depth + 1, parent(records, at.body["parent"])
        if depth > DEPTH_LIMIT:
            raise constraint(f"Units are at most {DEPTH_LIMIT} levels deep.", "OU_DEPTH_LIMIT_EXCEEDED")
        _check_free(records, above.name, request["Name"])
        root = organization(records).body["root"].removeprefix("r-")
        name = f"ou-{root}-{self.identity.ids.token('', 8).lower()}"
        body = {"name": request["Name"], "parent": above.name, "policies": new_policies(), "tags": tags_of(request)}
        return {"OrganizationalUnit": unit_shape(call, records, records.create(control.UNIT, name, body))}

    def describe_organizational_unit(self, call: Call, request: Request) -> dict[str, Any]:
        records = records_of(call, self.identity)
        return {"OrganizationalUnit": unit_shape(call, records, _unit(records, request))}

    def update_organizational_unit(self, call: Call, request: Request) -> dict[str, Any]:
        records = records_of(call, self.identity, write=True)
        unit = _unit(records, request)
        name = request.get("Name") or unit.body["name"]
        if name != unit.body["name"]:
            _check_free(records, unit.body["parent"], name)
        return {"OrganizationalUnit": unit_shape(call, records, update(records, unit, name=name))}

    def delete_organizational_unit(self, call: Call, request: Request) -> None:
        records = records_of(call, self.identity, write=True)
        unit = _unit(records, request)
        if any(units(records, unit.name)) or any(accounts(records, unit.name)):
            raise Conflict(
                "The specified organizational unit (OU) is not empty.", code="OrganizationalUnitNotEmptyException"
            )
        records.delete(unit)

    def list_organizational_units_for_parent(self, call: Call, request: Request) -> dict[str, Any]:
        records = records_of(call, self.identity)
        above = parent(records, request["ParentId"])
        found, token = page(listed(units(records, above.name), lambda unit: unit.name), request, lambda unit: unit.name)
        return {"OrganizationalUnits": [unit_shape(call, records, unit) for unit in found], "NextToken": token}

    def list_children(self, call: Call, request: Request) -> dict[str, Any]:
        records = records_of(call, self.identity)
        above = parent(records, request["ParentId"])
        if request["ChildType"] == "ACCOUNT":
            found, token = page(lambda after: accounts(records, above.name, after), request, lambda child: child.name)
        else:
            found, token = page(listed(units(records, above.name), lambda u: u.name), request, lambda child: child.name)
        return {"Children": [{"Id": each.name, "Type": kind_of(each)} for each in found], "NextToken": token}

    def list_parents(self, call: Call, request: Request) -> dict[str, Any]:
        records = records_of(call, self.identity)
        name = request["ChildId"]
        child = records.get(control.ACCOUNT if name.isdigit() else control.UNIT, name)
        if child is None or not child.body["parent"]:
            raise NotFound("You specified a child that doesn't exist.", code="ChildNotFoundException")
        above = target(records, child.body["parent"])
        return {"Parents": [{"Id": above.name, "Type": kind_of(above)}]}

    # Services of the enclave that may act for the organisation

    def enable_aws_service_access(self, call: Call, request: Request) -> None:
        self._change_services(call, request, enable=True)

    def disable_aws_service_access(self, call: Call, request: Request) -> None:
        self._change_services(call, request, enable=False)

    def list_aws_service_access_for_organization(self, call: Call, request: Request) -> dict[str, Any]:
        records = records_of(call, self.identity)
        services = organization(records).body["services"]
        found, token = page(listed(services.items(), lambda item: item[0]), request, lambda item: item[0])
        return {
            "EnabledServicePrincipals": [
                {"ServicePrincipal": name, "DateEnabled": datetime.fromisoformat(at)} for name, at in found
            ],
            "NextToken": token,
        }

    def _change_services(self, call: Call, request: Request, *, enable: bool) -> None:
        records = records_of(call, self.identity, write=True)
        found = organization(records)
        name = request["ServicePrincipal"]
        services = {each: at for each, at in found.body["services"].items() if each != name}
        if enable:
            services[name] = found.body["services"].get(name) or call.now.isoformat()
        update(records, found, services=services)


def _unit(records: GuardedRecords, request: Request) -> Record:
    found = records.get(control.UNIT, request["OrganizationalUnitId"])
    if found is None or not found.body["parent"]:
        raise NotFound(
            "You specified an organizational unit that doesn't exist.", code="OrganizationalUnitNotFoundException"
        )
    return found
