"""The private CA and the server certificate: names, renewal, modes of key files."""

from __future__ import annotations

import ssl
import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from honmaru.core.errors import ConfigurationFault
from honmaru.security.crypto.certificates import ensure_server_tls

NOW = datetime(2026, 11, 23, tzinfo=UTC)


def _make(directory: Path, now: datetime = NOW, **names: object):  # type: ignore[no-untyped-def]
    return ensure_server_tls(directory / "keys", directory / "tls", region="us-isob-east-1", now=now, **names)  # type: ignore[arg-type]


def test_keys_are_p384_and_closed_to_others(tmp_path: Path) -> None:
    tls = _make(tmp_path)
    certificate = x509.load_pem_x509_certificate(tls.certificate.read_bytes())
    key = certificate.public_key()
    assert isinstance(key, ec.EllipticCurvePublicKey)
    assert isinstance(key.curve, ec.SECP384R1)
    assert certificate.signature_hash_algorithm is not None
    assert certificate.signature_hash_algorithm.name == "sha384"
    for path in (tmp_path / "keys").iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_the_certificate_chains_to_the_ca_for_loopback_only(tmp_path: Path) -> None:
    tls = _make(tmp_path)
    ca = x509.load_pem_x509_certificate(tls.ca.read_bytes())
    leaf = x509.load_pem_x509_certificate(tls.certificate.read_bytes())
    leaf.verify_directly_issued_by(ca)
    assert not leaf.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["localhost", "s3.localhost", "*.s3.localhost"]
    context = ssl.create_default_context(cafile=str(tls.ca))
    assert context.cert_store_stats()["x509_ca"] == 1


def test_a_second_start_keeps_both_and_an_old_leaf_is_replaced(tmp_path: Path) -> None:
    first = _make(tmp_path)
    before = first.certificate.read_bytes(), first.ca.read_bytes()
    again = _make(tmp_path, NOW + timedelta(days=300))
    assert (again.certificate.read_bytes(), again.ca.read_bytes()) == before
    late = _make(tmp_path, NOW + timedelta(days=370))
    assert late.certificate.read_bytes() != before[0]
    assert late.ca.read_bytes() == before[1]


def test_other_names_make_another_leaf(tmp_path: Path) -> None:
    before = _make(tmp_path).certificate.read_bytes()
    assert _make(tmp_path, names=("localhost", "127.0.0.1")).certificate.read_bytes() != before


def test_a_readable_key_is_refused(tmp_path: Path) -> None:
    _make(tmp_path)
    (tmp_path / "keys" / "ca.key.pem").chmod(0o644)
    with pytest.raises(ConfigurationFault, match="chmod"):
        _make(tmp_path)
