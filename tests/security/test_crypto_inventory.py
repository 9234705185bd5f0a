"""Every primitive that the source names is in the cryptographic inventory."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import honmaru
from honmaru.security.crypto.inventory import INVENTORY, listed, outside_cnsa

SOURCE = Path(honmaru.__file__).parent
HASHES = {"md5", "sha1", "sha224", "sha256", "sha384", "sha512", "sha3_256", "sha3_384", "sha3_512", "shake_128",
          "shake_256", "blake2b", "blake2s", "scrypt", "pbkdf2_hmac"}  # fmt: skip
NO_PRIMITIVES = {"serialization", "hashes", "AsymmetricPadding", "Encoding"}


def primitives(tree: ast.AST) -> Iterator[str]:
    """Names of hashes, MACs, ciphers, signatures and transports that a module uses."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "hashlib":
            if node.attr in HASHES:
                yield node.attr
        elif (
            isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in ("digest", "new")
        ):
            if isinstance(node.func.value, ast.Name) and node.func.value.id in ("hmac", "hashlib"):
                kind = next(
                    (a.value for a in node.args if isinstance(a, ast.Constant) and isinstance(a.value, str)), "?"
                )
                yield f"hmac-{kind}" if node.func.value.id == "hmac" else kind
        elif isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("cryptography.hazmat"):
            last = node.module.rpartition(".")[2]
            if last in ("primitives", "asymmetric", "ciphers"):
                yield from (alias.name for alias in node.names if alias.name not in NO_PRIMITIVES)
            elif last == "aead":
                yield from (alias.name for alias in node.names)
            else:
                yield last
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name == "ssl")


def used() -> Iterator[tuple[str, str]]:
    """(primitive, module) over the whole product; `testing` is not part of it."""
    for path in sorted(SOURCE.rglob("*.py")):
        module = ".".join(("honmaru", *path.relative_to(SOURCE).with_suffix("").parts))
        if not module.startswith("honmaru.testing"):
            for primitive in set(primitives(ast.parse(path.read_bytes()))):
                yield primitive, module


def test_nothing_is_used_that_is_not_listed() -> None:
    assert [use for use in used() if not listed(*use)] == []


def test_the_finder_sees_what_it_must_see() -> None:
    code = """
import hashlib, hmac, ssl
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
hashlib.blake2b(b""); hashlib.new("md4"); hmac.digest(b"", b"", "md5")
"""
    found = set(primitives(ast.parse(code)))
    assert found == {"ssl", "ChaCha20Poly1305", "rsa", "x25519", "blake2b", "md4", "hmac-md5"}
    assert not any(listed(primitive, "honmaru.services.s3.object") for primitive in found)


def test_what_cnsa_does_not_hold_says_why_it_is_used() -> None:
    assert all(algorithm.reason for algorithm in outside_cnsa())
    assert all(algorithm.where and algorithm.standard for algorithm in INVENTORY)
    assert not any("FIPS validated" in algorithm.purpose + algorithm.reason for algorithm in INVENTORY)
