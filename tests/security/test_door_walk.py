"""The walk along every implemented operation of every service: each is asked of IAM at the door, and refused there to
a principal without policies, with an entry in the ledger; and the walk sees an operation that is not.

The gateway is that of a real enclave (the composition root's own providers, identity, guard and ledger), driven
without sockets. Requests are written by botocore with the least that each operation's shape allows.
"""

from __future__ import annotations

import base64
import hashlib
import json
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import botocore.loaders
import botocore.model
import botocore.serialize
import pytest
from botocore.awsrequest import prepare_request_dict

from honmaru.api import cbor
from honmaru.api.models import Operation
from honmaru.api.names import method_name
from honmaru.app import enclave as composition
from honmaru.app.enclave import Enclave
from honmaru.app.settings import Settings
from honmaru.core.labels import Label
from honmaru.gateway.app import Gateway
from honmaru.security.calls import Call, Provider, Target
from honmaru.testing.gateways import GatewayUnderTest, Reply, Request
from honmaru.testing.keep import quick_directory

sys.path.insert(0, str(Path(__file__).parent.parent / "protocol"))
from sampling import SKIP, sample
from test_round_trip import parts_of

REGION = "us-gov-west-1"

ON_EVERYTHING = {
    "bedrock": (
        "DeleteModelInvocationLoggingConfiguration GetFoundationModelAvailability "
        "PutModelInvocationLoggingConfiguration"
    ),
    "braket": "CreateJob SearchDevices SearchJobs SearchQuantumTasks SearchSpendingLimits",
    "iam": (
        "CreateAccountAlias DeleteAccountAlias DeleteAccountPasswordPolicy GenerateCredentialReport "
        "GetContextKeysForCustomPolicy GetServiceLinkedRoleDeletionStatus SimulateCustomPolicy "
        "UpdateAccountPasswordPolicy"
    ),
    "kms": (
        "ConnectCustomKeyStore CreateCustomKeyStore CreateKey DeleteCustomKeyStore DisconnectCustomKeyStore "
        "GenerateRandom ListRetirableGrants UpdateCustomKeyStore"
    ),
    "logs": "DeleteQueryDefinition GetLogRecord GetQueryResults PutQueryDefinition StopQuery TestMetricFilter",
    "organizations": "*",
    "sts": "DecodeAuthorizationMessage GetAccessKeyInfo",
}
"""Operations that may leave their target out, so that `service:Operation` is asked on "*": AWS's service authorization
reference gives them no resource type; an ARN of organizations holds the organisation's id, which no request states.
Operations that read and need no member at all are account-wide by their nature, and may as well."""

ANYBODY = {"sts": {"GetCallerIdentity", "GetSessionToken"}}
"""Operations that any authenticated principal may call: they say who the caller is, or renew its own session."""

UNSIGNED = {"sts": {"AssumeRoleWithSAML", "AssumeRoleWithWebIdentity"}}
"""Operations whose request carries its own proof."""

UNKNOWN_FIRST = {
    "iam": {"GetAccessKeyLastUsed"},
    "kms": {"RetireGrant"},
    "s3": {"DeleteObjects"},
}
"""Operations that ask IAM by themselves about a thing that the walk has not made: they answer that it is not there."""


STATED: dict[tuple[str, str], dict[str, Any]] = {
    ("kms", "CreateAlias"): {"AliasName": "alias/walk"},
    ("kms", "CreateGrant"): {"GranteePrincipal": "arn:aws-us-gov:iam::123456789012:user/x", "Operations": ["Encrypt"]},
    ("kms", "Decrypt"): {"CiphertextBlob": b"", "KeyId": ""},
    ("kms", "GenerateDataKey"): {"KeySpec": "AES_256"},
    ("kms", "GenerateDataKeyWithoutPlaintext"): {"KeySpec": "AES_256"},
    ("kms", "ReEncrypt"): {"CiphertextBlob": b"", "SourceKeyId": ""},
    ("kms", "RetireGrant"): {"KeyId": "", "GrantId": "g"},
}
"""Members beyond the required ones without which an operation does not come to ask."""


def _account_wide(operation: Operation) -> bool:
    names = ON_EVERYTHING.get(operation.service.name, "").split()
    if operation.name in names or names == ["*"]:
        return True
    return operation.read_only and not operation.input_shape.get("required")


class Door(GatewayUnderTest):
    """The gateway of a real enclave with spies: what was appended to the ledger, and which methods ran."""

    def __init__(self, enclave: Enclave, providers: list[Provider], kind: type[Gateway] = Gateway) -> None:
        self.enclave = enclave
        self.limits = enclave.limits
        self.entries: list[Mapping[str, Any]] = []
        self.ran: list[str] = []
        self.asked = ASKED
        self.providers = providers
        for provider in providers:
            for operation in enclave.gateway.models[provider.service].operations:
                name = method_name(operation)
                if hasattr(provider, name):
                    setattr(provider, name, self._noted(name, getattr(provider, name)))
        self.gateway = kind(**{**BUILT, "providers": providers, "ledger": self})

    def _noted(self, name: str, method: Callable[..., Any]) -> Callable[..., Any]:
        import functools
        import inspect

        if inspect.iscoroutinefunction(method):

            @functools.wraps(method)
            async def later(*args: Any) -> Any:
                self.ran.append(name)
                return await method(*args)

            return later

        @functools.wraps(method)
        def now(*args: Any, **more: Any) -> Any:
            self.ran.append(name)
            return method(*args, **more)

        return now

    # what the gateway needs of a ledger
    writable = True

    def append_to(self, label: Label, entry: Mapping[str, Any], waiting: Any) -> None:
        self.entries.append(entry)
        self.enclave.ledger.append_to(label, entry, waiting)

    def implemented(self) -> Iterator[tuple[Provider, Operation]]:
        for provider in self.providers:
            for operation in self.gateway.models[provider.service].operations.values():
                if hasattr(provider, method_name(operation.name)):
                    yield provider, operation

    def members_of(self, operation: Operation) -> dict[str, Any] | None:
        """The least members of an operation; None when none can be drawn."""
        service = operation.service
        members = sample(service, operation.input, full=False) if operation.input else {}
        if members is SKIP and (payload := _event_stream(operation)):  # what streams in comes after the door
            shape = operation.input_shape
            names = [name for name in shape["required"] if name != payload]
            members = {name: sample(service, shape["members"][name], full=False) for name in names}
        if members is SKIP:
            return None
        members = self._at_home(members | STATED.get((service.name, operation.name), {}))
        if service.name == "kms":  # its operations find the key before they ask
            members |= {member: self.kms_key for member in members if member.endswith("KeyId")}
            members |= {member: self.kms_ciphertext for member in members if member == "CiphertextBlob"}
        return dict(members)

    def least(self, operation: Operation, key: tuple[str, str]) -> Request | None:
        """The least request of an operation, as botocore writes it, signed with `key`."""
        service = operation.service
        members = self.members_of(operation)
        if members is None:
            return None
        boto = _boto(service.name)
        serializer = botocore.serialize.create_serializer(service.protocol, include_validation=False)
        wire = serializer.serialize_to_request(members, boto.operation_model(operation.name))
        prepare_request_dict(wire, endpoint_url="https://127.0.0.1:8443", context={})
        method, path, _, headers, body = parts_of(wire)
        query = wire["url"].partition("?")[2]
        if _event_stream(operation):
            headers = {**headers, "X-Amz-Content-SHA256": "STREAMING-AWS4-HMAC-SHA256-EVENTS"}
        return self.signed(
            service.signing_name,
            method,
            path,
            query=query,
            headers=list(headers.items()),
            body=body or b"",
            key=key,
            region=REGION,
        )

    @cached_property
    def kms_key(self) -> str:
        """The ARN of a key that the walk's principal may not use."""
        return str(self._kms("CreateKey", {})["KeyMetadata"]["Arn"])

    @cached_property
    def kms_ciphertext(self) -> bytes:
        """What that key encrypted."""
        sealed = self._kms("Encrypt", {"KeyId": self.kms_key, "Plaintext": "eA=="})["CiphertextBlob"]
        return base64.b64decode(sealed)

    def _kms(self, operation: str, members: dict[str, Any]) -> dict[str, Any]:
        """An answer that the administrator gets."""
        admin = self.enclave.identity.access_key("admin", Label.parse("UNCLASSIFIED"))
        headers = [("Content-Type", "application/x-amz-json-1.1"), ("X-Amz-Target", f"TrentService.{operation}")]
        body = json.dumps(members).encode()
        reply = self.send(self.signed("kms", "POST", "/", headers=headers, body=body, key=admin, region=REGION))
        assert reply.status == 200, reply
        answer: dict[str, Any] = json.loads(reply.body)
        return answer

    def _at_home(self, value: Any) -> Any:
        """The value with every ARN in it of this enclave's partition, region and account."""
        if isinstance(value, dict):
            return {name: self._at_home(item) for name, item in value.items()}
        if isinstance(value, list):
            return [self._at_home(item) for item in value]
        if isinstance(value, str) and value.startswith("arn:"):
            _, _, service, region, account, rest = value.split(":", 5)
            home = (self.enclave.partition.name, service, region and REGION, account and self.enclave.account)
            return ":".join(("arn", *home, rest))
        return value

    def problem(self, provider: Provider, operation: Operation, key: tuple[str, str]) -> str | None:
        """What is wrong with how an operation is guarded; None when it is as it must be."""
        name = operation.name
        if name in provider.unauthorized:
            return self.own_question(operation, key)
        declared = provider.targets.get(name)
        if declared is None and not _account_wide(operation):
            return "it states no IAM action and resource"
        targets = [declared] if isinstance(declared, Target) else list(declared or ())
        if any(":" not in target.action or not target.resource for target in targets):
            return "its target names no action or resource"
        request = self.least(operation, key)
        if request is None:
            return "no request for it could be drawn: give tests/protocol/sampling.py what it lacks"
        self.ran.clear()
        reply = self.send(request)
        code = _code(reply)
        if self.ran:
            return f"it ran for a principal without policies ({reply.status})"
        if reply.status not in (400, 403) or code not in ("AccessDenied", "AccessDeniedException"):
            return f"a principal without policies got {reply.status} {code}, not AccessDenied: {reply.body[:200]!r}"
        request_id = reply.headers.get("x-amzn-requestid") or reply.headers.get("x-amz-request-id")
        mine = [entry for entry in self.entries if entry.get("requestID") == request_id]
        decisions = [(entry["errorCode"], entry["honmaru"]["decision"]) for entry in mine]
        if decisions != [(code, "deny")]:
            return f"its refusal stands in the ledger as {decisions}"
        return None

    def own_question(self, operation: Operation, key: tuple[str, str]) -> str | None:
        """For an operation that is not asked at the door: it must ask IAM itself, and refuse."""
        service, name = operation.service.name, operation.name
        if name in ANYBODY.get(service, ()) or name in UNSIGNED.get(service, ()):
            return None
        request = self.least(operation, key)
        if request is None:
            return "no request for it could be drawn: give tests/protocol/sampling.py what it lacks"
        self.asked.clear()
        reply = self.send(request)
        if reply.status < 400:
            return f"it is not asked at the door, and did its work for a principal without policies ({reply.status})"
        if name in UNKNOWN_FIRST.get(service, ()):
            unknown = reply.status == 404 or "NotFound" in _code(reply)
            return None if unknown else f"it answers {reply.status}: strike it from UNKNOWN_FIRST"
        if not self.asked and not _code(reply).startswith("AccessDenied"):
            return f"it asks IAM nothing, neither at the door nor by itself: {reply.body[:200]!r}"
        return None if _code(reply).startswith("AccessDenied") else f"it answers {reply.status} {_code(reply)}"

    def walk(self, key: tuple[str, str]) -> dict[str, str]:
        return {
            f"{operation.service.name}:{operation.name}": problem
            for provider, operation in self.implemented()
            if (problem := self.problem(provider, operation, key)) is not None
        }


def _event_stream(operation: Operation) -> str:
    """The member of the input that is an event stream; "" when there is none."""
    payload = operation.input_shape.get("payload", "")
    shapes = operation.service.shapes
    return payload if payload and shapes[operation.input_shape["members"][payload]["shape"]].get("eventstream") else ""


def _boto(name: str) -> botocore.model.ServiceModel:
    if name not in _MODELS:
        model = botocore.loaders.Loader().load_service_model(name, "service-2")
        _MODELS[name] = botocore.model.ServiceModel(model, name)
    return _MODELS[name]


_MODELS: dict[str, botocore.model.ServiceModel] = {}


def _code(reply: Reply) -> str:
    kind = reply.headers.get("content-type", "")
    if not reply.body:  # HEAD, or an answer without members
        return "AccessDenied" if reply.status == 403 else ""
    if "cbor" in kind:
        return str(cbor.decode(reply.body)["__type"]).rpartition("#")[2]
    if "json" in kind:
        return str(json.loads(reply.body).get("__type") or reply.headers["x-amzn-errortype"]).rpartition("#")[2]
    found = ElementTree.fromstring(reply.body).iter()
    return next((node.text or "" for node in found if node.tag.rpartition("}")[2] == "Code"), "")


ASKED: list[str] = []
"""What IAM was asked, at the door or by an operation."""

BUILT: dict[str, Any] = {}
"""What the composition root gave to the gateway."""


def _noted(question: Callable[..., Any]) -> Callable[..., Any]:
    def ask(session: Any, action: str, *rest: Any, **more: Any) -> Any:
        ASKED.append(action)
        return question(session, action, *rest, **more)

    return ask


def _built(**parts: Any) -> Gateway:
    identity = parts["identity"]
    for name in ("authorize", "require"):
        setattr(identity, name, _noted(getattr(identity, name)))
    BUILT.update(parts)
    return Gateway(**parts)


@pytest.fixture(scope="module")
def enclave() -> Iterator[Enclave]:
    with quick_directory() as directory:
        directory.chmod(0o700)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(composition, "Gateway", _built)
            enclave = Enclave(Settings(data=directory, region=REGION, http=True))
        enclave.identity.bootstrap()
        enclave.identity.create_user("nobody", "SECRET", [])
        yield enclave
        enclave.gateway.close()
        enclave.model_servers.close()
        enclave.ledger.close()
        enclave.records.close()


@pytest.fixture(scope="module")
def nobody(enclave: Enclave) -> tuple[str, str]:
    return enclave.identity.access_key("nobody", Label.parse("UNCLASSIFIED"))


@pytest.fixture(scope="module")
def door(enclave: Enclave) -> Iterator[Door]:
    door = Door(enclave, list(enclave.providers))
    yield door
    door.gateway.close()


def test_every_operation_is_asked_of_iam_and_refused_at_the_door(door: Door, nobody: tuple[str, str]) -> None:
    operations = list(door.implemented())
    assert len(operations) > 150
    assert door.walk(nobody) == {}


@pytest.mark.parametrize("installed", [True, False])
def test_braket_asks_iam_first_with_and_without_its_environment(
    enclave: Enclave, nobody: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, installed: bool
) -> None:
    devices = replace(enclave.quantum._devices, prefix=tmp_path if installed else None)
    monkeypatch.setattr(enclave.quantum, "_devices", devices)
    door = Door(enclave, [enclave.quantum.provider(lambda: None)])
    found = door.walk(nobody)
    door.gateway.close()
    assert found == {}


def test_operations_that_anybody_may_call(door: Door, nobody: tuple[str, str]) -> None:
    """They say who the caller is, and leave an entry."""
    for provider, operation in door.implemented():
        if operation.name in ANYBODY.get(operation.service.name, ()):
            assert operation.name in provider.unauthorized
            request = door.least(operation, nobody)
            assert request is not None
            reply = door.send(request)
            assert reply.status == 200
            assert any(entry.get("requestID") == reply.headers["x-amzn-requestid"] for entry in door.entries), operation


def test_deleting_many_objects_asks_for_each(door: Door, enclave: Enclave, nobody: tuple[str, str]) -> None:
    admin = enclave.identity.access_key("admin", Label.parse("UNCLASSIFIED"))

    def s3(method: str, path: str, key: tuple[str, str], query: str = "", body: bytes = b"") -> Reply:
        headers = [("Content-MD5", base64.b64encode(hashlib.md5(body).digest()).decode())]
        return door.send(
            door.signed("s3", method, path, query=query, headers=headers, body=body, key=key, region=REGION)
        )

    location = (
        f"<CreateBucketConfiguration><LocationConstraint>{REGION}</LocationConstraint></CreateBucketConfiguration>"
    )
    assert s3("PUT", "/door-walk", admin, body=location.encode()).status == 200
    assert s3("PUT", "/door-walk/kept", admin, body=b"x").status == 200
    reply = s3("POST", "/door-walk", nobody, "delete=", b"<Delete><Object><Key>kept</Key></Object></Delete>")
    assert (reply.status, b"<Code>AccessDenied</Code>" in reply.body) in ((200, True), (403, True)), reply.body
    assert s3("GET", "/door-walk/kept", admin).body == b"x"


def test_the_lists_of_exceptions_hold_nothing_that_is_gone(door: Door) -> None:
    known = {(operation.service.name, operation.name): provider for provider, operation in door.implemented()}
    for service, names in ON_EVERYTHING.items():
        for name in set(names.split()) - {"*"}:
            assert name not in known[service, name].targets, f"{service}:{name} has a target: strike it"
    for table in (ANYBODY, UNSIGNED, UNKNOWN_FIRST):
        for service, names in table.items():
            for name in names:
                assert name in known[service, name].unauthorized, f"{service}:{name} is asked at the door: strike it"
    for (service, name), provider in known.items():
        assert (name in provider.unsigned) == (name in UNSIGNED.get(service, ())), f"{service}:{name} is unsigned"


class Logs(Provider):
    """Two operations: one as it must be, one as the test wants it."""

    service = "logs"
    targets = {"CreateLogGroup": Target("logs:CreateLogGroup", "*")}  # noqa: RUF012

    def create_log_group(self, call: Call, request: Mapping[str, Any]) -> None:
        return None

    def delete_log_group(self, call: Call, request: Mapping[str, Any]) -> None:
        return None


class Unguarded(Gateway):
    """A gateway that forgot to ask."""

    def handlers(self, wire: Any) -> Any:
        kept = [handler for handler in super().handlers(wire) if getattr(handler, "__name__", "") != "authorize"]
        return tuple(kept)


class Unrecorded(Gateway):
    """A gateway that keeps no entry of refusals."""

    async def _refuse(self, exchange: Any, wire: Any, error: Exception) -> None:
        ledger, self.pipeline.ledger = self.pipeline.ledger, self._nothing()
        try:
            await super()._refuse(exchange, wire, error)
        finally:
            self.pipeline.ledger = ledger

    @staticmethod
    def _nothing() -> Any:
        from honmaru.testing.keep import MemoryLog

        return MemoryLog()


@pytest.mark.parametrize("sabotage", ["none", "no target", "unauthorized", "no door", "no entry"])
def test_sabotage_an_unguarded_operation_is_found(enclave: Enclave, nobody: tuple[str, str], sabotage: str) -> None:
    provider = Logs()
    good = {**Logs.targets, "DeleteLogGroup": Target("logs:DeleteLogGroup", "*")}
    if sabotage != "no target":
        provider.targets = good  # type: ignore[misc]
    if sabotage == "unauthorized":
        provider.unauthorized = frozenset({"DeleteLogGroup"})  # type: ignore[misc]
    kind = {"no door": Unguarded, "no entry": Unrecorded}.get(sabotage, Gateway)
    door = Door(enclave, [provider], kind)
    found = door.walk(nobody)
    door.gateway.close()
    expected = {
        "none": {},
        "no target": {"logs:DeleteLogGroup": "it states no IAM action and resource"},
        "unauthorized": {
            "logs:DeleteLogGroup": (
                "it is not asked at the door, and did its work for a principal without policies (200)"
            )
        },
        "no door": dict.fromkeys(
            ("logs:CreateLogGroup", "logs:DeleteLogGroup"), "it ran for a principal without policies (200)"
        ),
        "no entry": dict.fromkeys(
            ("logs:CreateLogGroup", "logs:DeleteLogGroup"), "its refusal stands in the ledger as []"
        ),
    }
    assert found == expected[sabotage]
