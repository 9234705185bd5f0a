"""Which service and which operation a request is for, from its raw path, headers, query string and form.

Service, first match wins:
  1. the service in the SigV4 credential scope; names that two services share are split by path
  2. the prefix of X-Amz-Target, or the service in an RPC v2 path
  3. the first label of the Host header
  4. for bearer tokens (no scope): the service with bearer authentication whose paths match
  5. the Version of a form
  6. S3

Protocol of a service that speaks several: what the request says (`smithy-protocol`, X-Amz-Target, a form).
Operation: X-Amz-Target (json), the path's end (RPC v2), Action (query), else a trie over the path's segments.

Invariants:
- The path is routed raw: an encoded slash never separates segments. Labels are percent-decoded once, after routing.
- Among operations of one method and path, the one with most required query parameters and headers present wins,
  deprecated ones last.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from urllib.parse import unquote_to_bytes

from honmaru.api.misreads import Misread
from honmaru.api.models import Operation, ServiceModel, ServiceModels
from honmaru.api.rest_codec import literal_query

Query = Mapping[str, list[str]]
Headers = Mapping[str, str]

RPC_V2 = "smithy-rpc-v2-cbor"
_RPC_PATH = re.compile(r"/(?:[^?]+/)?service/([A-Za-z0-9_]{1,128})/operation/([A-Za-z0-9_]{1,128})")
_TEMPLATE_PART = re.compile(r"\{([^}+]+)(\+?)\}")


def speaks_rpc_v2(headers: Headers) -> bool:
    """True for a request of smithy's RPC v2 CBOR protocol."""
    return headers.get("smithy-protocol") == "rpc-v2-cbor"


def rpc_v2_names(raw_path: str) -> tuple[str, str] | None:
    """(service, operation) of an RPC v2 path, at whatever prefix; None for another path."""
    match = _RPC_PATH.fullmatch(raw_path)
    return (match[1], match[2]) if match else None


def protocol_of(service: ServiceModel, headers: Headers, query: Query) -> str:
    """The protocol in which a request speaks to its service; the service's first where the request does not say."""
    if len(service.protocols) == 1:
        return service.protocol
    if speaks_rpc_v2(headers):
        said = RPC_V2
    elif "x-amz-target" in headers:
        said = "json"
    elif "Action" in query or headers.get("content-type", "").startswith("application/x-www-form-urlencoded"):
        said = "query"
    else:
        return service.protocol
    return said if said in service.protocols else service.protocol


class _Candidate:
    """One operation at a (method, path) with what must be present for it."""

    __slots__ = ("headers", "names", "operation", "query", "score")

    def __init__(self, operation: Operation, names: tuple[str, ...]) -> None:
        self.operation = operation
        self.names = names
        self.query: list[tuple[str, str | None]] = list(literal_query(operation.uri).items())
        self.headers: list[str] = []
        required = operation.input_shape.get("required", ())
        for member, reference in operation.input_shape["members"].items():
            wire = reference.get("locationName", member)
            if member not in required:
                continue
            if reference.get("location") == "querystring" and operation.service.name == "s3":
                self.query.append((wire, None))
            elif reference.get("location") == "header" and operation.service.name == "s3":
                self.headers.append(wire.lower())
        weight = sum(2 if value is not None else 1 for _, value in self.query)
        self.score = 4 * (weight + len(self.headers)) - int(operation.deprecated)

    def fits(self, query: Query, headers: Headers) -> bool:
        for name, value in self.query:
            present = query.get(name)
            if present is None or (value is not None and value not in present):
                return False
        return all(name in headers for name in self.headers)


class _Node:
    __slots__ = ("greedy", "label", "literals", "methods")

    def __init__(self) -> None:
        self.literals: dict[str, _Node] = {}
        self.label: _Node | None = None
        self.greedy: dict[str, list[_Candidate]] = {}
        self.methods: dict[str, list[_Candidate]] = {}


class RestRouter:
    """The trie of one REST service."""

    def __init__(self, service: ServiceModel) -> None:
        self._root = _Node()
        for operation in service.operations.values():
            if not operation.unroutable:
                self._add(operation)

    def _add(self, operation: Operation) -> None:
        node = self._root
        names: list[str] = []
        path = operation.uri.partition("?")[0].strip("/")
        for segment in path.split("/") if path else ():
            match = _TEMPLATE_PART.fullmatch(segment)
            if match is None:
                node = node.literals.setdefault(segment, _Node())
                continue
            names.append(match[1])
            if match[2]:
                self._file(node.greedy, operation, names)
                return
            if node.label is None:
                node.label = _Node()
            node = node.label
        self._file(node.methods, operation, names)

    @staticmethod
    def _file(methods: dict[str, list[_Candidate]], operation: Operation, names: list[str]) -> None:
        candidates = methods.setdefault(operation.method, [])
        candidates.append(_Candidate(operation, tuple(names)))
        candidates.sort(key=lambda candidate: -candidate.score)

    def match(
        self, method: str, raw_path: str, query: Query, headers: Headers
    ) -> tuple[Operation, dict[str, str]] | None:
        """The operation and its decoded labels; None when the service has nothing there.

        Raises Misread when a label is not UTF-8.
        """
        path = raw_path[1:]
        found = self._walk(self._root, path.split("/") if path else [], 0, method, query, headers, [])
        if found is None and path.endswith("/"):
            found = self._walk(self._root, path.rstrip("/").split("/"), 0, method, query, headers, [])
        if found is None:
            return None
        candidate, values = found
        return candidate.operation, dict(zip(candidate.names, map(_decoded, values), strict=True))

    def _walk(
        self,
        node: _Node,
        segments: list[str],
        at: int,
        method: str,
        query: Query,
        headers: Headers,
        values: list[str],
    ) -> tuple[_Candidate, list[str]] | None:
        if at == len(segments):
            candidate = _pick(node.methods, method, query, headers)
            return (candidate, values) if candidate else None
        segment = segments[at]
        below = node.literals.get(segment)
        if below is not None:
            found = self._walk(below, segments, at + 1, method, query, headers, values)
            if found is not None:
                return found
        if node.label is not None and segment:
            found = self._walk(node.label, segments, at + 1, method, query, headers, [*values, segment])
            if found is not None:
                return found
        if node.greedy:
            rest = "/".join(segments[at:])
            if rest:
                candidate = _pick(node.greedy, method, query, headers)
                if candidate is not None:
                    return candidate, [*values, rest]
        return None


def _pick(methods: Mapping[str, list[_Candidate]], method: str, query: Query, headers: Headers) -> _Candidate | None:
    for candidate in methods.get(method, ()):
        if candidate.fits(query, headers):
            return candidate
    return None


def _decoded(raw: str) -> str:
    if "%" not in raw:
        return raw
    try:
        return unquote_to_bytes(raw).decode("utf-8")
    except UnicodeDecodeError:
        raise Misread("a path in UTF-8", None) from None


class ServiceRouter:
    """Finds the service of a request. `hosts` are names under which S3 buckets appear as `<bucket>.<host>`."""

    def __init__(self, models: ServiceModels, hosts: Iterable[str] = ("localhost",)) -> None:
        self._models = models
        self.rest = {
            service.name: RestRouter(service) for service in models if service.protocol in ("rest-json", "rest-xml")
        }
        self._by_scope: dict[str, list[ServiceModel]] = {}
        self._by_target: dict[str, ServiceModel] = {}
        self._by_host: dict[str, ServiceModel] = {}
        self._by_version: dict[str, ServiceModel] = {}
        for service in models:
            self._by_scope.setdefault(service.signing_name, []).append(service)
            self._by_host[service.endpoint_prefix] = service
            if service.target_prefix:
                self._by_target[service.target_prefix] = service
            if "query" in service.protocols:
                self._by_version[service.api_version] = service
        self._bearer = [service for service in models if service.bearer]
        self._hosts = tuple(f".{host}" for host in hosts)

    def by_scope(self, name: str, method: str, raw_path: str, query: Query, headers: Headers) -> ServiceModel | None:
        """The service of a credential scope; None when the enclave does not carry one of that name."""
        services = self._by_scope.get(name)
        if not services:
            return None
        if len(services) == 1:
            return services[0]
        return self._by_path(services, method, raw_path, query, headers)

    def by_request(
        self, method: str, raw_path: str, query: Query, headers: Headers, *, bearer: bool
    ) -> ServiceModel | None:
        """The service of a request without a credential scope; None when the form's body must tell."""
        target = headers.get("x-amz-target")
        if target is not None:
            return self._by_target.get(target.rpartition(".")[0])
        if speaks_rpc_v2(headers):
            names = rpc_v2_names(raw_path)
            return self._by_target.get(names[0]) if names else None
        host = headers.get("host", "")
        if self.bucket_path("/", host) != "/":  # whatever the bucket is named: `logs.s3.…` is not CloudWatch Logs
            return self._models["s3"]
        labels = host.partition(":")[0].replace("-fips.", ".").split(".")
        for count in (2, 1):
            found = self._by_host.get(".".join(labels[:count]))
            if found is not None and len(labels) > count:
                return found
        if bearer:
            return self._by_path(self._bearer, method, raw_path, query, headers)
        version = query.get("Version")
        if version and "Action" in query:
            return self._by_version.get(version[0])
        if headers.get("content-type", "").startswith("application/x-www-form-urlencoded"):
            return None
        return self._models["s3"]

    def by_version(self, version: str) -> ServiceModel | None:
        """The query service of a form's Version."""
        return self._by_version.get(version)

    def _by_path(
        self, services: list[ServiceModel], method: str, raw_path: str, query: Query, headers: Headers
    ) -> ServiceModel | None:
        first = raw_path[1:].partition("/")[0]
        for service in services:
            for operation in service.operations.values():
                if operation.uri[1:].partition("/")[0] == first and self.rest[service.name].match(
                    method, raw_path, query, headers
                ):
                    return service
        for service in services:
            if any(operation.uri[1:].partition("/")[0] == first for operation in service.operations.values()):
                return service
        return services[0] if services else None

    def bucket_path(self, raw_path: str, host: str) -> str:
        """S3's path-style path: a bucket that stands in the Host header is moved in front of the path.

        Bucket names may hold dots, and ".s3." too: what stands before the last one is the bucket.
        """
        name = host.partition(":")[0].lower()
        for suffix in self._hosts:
            if name.endswith(suffix):
                bucket = name[: -len(suffix)].removesuffix(".s3")
                return f"/{bucket}{raw_path}" if bucket and bucket != "s3" else raw_path
        match = _S3_HOST.fullmatch(name)
        return f"/{match[1]}{raw_path}" if match else raw_path


_S3_HOST = re.compile(r"(.+)\.s3[.-][a-z0-9.-]+")
