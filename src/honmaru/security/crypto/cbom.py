"""The inventory as a CycloneDX 1.6 cryptographic bill of materials (CBOM).

Each algorithm for each purpose is a component of type cryptographic-asset; whether CNSA 2.0 holds it is a property,
with the reason where it does not. Source: CycloneDX 1.6 (ECMA-424), "Cryptography Bill of Materials".
"""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from honmaru.security.crypto.inventory import INVENTORY, Algorithm

_PRIMITIVES: Mapping[str, tuple[str, tuple[str, ...]]] = {
    # what the source calls it: CycloneDX's primitive, its functions
    "AESGCM": ("ae", ("encrypt", "decrypt")),
    "AESSIV": ("ae", ("encrypt", "decrypt")),
    "argon2": ("kdf", ("keyderive",)),
    "ec": ("signature", ("keygen", "sign", "verify")),
    "ed25519": ("signature", ("keygen", "sign", "verify")),
    "hashes": ("hash", ("digest",)),
    "hmac": ("mac", ("tag", "verify")),
    "hmac-sha256": ("mac", ("tag", "verify")),
    "hmac-sha384": ("mac", ("tag", "verify")),
    "kbkdf": ("kdf", ("keyderive",)),
    "keywrap": ("ae", ("encrypt", "decrypt")),
    "md5": ("hash", ("digest",)),
    "mldsa": ("signature", ("keygen", "sign", "verify")),
    "mlkem": ("kem", ("keygen", "encapsulate", "decapsulate")),
    "padding": ("pke", ("encrypt", "decrypt", "sign", "verify")),
    "rsa": ("pke", ("keygen", "encrypt", "decrypt", "sign", "verify")),
    "scrypt": ("kdf", ("keyderive",)),
    "sha1": ("hash", ("digest",)),
    "sha256": ("hash", ("digest",)),
    "sha384": ("hash", ("digest",)),
    "sha512": ("hash", ("digest",)),
    "totp": ("mac", ("tag", "verify")),
    "twofactor": ("mac", ("tag", "verify")),
    "utils": ("signature", ("sign", "verify")),
}
_LEVELS = {"ML-DSA-87": 5, "ML-KEM-1024": 5, "AES-256-GCM": 5, "SHA-384": 4}
"""NIST's security category, where an algorithm is post-quantum or symmetric and has one."""


def cbom(version: str, at: datetime) -> dict[str, Any]:
    """The CBOM of this version of honmaru. `at` is the time it is made."""
    # One algorithm may be listed under several names of the source (`rsa` and `padding`): it is one component.
    components = list({made["bom-ref"]: made for made in map(_component, reversed(INVENTORY))}.values())[::-1]
    digest = hashlib.sha384(repr((version, INVENTORY)).encode()).digest()
    return {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": f"urn:uuid:{uuid.UUID(bytes=digest[:16], version=4)}",
        "version": 1,
        "metadata": {
            "timestamp": at.replace(microsecond=0).isoformat(),
            "component": {"type": "application", "bom-ref": "honmaru", "name": "honmaru", "version": version},
            "properties": [
                {"name": "honmaru:validation", "value": "algorithms only; no module in use is FIPS validated"}
            ],
        },
        "components": components,
        "dependencies": [{"ref": "honmaru", "dependsOn": [component["bom-ref"] for component in components]}],
    }


def _component(algorithm: Algorithm) -> dict[str, Any]:
    name = hashlib.sha384(repr((algorithm.name, algorithm.purpose, algorithm.where)).encode()).hexdigest()[:16]
    properties = [
        {"name": "honmaru:cnsa2.0", "value": "yes" if algorithm.cnsa else "no"},
        {"name": "honmaru:purpose", "value": algorithm.purpose},
        {"name": "honmaru:standard", "value": algorithm.standard},
        *({"name": "honmaru:where", "value": where} for where in algorithm.where),
    ]
    if algorithm.reason:
        properties.append({"name": "honmaru:reason", "value": algorithm.reason})
    if not algorithm.security:
        properties.append({"name": "honmaru:security", "value": "none: it protects against accidents only"})
    return {
        "type": "cryptographic-asset",
        "bom-ref": f"crypto/{name}",
        "name": algorithm.name,
        "cryptoProperties": _crypto(algorithm),
        "properties": properties,
    }


def _crypto(algorithm: Algorithm) -> dict[str, Any]:
    if algorithm.primitive == "ssl":
        return {"assetType": "protocol", "protocolProperties": {"type": "tls", "version": "1.2, 1.3"}}
    primitive, functions = _PRIMITIVES.get(algorithm.primitive, ("other", ()))
    properties: dict[str, Any] = {
        "primitive": primitive,
        "executionEnvironment": "software-plain-ram",
        "certificationLevel": ["none"],
        "cryptoFunctions": list(functions) or ["other"],
    }
    level = _LEVELS.get(algorithm.name)
    if level is not None:
        properties["nistQuantumSecurityLevel"] = level
    return {"assetType": "algorithm", "algorithmProperties": properties}
