"""AssumeRoleWithWebIdentity: a whole OpenID Connect flow with an issuer on this machine, through unmodified boto3."""

from __future__ import annotations

import base64
import hashlib
import http.server
import json
import ssl
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore import UNSIGNED
from botocore.config import Config
from botocore.exceptions import ClientError
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256, SHA384
from cryptography.x509.oid import NameOID

from honmaru.testing.enclaves import LiveEnclave


def text(octets: bytes) -> str:
    return base64.urlsafe_b64encode(octets).decode().rstrip("=")


def number(value: int) -> str:
    return text(value.to_bytes((value.bit_length() + 7) // 8))


class Issuer:
    """An OpenID Connect issuer over TLS on loopback, with an RSA and an EC key."""

    def __init__(self, directory: Path) -> None:
        self.rsa = rsa.generate_private_key(65537, 2048)
        self.ec = ec.generate_private_key(ec.SECP256R1())
        self.asked = 0
        key = ec.generate_private_key(ec.SECP384R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "issuer")])
        now = datetime.now(UTC)
        certificate = (
            x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
            .not_valid_before(now - timedelta(minutes=1))
            .not_valid_after(now + timedelta(days=1))
            .sign(key, SHA384())
        )
        self.thumbprint = hashlib.sha1(certificate.public_bytes(serialization.Encoding.DER)).hexdigest()
        pem = directory / "issuer.pem"
        pem.write_bytes(
            certificate.public_bytes(serialization.Encoding.PEM)
            + key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )
        issuer = self

        class Pages(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                issuer.asked += 1
                pages = {
                    "/.well-known/openid-configuration": {"issuer": issuer.url, "jwks_uri": f"{issuer.url}/keys"},
                    "/keys": {"keys": issuer.keys()},
                }
                body = json.dumps(pages.get(self.path)).encode()
                self.send_response(200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: Any) -> None:
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Pages)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(pem)
        self.server.socket = context.wrap_socket(self.server.socket, server_side=True)
        self.url = f"https://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def keys(self) -> list[dict[str, str]]:
        modulus, point = self.rsa.public_key().public_numbers(), self.ec.public_key().public_numbers()
        return [
            {"kty": "RSA", "kid": "r", "use": "sig", "n": number(modulus.n), "e": number(modulus.e)},
            {"kty": "EC", "kid": "e", "crv": "P-256", "x": text(point.x.to_bytes(32)), "y": text(point.y.to_bytes(32))},
        ]

    def token(self, algorithm: str = "RS256", *, kid: str | None = None, **claims: Any) -> str:
        now = int(time.time())
        header = {"alg": algorithm, "kid": kid or algorithm[0].lower()}
        full = {"iss": self.url, "sub": "ann", "aud": "honmaru", "iat": now, "exp": now + 300, **claims}
        signed = ".".join(text(json.dumps(part).encode()) for part in (header, full))
        if algorithm == "RS256":
            signature = self.rsa.sign(signed.encode(), padding.PKCS1v15(), SHA256())
        elif algorithm == "ES256":
            r, s = decode_dss_signature(self.ec.sign(signed.encode(), ec.ECDSA(SHA256())))
            signature = r.to_bytes(32) + s.to_bytes(32)
        else:
            signature = b""
        return f"{signed}.{text(signature)}"


@pytest.fixture(scope="module")
def issuer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Issuer]:
    made = Issuer(tmp_path_factory.mktemp("issuer"))
    yield made
    made.server.shutdown()


@pytest.fixture(scope="module")
def role(enclave: LiveEnclave, issuer: Issuer) -> str:
    iam = enclave.client("iam")
    provider = iam.create_open_id_connect_provider(
        Url=issuer.url, ClientIDList=["honmaru"], ThumbprintList=[issuer.thumbprint]
    )["OpenIDConnectProviderArn"]
    host = issuer.url.removeprefix("https://")
    trust = {
        "Version": "2012-10-17",
        "Statement": [
            {
                "Effect": "Allow",
                "Principal": {"Federated": provider},
                "Action": ["sts:AssumeRoleWithWebIdentity", "sts:TagSession"],
                "Condition": {"StringEquals": {f"{host}:sub": ["ann", "bob"]}},
            }
        ],
    }
    made = iam.create_role(RoleName="web", AssumeRolePolicyDocument=json.dumps(trust))["Role"]["Arn"]
    own = {"Effect": "Allow", "Action": "iam:ListRoles", "Resource": "*"}
    tagged = {"StringEquals": {"aws:PrincipalTag/team": "red"}}
    users = {"Effect": "Allow", "Action": "iam:ListUsers", "Resource": "*", "Condition": tagged}
    policy = json.dumps({"Version": "2012-10-17", "Statement": [own, users]})
    iam.put_role_policy(RoleName="web", PolicyName="own", PolicyDocument=policy)
    return str(made)


def unsigned(enclave: LiveEnclave) -> Any:
    return boto3.client(
        "sts",
        endpoint_url=enclave.endpoint,
        verify=enclave.facts["ca"] or None,
        region_name=enclave.region,
        config=Config(signature_version=UNSIGNED),
    )


def assume(enclave: LiveEnclave, role: str, token: str) -> dict[str, Any]:
    made: dict[str, Any] = unsigned(enclave).assume_role_with_web_identity(
        RoleArn=role, RoleSessionName="web", WebIdentityToken=token
    )
    return made


def refused(code: str, run: Any) -> None:
    with pytest.raises(ClientError) as refusal:
        run()
    assert refusal.value.response["Error"]["Code"] == code, refusal.value


@pytest.mark.parametrize("algorithm", ["RS256", "ES256"])
def test_a_token_of_the_issuer_opens_the_role(enclave: LiveEnclave, issuer: Issuer, role: str, algorithm: str) -> None:
    tags = {"https://aws.amazon.com/tags": {"principal_tags": {"team": ["red"]}, "transitive_tag_keys": ["team"]}}
    made = assume(enclave, role, issuer.token(algorithm, **tags))
    assert (made["SubjectFromWebIdentityToken"], made["Audience"]) == ("ann", "honmaru")
    keys = made["Credentials"]
    session = boto3.Session(keys["AccessKeyId"], keys["SecretAccessKey"], keys["SessionToken"], enclave.region)
    place = {"endpoint_url": enclave.endpoint, "verify": enclave.facts["ca"] or None}
    assert session.client("iam", **place).list_users()["Users"]
    plain = assume(enclave, role, issuer.token(algorithm))["Credentials"]
    session = boto3.Session(plain["AccessKeyId"], plain["SecretAccessKey"], plain["SessionToken"], enclave.region)
    assert session.client("iam", **place).list_roles()["Roles"]
    refused("AccessDenied", lambda: session.client("iam", **place).list_users())


def test_boto3_finds_the_token_in_its_environment(
    enclave: LiveEnclave, issuer: Issuer, role: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "token").write_text(issuer.token())
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_WEB_IDENTITY_TOKEN_FILE", str(tmp_path / "token"))
    monkeypatch.setenv("AWS_ROLE_ARN", role)
    monkeypatch.setenv("AWS_ENDPOINT_URL", enclave.endpoint)
    monkeypatch.setenv("AWS_CA_BUNDLE", enclave.facts["ca"])
    session = boto3.Session(region_name=enclave.region)
    assert ":assumed-role/web/" in session.client("sts").get_caller_identity()["Arn"]


def test_tokens_that_are_not_the_issuers_open_nothing(enclave: LiveEnclave, issuer: Issuer, role: str) -> None:
    good = issuer.token()
    head, claims, signature = good.split(".")
    forged = text(json.dumps({**json.loads(base64.urlsafe_b64decode(claims + "==")), "sub": "bob"}).encode())
    for bad in (
        f"{head}.{forged}.{signature}",
        f"{text(json.dumps({'alg': 'none'}).encode())}.{claims}.",
        f"{text(json.dumps({'alg': 'HS256', 'kid': 'r'}).encode())}.{claims}.{signature}",
        issuer.token(aud="somebody-else"),
        issuer.token(iss="https://127.0.0.1:1/other"),
        issuer.token(iat=int(time.time()) + 4000),
        issuer.token("ES256", kid="r"),
        "not.a.token",
    ):
        refused("InvalidIdentityToken", lambda bad=bad: assume(enclave, role, bad))  # type: ignore[misc]
    refused("ExpiredTokenException", lambda: assume(enclave, role, issuer.token(exp=int(time.time()) - 1)))
    refused("AccessDenied", lambda: assume(enclave, role, issuer.token(sub="eve")))
    assert issuer.asked <= 4  # two pages, at most twice: nobody makes the enclave ask more than once a minute


def test_the_issuers_word_about_labels_needs_a_clearance(enclave: LiveEnclave, issuer: Issuer, role: str) -> None:
    secret = {"https://aws.amazon.com/tags": {"principal_tags": {"honmaru:label": ["SECRET"]}}}
    refused("AccessDenied", lambda: assume(enclave, role, issuer.token(**secret)))
    iam = enclave.client("iam")
    host = issuer.url.removeprefix("https://")
    provider = f"{role.partition(':role/')[0]}:oidc-provider/{host}"
    iam.tag_open_id_connect_provider(
        OpenIDConnectProviderArn=provider, Tags=[{"Key": "honmaru:clearance", "Value": "SECRET"}]
    )
    keys = assume(enclave, role, issuer.token(**secret))["Credentials"]
    session = boto3.Session(keys["AccessKeyId"], keys["SecretAccessKey"], keys["SessionToken"], enclave.region)
    sts = session.client("sts", endpoint_url=enclave.endpoint, verify=enclave.facts["ca"] or None)
    told = sts.get_caller_identity()["ResponseMetadata"]["HTTPHeaders"]
    assert told["x-honmaru-label"].startswith("SECRET")
    iam.untag_open_id_connect_provider(OpenIDConnectProviderArn=provider, TagKeys=["honmaru:clearance"])
    refused("InvalidClientTokenId", sts.get_caller_identity)


def test_no_other_operation_goes_unsigned(enclave: LiveEnclave) -> None:
    refused("MissingAuthenticationToken", unsigned(enclave).get_caller_identity)
    iam = boto3.client(
        "iam",
        endpoint_url=enclave.endpoint,
        verify=enclave.facts["ca"] or None,
        region_name=enclave.region,
        config=Config(signature_version=UNSIGNED),
    )
    refused("MissingAuthenticationToken", iam.list_users)
