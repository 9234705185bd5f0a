"""Encrypt, Decrypt, ReEncrypt, and random bytes.

Invariants:
- A ciphertext carries the label of the session that made it, authenticated: a session that does not dominate it is
  answered as if the bytes were no ciphertext at all, whatever key sealed it.
- A session encrypts under an RSA key of its own label only: such a ciphertext has no room for a label, and a lower
  session could open it.
- Every older material of a key still opens what it sealed; only the current one seals.

Source: AWS KMS API reference, Encrypt, Decrypt, ReEncrypt; "Encryption context".
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from honmaru.core.errors import AccessDenied, HonmaruError, NotFound, ValidationFault
from honmaru.core.labels import Label
from honmaru.security.calls import Call
from honmaru.security.crypto import ciphertexts, key_material
from honmaru.security.crypto.key_specs import ENCRYPT, SYMMETRIC
from honmaru.security.guard import Record
from honmaru.services.kms import grant_tokens
from honmaru.services.kms.key_policy import context_facts
from honmaru.services.kms.keys import (
    Named,
    allowed,
    material_of,
    named,
    permitted,
    rehearse,
    require_usable,
    require_usage,
    unsupported,
)
from honmaru.services.kms.vault import Vault

Request = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Opened:
    """A plaintext, the key that opened it, and the material of the key."""

    key: Record
    plaintext: bytes
    material_id: str | None


def invalid_ciphertext() -> ValidationFault:
    return ValidationFault("", code="InvalidCiphertextException")


def facts(context: Mapping[str, str] | None, algorithm: str) -> dict[str, Any]:
    """Condition keys of a request that encrypts or decrypts."""
    return {"kms:EncryptionAlgorithm": algorithm, **context_facts(context)}


def refuse_recipient(request: Request) -> None:
    """Raises for what needs a Nitro enclave's attestation document, which nothing here can check."""
    if request.get("Recipient"):
        raise unsupported("Recipient is not supported: honmaru has no Nitro attestation to check it against")


def require_same_label(call: Call, key: Record) -> None:
    """Raises AccessDenied for a key below the session, where its ciphertext could be opened below the session."""
    if key.label != call.session.label:
        raise AccessDenied(
            f"{key.body['arn']} is at {key.label.banner} and this session is at {call.session.label.banner}: what an "
            f"asymmetric key seals could be opened at the key's label; use a key made at {call.session.label.banner}"
        )


def sealed(call: Call, vault: Vault, key: Record, context: Mapping[str, str] | None, plaintext: bytes) -> bytes:
    """A symmetric ciphertext under the key's current material, at the session's label."""
    material_id = key.body["current"]
    with vault.opened(call.records_of("kms"), key, material_id) as material:
        label = call.session.label.canonical
        return ciphertexts.seal(material, key.name, material_id, label, context or {}, plaintext, vault.ids.secret)


def unsealed(
    call: Call, vault: Vault, found: ciphertexts.Ciphertext, key: Record, context: Mapping[str, str] | None
) -> Opened:
    """The inverse of `sealed`. Raises InvalidCiphertextException, for a label above the session too."""
    if not _dominated(call, found.label) or material_of(key, found.material_id) is None:
        raise invalid_ciphertext()
    records = call.records_of("kms")
    if vault.find(records, key, found.material_id) is None:
        raise missing_material(key)
    with vault.opened(records, key, found.material_id) as material:
        try:
            plaintext = ciphertexts.unseal(material, found, context or {})
        except ciphertexts.Unreadable:
            raise invalid_ciphertext() from None
    return Opened(key, plaintext, found.material_id)


def missing_material(key: Record) -> HonmaruError:
    """Imported material that was deleted while a newer one stays."""
    return ValidationFault(
        f"{key.body['arn']} has lost the key material that encrypted this; import it again",
        code="KMSInvalidStateException",
    )


def _dominated(call: Call, canonical: str) -> bool:
    try:
        return call.session.label.dominates(Label.decode(canonical))
    except HonmaruError:
        return False


def taken_apart(blob: bytes) -> ciphertexts.Ciphertext:
    """A symmetric ciphertext. Raises InvalidCiphertextException."""
    try:
        return ciphertexts.read(blob)
    except ciphertexts.Unreadable:
        raise invalid_ciphertext() from None


def encrypt(call: Call, request: Request, vault: Vault) -> dict[str, Any]:
    grant_tokens.check(call, request)
    algorithm = request.get("EncryptionAlgorithm") or SYMMETRIC
    context = request.get("EncryptionContext")
    inside, key = permitted(call, request["KeyId"], "Encrypt", facts(context, algorithm), aliases=True)
    blob = _encrypted(inside, vault, key, algorithm, context, request["Plaintext"], request)
    return {"CiphertextBlob": blob, "KeyId": key.body["arn"], "EncryptionAlgorithm": algorithm}


def _encrypted(
    call: Call,
    vault: Vault,
    key: Record,
    algorithm: str,
    context: Mapping[str, str] | None,
    plaintext: bytes,
    request: Request,
) -> bytes:
    require_usage(key, ENCRYPT, algorithm)
    require_usable(call, key)
    if algorithm == SYMMETRIC:
        rehearse(request)
        return sealed(call, vault, key, context, plaintext)
    _refuse_context(context)
    require_same_label(call, key)
    rehearse(request)
    return key_material.rsa_encrypt(bytes.fromhex(key.body["public"]), algorithm, plaintext)


def _refuse_context(context: Mapping[str, str] | None) -> None:
    if context:
        raise ValidationFault("EncryptionContext is valid only for symmetric encryption keys")


def decrypt(call: Call, request: Request, vault: Vault) -> dict[str, Any]:
    refuse_recipient(request)
    grant_tokens.check(call, request)
    algorithm = request.get("EncryptionAlgorithm") or SYMMETRIC
    opened = _decrypted(
        call,
        vault,
        "Decrypt",
        request.get("KeyId"),
        algorithm,
        request.get("EncryptionContext"),
        request.get("CiphertextBlob"),
        request,
    )
    return {
        "KeyId": opened.key.body["arn"],
        "Plaintext": opened.plaintext,
        "EncryptionAlgorithm": algorithm,
        "KeyMaterialId": opened.material_id,
    }


def _decrypted(
    call: Call,
    vault: Vault,
    action: str,
    stated: str | None,
    algorithm: str,
    context: Mapping[str, str] | None,
    blob: bytes | None,
    request: Request,
) -> Opened:
    """Decrypt's and ReEncrypt's way to a plaintext. A dry run ends here only for Decrypt."""
    asked = facts(context, algorithm)
    if not blob:
        return _without_blob(call, action, stated, algorithm, asked, request)
    if algorithm != SYMMETRIC:
        if stated is None:
            raise ValidationFault("KeyId is required to decrypt with an asymmetric key")
        _refuse_context(context)
        inside, key = permitted(call, stated, action, asked, aliases=True)
        require_usage(key, ENCRYPT, algorithm)
        require_usable(call, key)
        if action == "Decrypt":
            rehearse(request)
        with vault.opened(inside.records_of("kms"), key, key.body["current"]) as material:
            plaintext = key_material.rsa_decrypt(material, algorithm, blob)
        if plaintext is None:
            raise invalid_ciphertext()
        return Opened(key, plaintext, None)
    found = taken_apart(blob)
    name = _name_of(call, found, stated)
    inside, key = allowed(call, name, action, asked)
    require_usage(key, ENCRYPT, algorithm)
    require_usable(call, key)
    opened = unsealed(inside, vault, found, key, context)
    if action == "Decrypt":
        rehearse(request)
    return opened


def _name_of(call: Call, found: ciphertexts.Ciphertext, stated: str | None) -> Named:
    """The key to open a ciphertext with: the stated one, which must be the one that sealed it."""
    if stated is None:
        record = call.sight("kms").get("key", found.key_id)
        if record is None or not _dominated(call, found.label):
            # A key above the session, a key that is gone and bytes that were made up look alike.
            raise invalid_ciphertext()
        return Named(record.account, found.key_id)
    name = named(call, stated, aliases=True)
    if name.key_id != found.key_id:
        raise ValidationFault(
            "The key ID in the request does not identify a CMK that can perform this operation.",
            code="IncorrectKeyException",
        )
    return name


def _without_blob(
    call: Call, action: str, stated: str | None, algorithm: str, asked: Mapping[str, Any], request: Request
) -> Opened:
    """A dry run that asks about the permission alone (DryRunModifiers: IGNORE_CIPHERTEXT)."""
    if not request.get("DryRun") or "IGNORE_CIPHERTEXT" not in (request.get("DryRunModifiers") or ()):
        raise ValidationFault("CiphertextBlob is required")
    if stated is None:
        raise ValidationFault("KeyId is required when the ciphertext is ignored")
    _, key = permitted(call, stated, action, asked, aliases=True)
    require_usage(key, ENCRYPT, algorithm)
    require_usable(call, key)
    return Opened(key, b"", None)


def reencrypt(call: Call, request: Request, vault: Vault) -> dict[str, Any]:
    """Label: opens what the session dominates; the new ciphertext carries the session's label."""
    grant_tokens.check(call, request)
    before = request.get("SourceEncryptionAlgorithm") or SYMMETRIC
    after = request.get("DestinationEncryptionAlgorithm") or SYMMETRIC
    source = _decrypted(
        call,
        vault,
        "ReEncryptFrom",
        request.get("SourceKeyId"),
        before,
        request.get("SourceEncryptionContext"),
        request.get("CiphertextBlob"),
        request,
    )
    context = request.get("DestinationEncryptionContext")
    asked = facts(context, after)
    inside, key = permitted(call, request["DestinationKeyId"], "ReEncryptTo", asked, aliases=True)
    blob = _encrypted(inside, vault, key, after, context, source.plaintext, request)
    return {
        "CiphertextBlob": blob,
        "SourceKeyId": source.key.body["arn"],
        "KeyId": key.body["arn"],
        "SourceEncryptionAlgorithm": before,
        "DestinationEncryptionAlgorithm": after,
        "SourceKeyMaterialId": source.material_id,
        "DestinationKeyMaterialId": key.body["current"] if after == SYMMETRIC else None,
    }


def random_bytes(request: Request, vault: Vault) -> dict[str, Any]:
    refuse_recipient(request)
    if request.get("CustomKeyStoreId"):
        raise NotFound("There is no custom key store", code="CustomKeyStoreNotFoundException")
    size = request.get("NumberOfBytes")
    if size is None:
        raise ValidationFault("NumberOfBytes is required")
    return {"Plaintext": vault.ids.secret(size)}
