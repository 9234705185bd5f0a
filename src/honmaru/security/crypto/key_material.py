"""Making and using the material of keys: the one place where the key service's primitives are called.

Material is raw bytes for symmetric and HMAC keys, PKCS #8 (DER) for private keys, SubjectPublicKeyInfo (DER) for
public ones. Nothing here stores, logs or caches it.

Invariants:
- Every primitive is pyca/cryptography's; what it does not hold is refused (see `key_specs`).
- A signature, MAC or ciphertext made here is the plain one of its standard: whoever holds the public key, or the
  imported material, checks or opens it with any other implementation.

Source: FIPS 186-5, 198-1, 203, 204; RFC 8017 (PSS salt as long as the digest, as AWS KMS makes it); SP 800-56A.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, hmac, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, mldsa, mlkem, padding, rsa, utils

from honmaru.core.errors import ValidationFault
from honmaru.security.crypto.key_specs import KeySpec

Material = bytes | bytearray

_CURVES: Mapping[tuple[str, int], type[ec.EllipticCurve]] = {
    ("ec", 256): ec.SECP256R1,
    ("ec", 384): ec.SECP384R1,
    ("ec", 521): ec.SECP521R1,
    ("ec-k1", 256): ec.SECP256K1,
}
_HASHES: Mapping[str, Callable[[], hashes.HashAlgorithm]] = {
    "1": hashes.SHA1,
    "224": hashes.SHA224,
    "256": hashes.SHA256,
    "384": hashes.SHA384,
    "512": hashes.SHA512,
}
_ML_DSA: Mapping[int, Any] = {44: mldsa.MLDSA44PrivateKey, 65: mldsa.MLDSA65PrivateKey, 87: mldsa.MLDSA87PrivateKey}
_ML_KEM: Mapping[int, Any] = {768: mlkem.MLKEM768PrivateKey, 1024: mlkem.MLKEM1024PrivateKey}
MU_BYTES = 64


def generate(spec: KeySpec, secret: Callable[[int], bytes]) -> bytes:
    """New material of a spec. `secret` makes strong random bytes; RSA and EC keys draw on OpenSSL's own generator."""
    if spec.family in ("aes", "hmac"):
        return secret(spec.size)
    key: Any
    if spec.family == "rsa":
        key = rsa.generate_private_key(65537, spec.size)
    elif spec.family == "ed25519":
        key = ed25519.Ed25519PrivateKey.from_private_bytes(secret(32))
    elif spec.family == "ml-dsa":
        key = _ML_DSA[spec.size].from_seed_bytes(secret(32))
    elif spec.family == "ml-kem":
        key = _ML_KEM[spec.size].from_seed_bytes(secret(64))
    else:
        key = ec.generate_private_key(_CURVES[spec.family, spec.size]())
    return _private_der(key)


def checked(spec: KeySpec, material: bytes) -> bytes:
    """Imported material in its one form. Raises ValidationFault unless it is a key of exactly this spec."""
    if not spec.asymmetric:
        if len(material) != spec.size:
            raise ValidationFault(f"key material of {spec.name} is {spec.size} bytes long, this is {len(material)}")
        return material
    try:
        key: Any = serialization.load_der_private_key(material, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise ValidationFault(f"the key material is no PKCS #8 private key (DER) of {spec.name}") from None
    if not _is_of(spec, key):
        raise ValidationFault(f"the key material is a private key of another kind than {spec.name}")
    return _private_der(key)


def public_der(material: Material) -> bytes:
    """The public half of a private key, SubjectPublicKeyInfo in DER."""
    key: Any = _private(material).public_key()
    encoded: bytes = key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    return encoded


def sign(spec: KeySpec, material: Material, algorithm: str, message: bytes, message_type: str) -> bytes:
    """A signature over a message (RAW), over its digest (DIGEST), or over ML-DSA's mu (EXTERNAL_MU).

    Raises ValidationFault when the type does not go with the algorithm or the digest has the wrong length.
    """
    key = _private(material)
    _check_type(spec, algorithm, message, message_type)
    signature: bytes
    if spec.family == "ml-dsa":
        signature = key.sign_mu(message) if message_type == "EXTERNAL_MU" else key.sign(message)
    elif spec.family == "ed25519":
        signature = key.sign(message)
    elif spec.family == "rsa":
        signature = key.sign(message, _padding(algorithm), _hash(algorithm, message_type))
    else:
        signature = key.sign(message, ec.ECDSA(_hash(algorithm, message_type)))
    return signature


def verify(spec: KeySpec, public: bytes, algorithm: str, message: bytes, message_type: str, signature: bytes) -> bool:
    """Whether a signature holds. Raises as `sign` does."""
    _check_type(spec, algorithm, message, message_type)
    key: Any = serialization.load_der_public_key(public)
    try:
        if spec.family == "ml-dsa":
            if message_type == "EXTERNAL_MU":
                key.verify_mu(signature, message)
            else:
                key.verify(signature, message)
        elif spec.family == "ed25519":
            key.verify(signature, message)
        elif spec.family == "rsa":
            key.verify(signature, message, _padding(algorithm), _hash(algorithm, message_type))
        else:
            key.verify(signature, message, ec.ECDSA(_hash(algorithm, message_type)))
    except (InvalidSignature, ValueError):
        return False
    return True


def _check_type(spec: KeySpec, algorithm: str, message: bytes, message_type: str) -> None:
    allowed = {"ml-dsa": ("RAW", "EXTERNAL_MU"), "ed25519": ("RAW",)}.get(spec.family, ("RAW", "DIGEST"))
    if message_type not in allowed:
        raise ValidationFault(f"MessageType {message_type} does not go with {algorithm}; use {' or '.join(allowed)}")
    wanted = MU_BYTES if message_type == "EXTERNAL_MU" else 0
    if message_type == "DIGEST":
        wanted = _HASHES[algorithm.rpartition("_")[2]]().digest_size
    if wanted and len(message) != wanted:
        raise ValidationFault(f"Digest is invalid length for algorithm {algorithm}.")


def mac(material: Material, algorithm: str, message: bytes) -> bytes:
    """HMAC over a message."""
    return _hmac(material, algorithm, message).finalize()


def mac_holds(material: Material, algorithm: str, message: bytes, tag: bytes) -> bool:
    """Whether a MAC holds, in constant time."""
    try:
        _hmac(material, algorithm, message).verify(tag)
    except InvalidSignature:
        return False
    return True


def _hmac(material: Material, algorithm: str, message: bytes) -> hmac.HMAC:
    made = hmac.HMAC(material, _HASHES[algorithm.rpartition("_")[2]]())
    made.update(message)
    return made


def rsa_encrypt(public: bytes, algorithm: str, plaintext: bytes) -> bytes:
    """RSAES-OAEP. Raises ValidationFault when the plaintext is too long for the key."""
    key = serialization.load_der_public_key(public)
    if not isinstance(key, rsa.RSAPublicKey):
        raise ValidationFault("the key is no RSA key")
    limit = key.key_size // 8 - 2 * _HASHES[algorithm.rpartition("_")[2]]().digest_size - 2
    if len(plaintext) > limit:
        raise ValidationFault(f"{algorithm} with this key encrypts at most {limit} bytes, not {len(plaintext)}")
    return key.encrypt(plaintext, _oaep(algorithm))


def rsa_decrypt(material: Material, algorithm: str, ciphertext: bytes) -> bytes | None:
    """The inverse of `rsa_encrypt`; None when it does not open."""
    key = _private(material)
    try:
        plaintext: bytes = key.decrypt(ciphertext, _oaep(algorithm))
    except ValueError:
        return None
    return plaintext


def agree(spec: KeySpec, material: Material, peer: bytes) -> bytes:
    """The raw ECDH secret with a peer's public key (DER). Raises ValidationFault for a key that is not on the curve."""
    try:
        theirs = serialization.load_der_public_key(peer)
    except (ValueError, UnsupportedAlgorithm):
        raise ValidationFault("PublicKey is no public key (SubjectPublicKeyInfo in DER)") from None
    curve = _CURVES[spec.family, spec.size]
    if not isinstance(theirs, ec.EllipticCurvePublicKey) or not isinstance(theirs.curve, curve):
        raise ValidationFault(f"PublicKey is not on the curve of {spec.name}")
    secret: bytes = _private(material).exchange(ec.ECDH(), theirs)
    return secret


def encapsulate(public: bytes) -> tuple[bytes, bytes]:
    """(shared secret, ciphertext) of ML-KEM under a public key."""
    key: Any = serialization.load_der_public_key(public)
    secret, ciphertext = key.encapsulate()
    return secret, ciphertext


def decapsulate(material: Material, ciphertext: bytes) -> bytes | None:
    """The shared secret of an encapsulation; None when it has the wrong length (FIPS 203 rejects all else silently)."""
    try:
        secret: bytes = _private(material).decapsulate(ciphertext)
    except ValueError:
        return None
    return secret


def _private(material: Material) -> Any:
    # What is loaded here was made or checked by this module and came out of an authenticated seal.
    return serialization.load_der_private_key(material, password=None, unsafe_skip_rsa_key_validation=True)


def _private_der(key: Any) -> bytes:
    encoded: bytes = key.private_bytes(
        serialization.Encoding.DER, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return encoded


def _is_of(spec: KeySpec, key: Any) -> bool:
    if spec.family == "rsa":
        return isinstance(key, rsa.RSAPrivateKey) and key.key_size == spec.size
    if spec.family == "ed25519":
        return isinstance(key, ed25519.Ed25519PrivateKey)
    if spec.family == "ml-dsa":
        return isinstance(key, _ML_DSA[spec.size])
    if spec.family == "ml-kem":
        return isinstance(key, _ML_KEM[spec.size])
    curve = _CURVES[spec.family, spec.size]
    return isinstance(key, ec.EllipticCurvePrivateKey) and isinstance(key.curve, curve)


def _hash(algorithm: str, message_type: str) -> Any:
    made = _HASHES[algorithm.rpartition("_")[2]]()
    return utils.Prehashed(made) if message_type == "DIGEST" else made


def _padding(algorithm: str) -> padding.AsymmetricPadding:
    if "_PSS_" not in algorithm:
        return padding.PKCS1v15()
    return padding.PSS(padding.MGF1(_HASHES[algorithm.rpartition("_")[2]]()), padding.PSS.DIGEST_LENGTH)


def _oaep(algorithm: str) -> padding.OAEP:
    made = _HASHES[algorithm.rpartition("_")[2]]
    return padding.OAEP(padding.MGF1(made()), made(), None)
