"""The enclave's private certificate authority and its server certificate.

Invariants:
- Keys are P-384 (ECDSA with SHA-384), the classical curve that today's stock clients can verify; private keys lie in
  files of mode 0600 and never leave them.
- The CA signs one thing: the server certificate of this enclave, for loopback names, and for AWS's host names of its
  region when the operator asks for them (`honmaru up --real-hostnames`).
- A server certificate with less than 30 days to run is replaced at start.

Source: RFC 5280; CA/Browser Forum's 398-day limit for leaf certificates.
"""

from __future__ import annotations

import datetime
import ipaddress
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from honmaru.core.errors import ConfigurationFault
from honmaru.security.crypto.secret_files import read_or_create

_RENEW_BEFORE = datetime.timedelta(days=30)
LOOPBACK_NAMES = ("localhost", "127.0.0.1", "::1", "s3.localhost", "*.s3.localhost")
"""The last two are for S3 in virtual-host style; verifiers take no wildcard directly below a top level."""


@dataclass(frozen=True, slots=True)
class ServerTls:
    """Paths of PEM files. `ca` is what clients trust (AWS_CA_BUNDLE)."""

    ca: Path
    certificate: Path
    key: Path


def _new_key() -> bytes:
    return ec.generate_private_key(ec.SECP384R1()).private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _load(pem: bytes) -> ec.EllipticCurvePrivateKey:
    key = serialization.load_pem_private_key(pem, password=None)
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise ConfigurationFault(["a TLS key file holds another kind of key than P-384: move it away and start again"])
    return key


def _key_usage(*, ca: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not ca,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=ca,
        crl_sign=ca,
        encipher_only=False,
        decipher_only=False,
    )


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePrivateKey,
    issuer_key: ec.EllipticCurvePrivateKey,
    now: datetime.datetime,
    days: int,
    *,
    ca: bool,
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(minutes=5))
        .not_valid_after(now + datetime.timedelta(days=days))
        .add_extension(x509.BasicConstraints(ca=ca, path_length=0 if ca else None), critical=True)
        .add_extension(_key_usage(ca=ca), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()), critical=False)
    )


def ensure_server_tls(
    keys: Path,
    published: Path,
    *,
    region: str,
    now: datetime.datetime,
    names: Sequence[str] = LOOPBACK_NAMES,
    kept: Callable[[Path, Callable[[], bytes]], bytes] = read_or_create,
) -> ServerTls:
    """Make or load the CA and a current server certificate for `names`.

    Args:
        keys: directory of private keys (0700).
        published: directory of the certificates, which are not secret.
        now: aware UTC.
        kept: keeps the CA's private key; the server's must lie in a plain file, for that is how it is read.
    Raises:
        ConfigurationFault: a key file is readable by others.
    """
    published.mkdir(parents=True, exist_ok=True)
    ca_key = _load(kept(keys / "ca.key.pem", _new_key))
    ca_path, leaf_path = published / "ca.pem", published / "server.pem"
    organisation = x509.NameAttribute(NameOID.ORGANIZATION_NAME, "honmaru enclave")
    ca_name = x509.Name([organisation, x509.NameAttribute(NameOID.COMMON_NAME, f"honmaru private CA {region}")])
    if not ca_path.exists():
        certificate = _builder(ca_name, ca_name, ca_key, ca_key, now, 3650, ca=True).sign(ca_key, hashes.SHA384())
        ca_path.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    leaf_key_path = keys / "server.key.pem"
    leaf_key = _load(read_or_create(leaf_key_path, _new_key))
    if not _is_current(leaf_path, leaf_key, now, names):
        leaf_name = x509.Name([organisation, x509.NameAttribute(NameOID.COMMON_NAME, names[0])])
        alternatives = x509.SubjectAlternativeName([_general_name(name) for name in names])
        certificate = (
            _builder(leaf_name, ca_name, leaf_key, ca_key, now, 397, ca=False)
            .add_extension(alternatives, critical=False)
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
            .sign(ca_key, hashes.SHA384())
        )
        leaf_path.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    return ServerTls(ca=ca_path, certificate=leaf_path, key=leaf_key_path)


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _is_current(path: Path, key: ec.EllipticCurvePrivateKey, now: datetime.datetime, names: Sequence[str]) -> bool:
    if not path.exists():
        return False
    certificate = x509.load_pem_x509_certificate(path.read_bytes())
    held = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return (
        certificate.public_key() == key.public_key()
        and certificate.not_valid_after_utc - now > _RENEW_BEFORE
        and set(held) == {_general_name(name) for name in names}
    )
