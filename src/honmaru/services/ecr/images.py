"""Images: of a software environment the one that it is; of a caller's repository none."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from honmaru.core.errors import NotFound
from honmaru.jobs.environments import MANIFEST_TYPE, image_digest, image_manifest
from honmaru.security.calls import Call
from honmaru.services.ecr.repositories import Catalog, Repository, find

TAG = "latest"
Request = Mapping[str, Any]


def listed(call: Call, catalog: Catalog, request: Request) -> dict[str, Any]:
    found = find(call, catalog, request)
    if found.environment is None or not _shows_tagged(request):
        return {"imageIds": []}
    return {"imageIds": [{"imageDigest": image_digest(found.environment), "imageTag": TAG}]}


def described(call: Call, catalog: Catalog, request: Request) -> dict[str, Any]:
    """Raises NotFound (ImageNotFoundException) for an image that is named and not there."""
    found = find(call, catalog, request)
    for identifier in request.get("imageIds") or ():
        if _fault(found, identifier) is not None:
            raise NotFound(
                f"The image with imageId {dict(identifier)} does not exist within the repository with name "
                f"'{found.name}' in the registry with id '{call.account}'",
                code="ImageNotFoundException",
            )
    if found.environment is None or not _shows_tagged(request):
        return {"imageDetails": []}
    detail = {
        "registryId": call.account,
        "repositoryName": found.name,
        "imageDigest": image_digest(found.environment),
        "imageTags": [TAG],
        "imageManifestMediaType": MANIFEST_TYPE,
        "artifactMediaType": "application/vnd.honmaru.environment.v1",
        "imageStatus": "ACTIVE",
    }
    return {"imageDetails": [detail]}


def fetched(call: Call, catalog: Catalog, request: Request) -> dict[str, Any]:
    found = find(call, catalog, request)
    images, failures = [], []
    for identifier in request["imageIds"]:
        fault = _fault(found, identifier)
        if fault is not None or found.environment is None:
            code, reason = fault or ("ImageNotFound", "Requested image not found")
            failures.append({"imageId": identifier, "failureCode": code, "failureReason": reason})
            continue
        images.append(
            {
                "registryId": call.account,
                "repositoryName": found.name,
                "imageId": {"imageDigest": image_digest(found.environment), "imageTag": identifier.get("imageTag")},
                "imageManifest": image_manifest(found.environment).decode(),
                "imageManifestMediaType": MANIFEST_TYPE,
            }
        )
    return {"images": images, "failures": failures}


def layers(call: Call, catalog: Catalog, request: Request) -> dict[str, Any]:
    """BatchCheckLayerAvailability: there is none."""
    find(call, catalog, request)
    unavailable = [{"layerDigest": each, "layerAvailability": "UNAVAILABLE"} for each in request["layerDigests"]]
    return {"layers": unavailable, "failures": []}


def layer_url(call: Call, catalog: Catalog, request: Request) -> dict[str, Any]:
    find(call, catalog, request)
    raise NotFound(
        f"The layer with digest {request['layerDigest']} does not exist: the environments of this enclave are "
        "installed by its operator and cannot be pulled",
        code="LayersNotFoundException",
    )


def _fault(found: Repository, identifier: Mapping[str, str]) -> tuple[str, str] | None:
    digest, tag = identifier.get("imageDigest"), identifier.get("imageTag")
    if not digest and not tag:
        return "MissingDigestAndTag", "Invalid request parameters: both tag and digest cannot be null"
    if found.environment is None or tag not in (None, TAG):
        return "ImageNotFound", "Requested image not found"
    if digest not in (None, image_digest(found.environment)):
        return ("ImageTagDoesNotMatchDigest" if tag else "ImageNotFound"), "Requested image not found"
    return None


def _shows_tagged(request: Request) -> bool:
    return (request.get("filter") or {}).get("tagStatus") != "UNTAGGED"
