"""A job's broker serves the workload that it was made for, under its own short-lived identity, and nobody else."""

from __future__ import annotations

import json
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from honmaru.core.labels import Label
from honmaru.core.sessions import Session
from honmaru.jobs.job_broker import Endpoint, JobBrokers
from honmaru.security.crypto.workload_identity import LABEL_OID, LIFETIME, WorkloadAuthority, spiffe_id
from honmaru.testing.keep import ACCOUNT, session
from honmaru.workloads.broker import Identity

LOW, HIGH = session("UNCLASSIFIED"), session("SECRET")


class Now:
    """The real time, which TLS compares with, moved by `ahead`."""

    ahead = timedelta()

    def now(self) -> datetime:
        return datetime.now(UTC) + self.ahead

    def monotonic(self) -> float:
        return 0.0


class Site:
    def __init__(self, directory: Path) -> None:
        self.clock = Now()
        self.authority = WorkloadAuthority("us-iso-east-1", self.clock.now())
        self.enclave = socket.create_server(("127.0.0.1", 0))
        threading.Thread(target=self._echo, daemon=True).start()
        self.handed: list[Session] = []
        self.brokers = JobBrokers(
            directory,
            lambda: Endpoint("127.0.0.1", self.enclave.getsockname()[1], None),
            self._keys,
            self.authority,
            self.clock,
        )

    def _echo(self) -> None:
        while True:
            try:
                connection, _ = self.enclave.accept()
            except OSError:
                return
            with connection:
                while data := connection.recv(4096):
                    connection.sendall(data.upper())

    def _keys(self, who: Session, seconds: int) -> dict[str, str]:
        self.handed.append(who)
        return {
            "AccessKeyId": f"key of {who.label.banner}",
            "SecretAccessKey": "s",
            "Token": "t",
            "Expiration": str(seconds),
        }

    def document(self, folder: Path) -> dict[str, Any]:
        with socket.socket(socket.AF_UNIX) as outside:
            outside.connect(str(folder / "svid"))
            found = b""
            while chunk := outside.recv(65536):
                found += chunk
        document: dict[str, Any] = json.loads(found)
        return document

    def keys(self, identity: Identity) -> bytes:
        found = b""
        with identity.connect("credentials") as outside:
            while chunk := outside.recv(4096):
                found += chunk
        return found


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    made = Site(tmp_path / "b")
    yield made
    for job in ("one", "two", "high"):
        made.brokers.close(job)
    made.enclave.close()


def moved(folder: Path, document: dict[str, Any], tmp_path: Path) -> Identity:
    """An identity that brings `document` to the sockets of `folder`."""
    identity = Identity(folder)
    pem = tmp_path / "stolen.pem"
    pem.write_text(document["certificate"] + document["key"])
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.load_verify_locations(cadata=document["bundle"])
    context.load_cert_chain(pem)
    identity._context, identity._until, identity._broker = context, float("inf"), document["broker"]
    identity._current = lambda: (context, document["broker"])  # type: ignore[method-assign]
    return identity


def refused(site: Site, identity: Identity) -> None:
    """Nothing is handed out and nothing is carried."""
    for name in ("credentials", "aws"):
        with pytest.raises((OSError, ssl.SSLError)), identity.connect(name) as outside:
            outside.sendall(b"hello")
            if outside.recv(100) == b"":
                raise ssl.SSLError("closed without an answer")
    assert site.handed == []


def test_the_workload_itself_is_served(site: Site) -> None:
    identity = Identity(site.brokers.open("one", LOW, "sagemaker/training-job/one"))
    assert json.loads(site.keys(identity))["AccessKeyId"] == "key of UNCLASSIFIED"
    with identity.connect("aws") as outside:
        outside.sendall(b"hello")
        assert outside.recv(100) == b"HELLO"


def test_an_identity_is_minutes_long_and_says_workload_account_and_label(site: Site) -> None:
    document = site.document(site.brokers.open("high", HIGH, "sagemaker/training-job/high"))
    certificate = x509.load_pem_x509_certificate(document["certificate"].encode())
    assert certificate.not_valid_after_utc - site.clock.now() <= LIFETIME <= timedelta(minutes=15)
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    expected = spiffe_id("us-iso-east-1.honmaru", HIGH.label, ACCOUNT, "sagemaker/training-job/high")
    assert names.get_values_for_type(x509.UniformResourceIdentifier) == [expected]
    extension = certificate.extensions.get_extension_for_oid(LABEL_OID).value
    assert isinstance(extension, x509.UnrecognizedExtension)
    assert extension.value.decode() == HIGH.label.banner
    assert not certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    authority = x509.load_pem_x509_certificate(document["bundle"].encode())
    key = authority.public_key()
    assert isinstance(key, ec.EllipticCurvePublicKey)
    certificate.verify_directly_issued_by(authority)


def test_labels_and_accounts_never_share_an_identity() -> None:
    labels = ["UNCLASSIFIED", "SECRET", "SECRET//NOFORN", "SECRET//SI", "TOP SECRET//SI-G/TK//ORCON/NOFORN"]
    made = {spiffe_id("d", Label.parse(text), account, "w") for text in labels for account in ("1", "2")}
    different = len({Label.parse(text).canonical for text in labels})
    assert len(made) == 2 * different
    assert all(set(each) <= set("abcdefghijklmnopqrstuvwxyz0123456789:/.-_") for each in made)


def test_another_jobs_identity_is_nothing_here(site: Site, tmp_path: Path) -> None:
    site.brokers.open("one", LOW, "sagemaker/training-job/one")
    other = site.brokers.open("two", LOW, "sagemaker/training-job/two")
    stolen = site.document(site.brokers.folder("one"))
    refused(site, moved(other, stolen, tmp_path))


def test_the_same_job_at_another_label_or_account_is_another(site: Site, tmp_path: Path) -> None:
    site.brokers.open("one", LOW, "sagemaker/training-job/same")
    high = site.brokers.open("high", HIGH, "sagemaker/training-job/same")
    refused(site, moved(high, site.document(site.brokers.folder("one")), tmp_path))
    elsewhere = replace(LOW, account="999999999999")
    there = site.brokers.open("two", elsewhere, "sagemaker/training-job/same")
    refused(site, moved(there, site.document(site.brokers.folder("one")), tmp_path))


def test_an_expired_identity_and_one_of_another_authority_are_nothing(site: Site, tmp_path: Path) -> None:
    folder = site.brokers.open("one", LOW, "sagemaker/training-job/one")
    site.clock.ahead = -LIFETIME - timedelta(minutes=2)
    old = site.document(folder)
    site.clock.ahead = timedelta()
    refused(site, moved(folder, old, tmp_path))
    stranger = WorkloadAuthority("us-iso-east-1", site.clock.now())
    svid = stranger.issue(ACCOUNT, LOW.label, "sagemaker/training-job/one", site.clock.now())
    forged = {**site.document(folder), "certificate": svid.certificate.decode(), "key": svid.key.decode()}
    refused(site, moved(folder, forged, tmp_path))


def test_without_an_identity_there_is_nothing(site: Site) -> None:
    folder = site.brokers.open("one", LOW, "sagemaker/training-job/one")
    for name in ("credentials", "aws"):
        with socket.socket(socket.AF_UNIX) as bare:
            bare.settimeout(5)
            bare.connect(str(folder / name))
            said = b""
            with suppress(ConnectionError):
                bare.sendall(b"GET / HTTP/1.1\r\n\r\n")
                said = bare.recv(4096)
            assert b"AccessKeyId" not in said
    bare_context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    bare_context.check_hostname = False
    bare_context.load_verify_locations(cadata=site.document(folder)["bundle"])
    identity = Identity(folder)
    identity._current = lambda: (bare_context, site.document(folder)["broker"])  # type: ignore[method-assign]
    refused(site, identity)


def test_a_workload_takes_no_other_broker_for_its_own(site: Site) -> None:
    folder = site.brokers.open("one", LOW, "sagemaker/training-job/one")
    identity = Identity(folder)
    context, _ = identity._current()
    identity._current = lambda: (context, "spiffe://us-iso-east-1.honmaru/somebody")  # type: ignore[method-assign]
    with pytest.raises(ssl.SSLError):
        identity.connect("credentials")


def test_after_a_restart_of_the_enclave_a_running_workload_finds_its_way_again(site: Site) -> None:
    identity = Identity(site.brokers.open("one", LOW, "sagemaker/training-job/one"))
    assert site.keys(identity)
    site.brokers.close("one")
    site.brokers._authority = WorkloadAuthority("us-iso-east-1", site.clock.now())
    site.brokers.open("one", LOW, "sagemaker/training-job/one")
    assert json.loads(site.keys(identity))["AccessKeyId"] == "key of UNCLASSIFIED"
