"""IAM's records: their kinds, their bodies, and the rules that every writer of them keeps.

Records of service "iam": user, group, role, policy, access-key, bearer-key, instance-profile, login-profile,
mfa-device, oidc-provider, saml-provider, account (its alias, password policy); membership lies in the user. Who makes
one over the API makes it at the session's label, as with everything else; the local operator's lie at BOTTOM.

Invariants:
- A key's bound label dominates the label of its record and of its user's record, so a low session never depends on a
  high record.
- Names are those that IAM allows; a clearance tag holds a clearance that parses, a network tag networks that do.
- An access key's id tells its account to who can read it, and nothing else: the rest is drawn at random.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from ipaddress import ip_address, ip_network
from typing import Any

from honmaru.core.clearances import Clearance
from honmaru.core.errors import ValidationFault
from honmaru.core.labels import Label
from honmaru.ports.runtime import Ids

SERVICE = "iam"
USER, GROUP, ROLE, POLICY = "user", "group", "role", "policy"
ACCESS_KEY, BEARER_KEY = "access-key", "bearer-key"
INSTANCE_PROFILE, LOGIN_PROFILE, MFA_DEVICE = "instance-profile", "login-profile", "mfa-device"
OIDC_PROVIDER, SAML_PROVIDER, ACCOUNT, USED = "oidc-provider", "saml-provider", "account", "used"
KINDS = frozenset((USER, GROUP, ROLE, POLICY, ACCESS_KEY, BEARER_KEY, MFA_DEVICE, OIDC_PROVIDER, SAML_PROVIDER, USED))
"""What the authenticator reads across labels."""
WITHOUT_BEARING = frozenset((INSTANCE_PROFILE, LOGIN_PROFILE, ACCOUNT, USED))
"""Kinds on which no decision depends."""
SERVICE_LINKED_PATH = "/aws-service-role/"
CLEARANCE_TAG = "honmaru:clearance"
LABEL_TAG = "honmaru:label"
NETWORK_TAG = "honmaru:network"
"""Of a user, role or session: networks that its requests may come from, `10.0.0.0/8 192.168.7.0/24`."""
ACTIVE, INACTIVE = "Active", "Inactive"
TAG_LIMIT = 50

_DIGITS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567"
_NAME = re.compile(r"[A-Za-z0-9_+=,.@-]{1,128}")
_PATH = re.compile(r"/([!-~]{1,510}/)?")


def check_name(name: str, limit: int = 64) -> None:
    """Raises ValidationFault unless IAM allows the name."""
    if len(name) > limit or not _NAME.fullmatch(name):
        raise ValidationFault(
            f"The specified value for the name is invalid: {name[:160]!r}. It must contain only alphanumeric "
            f"characters and/or the following: +=,.@_- and have at most {limit} characters",
            code="ValidationError",
        )


def check_path(path: str) -> None:
    """Raises ValidationFault unless the path is `/` or starts and ends with it, and is not the platform's own."""
    if path.startswith(SERVICE_LINKED_PATH):
        # What lies there is bound by no control policy of an organisation: only CreateServiceLinkedRole puts it there.
        raise ValidationFault(
            f"The path {SERVICE_LINKED_PATH} is reserved for service-linked roles: call CreateServiceLinkedRole",
            code="ValidationError",
        )
    if not _PATH.fullmatch(path):
        raise ValidationFault(
            f"The specified value for path is invalid: {path[:160]!r}. It must begin and end with /",
            code="ValidationError",
        )


def check_tags(tags: Mapping[str, str]) -> None:
    """Raises ValidationFault for too many tags, or a clearance that does not parse."""
    if len(tags) > TAG_LIMIT:
        raise ValidationFault(f"{len(tags)} tags were given; at most {TAG_LIMIT} are allowed", code="LimitExceeded")
    if NETWORK_TAG in tags:
        check_networks(tags[NETWORK_TAG])
    if CLEARANCE_TAG in tags:
        try:
            Clearance.parse(tags[CLEARANCE_TAG])
        except ValidationFault as fault:
            raise ValidationFault(
                f"The tag {CLEARANCE_TAG} is no clearance: {fault.message}", code="InvalidInput"
            ) from None


def check_networks(text: str) -> None:
    """Raises ValidationFault for what is no list of networks."""
    try:
        if [ip_network(each, strict=False) for each in text.split()]:
            return
    except ValueError:
        pass
    raise ValidationFault(
        f"The tag {NETWORK_TAG} is {text[:128]!r}; expected networks parted by spaces, such as 10.0.0.0/8",
        code="InvalidInput",
    )


@lru_cache(maxsize=65536)
def within(address: str | None, networks: str) -> bool:
    """Whether an address lies in one network of each list. What is no address, or no network, lies nowhere."""
    try:
        found = ip_address(address or "")
        mapped = getattr(found, "ipv4_mapped", None) or found
        return all(
            any(mapped in ip_network(each, strict=False) for each in listed.split()) for listed in networks.split(";")
        )
    except ValueError:
        return False


def key_id(ids: Ids, prefix: str, account: str) -> str:
    """A new access key id: prefix, account number in 8 characters, 8 random ones."""
    number = int(account)
    digits = "".join(_DIGITS[number >> shift & 31] for shift in range(35, -1, -5))
    return prefix + digits + ids.token("", 8)


@lru_cache(4096)
def account_of_key(key: str) -> str:
    """The account that a key id states; it may state one that does not exist."""
    number = 0
    for character in key[4:12]:
        number = number << 5 | max(0, _DIGITS.find(character))
    return f"{number:012d}"


def arn(partition: str, account: str, kind: str, path: str, name: str) -> str:
    """The ARN of a user, group, role or policy."""
    return f"arn:{partition}:iam::{account}:{kind}{path}{name}"


def user_body(
    ids: Ids, *, path: str, tags: Mapping[str, str], attached: list[str], boundary: str = ""
) -> dict[str, Any]:
    """A new user. `inline` is name → document text."""
    return {
        "id": ids.token("AIDA", 17),
        "path": path,
        "tags": dict(tags),
        "inline": {},
        "attached": attached,
        "boundary": boundary,
        "groups": [],
    }


def group_body(ids: Ids, *, path: str) -> dict[str, Any]:
    """A new group: policies that its members have."""
    return {"id": ids.token("AGPA", 17), "path": path, "inline": {}, "attached": []}


def role_body(
    ids: Ids, *, path: str, tags: Mapping[str, str], trust: str, description: str, max_session_s: int, boundary: str
) -> dict[str, Any]:
    """A new role."""
    return {
        "id": ids.token("AROA", 17),
        "path": path,
        "tags": dict(tags),
        "inline": {},
        "attached": [],
        "boundary": boundary,
        "trust": trust,
        "description": description,
        "max_session_s": max_session_s,
    }


def new_secret(ids: Ids) -> str:
    """A secret access key of AWS's form: 40 characters."""
    return base64.b64encode(ids.secret(30)).decode()


def key_body(ids: Ids, *, user: str, user_id: str, label: Label, limits: Sequence[str] = ()) -> dict[str, Any]:
    """A new access key or bearer key, bound to the label of the sessions that it opens. Its state is the record's.

    `limits` are the clearances of its makers; sessions behind the key stay within each of them. The
    operator's keys have none.
    """
    return {
        "user": user,
        "user_id": user_id,
        "label": label.canonical,
        "secret": new_secret(ids),
        "limits": list(limits),
    }
