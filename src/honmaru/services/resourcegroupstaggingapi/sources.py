"""Resources with tags, of every service: what the Resource Groups Tagging API is made of.

Each kind of resource is one `TagSource`, joined by `app`. Reading goes over the guard as the caller; writing goes
through the service's own tagging operation, after IAM was asked for it, so each service keeps its own rules.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Protocol

from honmaru.security.calls import Call


class TagSource(Protocol):
    @property
    def resource_type(self) -> str:
        """As ResourceTypeFilters name it: `service:kind`, for example "sagemaker:training-job"."""
        ...

    def tagged(self, call: Call) -> Iterator[tuple[str, Mapping[str, str]]]:
        """(ARN, tags) of every resource that the call's session sees."""
        ...

    def owns(self, call: Call, arn: str) -> bool:
        """Whether an ARN has the form of this kind's ARNs, in the call's account and region."""
        ...

    def tag(self, call: Call, arn: str, tags: Mapping[str, str]) -> None:
        """Raises what the service's own operation raises."""
        ...

    def untag(self, call: Call, arn: str, keys: Collection[str]) -> None:
        """Raises what the service's own operation raises."""
        ...
