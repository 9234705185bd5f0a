"""A model that is in the registry may be imported only when it is approved there.

Invariants:
- An import source belongs to a registered package when one path is the other or lies below it, so naming the folder
  of an artifact, or a part of it, does not get around the registry.
- One version that was rejected forbids the import; of the others at least one must be approved.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from honmaru.core.errors import ValidationFault

if TYPE_CHECKING:
    from honmaru.security.guard import GuardedRecords

PACKAGE_KIND = "model-package"


def require_approved(sagemaker: GuardedRecords, source_uri: str) -> None:
    """Raises ValidationFault when `source_uri` is the artifact of registered packages that do not allow its use.

    Label: looks at packages at or below the session's label; `sagemaker` are the records of that service.
    """
    statuses: list[tuple[str, str]] = []
    for record in sagemaker.iterate(PACKAGE_KIND):
        if any(_overlap(source_uri, url) for url in _artifacts(record.body)):
            status = str(_member(record.body, "ModelApprovalStatus") or "PendingManualApproval")
            statuses.append((record.name, status))
    for wanted in ("Rejected", "Pending"):
        for name, status in statuses:
            approved = any(other == "Approved" for _, other in statuses)
            if status.startswith(wanted) and (wanted == "Rejected" or not approved):
                raise ValidationFault(
                    f"{source_uri} is the artifact of model package {name}, whose approval status is {status}; "
                    "only an approved model package can be imported"
                )


def _member(body: Mapping[str, Any], name: str) -> Any:
    request = body.get("request")
    if name in body:
        return body[name]
    return request.get(name) if isinstance(request, Mapping) else None


def _artifacts(body: Mapping[str, Any]) -> Iterator[str]:
    specification = _member(body, "InferenceSpecification") or {}
    for container in specification.get("Containers") or []:
        if container.get("ModelDataUrl"):
            yield str(container["ModelDataUrl"])
        source = (container.get("ModelDataSource") or {}).get("S3DataSource") or {}
        if source.get("S3Uri"):
            yield str(source["S3Uri"])


def _overlap(one: str, other: str) -> bool:
    one, other = one.rstrip("/") + "/", other.rstrip("/") + "/"
    return one.startswith(other) or other.startswith(one)
