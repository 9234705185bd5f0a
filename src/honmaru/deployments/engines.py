"""Engines that an operator declares: model servers of others, as commands or URLs, each with a profile.

DATA/engines.json maps a model's id, as callers name it, to a declaration:

    {"meta.llama-guard": {"model": "llama-guard", "provider": "Meta", "features": ["tools"], "context_length": 8192,
        "command": ["python", "-m", "llama_cpp.server", "--model", "/opt/ml/model/m.gguf", "--port", "8000"],
        "environment": "llama-cpp", "files": "/srv/models/guard", "port": 8000, "max_label": "SECRET"},
     "acme.big": {"model": "big", "features": ["tools", "json_schema"],
        "replicas": [{"url": "http://127.0.0.1:9000", "label": "SECRET"}]}}

A command runs in the sandbox, one process for each account and label that asks, up to `max_label`. A URL is a process
that the operator runs: it is bound to one label and one account, and no other session is ever sent to it.

Invariants:
- A session that may not reach a model learns nothing of it: not found, not listed.
- Every mistake of the file is reported at once, and a file with a mistake declares nothing.
"""

from __future__ import annotations

import json
import re
import ssl
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from honmaru.core.conversation.model import FEATURES
from honmaru.core.conversation.native import FAMILIES
from honmaru.core.errors import ConfigurationFault, HonmaruError
from honmaru.core.labels import Label
from honmaru.core.sessions import Session
from honmaru.deployments.client import TcpPlace
from honmaru.deployments.dialects import DIALECTS, EMBEDDED, Dialect
from honmaru.deployments.placement import Wish
from honmaru.ports.models import ModelArtifact

_ID = re.compile(r"[a-z0-9-]{1,63}\.[a-z0-9][a-z0-9._:-]{0,95}")
_FAMILIES = frozenset(family.name for family in FAMILIES)


@dataclass(frozen=True, slots=True)
class Remote:
    """One process that the operator runs. `root` is the path below which the API lies, "/v1" as a rule."""

    place: TcpPlace
    root: str
    label: str
    account: str
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Engine:
    """One declaration; see the module. Sizes in bytes, times in seconds."""

    id: str
    model: str
    name: str
    provider: str
    features: frozenset[str]
    families: tuple[str, ...]
    context_length: int
    instruct: bool
    max_label: Label | None = None
    command: tuple[str, ...] = ()
    environment: str = ""
    files: Path | None = None
    port: int = 8000
    root: str = "/v1"
    health: str = "/v1/models"
    count_tokens: bool = False
    stream_usage: bool = True
    dialect: Dialect = EMBEDDED
    adapters: Mapping[str, str] = field(default_factory=dict)
    base: str = ""
    """Of an adapter: the id of the engine whose processes serve it; `model` is what they call it."""
    accelerators: Wish | None = None
    quality: float | None = None
    price: float | None = None
    remotes: tuple[Remote, ...] = ()
    replicas: int = 1
    requests: int = 64
    cpu: float = 2.0
    memory_bytes: int = 8 << 30
    start_s: float = 300.0
    variables: Mapping[str, str] = field(default_factory=dict)

    def remotes_for(self, session: Session) -> list[Remote]:
        """The URLs that a session may be sent to: those of exactly its label and account."""
        label = session.label.canonical
        return [one for one in self.remotes if one.label == label and one.account == session.account]

    def reachable(self, session: Session) -> bool:
        """Whether a session may ask this engine."""
        if self.command:
            return self.max_label is None or self.max_label.dominates(session.label)
        return bool(self.remotes_for(session))


class Engines:
    """Implements `ports.models.FoundationModels` over the file, which may change while the enclave runs.

    Args:
        account: The account that URLs serve when their declaration names none.
        problem: Told when a changed file cannot be used; the declarations before it stay in force.
    Raises:
        ConfigurationFault: The file, as it is at the start, has mistakes; all are listed.
    """

    def __init__(self, file: Path, *, account: str, problem: Callable[[str], None]) -> None:
        self._file, self._account, self._problem = file, account, problem
        self._stamp = self._now()
        self._engines = read_engines(file, account)

    def named(self, identifier: str) -> Engine | None:
        """The declaration of an id, as `find` and `all` last read it."""
        return self._engines.get(identifier)

    def find(self, session: Session, identifier: str) -> ModelArtifact | None:
        self._refresh()
        engine = self.named(identifier.rpartition("foundation-model/")[2] if identifier[:4] == "arn:" else identifier)
        if engine is None or not engine.reachable(session):
            return None
        model = _artifact(session, engine)
        return model if identifier in (engine.id, model.arn) else None

    def all(self, session: Session) -> Sequence[ModelArtifact]:
        self._refresh()
        return [
            _artifact(session, self._engines[name])
            for name in sorted(self._engines)
            if self._engines[name].reachable(session)
        ]

    def _now(self) -> tuple[int, int]:
        try:
            found = self._file.stat()
        except FileNotFoundError:
            return (0, 0)
        return (found.st_mtime_ns, found.st_size)

    def _refresh(self) -> None:
        stamp = self._now()
        if stamp == self._stamp:
            return
        self._stamp = stamp
        try:
            self._engines = read_engines(self._file, self._account)
        except ConfigurationFault as fault:
            self._problem(f"{self._file.name} changed and cannot be used; what was declared stays: {fault.message}")


def _artifact(session: Session, engine: Engine) -> ModelArtifact:
    return ModelArtifact(
        arn=f"arn:{session.partition}:bedrock:{session.region}::foundation-model/{engine.id}",
        name=engine.id,
        label=session.label.canonical,
        files={},
        architecture="",
        context_length=engine.context_length,
        instruct=engine.instruct,
        features=engine.features,
        engine=engine.id,
        families=engine.families,
        details={
            "provider": engine.provider,
            "name": engine.name,
            "quality": engine.quality,
            "price": engine.price,
        },
        arn_type="AWS::Bedrock::FoundationModel",
    )


def read_engines(file: Path, account: str) -> Mapping[str, Engine]:
    """The declarations of a file; none when it is absent. Raises ConfigurationFault with every mistake."""
    try:
        declared = json.loads(file.read_text("utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as fault:
        raise ConfigurationFault([f"{file} is not readable JSON ({fault}): repair or remove it"]) from fault
    if not isinstance(declared, dict):
        raise ConfigurationFault([f"{file} must hold an object of engines by model id"])
    problems: list[str] = []
    engines: dict[str, Engine] = {}
    for name, entry in declared.items():
        try:
            engine = engines[name] = read_engine(name, entry, account)
        except ConfigurationFault as fault:
            problems += [f"{file.name}: engine {name!r}: {one}" for one in fault.problems]
            continue
        for adapter, model in engine.adapters.items():
            if adapter in declared or adapter in engines:
                problems.append(f"{file.name}: engine {name!r}: adapter {adapter!r} has the id of another model")
            engines[adapter] = replace(engine, id=adapter, model=model, name=adapter, base=name, adapters={})
    if problems:
        raise ConfigurationFault(problems)
    return engines


_MEMBERS: Mapping[str, type | tuple[type, ...]] = {
    "model": str, "name": str, "provider": str, "features": list, "families": list, "context_length": int,
    "instruct": bool, "max_label": str, "command": list, "environment": str, "files": str, "port": int, "root": str,
    "health": str, "count_tokens": bool, "stream_usage": bool, "schema_as": str, "dialect": str,
    "adapters": dict, "accelerators": int, "accelerator": str, "accelerator_memory_gib": (int, float),
    "quality": (int, float), "price": (int, float),
    "replicas": (list, int), "requests": int,
    "cpu": (int, float), "memory_gib": (int, float), "start_s": (int, float), "variables": dict,
}  # fmt: skip


def read_engine(name: str, entry: Any, account: str) -> Engine:
    """One declaration, checked. Raises ConfigurationFault with every mistake."""
    if not isinstance(entry, dict):
        raise ConfigurationFault(["must be an object"])
    problems = [f"does not know {member!r}: leave it out" for member in entry if member not in _MEMBERS]
    for member, kind in _MEMBERS.items():
        if member in entry and (
            not isinstance(entry[member], kind) or (type(entry[member]) is bool and kind is not bool)
        ):
            problems.append(f"{member} is of the wrong type")
    if problems:
        raise ConfigurationFault(problems)
    if not _ID.fullmatch(name):
        problems.append("an id is provider.model, in letters a-z, digits and . _ : - (as in meta.llama-guard)")
    features, families = entry.get("features", []), entry.get("families", [])
    problems += [f"feature {one!r} is none of {', '.join(FEATURES)}" for one in features if one not in FEATURES]
    problems += [
        f"family {one!r} is none of {', '.join(sorted(_FAMILIES))}" for one in families if one not in _FAMILIES
    ]
    urls = entry.get("replicas") if isinstance(entry.get("replicas"), list) else []
    if bool(urls) == bool(entry.get("command")):
        problems.append("needs either a command or a list of replicas with their URLs")
    if entry.get("command") and not entry.get("environment"):
        problems.append("a command needs an environment (a name in environments.json)")
    if not all(isinstance(word, str) for word in entry.get("command", ())):
        problems.append("command must be a list of texts")
    if entry.get("schema_as", "json_schema") not in ("json_schema", "json_object"):
        problems.append("schema_as is json_schema or json_object")
    files = Path(entry["files"]) if "files" in entry else None
    if files is not None and not (files.is_absolute() and files.is_dir()):
        problems.append(f"files {str(files)!r} is not an absolute path of a directory")
    for adapter, served in entry.get("adapters", {}).items():
        if not _ID.fullmatch(adapter) or not isinstance(served, str) or not served:
            problems.append(f"adapter {adapter[:100]!r}: an id is provider.model, and the server's name for it a text")
    wish = None
    if entry.get("accelerators"):
        memory = int(entry.get("accelerator_memory_gib", 1) * (1 << 30))
        wish = Wish(entry["accelerators"], entry.get("accelerator", "cuda"), memory)
        if not entry.get("command") or not 1 <= wish.count <= 64 or wish.kind not in ("cuda", "neuron") or memory < 0:
            problems.append("accelerators is 1 to 64 for a command, accelerator cuda or neuron, their memory positive")
    if not 0 <= entry.get("quality", 0) <= 100 or entry.get("price", 0) < 0:
        problems.append("quality is a number from 0 to 100, price one from 0")
    limit = None
    if "max_label" in entry:
        limit = _label(entry["max_label"], problems)
    spoken = DIALECTS.get(entry.get("dialect", "openai"))
    if spoken is None:
        problems.append(f"dialect is one of {', '.join(DIALECTS)}")
        raise ConfigurationFault(problems)
    for beyond in sorted(set(features) & set(FEATURES) - spoken.features):
        problems.append(f"feature {beyond!r} is none that the dialect {entry['dialect']} can carry")
    dialect = spoken(entry.get("stream_usage", True), entry.get("schema_as", "json_schema"))
    root = entry.get("root", dialect.root)
    remotes = [_remote(one, account, root, dialect, problems) for one in urls or ()]
    if problems:
        raise ConfigurationFault(problems)
    return Engine(
        id=name,
        model=entry.get("model", name),
        name=entry.get("name", name),
        provider=entry.get("provider", "Declared"),
        features=frozenset(features),
        families=tuple(families),
        context_length=entry.get("context_length", 4096),
        instruct=entry.get("instruct", True),
        max_label=limit,
        command=tuple(entry.get("command", ())),
        environment=entry.get("environment", ""),
        files=files,
        port=entry.get("port", 8000),
        root=root,
        health=entry.get("health", dialect.health),
        count_tokens=entry.get("count_tokens", False),
        stream_usage=entry.get("stream_usage", True),
        dialect=dialect,
        adapters=dict(entry.get("adapters", {})),
        accelerators=wish,
        quality=entry.get("quality"),
        price=entry.get("price"),
        remotes=tuple(one for one in remotes if one is not None),
        replicas=entry["replicas"] if isinstance(entry.get("replicas"), int) else 1,
        requests=entry.get("requests", 64),
        cpu=float(entry.get("cpu", 2)),
        memory_bytes=int(entry.get("memory_gib", 8) * (1 << 30)),
        start_s=float(entry.get("start_s", 300)),
        variables={str(key): str(value) for key, value in entry.get("variables", {}).items()},
    )


def _label(text: Any, problems: list[str]) -> Label | None:
    try:
        return Label.parse(str(text))
    except HonmaruError as fault:
        problems.append(f"label {str(text)[:100]!r}: {fault}")
        return None


def _remote(entry: Any, account: str, root: str, dialect: Dialect, problems: list[str]) -> Remote | None:
    if not isinstance(entry, dict) or not isinstance(entry.get("url"), str) or "label" not in entry:
        problems.append("a replica needs a url and the label that it serves")
        return None
    unknown = sorted(set(entry) - {"url", "label", "account", "authorization_file"})
    if unknown:
        problems.append(f"a replica does not know {unknown[0]!r}")
    parts = urlsplit(entry["url"])
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.path.strip("/") or parts.query:
        problems.append(f"url {entry['url']!r} must be http(s)://host:port; its path is the member root")
        return None
    label = _label(entry["label"], problems)
    secret = ""
    if "authorization_file" in entry:
        try:
            secret = Path(entry["authorization_file"]).read_text("utf-8").strip()
        except (OSError, ValueError) as fault:
            problems.append(f"authorization_file cannot be read: {type(fault).__name__}")
    tls = ssl.create_default_context() if parts.scheme == "https" else None
    place = TcpPlace(parts.hostname, parts.port or (443 if tls else 80), tls)
    if not secret.isprintable() or not secret.isascii():
        problems.append("authorization_file must hold one line of printable ASCII")
        secret = ""
    headers = dialect.headers(secret)
    return Remote(place, root, label.canonical, str(entry.get("account", account)), headers) if label else None
