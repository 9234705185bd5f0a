"""A model that is in the registry may be imported only when it is approved there.

Invariants:
- An import source belongs to a registered package when one path is the other or lies below it, so naming the folder
  of an artifact, or a part of it, does not get around the registry.
- What is imported is what was approved: the artifact must still have the ETag that the approved version pinned.
- One version that was rejected forbids the import; of the others at least one must be approved.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from honmaru.core.errors import ValidationFault

if TYPE_CHECKING:
    from honmaru.security.guard import GuardedRecords

PACKAGE_KIND = "model-package"


def require_approved(sagemaker: GuardedRecords, source_uri: str) -> dict[str, set[str]]:
    """Raises ValidationFault when `source_uri` is the artifact of registered versions that do not allow its use.

    Returns:
        For each artifact that was approved, by URI: the ETags it had when the approved versions were registered.
    Label: looks at packages at or below the session's label; `sagemaker` are the records of that service.
    """
    undecided: tuple[str, str] | None = None
    pinned: dict[str, set[str]] = {}
    for record in sagemaker.iterate(PACKAGE_KIND):
        status = record.body.get("ModelApprovalStatus")
        urls = [url for url in _artifacts(record.body) if _overlap(source_uri, url)]
        if not status or not urls:
            continue  # only versions of a group are governed by approval
        if status == "Approved":
            etags = record.body.get("artifacts") or {}
            for url in urls:
                pinned.setdefault(url, set()).update([etags[url]] if url in etags else [])
        elif status == "Rejected":
            raise _refused(source_uri, record.name, status)
        else:
            undecided = (record.name, status)
    if undecided is not None and not pinned:
        raise _refused(source_uri, *undecided)
    return pinned


def _refused(source_uri: str, package: str, status: str) -> ValidationFault:
    return ValidationFault(
        f"{source_uri} is the artifact of model package {package}, whose approval status is {status}; "
        "only an approved model package can be imported"
    )


def _artifacts(body: Mapping[str, Any]) -> Iterator[str]:
    specification = body["request"].get("InferenceSpecification") or {}
    for container in specification.get("Containers") or []:
        if container.get("ModelDataUrl"):
            yield str(container["ModelDataUrl"])
        source = (container.get("ModelDataSource") or {}).get("S3DataSource") or {}
        if source.get("S3Uri"):
            yield str(source["S3Uri"])


def _overlap(one: str, other: str) -> bool:
    one, other = one.rstrip("/") + "/", other.rstrip("/") + "/"
    return one.startswith(other) or other.startswith(one)
