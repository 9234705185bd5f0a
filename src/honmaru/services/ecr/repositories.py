"""Repositories: those of the enclave's software environments, which everybody sees, and callers' own.

Invariants:
- An environment is a repository of its name with one image, `latest`. It is changed by the operator only, never here.
- A caller's repository carries its maker's label. No image can be pushed into it: this enclave has no registry, and
  says so (UploadLayerPart and its kin answer 501).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Protocol

from honmaru.core.errors import Conflict, NotFound, QuotaExceeded, ValidationFault
from honmaru.core.partitions import partition_of
from honmaru.ports.executors import Environment
from honmaru.security.calls import Call
from honmaru.security.guard import Record
from honmaru.security.policy import MalformedPolicy, PolicyKind, compile_policy

REPOSITORY = "repository"
MAX_TAGS = 50
Request = Mapping[str, Any]
_NAME = re.compile(r"(?:[a-z0-9]+(?:[._-][a-z0-9]+)*/)*[a-z0-9]+(?:[._-][a-z0-9]+)*")


class Catalog(Protocol):
    """What this needs of `jobs.environments.Environments`."""

    def all(self) -> list[Environment]: ...


@dataclass(frozen=True, slots=True)
class Repository:
    """A repository as a session sees it: of an environment, or a record."""

    name: str
    environment: Environment | None = None
    record: Record | None = None


def find(call: Call, catalog: Catalog, request: Request) -> Repository:
    """Raises NotFound (RepositoryNotFoundException)."""
    _check_registry(call, request)
    name = request["repositoryName"]
    for environment in catalog.all():
        if environment.name == name:
            return Repository(name, environment=environment)
    record = call.records.get(REPOSITORY, name)
    if record is None:
        raise _unknown(call, name)
    call.resources.append((arn(call, name), "AWS::ECR::Repository"))
    return Repository(name, record=record)


def own(call: Call, catalog: Catalog, request: Request) -> Record:
    """A caller's repository, for a change. Raises ValidationFault for an environment's."""
    found = find(call, catalog, request)
    if found.record is None:
        raise ValidationFault(
            f"The repository {found.name} is a software environment of this enclave: only its operator changes it",
            code="InvalidParameterException",
        )
    return found.record


def create(call: Call, catalog: Catalog, request: Request) -> dict[str, Any]:
    _check_registry(call, request)
    name = request["repositoryName"]
    if _NAME.fullmatch(name) is None:
        raise invalid(f"Invalid parameter at 'repositoryName' failed to satisfy constraint: '{_NAME.pattern}'")
    if (request.get("encryptionConfiguration") or {}).get("kmsKey"):
        raise invalid(
            "encryptionConfiguration.kmsKey is not supported: everything is sealed under the key of its label"
        )
    if request.get("imageTagMutabilityExclusionFilters"):
        raise invalid("imageTagMutabilityExclusionFilters are not supported")
    body = {
        "tags": checked_tags(request.get("tags") or (), {}),
        "mutability": request.get("imageTagMutability") or "MUTABLE",
        "scan": bool((request.get("imageScanningConfiguration") or {}).get("scanOnPush")),
        "policy": None,
    }
    taken = Conflict(
        f"The repository with name '{name}' already exists in the registry with id '{call.account}'",
        code="RepositoryAlreadyExistsException",
    )
    if any(environment.name == name for environment in catalog.all()):
        raise taken
    try:
        record = call.records.create(REPOSITORY, name, body)
    except Conflict:
        raise taken from None
    return {"repository": described(call, Repository(name, record=record))}


def describe(call: Call, catalog: Catalog, request: Request) -> dict[str, Any]:
    _check_registry(call, request)
    names = request.get("repositoryNames")
    if names:
        found = [find(call, catalog, {"repositoryName": name}) for name in dict.fromkeys(names)]
        return {"repositories": [described(call, each) for each in found]}
    every = {each.name: Repository(each.name, environment=each) for each in catalog.all()}
    every |= {
        each.name: Repository(each.name, record=each)
        for each in call.records.iterate(REPOSITORY)
        if each.name not in every
    }
    after, size = request.get("nextToken") or "", int(request.get("maxResults") or 100)
    rest = [every[name] for name in sorted(every) if name > after]
    page = rest[:size]
    return {
        "repositories": [described(call, each) for each in page],
        "nextToken": page[-1].name if len(rest) > size else None,
    }


def delete(call: Call, catalog: Catalog, request: Request) -> dict[str, Any]:
    record = own(call, catalog, request)
    call.records.delete(record)
    return {"repository": described(call, Repository(record.name, record=record))}


# Policies


def set_policy(call: Call, catalog: Catalog, request: Request) -> dict[str, Any]:
    record = own(call, catalog, request)
    text = request["policyText"]
    try:
        compile_policy(completed(text), "", PolicyKind.RESOURCE)
    except (MalformedPolicy, ValueError) as fault:
        raise invalid(f"Invalid parameter at 'PolicyText' failed to satisfy constraint: {fault}") from None
    call.records.update(record, {**record.body, "policy": text})
    return _policy(call, record.name, text)


def completed(text: str) -> str:
    """A repository's policy as IAM's language has it: its statements leave the resource out, which is the repository.

    Raises ValueError when it is not a JSON object.
    """
    document = json.loads(text)
    if not isinstance(document, dict):
        raise ValueError("a policy is a JSON object")
    statements = document.get("Statement")
    for statement in statements if isinstance(statements, list) else [statements]:
        if isinstance(statement, dict) and not statement.keys() & {"Resource", "NotResource"}:
            statement["Resource"] = "*"
    return json.dumps(document)


def get_policy(call: Call, catalog: Catalog, request: Request) -> dict[str, Any]:
    found = find(call, catalog, request)
    text = None if found.record is None else found.record.body["policy"]
    if text is None:
        raise _no_policy(call, found.name)
    return _policy(call, found.name, text)


def delete_policy(call: Call, catalog: Catalog, request: Request) -> dict[str, Any]:
    record = own(call, catalog, request)
    text = record.body["policy"]
    if text is None:
        raise _no_policy(call, record.name)
    call.records.update(record, {**record.body, "policy": None})
    return _policy(call, record.name, text)


def _policy(call: Call, name: str, text: str) -> dict[str, Any]:
    return {"registryId": call.account, "repositoryName": name, "policyText": text}


def _no_policy(call: Call, name: str) -> NotFound:
    return NotFound(
        f"Repository policy does not exist for the repository with name '{name}' in the registry with id "
        f"'{call.account}'",
        code="RepositoryPolicyNotFoundException",
    )


# Settings and tags


def set_mutability(call: Call, catalog: Catalog, request: Request) -> dict[str, Any]:
    record = own(call, catalog, request)
    wanted = request["imageTagMutability"]
    if wanted not in ("MUTABLE", "IMMUTABLE"):
        raise invalid("imageTagMutability must be MUTABLE or IMMUTABLE")
    call.records.update(record, {**record.body, "mutability": wanted})
    return {"registryId": call.account, "repositoryName": record.name, "imageTagMutability": wanted}


def tagged(call: Call, catalog: Catalog, request: Request) -> Repository:
    """The repository that `resourceArn` names."""
    given, prefix = str(request["resourceArn"]), arn(call, "")
    if not given.startswith(prefix):
        raise invalid(f"Invalid parameter at 'resourceArn' failed to satisfy constraint: '{given}' is no repository")
    return find(call, catalog, {"repositoryName": given.removeprefix(prefix)})


def tag(call: Call, catalog: Catalog, request: Request) -> dict[str, Any]:
    record = own(call, catalog, {"repositoryName": tagged(call, catalog, request).name})
    call.records.update(record, {**record.body, "tags": checked_tags(request["tags"], record.body["tags"])})
    return {}


def untag(call: Call, catalog: Catalog, request: Request) -> dict[str, Any]:
    record = own(call, catalog, {"repositoryName": tagged(call, catalog, request).name})
    tags = {key: value for key, value in record.body["tags"].items() if key not in set(request["tagKeys"])}
    call.records.update(record, {**record.body, "tags": tags})
    return {}


def tags_of(call: Call, catalog: Catalog, request: Request) -> dict[str, Any]:
    found = tagged(call, catalog, request)
    tags = {} if found.record is None else found.record.body["tags"]
    return {"tags": [{"Key": key, "Value": value} for key, value in sorted(tags.items())]}


def checked_tags(given: Any, old: Mapping[str, str]) -> dict[str, str]:
    tags = {**old, **{tag["Key"]: tag["Value"] for tag in given}}
    if len(tags) > MAX_TAGS:
        raise QuotaExceeded(f"a repository has at most {MAX_TAGS} tags", code="TooManyTagsException")
    for key, value in tags.items():
        if not 1 <= len(key) <= 128 or len(value) > 256 or key.lower().startswith("aws:"):
            raise ValidationFault(f"the tag {key[:128]!r} is not valid", code="InvalidTagParameterException")
    return tags


def described(call: Call, found: Repository) -> dict[str, Any]:
    body: Mapping[str, Any] = (
        found.record.body if found.record is not None else {"mutability": "IMMUTABLE", "scan": False}
    )
    created: datetime | None = found.record.created if found.record is not None else None
    return {
        "repositoryArn": arn(call, found.name),
        "registryId": call.account,
        "repositoryName": found.name,
        "repositoryUri": f"{registry_host(call)}/{found.name}",
        "createdAt": created,
        "imageTagMutability": body["mutability"],
        "imageScanningConfiguration": {"scanOnPush": body["scan"]},
        "encryptionConfiguration": {"encryptionType": "AES256"},
    }


def registry_host(call: Call) -> str:
    """The registry's name in image URIs. Nothing answers there; jobs resolve such URIs by the repository's name."""
    return f"{call.account}.dkr.ecr.{call.session.region}.{partition_of(call.session.region).dns_suffix}"


def arn(call: Call, name: str) -> str:
    return call.arn("ecr", f"repository/{name}")


def invalid(message: str) -> ValidationFault:
    return ValidationFault(message, code="InvalidParameterException")


def _check_registry(call: Call, request: Request) -> None:
    if request.get("registryId") not in (None, call.account):
        raise invalid(f"registryId must be {call.account}: registries of other accounts are not shared")


def _unknown(call: Call, name: str) -> NotFound:
    return NotFound(
        f"The repository with name '{name}' does not exist in the registry with id '{call.account}'",
        code="RepositoryNotFoundException",
    )
