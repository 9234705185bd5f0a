"""The software environments that jobs may name as image URI.

An image URI names an environment by its repository name: `<account>.dkr.ecr.<region>.<suffix>/pytorch:latest`,
`pytorch:latest` and `pytorch` are the same. Nothing is ever pulled: a name that the enclave does not know is refused.

Invariants:
- The built-in environments always exist and cannot be replaced by the file.
- An environment has an absolute prefix that is a Python environment, and a digest of what is installed there.
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path

from honmaru.core.errors import ConfigurationFault, ValidationFault
from honmaru.ports.executors import Environment

_IMAGE = re.compile(
    r"(?:[a-z0-9.-]+(?::\d+)?/)?(?:[a-z0-9._-]+/)*(?P<name>[a-z0-9][a-z0-9._-]*)"
    r"(?::(?P<tag>[\w][\w.-]{0,127}))?(?:@(?P<digest>sha\d+:[0-9a-f]+))?",
    re.IGNORECASE,
)

MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"

_BUILT_IN = (
    ("pytorch", "honmaru.workloads.script", "Script mode: runs your SageMaker PyTorch script unmodified."),
    ("honmaru-lm", "honmaru.workloads.language_model", "Pretrains a Llama-architecture language model on UTF-8 text."),
    ("serve", "honmaru.workloads.server", "The embedded model server."),
)
_QUANTUM = ("braket", "honmaru.workloads.quantum.job", "Quantum simulators and hybrid jobs (`make install-quantum`).")


class Environments:
    """The environments of this enclave: built-in ones over `prefix`, and those of `file`.

    Args:
        file: DATA/environments.json: {name: {"prefix", "digest", "entry_module", "description"}}; may be absent.
        prefix: The Python environment (sys.prefix) behind the built-in environments.
        quantum: The Python environment behind `braket`; None when it is not installed.
    Raises:
        ConfigurationFault: the file does not parse, with every entry that is wrong.
    """

    def __init__(self, file: Path, prefix: str = sys.prefix, quantum: Path | None = None) -> None:
        self._file = file
        digest = installed_digest(Path(prefix))
        self._known = {name: Environment(name, prefix, digest, entry, text) for name, entry, text in _BUILT_IN}
        if quantum is not None:
            name, entry, text = _QUANTUM
            self._known[name] = Environment(name, str(quantum), installed_digest(quantum), entry, text)
        self._built_in = frozenset({*self._known, _QUANTUM[0]})
        self._known.update(_read(file, self._built_in))

    def all(self) -> list[Environment]:
        """All environments, by name."""
        return [self._known[name] for name in sorted(self._known)]

    def named(self, name: str) -> Environment:
        """Raises ValidationFault for an unknown name."""
        if name not in self._known:
            raise ValidationFault(
                f"environment {name!r} is not known to this enclave; it knows {', '.join(sorted(self._known))}"
            )
        return self._known[name]

    def resolve(self, image: str) -> Environment:
        """The environment that an image URI names. Raises ValidationFault when there is none."""
        match = _IMAGE.fullmatch(image)
        if match is None:
            raise ValidationFault(f"image {image!r} is not an image URI")
        name = match["name"].lower()
        if name not in self._known:
            raise ValidationFault(
                f"image {image!r} names no environment of this enclave: nothing is ever pulled. "
                f"Known environments: {', '.join(sorted(self._known))}"
            )
        known = self._known[name]
        if match["digest"] and match["digest"] not in (known.digest, image_digest(known)):
            raise ValidationFault(f"image {image!r} names a digest that is not the one of environment {name!r}")
        return self._known[name]

    def add(self, environment: Environment) -> None:
        """Register an environment and store it in the file. Raises ValidationFault for a built-in or bad one."""
        if environment.name in self._built_in:
            raise ValidationFault(f"environment {environment.name!r} is built in")
        problem = _problem(environment)
        if problem:
            raise ValidationFault(problem)
        if not environment.digest:
            environment = replace(environment, digest=installed_digest(Path(environment.prefix)))
        self._known[environment.name] = environment
        stored = {
            known.name: {key: value for key, value in asdict(known).items() if key != "name"}
            for known in self.all()
            if known.name not in self._built_in
        }
        partial = self._file.with_suffix(".partial")
        partial.write_text(json.dumps(stored, indent=2) + "\n")
        partial.replace(self._file)


def image_manifest(environment: Environment) -> bytes:
    """An environment as registries describe images: an OCI image manifest without layers, the same for the same
    content. What is installed is named by its digest in an annotation; nothing of it can be pulled.

    Source: OCI image specification 1.1, "Guidelines for Artifact Usage".
    """
    empty = {
        "mediaType": "application/vnd.oci.empty.v1+json",
        "digest": f"sha256:{hashlib.sha256(b'{}').hexdigest()}",
        "size": 2,
    }
    manifest = {
        "schemaVersion": 2,
        "mediaType": MANIFEST_TYPE,
        "artifactType": "application/vnd.honmaru.environment.v1",
        "config": empty,
        "layers": [empty],
        "annotations": {
            "org.opencontainers.image.title": environment.name,
            "org.opencontainers.image.description": environment.description,
            "honmaru.environment.digest": environment.digest,
            "honmaru.environment.entry": environment.entry_module,
        },
    }
    return json.dumps(manifest, sort_keys=True, separators=(",", ":")).encode()


def image_digest(environment: Environment) -> str:
    """What registries call the environment's image: `sha256:` of its manifest."""
    return f"sha256:{hashlib.sha256(image_manifest(environment)).hexdigest()}"


def installed_digest(prefix: Path) -> str:
    """`sha384:` over the names, versions and RECORD files (which hold a hash of every file) of what is installed."""
    digest = hashlib.sha384()
    configuration = prefix / "pyvenv.cfg"
    if configuration.exists():
        digest.update(configuration.read_bytes())
    for folder in sorted(prefix.glob("lib/python*/site-packages/*.dist-info")):
        record = folder / "RECORD"
        digest.update(folder.name.encode() + b"\0")
        digest.update(hashlib.sha384(record.read_bytes() if record.exists() else b"").digest())
    return f"sha384:{digest.hexdigest()}"


def _read(file: Path, taken: frozenset[str]) -> Mapping[str, Environment]:
    if not file.exists():
        return {}
    try:
        entries = json.loads(file.read_text())
    except ValueError as fault:
        raise ConfigurationFault([f"{file} is not JSON ({fault}): repair or remove it"]) from fault
    if not isinstance(entries, dict):
        raise ConfigurationFault([f"{file} must hold an object of environments by name"])
    problems: list[str] = []
    found: dict[str, Environment] = {}
    for name, entry in entries.items():
        try:
            environment = Environment(name=name, **entry)
        except TypeError as fault:
            problems.append(f"{file}: environment {name!r}: {fault}")
            continue
        problem = f"environment {name!r} is built in" if name in taken else _problem(environment)
        if problem:
            problems.append(f"{file}: {problem}")
        found[name] = environment
    if problems:
        raise ConfigurationFault(problems)
    return found


def _problem(environment: Environment) -> str | None:
    prefix = Path(environment.prefix)
    if not re.fullmatch(r"[a-z0-9][a-z0-9._-]{0,62}", environment.name):
        return f"{environment.name!r} is not a name of an environment: use a-z, 0-9, dot, dash and underscore"
    if not prefix.is_absolute() or not (prefix / "bin" / "python").exists():
        return f"environment {environment.name!r}: {prefix} is not a Python environment (no bin/python)"
    if not re.fullmatch(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*", environment.entry_module):
        return f"environment {environment.name!r}: {environment.entry_module!r} is not a module name"
    return None
