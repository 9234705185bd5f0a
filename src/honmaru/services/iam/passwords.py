"""Login profiles (passwords for a console) and the account's password policy.

Invariants:
- Of a password only a salted scrypt digest is kept; it is never answered, logged or compared byte by byte.
- A password that the account's policy refuses, or that was used lately, is not taken.

Source: IAM API reference; RFC 7914 (scrypt); NIST SP 800-63B 5.1.1.2 (salted, memory-hard verifiers).
"""

from __future__ import annotations

import hmac
import re
from collections.abc import Mapping
from typing import Any

from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

from honmaru.core.errors import AccessDenied, Conflict, NotFound, ValidationFault
from honmaru.security.calls import Call
from honmaru.security.guard import Record
from honmaru.security.identity import entities
from honmaru.services.iam.entities import Part, update
from honmaru.services.iam.users import subject

Request = Mapping[str, Any]
_SELF = "self"
_DEFAULTS: Mapping[str, Any] = {
    "MinimumPasswordLength": 6,
    "RequireSymbols": False,
    "RequireNumbers": False,
    "RequireUppercaseCharacters": False,
    "RequireLowercaseCharacters": False,
    "AllowUsersToChangePassword": False,
}
_CLASSES = {
    "RequireSymbols": re.compile(r"[!@#$%^&*()_+\-=\[\]{}|']"),
    "RequireNumbers": re.compile(r"[0-9]"),
    "RequireUppercaseCharacters": re.compile(r"[A-Z]"),
    "RequireLowercaseCharacters": re.compile(r"[a-z]"),
}
_WITHOUT_POLICY = {"MinimumPasswordLength": 8}
"""AWS's rule where no policy was set, without its demand for three of four kinds of characters (SP 800-63B)."""


def account_record(call: Call) -> Record | None:
    """What the account says about itself: alias, password policy, credential report."""
    return call.records.get(entities.ACCOUNT, _SELF)


def change_account(call: Call, **changes: Any) -> Record:
    """Replace parts of it, at the session's label."""
    record = account_record(call)
    if record is None or record.label != call.session.label:
        body = {} if record is None else dict(record.body)
        return call.records.create(entities.ACCOUNT, _SELF, {**body, **changes})
    return update(call, record, **changes)


def policy_of(call: Call) -> Mapping[str, Any] | None:
    """The password policy that was set; None where none was."""
    record = account_record(call)
    found: Mapping[str, Any] | None = None if record is None else record.body.get("password_policy")
    return found


def _digest(password: str, salt: bytes) -> str:
    return Scrypt(salt=salt, length=32, n=1 << 14, r=8, p=1).derive(password.encode()).hex()


class Passwords(Part):
    """Operations on login profiles and the password policy."""

    def create_login_profile(self, call: Call, request: Request) -> dict[str, Any]:
        user = subject(call, request, "iam:CreateLoginProfile")
        if call.records.get(entities.LOGIN_PROFILE, user.name) is not None:
            raise Conflict(f"Login Profile for user {user.name} already exists.", code="EntityAlreadyExists")
        if not request.get("Password"):
            raise ValidationFault("A password must be given: there is no root user to make one", code="InvalidInput")
        body = self._sealed(call, request["Password"], ()) | {
            "user_id": user.body["id"],
            "reset": bool(request.get("PasswordResetRequired")),
        }
        return {"LoginProfile": _describe(call.records.create(entities.LOGIN_PROFILE, user.name, body))}

    def get_login_profile(self, call: Call, request: Request) -> dict[str, Any]:
        return {"LoginProfile": _describe(self._profile(call, subject(call, request, "iam:GetLoginProfile")))}

    def update_login_profile(self, call: Call, request: Request) -> None:
        profile = self._profile(call, subject(call, request, "iam:UpdateLoginProfile"))
        changes: dict[str, Any] = {}
        if request.get("Password"):
            changes |= self._sealed(call, request["Password"], profile.body["spent"])
        if request.get("PasswordResetRequired") is not None:
            changes["reset"] = request["PasswordResetRequired"]
        update(call, profile, **changes)

    def delete_login_profile(self, call: Call, request: Request) -> None:
        call.records.delete(self._profile(call, subject(call, request, "iam:DeleteLoginProfile")))

    def change_password(self, call: Call, request: Request) -> None:
        session = call.session
        if session.kind != "user":
            raise ValidationFault("Only users have passwords", code="InvalidUserType")
        user = subject(call, {}, "iam:ChangePassword")
        profile = self._profile(call, user)
        salt = bytes.fromhex(profile.body["salt"])
        if not hmac.compare_digest(_digest(request["OldPassword"], salt), profile.body["digest"]):
            raise AccessDenied("The old password was incorrect.")
        update(call, profile, reset=False, **self._sealed(call, request["NewPassword"], profile.body["spent"]))

    def get_account_password_policy(self, call: Call, _request: Request) -> dict[str, Any]:
        found = policy_of(call)
        if found is None:
            raise NotFound(f"The Password Policy with domain name {call.account} cannot be found.", code="NoSuchEntity")
        return {"PasswordPolicy": {**found, "ExpirePasswords": bool(found.get("MaxPasswordAge"))}}

    def update_account_password_policy(self, call: Call, request: Request) -> None:
        change_account(call, password_policy={**_DEFAULTS, **request})

    def delete_account_password_policy(self, call: Call, _request: Request) -> None:
        if policy_of(call) is None:
            raise NotFound("The account policy with name PasswordPolicy cannot be found.", code="NoSuchEntity")
        change_account(call, password_policy=None)

    # Parts

    @staticmethod
    def _profile(call: Call, user: Record) -> Record:
        record = call.records.get(entities.LOGIN_PROFILE, user.name)
        if record is None or record.body["user_id"] != user.body["id"]:
            raise NotFound(f"Login Profile for User {user.name} cannot be found.", code="NoSuchEntity")
        return record

    def _sealed(self, call: Call, password: str, spent: Any) -> dict[str, Any]:
        """Digest and salt of a password, and those that may not come again. Raises ValidationFault."""
        policy = policy_of(call) or _WITHOUT_POLICY
        least = policy["MinimumPasswordLength"]
        if len(password) < least:
            raise _violation(f"Password should have a minimum length of {least}")
        for name, pattern in _CLASSES.items():
            if policy.get(name) and not pattern.search(password):
                raise _violation(f"Password does not conform to the account password policy: {name}")
        kept = int(policy.get("PasswordReusePrevention") or 0)
        for salt, digest in list(spent)[-kept:] if kept else ():
            if hmac.compare_digest(_digest(password, bytes.fromhex(salt)), digest):
                raise _violation("Password was used lately")
        salt = self.identity.ids.secret(16)
        digest = _digest(password, salt)
        return {
            "salt": salt.hex(),
            "digest": digest,
            "changed": call.now.isoformat(),
            "spent": [*spent, (salt.hex(), digest)][-24:],
        }


def _violation(message: str) -> ValidationFault:
    return ValidationFault(message, code="PasswordPolicyViolation")


def _describe(record: Record) -> dict[str, Any]:
    return {
        "UserName": record.name,
        "CreateDate": record.created,
        "PasswordResetRequired": record.body["reset"],
    }
