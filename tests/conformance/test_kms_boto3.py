"""KMS through unmodified boto3; what it makes is checked with `cryptography` used directly, and the other way round."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import os
import subprocess
import sys
import uuid
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.exceptions import ClientError
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, hmac, keywrap, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding, utils
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSAMuHasher
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.kbkdf import KBKDFHMAC, CounterLocation, Mode

from honmaru.testing.enclaves import LiveEnclave

CONTEXT = {"purpose": "test", "Größe": "ü"}


@pytest.fixture(scope="module")
def kms(enclave: LiveEnclave) -> Any:
    return enclave.client("kms", "alice", "SECRET")


@pytest.fixture(scope="module")
def low(enclave: LiveEnclave) -> Any:
    return enclave.client("kms", "alice", "UNCLASSIFIED")


@pytest.fixture(scope="module")
def key(kms: Any) -> str:
    return str(kms.create_key(Description="shared")["KeyMetadata"]["KeyId"])


def refused(code: str, call: Any, **members: Any) -> str:
    with pytest.raises(ClientError) as error:
        call(**members)
    assert error.value.response["Error"]["Code"] == code, error.value
    return str(error.value.response["Error"]["Message"])


def new(kms: Any, spec: str, usage: str) -> str:
    return str(kms.create_key(KeySpec=spec, KeyUsage=usage)["KeyMetadata"]["KeyId"])


def public(kms: Any, key: str) -> Any:
    return serialization.load_der_public_key(kms.get_public_key(KeyId=key)["PublicKey"])


# Ciphertexts


def imported(kms: Any, algorithm: str = "RSAES_OAEP_SHA_256") -> tuple[str, bytes]:
    """A key with material that this test knows."""
    key = kms.create_key(Origin="EXTERNAL")["KeyMetadata"]["KeyId"]
    material = os.urandom(32)
    put(kms, key, material, algorithm)
    return key, material


def put(kms: Any, key: str, material: bytes, algorithm: str = "RSAES_OAEP_SHA_256", **members: Any) -> Any:
    made = kms.get_parameters_for_import(KeyId=key, WrappingAlgorithm=algorithm, WrappingKeySpec="RSA_2048")
    wrapping: Any = serialization.load_der_public_key(made["PublicKey"])
    digest = hashes.SHA1 if algorithm.endswith("_1") else hashes.SHA256
    oaep = padding.OAEP(padding.MGF1(digest()), digest(), None)
    if "KEY_WRAP" in algorithm:
        transport = os.urandom(32)
        wrapped = wrapping.encrypt(transport, oaep) + keywrap.aes_key_wrap_with_padding(transport, material)
    else:
        wrapped = wrapping.encrypt(material, oaep)
    expiry = {} if "ValidTo" in members else {"ExpirationModel": "KEY_MATERIAL_DOES_NOT_EXPIRE"}
    return kms.import_key_material(
        KeyId=key, ImportToken=made["ImportToken"], EncryptedKeyMaterial=wrapped, **expiry, **members
    )


def message_key(material: bytes, salt: bytes) -> bytes:
    return KBKDFHMAC(
        hashes.SHA384(), Mode.CounterMode, 32, 4, 4, CounterLocation.BeforeFixed, b"honmaru kms 1", salt, None
    ).derive(material)


def bound(header: bytes, salt: bytes, context: dict[str, str]) -> bytes:
    pairs = sorted((name.encode(), value.encode()) for name, value in context.items())
    parts = [header, salt, *(part for pair in pairs for part in pair)]
    return b"".join(len(part).to_bytes(4, "big") + part for part in parts)


def test_ciphertexts_are_what_the_library_makes_of_the_material_and_the_other_way_round(kms: Any) -> None:
    key, material = imported(kms)
    blob = kms.encrypt(KeyId=key, Plaintext=b"over there", EncryptionContext=CONTEXT)["CiphertextBlob"]
    end = 54 + int.from_bytes(blob[52:54], "big")
    header, salt, nonce, sealed = blob[:end], blob[end : end + 16], blob[end + 16 : end + 28], blob[end + 28 :]
    opened = AESGCM(message_key(material, salt)).decrypt(nonce, sealed, bound(header, salt, CONTEXT))
    assert opened == b"over there"

    salt, nonce = os.urandom(16), os.urandom(12)
    made = AESGCM(message_key(material, salt)).encrypt(nonce, b"made by hand", bound(header, salt, CONTEXT))
    answer = kms.decrypt(CiphertextBlob=header + salt + nonce + made, EncryptionContext=CONTEXT)
    assert answer["Plaintext"] == b"made by hand"
    assert answer["KeyId"].endswith(key)


def test_decrypt_needs_key_and_context(kms: Any, key: str) -> None:
    blob = kms.encrypt(KeyId=key, Plaintext=b"x", EncryptionContext=CONTEXT)["CiphertextBlob"]
    assert kms.decrypt(CiphertextBlob=blob, EncryptionContext=dict(reversed(CONTEXT.items())))["Plaintext"] == b"x"
    for context in ({}, {**CONTEXT, "more": "1"}, {"purpose": "Test", "Größe": "ü"}, {"purpose": "test"}):
        refused("InvalidCiphertextException", kms.decrypt, CiphertextBlob=blob, EncryptionContext=context)
    other = kms.create_key()["KeyMetadata"]["KeyId"]
    refused("IncorrectKeyException", kms.decrypt, CiphertextBlob=blob, EncryptionContext=CONTEXT, KeyId=other)
    refused("InvalidCiphertextException", kms.decrypt, CiphertextBlob=b"nothing of the kind")
    refused("InvalidCiphertextException", kms.decrypt, CiphertextBlob=blob[:-1], EncryptionContext=CONTEXT)
    refused("DryRunOperationException", kms.decrypt, CiphertextBlob=blob, EncryptionContext=CONTEXT, DryRun=True)


def test_reencrypt_and_data_keys(kms: Any, key: str) -> None:
    made = kms.generate_data_key(KeyId=key, KeySpec="AES_256", EncryptionContext=CONTEXT)
    assert len(made["Plaintext"]) == 32
    again = kms.decrypt(CiphertextBlob=made["CiphertextBlob"], EncryptionContext=CONTEXT)
    assert again["Plaintext"] == made["Plaintext"]
    other = kms.create_key()["KeyMetadata"]["KeyId"]
    moved = kms.re_encrypt(
        CiphertextBlob=made["CiphertextBlob"],
        SourceEncryptionContext=CONTEXT,
        DestinationKeyId=other,
        DestinationEncryptionContext={"a": "b"},
    )
    assert moved["SourceKeyId"].endswith(key) and moved["KeyId"].endswith(other)
    opened = kms.decrypt(CiphertextBlob=moved["CiphertextBlob"], EncryptionContext={"a": "b"}, KeyId=other)
    assert opened["Plaintext"] == made["Plaintext"]
    hidden = kms.generate_data_key_without_plaintext(KeyId=key, NumberOfBytes=17)
    assert "Plaintext" not in hidden and len(kms.decrypt(CiphertextBlob=hidden["CiphertextBlob"])["Plaintext"]) == 17
    refused("ValidationException", kms.generate_data_key, KeyId=key)
    assert len(kms.generate_random(NumberOfBytes=24)["Plaintext"]) == 24


@pytest.mark.parametrize("spec", ["ECC_NIST_P256", "ECC_NIST_EDWARDS25519", "ML_KEM_768"])
def test_data_key_pairs(kms: Any, key: str, spec: str) -> None:
    pair = kms.generate_data_key_pair(KeyId=key, KeyPairSpec=spec)
    private: Any = serialization.load_der_private_key(pair["PrivateKeyPlaintext"], None)
    encoded = private.public_key().public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    assert encoded == pair["PublicKey"]
    assert kms.decrypt(CiphertextBlob=pair["PrivateKeyCiphertextBlob"])["Plaintext"] == pair["PrivateKeyPlaintext"]
    assert "PrivateKeyPlaintext" not in kms.generate_data_key_pair_without_plaintext(KeyId=key, KeyPairSpec=spec)


def test_rsa_encryption(kms: Any) -> None:
    key = new(kms, "RSA_2048", "ENCRYPT_DECRYPT")
    for algorithm, digest in (("RSAES_OAEP_SHA_256", hashes.SHA256), ("RSAES_OAEP_SHA_1", hashes.SHA1)):
        made = public(kms, key).encrypt(b"from outside", padding.OAEP(padding.MGF1(digest()), digest(), None))
        opened = kms.decrypt(KeyId=key, CiphertextBlob=made, EncryptionAlgorithm=algorithm)
        assert opened["Plaintext"] == b"from outside"
        made = kms.encrypt(KeyId=key, Plaintext=b"inside", EncryptionAlgorithm=algorithm)["CiphertextBlob"]
        assert kms.decrypt(KeyId=key, CiphertextBlob=made, EncryptionAlgorithm=algorithm)["Plaintext"] == b"inside"
        bad = bytes([made[0] ^ 1]) + made[1:]
        refused("InvalidCiphertextException", kms.decrypt, KeyId=key, CiphertextBlob=bad, EncryptionAlgorithm=algorithm)
    refused("InvalidKeyUsageException", kms.encrypt, KeyId=key, Plaintext=b"x")
    refused("InvalidKeyUsageException", kms.sign, KeyId=key, Message=b"x", SigningAlgorithm="RSASSA_PSS_SHA_256")


# Signatures, MACs, secrets


def check_signature(found: Any, algorithm: str, message: bytes, signature: bytes) -> None:
    """Raises InvalidSignature. The library's own verification, from AWS's name of the algorithm."""
    digest = {"256": hashes.SHA256, "384": hashes.SHA384, "512": hashes.SHA512}[algorithm.rpartition("_")[2]]()
    if algorithm.startswith("RSASSA_PSS"):
        found.verify(signature, message, padding.PSS(padding.MGF1(digest), digest.digest_size), digest)
    elif algorithm.startswith("RSASSA"):
        found.verify(signature, message, padding.PKCS1v15(), digest)
    elif algorithm.startswith("ECDSA"):
        found.verify(signature, message, ec.ECDSA(digest))
    else:
        found.verify(signature, message)


@pytest.mark.parametrize(
    "spec",
    [
        "RSA_2048",
        "ECC_NIST_P256",
        "ECC_NIST_P384",
        "ECC_NIST_P521",
        "ECC_SECG_P256K1",
        "ECC_NIST_EDWARDS25519",
        "ML_DSA_44",
        "ML_DSA_65",
        "ML_DSA_87",
    ],
)
def test_signatures_hold_in_the_library(kms: Any, spec: str) -> None:
    key = new(kms, spec, "SIGN_VERIFY")
    found = public(kms, key)
    message = os.urandom(100)
    for algorithm in kms.describe_key(KeyId=key)["KeyMetadata"]["SigningAlgorithms"]:
        signed = kms.sign(KeyId=key, Message=message, SigningAlgorithm=algorithm)["Signature"]
        check_signature(found, algorithm, message, signed)
        with pytest.raises(InvalidSignature):
            check_signature(found, algorithm, message + b"!", signed)
        verify = {"KeyId": key, "SigningAlgorithm": algorithm, "Message": message}
        assert kms.verify(**verify, Signature=signed)["SignatureValid"] is True
        broken = signed[:20] + bytes([signed[20] ^ 4]) + signed[21:]
        refused("KMSInvalidSignatureException", kms.verify, **verify, Signature=broken)
        if algorithm.startswith(("RSASSA", "ECDSA")):
            digest = hashlib.new(f"sha{algorithm[-3:]}", message).digest()
            by_digest = kms.sign(KeyId=key, Message=digest, MessageType="DIGEST", SigningAlgorithm=algorithm)
            check_signature(found, algorithm, message, by_digest["Signature"])
            refused(
                "ValidationException",
                kms.sign, KeyId=key, Message=digest[:-1], MessageType="DIGEST", SigningAlgorithm=algorithm,
            )  # fmt: skip
        else:
            refused(
                "ValidationException",
                kms.sign, KeyId=key, Message=b"x" * 64, MessageType="DIGEST", SigningAlgorithm=algorithm,
            )  # fmt: skip


def test_ml_dsa_with_an_external_mu(kms: Any) -> None:
    key = new(kms, "ML_DSA_65", "SIGN_VERIFY")
    found = public(kms, key)
    message = os.urandom(10_000)
    hasher = MLDSAMuHasher(found)
    hasher.update(message)
    mu = hasher.finalize()
    members = {"KeyId": key, "Message": mu, "MessageType": "EXTERNAL_MU", "SigningAlgorithm": "ML_DSA_SHAKE_256"}
    signed = kms.sign(**members)["Signature"]
    found.verify(signed, message)
    assert kms.verify(**members, Signature=signed)["SignatureValid"]
    refused("ValidationException", kms.sign, **{**members, "Message": mu[:-1]})


def test_outside_signatures_hold_here(kms: Any) -> None:
    key = kms.create_key(KeySpec="ECC_NIST_P384", KeyUsage="SIGN_VERIFY", Origin="EXTERNAL")["KeyMetadata"]["KeyId"]
    private = ec.generate_private_key(ec.SECP384R1())
    material = private.private_bytes(
        serialization.Encoding.DER, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    put(kms, key, material, "RSA_AES_KEY_WRAP_SHA_256")
    signed = private.sign(hashlib.sha384(b"m").digest(), ec.ECDSA(utils.Prehashed(hashes.SHA384())))
    members = {"KeyId": key, "Message": b"m", "SigningAlgorithm": "ECDSA_SHA_384"}
    assert kms.verify(**members, Signature=signed)["SignatureValid"]
    private.public_key().verify(kms.sign(**members)["Signature"], b"m", ec.ECDSA(hashes.SHA384()))


@pytest.mark.parametrize("bits", [224, 256, 384, 512])
def test_macs(kms: Any, bits: int) -> None:
    members: dict[str, Any] = {"KeySpec": f"HMAC_{bits}", "KeyUsage": "GENERATE_VERIFY_MAC", "Origin": "EXTERNAL"}
    key = kms.create_key(**members)["KeyMetadata"]["KeyId"]
    material = os.urandom(bits // 8)
    put(kms, key, material)
    members = {"KeyId": key, "MacAlgorithm": f"HMAC_SHA_{bits}", "Message": b"m"}
    tag = kms.generate_mac(**members)["Mac"]
    direct = hmac.HMAC(
        material, {224: hashes.SHA224, 256: hashes.SHA256, 384: hashes.SHA384}.get(bits, hashes.SHA512)()
    )
    direct.update(b"m")
    assert tag == direct.finalize()
    assert kms.verify_mac(**members, Mac=tag)["MacValid"]
    refused("KMSInvalidMacException", kms.verify_mac, **members, Mac=bytes([tag[0] ^ 1]) + tag[1:])


def test_shared_secrets(kms: Any) -> None:
    key = new(kms, "ECC_NIST_P384", "KEY_AGREEMENT")
    mine = ec.generate_private_key(ec.SECP384R1())
    encoded = mine.public_key().public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    made = kms.derive_shared_secret(KeyId=key, KeyAgreementAlgorithm="ECDH", PublicKey=encoded)
    assert made["SharedSecret"] == mine.exchange(ec.ECDH(), public(kms, key))
    other = (
        ec.generate_private_key(ec.SECP256R1())
        .public_key()
        .public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    )
    refused("ValidationException", kms.derive_shared_secret, KeyId=key, KeyAgreementAlgorithm="ECDH", PublicKey=other)
    for spec in ("ML_KEM_768", "ML_KEM_1024"):
        key = new(kms, spec, "ENCAPSULATE_DECAPSULATE")
        secret, sealed = public(kms, key).encapsulate()
        members = {"KeyId": key, "EncapsulationAlgorithm": "ML_KEM"}
        assert kms.decapsulate(**members, SharedSecretCiphertextBlob=sealed)["SharedSecret"] == secret
        flipped = bytes([sealed[0] ^ 1]) + sealed[1:]
        assert kms.decapsulate(**members, SharedSecretCiphertextBlob=flipped)["SharedSecret"] != secret
        made = kms.encapsulate(**members)
        back = kms.decapsulate(**members, SharedSecretCiphertextBlob=made["SharedSecretCiphertextBlob"])
        assert back["SharedSecret"] == made["SharedSecret"]
        refused("InvalidCiphertextException", kms.decapsulate, **members, SharedSecretCiphertextBlob=b"short")
    pair = kms.generate_data_key_pair(KeyId=kms.create_key()["KeyMetadata"]["KeyId"], KeyPairSpec="ML_KEM_768")
    assert isinstance(serialization.load_der_private_key(pair["PrivateKeyPlaintext"], None), MLKEM768PrivateKey)


def test_what_is_not_held_is_refused(kms: Any, key: str) -> None:
    for members in (
        {"KeySpec": "ML_KEM_512", "KeyUsage": "ENCAPSULATE_DECAPSULATE"},
        {"KeySpec": "SM2", "KeyUsage": "SIGN_VERIFY"},
        {"MultiRegion": True},
        {"Origin": "AWS_CLOUDHSM", "CustomKeyStoreId": "cks-1"},
    ):
        refused("UnsupportedOperationException", kms.create_key, **members)
    refused("ValidationException", kms.create_key, KeySpec="HMAC_256")
    refused("UnsupportedOperationException", kms.replicate_key, KeyId=key, ReplicaRegion="us-isob-west-1")
    refused("UnsupportedOperationException", kms.create_custom_key_store, CustomKeyStoreName="hsm")
    assert kms.describe_custom_key_stores()["CustomKeyStores"] == []


# Life of a key


def test_names(kms: Any, key: str) -> None:
    alias = f"alias/{uuid.uuid4().hex}"
    kms.create_alias(AliasName=alias, TargetKeyId=key)
    arn = kms.describe_key(KeyId=key)["KeyMetadata"]["Arn"]
    alias_arn = next(a["AliasArn"] for a in kms.list_aliases(KeyId=key)["Aliases"] if a["AliasName"] == alias)
    for name in (key, arn, alias, alias_arn):
        assert kms.encrypt(KeyId=name, Plaintext=b"x")["KeyId"] == arn
    refused("AlreadyExistsException", kms.create_alias, AliasName=alias, TargetKeyId=key)
    other = kms.create_key()["KeyMetadata"]["KeyId"]
    kms.update_alias(AliasName=alias, TargetKeyId=other)
    assert kms.describe_key(KeyId=alias)["KeyMetadata"]["KeyId"] == other
    kms.delete_alias(AliasName=alias)
    refused("NotFoundException", kms.describe_key, KeyId=alias)
    refused("NotFoundException", kms.disable_key, KeyId="alias/aws/s3")
    refused("NotFoundException", kms.describe_key, KeyId=str(uuid.uuid4()))
    refused("InvalidArnException", kms.describe_key, KeyId=arn.replace("aws-iso-b", "aws"))
    ids = {one["KeyId"] for page in kms.get_paginator("list_keys").paginate(PaginationConfig={"PageSize": 3})
           for one in page["Keys"]}  # fmt: skip
    assert {key, other} <= ids
    assert "alias/aws/s3" in [one["AliasName"] for one in kms.list_aliases()["Aliases"]]


def test_states(kms: Any) -> None:
    key = kms.create_key(Tags=[{"TagKey": "a", "TagValue": "1"}])["KeyMetadata"]["KeyId"]
    blob = kms.encrypt(KeyId=key, Plaintext=b"x")["CiphertextBlob"]
    kms.disable_key(KeyId=key)
    refused("DisabledException", kms.encrypt, KeyId=key, Plaintext=b"x")
    refused("DisabledException", kms.decrypt, CiphertextBlob=blob)
    kms.enable_key(KeyId=key)
    kms.update_key_description(KeyId=key, Description="new words")
    kms.tag_resource(KeyId=key, Tags=[{"TagKey": "b", "TagValue": "2"}])
    kms.untag_resource(KeyId=key, TagKeys=["a"])
    assert kms.list_resource_tags(KeyId=key)["Tags"] == [{"TagKey": "b", "TagValue": "2"}]
    planned = kms.schedule_key_deletion(KeyId=key, PendingWindowInDays=7)
    assert planned["KeyState"] == "PendingDeletion"
    assert abs(planned["DeletionDate"] - datetime.now(UTC) - timedelta(days=7)) < timedelta(minutes=1)
    refused("KMSInvalidStateException", kms.decrypt, CiphertextBlob=blob)
    refused("KMSInvalidStateException", kms.enable_key, KeyId=key)
    refused("KMSInvalidStateException", kms.schedule_key_deletion, KeyId=key)
    kms.cancel_key_deletion(KeyId=key)
    described = kms.describe_key(KeyId=key)["KeyMetadata"]
    assert (described["KeyState"], described["Description"]) == ("Disabled", "new words")
    kms.enable_key(KeyId=key)
    assert kms.decrypt(CiphertextBlob=blob)["Plaintext"] == b"x"


def test_the_last_use_is_told_from_the_ledger(kms: Any, low: Any) -> None:
    key = low.create_key()["KeyMetadata"]["KeyId"]
    assert "KeyLastUsage" not in low.get_key_last_usage(KeyId=key)
    blob = low.encrypt(KeyId=key, Plaintext=b"x")["CiphertextBlob"]
    used = low.get_key_last_usage(KeyId=key)
    assert used["KeyLastUsage"]["Operation"] == "Encrypt" and used["KeyId"].endswith(key)
    kms.decrypt(CiphertextBlob=blob)  # a higher session's use is told to nobody below
    assert low.get_key_last_usage(KeyId=key)["KeyLastUsage"] == used["KeyLastUsage"]
    assert kms.get_key_last_usage(KeyId=key)["KeyLastUsage"]["Operation"] in ("Encrypt", "Decrypt")


def test_rotation_keeps_what_was_sealed(kms: Any) -> None:
    key = kms.create_key()["KeyMetadata"]["KeyId"]
    blobs = []
    for turn in range(3):
        blobs.append(kms.encrypt(KeyId=key, Plaintext=b"%d" % turn)["CiphertextBlob"])
        kms.rotate_key_on_demand(KeyId=key)
    assert [kms.decrypt(CiphertextBlob=blob)["Plaintext"] for blob in blobs] == [b"0", b"1", b"2"]
    assert len({blob[20:52] for blob in blobs}) == 3
    turns = kms.list_key_rotations(KeyId=key)["Rotations"]
    assert [one["RotationType"] for one in turns] == ["ON_DEMAND"] * 3
    kms.enable_key_rotation(KeyId=key, RotationPeriodInDays=90)
    status = kms.get_key_rotation_status(KeyId=key)
    assert status["KeyRotationEnabled"] and status["RotationPeriodInDays"] == 90
    kms.disable_key_rotation(KeyId=key)
    assert not kms.get_key_rotation_status(KeyId=key)["KeyRotationEnabled"]
    refused("UnsupportedOperationException", kms.rotate_key_on_demand, KeyId=new(kms, "ML_DSA_44", "SIGN_VERIFY"))


def test_imported_material(kms: Any) -> None:
    key, material = imported(kms, "RSA_AES_KEY_WRAP_SHA_256")
    blob = kms.encrypt(KeyId=key, Plaintext=b"x")["CiphertextBlob"]
    kms.delete_imported_key_material(KeyId=key)
    refused("KMSInvalidStateException", kms.decrypt, CiphertextBlob=blob)
    assert kms.describe_key(KeyId=key)["KeyMetadata"]["KeyState"] == "PendingImport"
    with pytest.raises(ClientError) as error:
        put(kms, key, os.urandom(32))
    assert error.value.response["Error"]["Code"] == "IncorrectKeyMaterialException"
    put(kms, key, material, ValidTo=datetime.now(UTC) + timedelta(days=1))
    described = kms.describe_key(KeyId=key)["KeyMetadata"]
    assert described["ExpirationModel"] == "KEY_MATERIAL_EXPIRES" and described["KeyState"] == "Enabled"
    assert kms.decrypt(CiphertextBlob=blob)["Plaintext"] == b"x"
    second = os.urandom(32)
    put(kms, key, second, ImportType="NEW_KEY_MATERIAL")
    kms.rotate_key_on_demand(KeyId=key)
    newer = kms.encrypt(KeyId=key, Plaintext=b"y")["CiphertextBlob"]
    assert newer[20:52] != blob[20:52]
    assert [kms.decrypt(CiphertextBlob=one)["Plaintext"] for one in (blob, newer)] == [b"x", b"y"]
    made = kms.get_parameters_for_import(KeyId=key, WrappingAlgorithm="RSAES_OAEP_SHA_256", WrappingKeySpec="RSA_2048")
    members = {"KeyId": key, "EncryptedKeyMaterial": b"x" * 256, "ExpirationModel": "KEY_MATERIAL_DOES_NOT_EXPIRE"}
    refused("InvalidCiphertextException", kms.import_key_material, ImportToken=made["ImportToken"], **members)
    bad = bytes([made["ImportToken"][0] ^ 1]) + made["ImportToken"][1:]
    refused("InvalidImportTokenException", kms.import_key_material, ImportToken=bad, **members)
    refused(
        "UnsupportedOperationException",
        kms.get_parameters_for_import,
        KeyId=kms.create_key()["KeyMetadata"]["KeyId"],
        WrappingAlgorithm="RSAES_OAEP_SHA_256",
        WrappingKeySpec="RSA_2048",
    )


# Who may


@pytest.fixture(scope="module")
def bob(enclave: LiveEnclave) -> Any:
    """Somebody whose IAM policies say nothing about keys."""
    enclave.user("keyless", "SECRET", ["IAMReadOnlyAccess"])
    return enclave.client("kms", "keyless", "SECRET")


def arn_of(enclave: LiveEnclave, user: str) -> str:
    return f"arn:aws-iso-b:iam::{enclave.account}:user/{user}"


def test_key_policies_decide(enclave: LiveEnclave, kms: Any, bob: Any) -> None:
    key = kms.create_key()["KeyMetadata"]["KeyId"]
    refused("AccessDeniedException", bob.encrypt, KeyId=key, Plaintext=b"x")
    policy = json.loads(kms.get_key_policy(KeyId=key)["Policy"])
    named = {"Effect": "Allow", "Principal": {"AWS": arn_of(enclave, "keyless")}, "Resource": "*"}
    only = {"StringEquals": {"kms:EncryptionContext:team": "red"}}
    policy["Statement"].append({**named, "Action": ["kms:Encrypt", "kms:Decrypt"], "Condition": only})
    kms.put_key_policy(KeyId=key, Policy=json.dumps(policy))
    blob = bob.encrypt(KeyId=key, Plaintext=b"x", EncryptionContext={"team": "red"})["CiphertextBlob"]
    refused("AccessDeniedException", bob.encrypt, KeyId=key, Plaintext=b"x", EncryptionContext={"team": "blue"})
    refused("AccessDeniedException", bob.describe_key, KeyId=key)
    # Without the root statement nobody's IAM policies count, an administrator's neither.
    policy["Statement"][0] = {**named, "Action": "kms:*"}
    refused("MalformedPolicyDocumentException", kms.put_key_policy, KeyId=key, Policy=json.dumps(policy))
    kms.put_key_policy(KeyId=key, Policy=json.dumps(policy), BypassPolicyLockoutSafetyCheck=True)
    refused("AccessDeniedException", kms.decrypt, CiphertextBlob=blob, EncryptionContext={"team": "red"})
    assert bob.decrypt(CiphertextBlob=blob, EncryptionContext={"team": "red"})["Plaintext"] == b"x"
    refused("MalformedPolicyDocumentException", bob.put_key_policy, KeyId=key, Policy="{}")


def test_grants(enclave: LiveEnclave, kms: Any, bob: Any) -> None:
    key = kms.create_key()["KeyMetadata"]["KeyId"]
    me = arn_of(enclave, "keyless")
    made = kms.create_grant(
        KeyId=key,
        GranteePrincipal=me,
        RetiringPrincipal=arn_of(enclave, "alice"),
        Operations=["Encrypt", "Decrypt", "CreateGrant", "DescribeKey", "RetireGrant"],
        Constraints={"EncryptionContextSubset": {"Team": "red"}},
        Name="one",
    )
    assert made["GrantId"] == kms.list_grants(KeyId=key)["Grants"][0]["GrantId"]
    blob = bob.encrypt(KeyId=key, Plaintext=b"x", EncryptionContext={"Team": "red", "n": "1"})["CiphertextBlob"]
    context = {"Team": "red", "n": "1"}
    assert bob.decrypt(CiphertextBlob=blob, EncryptionContext=context, GrantTokens=[made["GrantToken"]])["Plaintext"]
    for wrong in ({}, {"team": "red"}, {"Team": "blue"}):
        refused("AccessDeniedException", bob.encrypt, KeyId=key, Plaintext=b"x", EncryptionContext=wrong)
    assert bob.describe_key(KeyId=key)["KeyMetadata"]["KeyId"] == key
    refused(
        "InvalidGrantTokenException", bob.describe_key, KeyId=key, GrantTokens=[base64.b64encode(b"x" * 80).decode()]
    )
    # Handing on: no more than was given.
    narrower = {"EncryptionContextEquals": {"Team": "red"}}
    grant = {"KeyId": key, "GranteePrincipal": me}
    bob.create_grant(**grant, Operations=["Decrypt"], Constraints=narrower)
    refused("AccessDeniedException", bob.create_grant, **grant, Operations=["Decrypt"])
    refused("AccessDeniedException", bob.create_grant, **grant, Operations=["GenerateDataKey"], Constraints=narrower)
    retirable = kms.list_retirable_grants(RetiringPrincipal=arn_of(enclave, "alice"))["Grants"]
    assert made["GrantId"] in [one["GrantId"] for one in retirable]
    bob.retire_grant(GrantToken=made["GrantToken"])
    refused("AccessDeniedException", bob.encrypt, KeyId=key, Plaintext=b"x", EncryptionContext={"Team": "red"})
    last = kms.create_grant(**grant, Operations=["Encrypt"])
    bob.encrypt(KeyId=key, Plaintext=b"x")
    kms.revoke_grant(KeyId=key, GrantId=last["GrantId"])
    refused("AccessDeniedException", bob.encrypt, KeyId=key, Plaintext=b"x")


# Labels


def test_keys_above_do_not_exist(kms: Any, low: Any, key: str) -> None:
    nobody = str(uuid.uuid4())
    said = refused("NotFoundException", low.describe_key, KeyId=key)
    assert said.replace(key, "") == refused("NotFoundException", low.describe_key, KeyId=nobody).replace(nobody, "")
    assert key not in [one["KeyId"] for page in low.get_paginator("list_keys").paginate() for one in page["Keys"]]
    blob = kms.encrypt(KeyId=key, Plaintext=b"x")["CiphertextBlob"]
    refused("InvalidCiphertextException", low.decrypt, CiphertextBlob=blob)


def test_what_a_high_session_seals_opens_for_no_lower_one(kms: Any, low: Any) -> None:
    key = low.create_key()["KeyMetadata"]["KeyId"]
    low_blob = low.encrypt(KeyId=key, Plaintext=b"low")["CiphertextBlob"]
    high_blob = kms.encrypt(KeyId=key, Plaintext=b"high")["CiphertextBlob"]
    assert kms.decrypt(CiphertextBlob=low_blob)["Plaintext"] == b"low"
    assert kms.decrypt(CiphertextBlob=high_blob)["Plaintext"] == b"high"
    refused("InvalidCiphertextException", low.decrypt, CiphertextBlob=high_blob)
    # Stating another label breaks the seal.
    end = 54 + int.from_bytes(low_blob[52:54], "big")
    forged = low_blob[:end] + high_blob[54 + int.from_bytes(high_blob[52:54], "big") :]
    refused("InvalidCiphertextException", low.decrypt, CiphertextBlob=forged)
    again = kms.re_encrypt(CiphertextBlob=low_blob, DestinationKeyId=key)["CiphertextBlob"]
    refused("InvalidCiphertextException", low.decrypt, CiphertextBlob=again)
    refused("AccessDeniedException", kms.disable_key, KeyId=key)
    for spec, usage, use in (
        ("RSA_2048", "ENCRYPT_DECRYPT",
         lambda k: kms.encrypt(KeyId=k, Plaintext=b"x", EncryptionAlgorithm="RSAES_OAEP_SHA_256")),
        ("ML_KEM_768", "ENCAPSULATE_DECAPSULATE", lambda k: kms.encapsulate(KeyId=k, EncapsulationAlgorithm="ML_KEM")),
    ):  # fmt: skip
        with pytest.raises(ClientError) as error:
            use(new(low, spec, usage))
        assert error.value.response["Error"]["Code"] == "AccessDeniedException"


# Between accounts, and on the command line


def test_a_key_is_used_from_another_account(enclave: LiveEnclave) -> None:
    admin = enclave.client("organizations")
    with contextlib.suppress(admin.exceptions.AlreadyInOrganizationException):
        admin.create_organization(FeatureSet="ALL")
    name = f"keys-{uuid.uuid4().hex[:8]}"
    made = admin.create_account(Email=f"{name}@site.example", AccountName=name)["CreateAccountStatus"]
    while made["State"] == "IN_PROGRESS":
        made = admin.describe_create_account_status(CreateAccountRequestId=made["Id"])["CreateAccountStatus"]
    role = f"arn:aws-iso-b:iam::{made['AccountId']}:role/OrganizationAccountAccessRole"
    credentials = enclave.client("sts").assume_role(RoleArn=role, RoleSessionName="visitor")["Credentials"]
    there = boto3.client(
        "kms",
        region_name=enclave.region,
        endpoint_url=enclave.endpoint,
        verify=enclave.facts["ca"],
        aws_access_key_id=credentials["AccessKeyId"],
        aws_secret_access_key=credentials["SecretAccessKey"],
        aws_session_token=credentials["SessionToken"],
    )
    here = enclave.client("kms")
    key = here.create_key()["KeyMetadata"]["Arn"]
    refused("AccessDeniedException", there.encrypt, KeyId=key, Plaintext=b"x")
    policy = json.loads(here.get_key_policy(KeyId=key)["Policy"])
    root = f"arn:aws-iso-b:iam::{made['AccountId']}:root"
    policy["Statement"].append(
        {"Effect": "Allow", "Principal": {"AWS": root}, "Action": ["kms:Encrypt", "kms:Decrypt"], "Resource": "*"}
    )
    here.put_key_policy(KeyId=key, Policy=json.dumps(policy))
    blob = there.encrypt(KeyId=key, Plaintext=b"across")["CiphertextBlob"]
    assert here.decrypt(CiphertextBlob=blob)["Plaintext"] == b"across"
    assert there.decrypt(CiphertextBlob=blob)["Plaintext"] == b"across"
    refused("AccessDeniedException", there.disable_key, KeyId=key)
    assert there.list_keys()["Keys"] == []


@pytest.mark.long
@pytest.mark.skipif(not os.environ.get("HONMARU_LONG"), reason="the AWS CLI takes seconds to start: make test-keys")
def test_the_aws_command_line(enclave: LiveEnclave, tmp_path: Path) -> None:
    environment = {**os.environ, **enclave.variables("alice", "SECRET")}

    def aws(*arguments: str) -> Any:
        command = [str(Path(sys.executable).with_name("aws")), "kms", *arguments, "--output", "json"]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout) if done.stdout.strip() else {}

    key = aws("create-key", "--description", "by hand")["KeyMetadata"]["KeyId"]
    (tmp_path / "plain").write_bytes(b"in a file")
    sealed = aws("encrypt", "--key-id", key, "--plaintext", f"fileb://{tmp_path}/plain")["CiphertextBlob"]
    (tmp_path / "sealed").write_bytes(base64.b64decode(sealed))
    opened = aws("decrypt", "--ciphertext-blob", f"fileb://{tmp_path}/sealed")["Plaintext"]
    assert base64.b64decode(opened) == b"in a file"
