"""AWS CloudTrail: the operations, all of them views of the audit ledger."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from honmaru.ports.deliveries import Deliveries
from honmaru.ports.keys import Keys
from honmaru.security.calls import Call, Provider, Resource, Target
from honmaru.security.guard import Sight
from honmaru.security.ledger import Ledger
from honmaru.services.cloudtrail.lookup import Lookup
from honmaru.services.cloudtrail.trails import TRAIL, Trails

Request = Mapping[str, Any]
_TRAIL = "arn:{partition}:cloudtrail:{region}:{account}:trail/{Name}"
_SELECTED = "arn:{partition}:cloudtrail:{region}:{account}:trail/{TrailName}"


class CloudTrail(Provider):
    """Args:
    deliveries: Where trails write; checked when one is made.
    keys: Resolves keys that trails seal under; None knows no key.
    """

    service: ClassVar[str] = "cloudtrail"
    arn_services: ClassVar[tuple[str, ...]] = ("cloudtrail",)
    resource_kinds: ClassVar[frozenset[str]] = frozenset({TRAIL})

    targets: ClassVar[Mapping[str, Target]] = {
        **{
            name: Target(f"cloudtrail:{name}", _TRAIL)
            for name in (
                *("CreateTrail", "UpdateTrail", "DeleteTrail", "GetTrail", "GetTrailStatus"),
                *("StartLogging", "StopLogging"),
            )
        },
        **{name: Target(f"cloudtrail:{name}", _SELECTED) for name in ("PutEventSelectors", "GetEventSelectors")},
        **{name: Target(f"cloudtrail:{name}", "{ResourceId}") for name in ("AddTags", "RemoveTags")},
        **{
            name: Target(f"cloudtrail:{name}")
            for name in ("LookupEvents", "DescribeTrails", "ListTrails", "ListPublicKeys", "ListTags")
        },
    }

    def __init__(self, ledger: Ledger, deliveries: Deliveries, keys: Keys[Call] | None = None) -> None:
        self._lookup = Lookup(ledger)
        self._trails = Trails(ledger, deliveries, keys)

    def resource_place(self, resource: str) -> str:
        """`trail/NAME` → NAME."""
        return resource.removeprefix("trail/")

    def resource(self, sight: Sight, place: str) -> Resource | None:
        """A trail, with its tags."""
        record = sight.get(TRAIL, place)
        return None if record is None else Resource(record.account, record.label, tags=record.body["tags"])

    def lookup_events(self, call: Call, request: Request) -> dict[str, Any]:
        return self._lookup.events(call, request)

    def create_trail(self, call: Call, request: Request) -> dict[str, Any]:
        return self._trails.create(call, request)

    def update_trail(self, call: Call, request: Request) -> dict[str, Any]:
        return self._trails.update(call, request)

    def get_trail(self, call: Call, request: Request) -> dict[str, Any]:
        return self._trails.get(call, request)

    def describe_trails(self, call: Call, request: Request) -> dict[str, Any]:
        return self._trails.describe(call, request)

    def list_trails(self, call: Call, request: Request) -> dict[str, Any]:  # noqa: ARG002 - five trails are one page
        return self._trails.listed(call)

    def delete_trail(self, call: Call, request: Request) -> dict[str, Any]:
        return self._trails.delete(call, request)

    def start_logging(self, call: Call, request: Request) -> dict[str, Any]:
        return self._trails.start(call, request)

    def stop_logging(self, call: Call, request: Request) -> dict[str, Any]:
        return self._trails.stop(call, request)

    def get_trail_status(self, call: Call, request: Request) -> dict[str, Any]:
        return self._trails.status(call, request)

    def put_event_selectors(self, call: Call, request: Request) -> dict[str, Any]:
        return self._trails.put_selectors(call, request)

    def get_event_selectors(self, call: Call, request: Request) -> dict[str, Any]:
        return self._trails.get_selectors(call, request)

    def list_public_keys(self, call: Call, request: Request) -> dict[str, Any]:  # noqa: ARG002 - there is one key
        return self._trails.public_keys()

    def add_tags(self, call: Call, request: Request) -> dict[str, Any]:
        return self._trails.add_tags(call, request)

    def remove_tags(self, call: Call, request: Request) -> dict[str, Any]:
        return self._trails.remove_tags(call, request)

    def list_tags(self, call: Call, request: Request) -> dict[str, Any]:
        return self._trails.tags(call, request)
