"""Identities of workloads: SPIFFE X.509-SVIDs, minutes long, from an authority that lives as long as the enclave runs.

Invariants:
- The authority's key is made at start, kept in memory and nowhere else: what it signed ends with it.
- An SVID names one workload at one label, in its only URI; it is good for `LIFETIME` and for nothing but TLS.
- A peer is believed for its SPIFFE ID alone, after its chain and times were verified.

Source: SPIFFE X.509-SVID 2-5; SPIFFE ID 2; RFC 5280; NIST SP 800-207A (identities of workloads).
"""

from __future__ import annotations

import base64
import os
import ssl
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID, ObjectIdentifier

from honmaru.core.labels import Label

LIFETIME = timedelta(minutes=10)
LABEL_OID = ObjectIdentifier("2.25.213186742159820317465029384756102938475")
"""An extension that holds the label's banner as UTF-8 (2.25: an arc of UUIDs, which nobody needs to assign)."""
_BACKDATED = timedelta(minutes=1)
_AUTHORITY = timedelta(days=3650)


@dataclass(frozen=True, slots=True)
class Svid:
    """An identity with its key. `bundle` is the authority that verifies the peers of this enclave."""

    spiffe_id: str
    certificate: bytes
    key: bytes = field(repr=False)
    bundle: bytes
    expires: datetime


def spiffe_id(trust_domain: str, label: Label, account: str, workload: str) -> str:
    """`spiffe://<domain>/label/<token>/account/<number>/<workload>`; the token is the label's canonical text, base32.

    `workload` is path segments of letters, digits, dots, hyphens and underscores, as SPIFFE allows them.
    """
    token = base64.b32encode(label.canonical.encode()).decode().rstrip("=").lower()
    return f"spiffe://{trust_domain}/label/{token}/account/{account}/{workload}"


class WorkloadAuthority:
    """The authority of one enclave. Thread-safe.

    Args:
        region: Names the trust domain, `<region>.honmaru`.
        now: Aware UTC.
    """

    def __init__(self, region: str, now: datetime) -> None:
        self.trust_domain = f"{region}.honmaru"
        self._key = ec.generate_private_key(ec.SECP384R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"honmaru workloads {region}")])
        uri = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(f"spiffe://{self.trust_domain}")])
        certificate = (
            _begun(self._name, self._name, self._key.public_key(), now, now + _AUTHORITY)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_usage(signs=True), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(self._key.public_key()), critical=False)
            .add_extension(uri, critical=False)
            .sign(self._key, hashes.SHA384())
        )
        self.bundle = certificate.public_bytes(serialization.Encoding.PEM)

    def issue(self, account: str, label: Label, workload: str, now: datetime) -> Svid:
        """An SVID of a workload, with a new key."""
        key = ec.generate_private_key(ec.SECP384R1())
        identity = spiffe_id(self.trust_domain, label, account, workload)
        name = x509.Name([x509.NameAttribute(NameOID.ORGANIZATION_NAME, "honmaru workload")])
        expires = now + LIFETIME
        certificate = (
            _begun(name, self._name, key.public_key(), now, expires)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(signs=False), critical=True)
            .add_extension(
                x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH]),
                critical=False,
            )
            .add_extension(x509.SubjectAlternativeName([x509.UniformResourceIdentifier(identity)]), critical=False)
            .add_extension(x509.UnrecognizedExtension(LABEL_OID, label.banner.encode()), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False)
            .sign(self._key, hashes.SHA384())
        )
        return Svid(
            identity,
            certificate.public_bytes(serialization.Encoding.PEM),
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            ),
            self.bundle,
            expires,
        )


def server_context(svid: Svid) -> ssl.SSLContext:
    """TLS 1.3 that shows `svid` and takes only peers whose chain ends at its bundle; see `peer_id`."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.num_tickets = 0  # an identity of minutes is not prolonged by resumption
    context.verify_mode = ssl.CERT_REQUIRED
    return _with(context, svid)


def client_context(svid: Svid) -> ssl.SSLContext:
    """TLS 1.3 to a workload: shows `svid`, takes only peers whose chain ends at its bundle; compare their SPIFFE ID."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False
    return _with(context, svid)


def _with(context: ssl.SSLContext, svid: Svid) -> ssl.SSLContext:
    context.load_verify_locations(cadata=svid.bundle.decode())
    # OpenSSL reads keys from files only: one in memory, gone when this returns.
    handle = os.memfd_create("svid", os.MFD_CLOEXEC)
    try:
        os.write(handle, svid.certificate + svid.key)
        context.load_cert_chain(f"/proc/self/fd/{handle}")
    finally:
        os.close(handle)
    return context


def peer_id(connection: ssl.SSLSocket) -> str:
    """The SPIFFE ID of the verified peer of a connection; "" when its certificate has none, or several URIs."""
    return shown_id(connection.getpeercert())


def shown_id(certificate: Any) -> str:
    """The SPIFFE ID in a verified certificate as `ssl` tells it; "" when it has none, or several URIs."""
    shown: Any = certificate or {}
    uris = [str(value) for kind, value in shown.get("subjectAltName", ()) if kind == "URI"]
    return uris[0] if len(uris) == 1 and uris[0].startswith("spiffe://") else ""


def _begun(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, now: datetime, until: datetime
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder(issuer, subject, key, x509.random_serial_number())
        .not_valid_before(now - _BACKDATED)
        .not_valid_after(until)
    )


def _usage(*, signs: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs,
        crl_sign=signs,
        encipher_only=False,
        decipher_only=False,
    )
