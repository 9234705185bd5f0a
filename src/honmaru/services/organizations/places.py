"""What the resources of an organisation have in common: who may ask, how they are found, named, changed and listed.

Invariants:
- The organisation's records lie in the management account. Its members may ask what the organisation is; the rest is
  for the management account, and reading also for delegated administrators.
- What is above the session does not exist for it, as everywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

from honmaru.core.errors import AccessDenied, Conflict, NotFound, QuotaExceeded, ValidationFault
from honmaru.security.calls import Call
from honmaru.security.guard import GuardedRecords, Record
from honmaru.security.identity import Identity
from honmaru.security.identity import organization as control

DELEGATE, EMAIL, STATUS = "delegate", "email", "create-status"
PAGE = 20
TAGS_LIMIT = 50
Request = Mapping[str, Any]
Item = TypeVar("Item")


class Part:
    """Base of the parts of the provider: what all of them hold."""

    identity: Identity


def records_of(call: Call, identity: Identity, *, write: bool = False) -> GuardedRecords:
    """The organisation's records, as this session. Raises AccessDenied for who may not ask."""
    management = identity.organization.management
    records = call.within(management).records
    session = call.session
    if session.account == management:
        return records
    delegated = records.get(control.ACCOUNT, session.account)
    if write or delegated is None or not delegated.body.get("delegated"):
        raise AccessDenied("You don't have permissions to access this resource.", code="AccessDeniedException")
    return records


def organization(records: GuardedRecords) -> Record:
    """The organisation. Raises NotFound when there is none."""
    found = records.get(control.ORGANIZATION, control.SELF)
    if found is None:
        raise NotFound("Your account is not a member of an organization.", code="AWSOrganizationsNotInUseException")
    return found


def constraint(message: str, reason: str) -> QuotaExceeded:
    """A limit or rule of the organisation."""
    return QuotaExceeded(message, code="ConstraintViolationException", members={"Reason": reason})


def invalid(message: str, reason: str) -> ValidationFault:
    """A value that the operation does not take."""
    return ValidationFault(message, code="InvalidInputException", members={"Reason": reason})


def target(records: GuardedRecords, name: str) -> Record:
    """A root, unit or account by id. Raises NotFound."""
    found = records.get(control.ACCOUNT if name.isdigit() else control.UNIT, name)
    if found is None:
        raise NotFound("You specified a target that doesn't exist.", code="TargetNotFoundException")
    return found


def parent(records: GuardedRecords, name: str) -> Record:
    """A root or unit by id. Raises NotFound."""
    found = records.get(control.UNIT, name)
    if found is None:
        raise NotFound("You specified parent that doesn't exist.", code="ParentNotFoundException")
    return found


def kind_of(record: Record) -> str:
    """ROOT, ORGANIZATIONAL_UNIT or ACCOUNT."""
    if record.kind == control.ACCOUNT:
        return "ACCOUNT"
    return "ORGANIZATIONAL_UNIT" if record.body["parent"] else "ROOT"


def arn(call: Call, records: GuardedRecords, rest: str) -> str:
    """The ARN of a part of the organisation: `account/<organisation>/<rest>` and so on."""
    session = records.session
    return f"arn:{call.session.partition}:organizations::{session.account}:{rest}"


def target_arn(call: Call, records: GuardedRecords, record: Record) -> str:
    """The ARN of a root, unit or account."""
    word = {"ROOT": "root", "ORGANIZATIONAL_UNIT": "ou", "ACCOUNT": "account"}[kind_of(record)]
    return arn(call, records, f"{word}/{organization(records).body['id']}/{record.name}")


def update(records: GuardedRecords, record: Record, state: str | None = None, **changes: Any) -> Record:
    """Replace parts of a record's body. Raises AccessDenied for one at a lower label, Conflict when stale."""
    try:
        return records.update(record, {**record.body, **changes}, state)
    except Conflict:
        raise Conflict(
            "The target of the operation is currently being modified by a different request. Try again later.",
            code="ConcurrentModificationException",
        ) from None


def page(
    found: Callable[[str], Iterable[Item]], request: Request, name: Callable[[Item], str]
) -> tuple[list[Item], str | None]:
    """One page, and the token of the next: `found(after)` gives the items after a name, in order."""
    limit = min(request.get("MaxResults") or PAGE, PAGE)
    items: list[Item] = []
    for item in found(request.get("NextToken") or ""):
        if len(items) == limit:
            return items, name(items[-1])
        items.append(item)
    return items, None


def listed(items: Iterable[Item], name: Callable[[Item], str]) -> Callable[[str], Iterable[Item]]:
    """A short list as `page` takes it."""
    return lambda after: (item for item in sorted(items, key=name) if name(item) > after)


def tags_of(request: Request) -> dict[str, str]:
    """The Tags member. Raises ValidationFault."""
    given = request.get("Tags") or []
    tags = {tag["Key"]: tag["Value"] for tag in given}
    if len(tags) != len(given):
        raise invalid("Tag keys must be unique.", "DUPLICATE_TAG_KEY")
    check_tags(tags)
    return tags


def check_tags(tags: Mapping[str, str]) -> None:
    """Raises QuotaExceeded for too many tags."""
    if len(tags) > TAGS_LIMIT:
        raise constraint(f"At most {TAGS_LIMIT} tags are allowed.", "MAX_TAG_LIMIT_EXCEEDED")


def new_policies() -> dict[str, list[str]]:
    """What is attached to a new root, unit or account: everything is allowed until somebody says otherwise."""
    return {kind: [policy] for kind, policy in control.FULL_ACCESS.items()}
