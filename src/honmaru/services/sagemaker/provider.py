"""Amazon SageMaker: the operations. Their meaning is in the files beside this one, one per resource."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from honmaru.jobs.environments import Environments
from honmaru.jobs.instances import Capacity
from honmaru.jobs.training import Roles
from honmaru.jobs.volumes import JobVolumes
from honmaru.ports.buckets import Buckets
from honmaru.ports.runtime import Ids
from honmaru.security.calls import Call, Provider, Resource, Target
from honmaru.security.guard import Sight
from honmaru.services.sagemaker import model_package, model_package_group, tags
from honmaru.services.sagemaker.training_job import TrainingJobs

Request = Mapping[str, Any]
_ARN = "arn:{partition}:sagemaker:{region}:{account}:"


def _on(resource: str, *operations: str) -> dict[str, Target]:
    return {operation: Target(f"sagemaker:{operation}", resource) for operation in operations}


class SageMaker(Provider):
    """Args:
    roles: Checks and assumes execution roles (`security.identity.Identity`).
    buckets: Where artifacts of model packages are looked up, as the caller.
    volumes: Encrypts the volumes of training jobs; None refuses VolumeKmsKeyId.
    wake: Tells the supervisor that there is work (`Supervisor.wake`).
    """

    service: ClassVar[str] = "sagemaker"

    prompt: ClassVar[frozenset[str]] = frozenset(
        ("DescribeTrainingJob", "DescribeModelPackageGroup", "DescribeModelPackage")
    )
    anywhere: ClassVar[frozenset[str]] = prompt | frozenset(
        ("ListTrainingJobs", "ListModelPackageGroups", "ListModelPackages", "ListTags")
    )

    targets: ClassVar[Mapping[str, Target]] = {
        **_on(f"{_ARN}training-job/{{TrainingJobName}}", "CreateTrainingJob", "DescribeTrainingJob", "StopTrainingJob"),
        **_on("*", "ListTrainingJobs", "ListModelPackageGroups", "ListModelPackages"),
        **_on("{ResourceArn}", "AddTags", "ListTags", "DeleteTags"),
        **_on(f"{_ARN}model-package-group/{{ModelPackageGroupName}}", "CreateModelPackageGroup"),
        **_on(f"{_ARN}model-package-group/{{ModelPackageGroupName}}", "DescribeModelPackageGroup"),
        **_on(f"{_ARN}model-package-group/{{ModelPackageGroupName}}", "DeleteModelPackageGroup"),
        **_on(f"{_ARN}model-package/*", "CreateModelPackage"),
        **_on("{ModelPackageName}", "DescribeModelPackage", "DeleteModelPackage"),
        **_on("{ModelPackageArn}", "UpdateModelPackage"),
    }

    arn_services: ClassVar[tuple[str, ...]] = ("sagemaker",)
    resource_kinds: ClassVar[frozenset[str]] = tags.KINDS
    resource_bears_policy: ClassVar[bool] = False

    def __init__(
        self,
        roles: Roles,
        buckets: Buckets,
        environments: Environments,
        wake: Callable[[], None],
        capacity: Capacity,
        ids: Ids,
        volumes: JobVolumes | None = None,
    ) -> None:
        self._buckets = buckets
        self._wake = wake
        self._training_jobs = TrainingJobs(roles, environments, capacity, ids, volumes or JobVolumes())

    def resource(self, sight: Sight, place: str) -> Resource | None:
        """A resource's tags and label, for conditions (`training-job/name`)."""
        kind, _, name = place.partition("/")
        record = sight.get(kind, name) if kind in tags.KINDS else None
        if record is None:
            return None
        held = record.body.get("tags", {})
        named = {f"sagemaker:ResourceTag/{key}": value for key, value in held.items()}
        return Resource(record.account, record.label, tags=held, context=named)

    def create_training_job(self, call: Call, request: Request) -> dict[str, Any]:
        answer = self._training_jobs.create(call, request)
        self._wake()
        return answer

    def describe_training_job(self, call: Call, request: Request) -> dict[str, Any]:
        return self._training_jobs.describe(call, request)

    def list_training_jobs(self, call: Call, request: Request) -> dict[str, Any]:
        return self._training_jobs.list(call, request)

    def stop_training_job(self, call: Call, request: Request) -> dict[str, Any]:
        answer = self._training_jobs.stop(call, request)
        self._wake()
        return answer

    def add_tags(self, call: Call, request: Request) -> dict[str, Any]:
        return tags.add(call, request)

    def list_tags(self, call: Call, request: Request) -> dict[str, Any]:
        return tags.show(call, request)

    def delete_tags(self, call: Call, request: Request) -> dict[str, Any]:
        return tags.delete(call, request)

    def create_model_package_group(self, call: Call, request: Request) -> dict[str, Any]:
        return model_package_group.create(call, request)

    def describe_model_package_group(self, call: Call, request: Request) -> dict[str, Any]:
        return model_package_group.describe(call, request)

    def list_model_package_groups(self, call: Call, request: Request) -> dict[str, Any]:
        return model_package_group.list_all(call, request)

    def delete_model_package_group(self, call: Call, request: Request) -> dict[str, Any]:
        return model_package_group.delete(call, request)

    def create_model_package(self, call: Call, request: Request) -> dict[str, Any]:
        return model_package.create(call, request, self._buckets)

    def describe_model_package(self, call: Call, request: Request) -> dict[str, Any]:
        return model_package.describe(call, request)

    def list_model_packages(self, call: Call, request: Request) -> dict[str, Any]:
        return model_package.list_all(call, request)

    def update_model_package(self, call: Call, request: Request) -> dict[str, Any]:
        return model_package.update(call, request)

    def delete_model_package(self, call: Call, request: Request) -> dict[str, Any]:
        return model_package.delete(call, request)
