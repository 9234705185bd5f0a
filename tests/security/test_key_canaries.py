"""Planted keys and plaintexts are found in no file, log, WAL or ledger of an enclave, and in no core dump.

Material is imported, so its bytes are known; secrets pass through Encrypt, Decrypt, Sign, backups and jobs' logs. Then
every file that the enclave wrote is searched, raw and in hexadecimal and base64, while it runs (so the WAL is there)
and after `kill -9`. The sabotage writes one such value to a file; the same search must find it.
"""

from __future__ import annotations

import base64
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding

from honmaru.testing.enclaves import LiveEnclave


def spellings(secret: bytes) -> Iterable[bytes]:
    """How a value may lie in a file: raw, as hex, and as base64 at each of three offsets."""
    yield secret
    yield secret.hex().encode()
    yield secret.hex().upper().encode()
    for offset in range(3):
        encoded = base64.b64encode(b"\0" * offset + secret)
        yield encoded[4 if offset else 0 : -4]


def found(directory: Path, secrets: dict[str, bytes]) -> list[tuple[str, str]]:
    """(secret's name, file) of every occurrence in any file below a directory."""
    hits = []
    for path in sorted(directory.rglob("*")):
        if not path.is_file() or path.is_symlink():
            continue
        content = path.read_bytes()
        for name, secret in secrets.items():
            if any(spelling in content for spelling in spellings(secret)):
                hits.append((name, path.relative_to(directory).as_posix()))
    return hits


def put(kms: Any, key: str, material: bytes) -> None:
    made = kms.get_parameters_for_import(KeyId=key, WrappingAlgorithm="RSAES_OAEP_SHA_256", WrappingKeySpec="RSA_2048")
    wrapping: Any = serialization.load_der_public_key(made["PublicKey"])
    wrapped = wrapping.encrypt(material, padding.OAEP(padding.MGF1(hashes.SHA256()), hashes.SHA256(), None))
    kms.import_key_material(
        KeyId=key,
        ImportToken=made["ImportToken"],
        EncryptedKeyMaterial=wrapped,
        ExpirationModel="KEY_MATERIAL_DOES_NOT_EXPIRE",
    )


def test_no_key_and_no_plaintext_lies_in_any_file(tmp_path: Path) -> None:
    enclave = LiveEnclave(tmp_path / "data").up()
    try:
        secrets = {name: os.urandom(32) for name in ("symmetric", "mac", "plaintext", "object")}
        kms, s3 = (enclave.client(service, "admin", "SECRET") for service in ("kms", "s3"))
        key = kms.create_key(Origin="EXTERNAL")["KeyMetadata"]["KeyId"]
        put(kms, key, secrets["symmetric"])
        members = {"KeySpec": "HMAC_256", "KeyUsage": "GENERATE_VERIFY_MAC", "Origin": "EXTERNAL"}
        mac = kms.create_key(**members)["KeyMetadata"]["KeyId"]
        put(kms, mac, secrets["mac"])
        kms.generate_mac(KeyId=mac, MacAlgorithm="HMAC_SHA_256", Message=secrets["plaintext"])
        blob = kms.encrypt(KeyId=key, Plaintext=secrets["plaintext"])["CiphertextBlob"]
        kms.decrypt(CiphertextBlob=blob)
        secrets["data key"] = kms.generate_data_key(KeyId=key, KeySpec="AES_256")["Plaintext"]
        pair = kms.generate_data_key_pair(KeyId=key, KeyPairSpec="ECC_NIST_P384")["PrivateKeyPlaintext"]
        private: Any = serialization.load_der_private_key(pair, None)
        assert isinstance(private, ec.EllipticCurvePrivateKey)
        secrets["private key"] = private.private_numbers().private_value.to_bytes(48, "big")
        s3.create_bucket(Bucket="canaries", CreateBucketConfiguration={"LocationConstraint": "us-isob-east-1"})
        s3.put_object(
            Bucket="canaries", Key="o", Body=secrets["object"], ServerSideEncryption="aws:kms", SSEKMSKeyId=key
        )
        s3.get_object(Bucket="canaries", Key="o")["Body"].read()
        for wrong in ({"Plaintext": secrets["plaintext"] * 200}, {"Plaintext": secrets["plaintext"], "KeyId": "no"}):
            with pytest.raises(Exception):  # noqa: B017 - whatever is answered, the log must not hold it
                kms.encrypt(**{"KeyId": key, **wrong})
        root = (enclave.data / "keys" / "ring" / "root.key").read_bytes()
        assert (enclave.data / "records.sqlite-wal").stat().st_size > 0
        assert found(enclave.data, secrets) == []
        assert found(enclave.data, {"root": root}) == [("root", "keys/ring/root.key")]
        limits = Path(f"/proc/{enclave.pid}/limits").read_text()
        assert "Max core file size        0                    0" in limits
        enclave.kill()
        assert found(enclave.data, secrets) == []
        (enclave.data / "log" / "leak.log").write_text(f"key={secrets['symmetric'].hex()}")
        assert found(enclave.data, secrets) == [("symmetric", "log/leak.log")]
    finally:
        enclave.down()
