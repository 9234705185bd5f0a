"""Virtual MFA devices (time-based one-time passwords) and their users.

Invariants:
- A device counts only after two codes in a row proved that the user holds its seed.
- The seed is answered once, when the device is made, as text; a picture of it (QRCodePNG) is left to the client.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from honmaru.core.errors import AccessDenied, Conflict, NotFound, QuotaExceeded, ValidationFault
from honmaru.security.calls import Call
from honmaru.security.guard import Record
from honmaru.security.identity import entities, mfa
from honmaru.services.iam import users
from honmaru.services.iam.entities import (
    Part,
    find,
    listed_tags,
    page,
    tag_list,
    tagged,
    tags_of,
    untagged,
    update,
)

DEVICES_LIMIT = 8
_NAME = re.compile(r"[A-Za-z0-9_+=,.@-]{1,226}")
Request = Mapping[str, Any]


class MfaDevices(Part):
    """Operations on MFA devices."""

    def create_virtual_mfa_device(self, call: Call, request: Request) -> dict[str, Any]:
        name, path = request["VirtualMFADeviceName"], request.get("Path") or "/"
        if not _NAME.fullmatch(name):
            raise ValidationFault(f"The name {name[:160]!r} is not one of a device", code="ValidationError")
        entities.check_path(path)
        taken = Conflict("MFADevice entity at the same path and name already exists.", code="EntityAlreadyExists")
        if call.records.get(entities.MFA_DEVICE, name) is not None:
            raise taken
        tags = tags_of(request)
        entities.check_tags(tags)
        seed = self.identity.ids.secret(mfa.SEED_BYTES)
        serial = call.arn("iam", f"mfa{path}{name}", region=False)
        body = {
            "id": self.identity.ids.token("MFAD", 17),
            "path": path,
            "serial": serial,
            "seed": seed.hex(),
            "tags": tags,
            "user": "",
            "user_id": "",
            "enabled": None,
        }
        record = call.records.create(entities.MFA_DEVICE, name, body)
        return {
            "VirtualMFADevice": {
                "SerialNumber": serial,
                "Base32StringSeed": mfa.text_seed(seed).encode(),
                "Tags": tag_list(record.body["tags"]) or None,
            }
        }

    def enable_mfa_device(self, call: Call, request: Request) -> None:
        user = find(call, entities.USER, request["UserName"])
        device = _find(call, request["SerialNumber"])
        if device.body["user_id"]:
            raise Conflict("MFA Device is already in use", code="EntityAlreadyExists")
        if len(_of(call, user)) >= DEVICES_LIMIT:
            raise QuotaExceeded(f"Cannot exceed quota for MFADevicesPerUser: {DEVICES_LIMIT}", code="LimitExceeded")
        self._prove(call, device, request)
        update(call, device, user=user.name, user_id=user.body["id"], enabled=call.now.isoformat())

    def resync_mfa_device(self, call: Call, request: Request) -> None:
        device = _held(call, find(call, entities.USER, request["UserName"]), request["SerialNumber"])
        self._prove(call, device, request)

    def deactivate_mfa_device(self, call: Call, request: Request) -> None:
        user = users.subject(call, request, "iam:DeactivateMFADevice")
        device = _held(call, user, request["SerialNumber"])
        update(call, device, user="", user_id="", enabled=None)

    def delete_virtual_mfa_device(self, call: Call, request: Request) -> None:
        device = _find(call, request["SerialNumber"])
        if device.body["user_id"]:
            raise Conflict("MFA VirtualDevice in use. Must deactivate first.", code="DeleteConflict")
        call.records.delete(device)

    def get_mfa_device(self, call: Call, request: Request) -> dict[str, Any]:
        device = _find(call, request["SerialNumber"])
        if request.get("UserName") not in (None, device.body["user"] or None):
            raise _missing(request["SerialNumber"])
        return _assigned(device) if device.body["user_id"] else {"SerialNumber": device.body["serial"]}

    def list_mfa_devices(self, call: Call, request: Request) -> dict[str, Any]:
        user = users.subject(call, request, "iam:ListMFADevices")
        found, more = page(_of(call, user), request, lambda device: device.name)
        return {"MFADevices": [_assigned(device) for device in found], **more}

    def list_virtual_mfa_devices(self, call: Call, request: Request) -> dict[str, Any]:
        wanted = request.get("AssignmentStatus") or "Any"
        devices = (
            device
            for device in call.records.iterate(entities.MFA_DEVICE)
            if wanted == "Any" or (wanted == "Assigned") == bool(device.body["user_id"])
        )
        found, more = page(devices, request, lambda device: device.name)
        return {"VirtualMFADevices": [_virtual(call, device) for device in found], **more}

    def tag_mfa_device(self, call: Call, request: Request) -> None:
        tagged(call, self.identity, _find(call, request["SerialNumber"]), request)

    def untag_mfa_device(self, call: Call, request: Request) -> None:
        untagged(call, _find(call, request["SerialNumber"]), request["TagKeys"])

    def list_mfa_device_tags(self, call: Call, request: Request) -> dict[str, Any]:
        return listed_tags(_find(call, request["SerialNumber"]), request)

    def _prove(self, call: Call, device: Record, request: Request) -> None:
        """Two codes in a row, neither used before. Raises AccessDenied."""
        seed = bytes.fromhex(device.body["seed"])
        first, second = request["AuthenticationCode1"], request["AuthenticationCode2"]
        step = mfa.consecutive(seed, first, second, call.now.timestamp())
        if step is None or not self.identity.spend(call.account, call.session.label, device.body["id"], step):
            raise AccessDenied("Authentication code for device is not valid.", code="InvalidAuthenticationCode")


def _missing(serial: str) -> NotFound:
    return NotFound(f"MFA Device with serial number {serial} does not exist.", code="NoSuchEntity")


def _find(call: Call, serial: str) -> Record:
    record = call.records.get(entities.MFA_DEVICE, serial.rpartition("/")[2])
    if record is None or record.body["serial"] != serial:
        raise _missing(serial)
    call.resources.append((serial, "AWS::IAM::VirtualMFADevice"))
    return record


def _held(call: Call, user: Record, serial: str) -> Record:
    device = _find(call, serial)
    if device.body["user_id"] != user.body["id"]:
        raise _missing(serial)
    return device


def _of(call: Call, user: Record) -> list[Record]:
    return [d for d in call.records.iterate(entities.MFA_DEVICE) if d.body["user_id"] == user.body["id"]]


def _assigned(device: Record) -> dict[str, Any]:
    return {
        "UserName": device.body["user"],
        "SerialNumber": device.body["serial"],
        "EnableDate": datetime.fromisoformat(device.body["enabled"]),
    }


def _virtual(call: Call, device: Record) -> dict[str, Any]:
    shape: dict[str, Any] = {"SerialNumber": device.body["serial"]}
    user = call.records.get(entities.USER, device.body["user"]) if device.body["user"] else None
    if user is not None and user.body["id"] == device.body["user_id"]:
        shape |= {
            "EnableDate": datetime.fromisoformat(device.body["enabled"]),
            "User": users.describe(call, user, full=False),
        }
    return shape
