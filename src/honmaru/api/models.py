"""Service models: botocore's JSON without its documentation, cached, one object per service.

Invariants:
- The models come from the installed botocore and are never copied into the repository; the cache is keyed by its
  version, written atomically, and rebuilt when it cannot be read.
- An operation's plan is compiled once, at its first use.

Not here: what an operation means (services), what a wire looks like around an operation (gateway).
Source: botocore `data/<service>/<version>/service-2.json.gz`, Apache-2.0.
"""

from __future__ import annotations

import gzip
import importlib.metadata
import importlib.util
import os
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson

from honmaru.api.corrections import IAM_PREFIXES, correct
from honmaru.core.errors import ConfigurationFault

if TYPE_CHECKING:
    from honmaru.api.plans import Plan

SERVICES = (
    "bedrock",
    "bedrock-agent",
    "bedrock-runtime",
    "braket",
    "cloudtrail",
    "cloudwatch",
    "ecr",
    "iam",
    "kms",
    "logs",
    "organizations",
    "resourcegroupstaggingapi",
    "s3",
    "sagemaker",
    "service-quotas",
    "sts",
)
"""The services this enclave carries, by botocore's name. Another service costs one line here and its package."""

PROTOCOLS = ("smithy-rpc-v2-cbor", "json", "rest-json", "rest-xml", "query")
"""The protocols that `plans` compiles, by botocore's names."""

_CACHE_FORMAT = 1
_LEFT_OUT = frozenset({"documentation", "deprecatedMessage", "deprecatedSince", "contextParam", "staticContextParams"})


class Operation:
    """One operation of a service, as modelled. `plan` reads, checks and writes its messages."""

    def __init__(self, service: ServiceModel, name: str, model: Mapping[str, Any]) -> None:
        self.service = service
        self.name = name
        self.model = model
        http = model.get("http", {})
        self.method: str = http.get("method", "POST")
        self.uri: str = http.get("requestUri", "/")
        self.status: int = int(http.get("responseCode", 200))
        self.input: Mapping[str, Any] | None = model.get("input")
        self.output: Mapping[str, Any] | None = model.get("output")
        self.deprecated = bool(model.get("deprecated"))
        self.unroutable = bool(model.get("unroutable"))
        self._plans: dict[str, Plan] = {}
        self.read_only = name.startswith(("Get", "List", "Describe", "Head", "Lookup", "Search", "Filter", "Simulate"))

    @cached_property
    def input_shape(self) -> Mapping[str, Any]:
        """The input structure; one without members when the operation takes none."""
        return self.service.shapes[self.input["shape"]] if self.input else {"type": "structure", "members": {}}

    @cached_property
    def output_shape(self) -> Mapping[str, Any]:
        """The output structure; one without members when the operation returns none."""
        return self.service.shapes[self.output["shape"]] if self.output else {"type": "structure", "members": {}}

    @cached_property
    def plan(self) -> Plan:
        return self.plan_for(self.service.protocol)

    def plan_for(self, protocol: str) -> Plan:
        """The plan of the operation in one of its service's protocols."""
        found = self._plans.get(protocol)
        if found is None:
            from honmaru.api.plans import compile_plan

            found = self._plans[protocol] = compile_plan(self, protocol)
        return found

    @cached_property
    def streams_input(self) -> bool:
        """True when the request's payload is a streaming blob or an event stream, read while it arrives."""
        payload = self.input_shape.get("payload")
        if payload is None:
            return False
        reference = self.input_shape["members"][payload]
        return bool(reference.get("streaming") or self.service.shapes[reference["shape"]].get("eventstream"))

    def __repr__(self) -> str:
        return f"<{self.service.name}:{self.name}>"


class ServiceModel:
    """One service as modelled."""

    def __init__(self, name: str, model: Mapping[str, Any]) -> None:
        metadata = model["metadata"]
        self.name = name
        stated = metadata.get("protocols", [metadata["protocol"]])
        self.protocols: tuple[str, ...] = tuple(name for name in stated if name in PROTOCOLS)
        """What clients may speak, the service's first choice first."""
        if not self.protocols:
            raise ConfigurationFault(
                [f"{name} speaks only {', '.join(stated)}: choose a service with another protocol"]
            )
        self.protocol = self.protocols[0]
        self.query_compatible = "awsQueryCompatible" in metadata
        """True for a service that once spoke query only: errors keep their query codes beside their new names."""
        self.api_version: str = metadata["apiVersion"]
        self.json_version: str = metadata.get("jsonVersion", "1.0")
        self.target_prefix: str = metadata.get("targetPrefix", "")
        self.endpoint_prefix: str = metadata["endpointPrefix"]
        self.signing_name: str = metadata.get("signingName", metadata["endpointPrefix"])
        self.xml_namespace: str = metadata.get("xmlNamespace", "http://s3.amazonaws.com/doc/2006-03-01/")
        self.bearer = "smithy.api#httpBearerAuth" in metadata.get("auth", ())
        self.shapes: Mapping[str, Mapping[str, Any]] = model["shapes"]
        self.operations: Mapping[str, Operation] = {
            operation: Operation(self, operation, body) for operation, body in model["operations"].items()
        }
        self.compiled: dict[tuple[str, str], Any] = {}
        """Compiled readers, checks and writers by (kind, shape), shared by all operations of the service."""

    @cached_property
    def errors(self) -> Mapping[str, tuple[int | None, str, Mapping[str, Any]]]:
        """Error code → (modelled HTTP status or None, shape name, shape)."""
        found: dict[str, tuple[int | None, str, Mapping[str, Any]]] = {}
        for name, shape in self.shapes.items():
            if shape.get("exception"):
                error = shape.get("error", {})
                found[error.get("code", name)] = (error.get("httpStatusCode"), name, shape)
                found.setdefault(name, (error.get("httpStatusCode"), name, shape))
        return found

    @property
    def event_source(self) -> str:
        """CloudTrail's eventSource: bedrock-runtime's calls are recorded as bedrock's, as AWS does."""
        return f"{self.signing_name}.amazonaws.com"

    @property
    def iam_prefix(self) -> str:
        """The service's prefix in IAM actions."""
        return IAM_PREFIXES.get(self.name, self.signing_name)

    @cached_property
    def inflates(self) -> bool:
        """True when clients may compress the body of one of the operations (trait requestCompression)."""
        return any(
            "gzip" in op.model.get("requestcompression", {}).get("encodings", ()) for op in self.operations.values()
        )


class ServiceModels:
    """All carried services by name.

    Args:
        cache: Directory for the stripped models; made when absent.
        services: botocore's names.
    Raises:
        ConfigurationFault: botocore lacks one of the services.
    """

    def __init__(self, cache: Path, services: tuple[str, ...] = SERVICES) -> None:
        directory = cache / f"botocore-{importlib.metadata.version('botocore')}-{_CACHE_FORMAT}"
        directory.mkdir(parents=True, exist_ok=True)
        self._services = {name: ServiceModel(name, correct(name, _load(name, directory))) for name in services}

    def __getitem__(self, name: str) -> ServiceModel:
        return self._services[name]

    def __contains__(self, name: str) -> bool:
        return name in self._services

    def __iter__(self) -> Iterator[ServiceModel]:
        return iter(self._services.values())


def _load(service: str, directory: Path) -> dict[str, Any]:
    cached = directory / f"{service}.json"
    try:
        model: dict[str, Any] = orjson.loads(cached.read_bytes())
        return model
    except (OSError, ValueError):
        pass
    model = _strip(orjson.loads(gzip.decompress(_model_file(service).read_bytes())))
    partial = directory / f".{service}.{os.getpid()}"
    partial.write_bytes(orjson.dumps(model))
    partial.replace(cached)
    return model


def _model_file(service: str) -> Path:
    spec = importlib.util.find_spec("botocore")
    locations = (spec.submodule_search_locations if spec else None) or []
    for location in locations:
        found = sorted(Path(location, "data", service).glob("*/service-2.json.gz"))
        if found:
            return found[-1]
    raise ConfigurationFault([f"botocore has no model of service {service!r}: install the botocore that honmaru locks"])


def _strip(model: dict[str, Any]) -> dict[str, Any]:
    """Leave out documentation and client-only traits. Member *names* equal to a trait's name are kept."""
    for operation in model["operations"].values():
        for key in _LEFT_OUT & operation.keys():
            del operation[key]
    for shape in model["shapes"].values():
        for key in _LEFT_OUT & shape.keys():
            del shape[key]
        inner = [shape[key] for key in ("member", "key", "value") if key in shape]
        for reference in (*shape.get("members", {}).values(), *inner):
            for key in _LEFT_OUT & reference.keys():
                del reference[key]
    return {key: model[key] for key in ("metadata", "operations", "shapes")}
