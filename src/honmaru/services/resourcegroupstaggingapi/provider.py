"""AWS Resource Groups Tagging API: tags of the resources of every service.

Invariants:
- What is above the session is in no answer: no resource, no key, no value of it.
- Only resources that have tags are listed, in the order of their ARNs; page after page shows each once.
- A change is made by the service that owns the resource, after IAM allowed that service's own action on it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar

from honmaru.core.errors import AccessDenied, HonmaruError, PlatformFault, ValidationFault
from honmaru.security.calls import Call, Provider, Target
from honmaru.services.resourcegroupstaggingapi.sources import TagSource

Request = Mapping[str, Any]
_PAGE = 100
_KEYS = 1000


class ResourceTagging(Provider):
    """Args:
    sources: One for each kind of resource that has tags.
    """

    service: ClassVar[str] = "resourcegroupstaggingapi"

    targets: ClassVar[Mapping[str, Target]] = {
        name: Target(f"tag:{name}")
        for name in ("GetResources", "GetTagKeys", "GetTagValues", "TagResources", "UntagResources")
    }

    def __init__(self, sources: Sequence[TagSource]) -> None:
        self._sources = tuple(sources)

    def get_resources(self, call: Call, request: Request) -> dict[str, Any]:
        if request.get("IncludeComplianceDetails") or request.get("ExcludeCompliantResources"):
            raise _invalid("compliance with tag policies is not evaluated by this enclave")
        arns = request.get("ResourceARNList")
        filters = request.get("TagFilters") or ()
        if arns and (filters or request.get("ResourceTypeFilters") or request.get("PaginationToken")):
            raise _invalid("ResourceARNList excludes filters and pagination")
        size, per_page = int(request.get("ResourcesPerPage") or _PAGE), int(request.get("TagsPerPage") or 0)
        if not 1 <= size <= 100 or (per_page and (per_page % 100 or not 100 <= per_page <= 500)):
            raise _invalid("ResourcesPerPage is 1 to 100; TagsPerPage is 100 to 500, in steps of 100")
        tests = [_filter(each) for each in filters]
        wanted = set(arns or ())
        found = sorted(
            (arn, tags)
            for arn, tags in self._tagged(call, request.get("ResourceTypeFilters") or ())
            if (not wanted or arn in wanted) and all(test(tags) for test in tests)
        )
        after = request.get("PaginationToken") or ""
        rest = [pair for pair in found if pair[0] > after]
        page: list[tuple[str, Mapping[str, str]]] = []
        count = 0
        for arn, tags in rest[:size]:
            count += len(tags)
            if per_page and page and count > per_page:
                break
            page.append((arn, tags))
        more = len(rest) > len(page)
        return {
            "ResourceTagMappingList": [
                {"ResourceARN": arn, "Tags": [{"Key": key, "Value": value} for key, value in sorted(tags.items())]}
                for arn, tags in page
            ],
            "PaginationToken": page[-1][0] if more else "",
        }

    def get_tag_keys(self, call: Call, request: Request) -> dict[str, Any]:
        shown, token = _paged({key for _, tags in self._tagged(call, ()) for key in tags}, request)
        return {"TagKeys": shown, "PaginationToken": token}

    def get_tag_values(self, call: Call, request: Request) -> dict[str, Any]:
        key = request["Key"]
        shown, token = _paged({tags[key] for _, tags in self._tagged(call, ()) if key in tags}, request)
        return {"TagValues": shown, "PaginationToken": token}

    def tag_resources(self, call: Call, request: Request) -> dict[str, Any]:
        tags = request["Tags"]
        if not 1 <= len(tags) <= 50 or any(not 1 <= len(key) <= 128 for key in tags):
            raise _invalid("Tags has 1 to 50 members, with keys of 1 to 128 characters")
        return self._each(call, request, lambda source, arn: source.tag(call, arn, tags))

    def untag_resources(self, call: Call, request: Request) -> dict[str, Any]:
        keys = list(request["TagKeys"])
        return self._each(call, request, lambda source, arn: source.untag(call, arn, keys))

    def _each(self, call: Call, request: Request, change: Callable[[TagSource, str], None]) -> dict[str, Any]:
        failed: dict[str, dict[str, Any]] = {}
        for arn in dict.fromkeys(request["ResourceARNList"]):
            source = next((each for each in self._sources if each.owns(call, arn)), None)
            try:
                if source is None:
                    raise _invalid(f"{arn} is no resource of this enclave whose tags can be changed here")
                change(source, arn)
            except PlatformFault as fault:
                failed[arn] = _failure(500, "InternalServiceException", fault)
            except HonmaruError as fault:
                failed[arn] = _failure(
                    403 if isinstance(fault, AccessDenied) else 400, "InvalidParameterException", fault
                )
        return {"FailedResourcesMap": failed}

    def _tagged(self, call: Call, types: Sequence[str]) -> Iterator[tuple[str, Mapping[str, str]]]:
        for source in self._sources:
            service = source.resource_type.partition(":")[0]
            if not types or service in types or source.resource_type in types:
                yield from ((arn, tags) for arn, tags in source.tagged(call) if tags)


def _filter(given: Mapping[str, Any]) -> Callable[[Mapping[str, str]], bool]:
    key, values = given.get("Key"), given.get("Values") or ()
    if not key:
        raise _invalid("A member of TagFilters has a Key")
    return lambda tags: key in tags and (not values or tags[key] in values)


def _paged(found: set[str], request: Request) -> tuple[list[str], str]:
    after = request.get("PaginationToken") or ""
    rest = sorted(each for each in found if not after or each > after)
    page = rest[:_KEYS]
    return page, page[-1] if len(rest) > _KEYS else ""


def _failure(status: int, code: str, fault: HonmaruError) -> dict[str, Any]:
    return {"StatusCode": status, "ErrorCode": code, "ErrorMessage": fault.message}


def _invalid(message: str) -> ValidationFault:
    return ValidationFault(message, code="InvalidParameterException")
