"""Amazon ECR: the operations that describe what images jobs may name.

Invariant: a repository above the session is answered exactly like one that does not exist.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from honmaru.security.calls import Call, Provider, Resource, Target
from honmaru.security.guard import Sight
from honmaru.services.ecr import images, repositories
from honmaru.services.ecr.repositories import REPOSITORY, Catalog

Request = Mapping[str, Any]
_EACH = "arn:{partition}:ecr:{region}:{account}:repository/"
_REPOSITORY = f"{_EACH}{{repositoryName}}"


class Ecr(Provider):
    """Args:
    catalog: The software environments of the enclave.
    """

    service: ClassVar[str] = "ecr"
    arn_services: ClassVar[tuple[str, ...]] = ("ecr",)
    resource_kinds: ClassVar[frozenset[str]] = frozenset({REPOSITORY})

    targets: ClassVar[Mapping[str, Target | Sequence[Target]]] = {
        **{
            name: Target(f"ecr:{name}", _REPOSITORY)
            for name in (
                *("CreateRepository", "DeleteRepository", "ListImages", "DescribeImages", "BatchGetImage"),
                *("GetRepositoryPolicy", "SetRepositoryPolicy", "DeleteRepositoryPolicy", "PutImageTagMutability"),
                *("BatchCheckLayerAvailability", "GetDownloadUrlForLayer"),
            )
        },
        **{
            name: Target(f"ecr:{name}", "{resourceArn}")
            for name in ("TagResource", "UntagResource", "ListTagsForResource")
        },
        "DescribeRepositories": (
            Target("ecr:DescribeRepositories", f"{_EACH}{{repositoryNames[]}}", given="repositoryNames"),
            Target("ecr:DescribeRepositories", f"{_EACH}*", unless="repositoryNames"),
        ),
        "DescribeRegistry": Target("ecr:DescribeRegistry"),
    }

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog

    def resource_place(self, resource: str) -> str:
        """`repository/a/b` → `a/b`."""
        return resource.removeprefix("repository/")

    def resource(self, sight: Sight, place: str) -> Resource | None:
        """A caller's repository, with its policy and tags."""
        record = sight.get(REPOSITORY, place)
        if record is None:
            return None
        policy = record.body["policy"]
        policy = None if policy is None else repositories.completed(policy)
        return Resource(record.account, record.label, policy=policy, tags=record.body["tags"])

    def describe_registry(self, call: Call, request: Request) -> dict[str, Any]:  # noqa: ARG002 - there is one
        return {"registryId": call.account, "replicationConfiguration": {"rules": []}}

    def describe_repositories(self, call: Call, request: Request) -> dict[str, Any]:
        return repositories.describe(call, self._catalog, request)

    def create_repository(self, call: Call, request: Request) -> dict[str, Any]:
        return repositories.create(call, self._catalog, request)

    def delete_repository(self, call: Call, request: Request) -> dict[str, Any]:
        return repositories.delete(call, self._catalog, request)

    def put_image_tag_mutability(self, call: Call, request: Request) -> dict[str, Any]:
        return repositories.set_mutability(call, self._catalog, request)

    def get_repository_policy(self, call: Call, request: Request) -> dict[str, Any]:
        return repositories.get_policy(call, self._catalog, request)

    def set_repository_policy(self, call: Call, request: Request) -> dict[str, Any]:
        return repositories.set_policy(call, self._catalog, request)

    def delete_repository_policy(self, call: Call, request: Request) -> dict[str, Any]:
        return repositories.delete_policy(call, self._catalog, request)

    def tag_resource(self, call: Call, request: Request) -> dict[str, Any]:
        return repositories.tag(call, self._catalog, request)

    def untag_resource(self, call: Call, request: Request) -> dict[str, Any]:
        return repositories.untag(call, self._catalog, request)

    def list_tags_for_resource(self, call: Call, request: Request) -> dict[str, Any]:
        return repositories.tags_of(call, self._catalog, request)

    def list_images(self, call: Call, request: Request) -> dict[str, Any]:
        return images.listed(call, self._catalog, request)

    def describe_images(self, call: Call, request: Request) -> dict[str, Any]:
        return images.described(call, self._catalog, request)

    def batch_get_image(self, call: Call, request: Request) -> dict[str, Any]:
        return images.fetched(call, self._catalog, request)

    def batch_check_layer_availability(self, call: Call, request: Request) -> dict[str, Any]:
        return images.layers(call, self._catalog, request)

    def get_download_url_for_layer(self, call: Call, request: Request) -> dict[str, Any]:
        return images.layer_url(call, self._catalog, request)
