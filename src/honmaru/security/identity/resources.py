"""What decisions know of resources: asked of the providers that own them, kept until their records change.

Invariants:
- What is answered for a label was read at or below that label.
- After a change of a record that bears a policy has returned, no decision is made from before that change.
- A decision reads no database for a resource that was asked about before.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Protocol

from honmaru.core.labels import Label
from honmaru.security.calls import Resource
from honmaru.security.guard import Guard, Sight

_LIMIT = 65536


class ResourceOwner(Protocol):
    """What this needs of a `security.calls.Provider`."""

    @property
    def service(self) -> str: ...

    @property
    def arn_services(self) -> tuple[str, ...]: ...

    @property
    def resource_kinds(self) -> Collection[str]: ...

    @property
    def resource_makers(self) -> Collection[str]: ...

    @property
    def resource_bears_policy(self) -> bool: ...

    def resource_place(self, resource: str) -> str: ...

    def resource(self, sight: Sight, place: str) -> Resource | None: ...


class Resources:
    """A read-through cache over all owners. Thread-safe: a change swaps the cache of its service."""

    def __init__(self, guard: Guard) -> None:
        self._guard = guard
        self._owners: dict[str, ResourceOwner] = {}
        self.makers: frozenset[str] = frozenset()
        """Actions that make a resource: a namesake in another account has no say in them."""
        self._known: dict[str, dict[tuple[str, str, Label], Resource | None]] = {}

    def own(self, owner: ResourceOwner) -> None:
        """From now on `owner` is asked about the ARNs of its `arn_services`."""

        def changed(_account: str | None) -> None:
            self._known[owner.service] = {}

        self._known[owner.service] = {}
        self.makers |= frozenset(owner.resource_makers)
        self._guard.on_change(owner.service, owner.resource_kinds, changed)
        for service in owner.arn_services:
            self._owners[service] = owner

    def find(self, parts: Sequence[str], label: Label, asking: str = "", *, policies: bool = True) -> Resource | None:
        """The resource that a session of the account `asking` at `label` sees under an ARN, given as six components.

        None when there is none, or when nobody owns such ARNs. With `policies` (what every decision asks) only among
        those that may bear one; without, among all others: for their tags and label.
        """
        owner = self._owners.get(parts[2])
        if owner is None or owner.resource_bears_policy is not policies:
            return None
        place = owner.resource_place(parts[5])
        if not place or "*" in place:
            return None
        known = self._known[owner.service]
        # An ARN that leaves its account out is another question than one that states the asker's own.
        key = (place, parts[4] or f"*{asking}", label)
        try:
            found = known[key]
        except KeyError:
            found = owner.resource(self._guard.sight(label, owner.service, parts[4] or None, asking), place)
            if len(known) >= _LIMIT:
                known.clear()
            known[key] = found
        # An ARN that states another account than the owner's is the ARN of something that is not there.
        return found if found is None or parts[4] in ("", found.account) else None
