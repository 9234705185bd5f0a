"""What kinds of keys the key service makes, what each may be used for, and under which algorithm names.

Invariants:
- A spec offers only algorithms that are computed for real: what pyca/cryptography 50 does not hold (SM2, ML-KEM-512,
  Ed25519ph) is not in the table, so it is refused and never imitated.
- A key is made for one usage and never serves another (SP 800-57 Part 1, section 5.2).

Source: AWS KMS developer guide, "Key spec reference"; FIPS 186-5, 197, 198-1, 203, 204; SEC 2 (secp256k1).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

ENCRYPT, SIGN, MAC, AGREE, ENCAPSULATE = (
    "ENCRYPT_DECRYPT",
    "SIGN_VERIFY",
    "GENERATE_VERIFY_MAC",
    "KEY_AGREEMENT",
    "ENCAPSULATE_DECAPSULATE",
)
SYMMETRIC = "SYMMETRIC_DEFAULT"

ALGORITHM_MEMBERS: Mapping[str, str] = {
    ENCRYPT: "EncryptionAlgorithms",
    SIGN: "SigningAlgorithms",
    MAC: "MacAlgorithms",
    AGREE: "KeyAgreementAlgorithms",
    ENCAPSULATE: "EncapsulationAlgorithms",
}
"""Usage → the member of KeyMetadata that lists its algorithms."""


@dataclass(frozen=True, slots=True)
class KeySpec:
    """One row: `family` says how material is made and used, `size` is its parameter (bits, bytes or a curve's bits).

    `usages` maps each usage to the algorithms that AWS lists for it.
    """

    name: str
    family: str
    size: int
    usages: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def asymmetric(self) -> bool:
        return self.family not in ("aes", "hmac")


_RSA_USAGES = {
    ENCRYPT: ("RSAES_OAEP_SHA_1", "RSAES_OAEP_SHA_256"),
    SIGN: (
        "RSASSA_PKCS1_V1_5_SHA_256",
        "RSASSA_PKCS1_V1_5_SHA_384",
        "RSASSA_PKCS1_V1_5_SHA_512",
        "RSASSA_PSS_SHA_256",
        "RSASSA_PSS_SHA_384",
        "RSASSA_PSS_SHA_512",
    ),
}

KEY_SPECS: Mapping[str, KeySpec] = {
    spec.name: spec
    for spec in (
        KeySpec(SYMMETRIC, "aes", 32, {ENCRYPT: (SYMMETRIC,)}),
        KeySpec("RSA_2048", "rsa", 2048, _RSA_USAGES),
        KeySpec("RSA_3072", "rsa", 3072, _RSA_USAGES),
        KeySpec("RSA_4096", "rsa", 4096, _RSA_USAGES),
        KeySpec("ECC_NIST_P256", "ec", 256, {SIGN: ("ECDSA_SHA_256",), AGREE: ("ECDH",)}),
        KeySpec("ECC_NIST_P384", "ec", 384, {SIGN: ("ECDSA_SHA_384",), AGREE: ("ECDH",)}),
        KeySpec("ECC_NIST_P521", "ec", 521, {SIGN: ("ECDSA_SHA_512",), AGREE: ("ECDH",)}),
        KeySpec("ECC_SECG_P256K1", "ec-k1", 256, {SIGN: ("ECDSA_SHA_256",)}),
        KeySpec("ECC_NIST_EDWARDS25519", "ed25519", 255, {SIGN: ("ED25519_SHA_512",)}),
        KeySpec("HMAC_224", "hmac", 28, {MAC: ("HMAC_SHA_224",)}),
        KeySpec("HMAC_256", "hmac", 32, {MAC: ("HMAC_SHA_256",)}),
        KeySpec("HMAC_384", "hmac", 48, {MAC: ("HMAC_SHA_384",)}),
        KeySpec("HMAC_512", "hmac", 64, {MAC: ("HMAC_SHA_512",)}),
        KeySpec("ML_DSA_44", "ml-dsa", 44, {SIGN: ("ML_DSA_SHAKE_256",)}),
        KeySpec("ML_DSA_65", "ml-dsa", 65, {SIGN: ("ML_DSA_SHAKE_256",)}),
        KeySpec("ML_DSA_87", "ml-dsa", 87, {SIGN: ("ML_DSA_SHAKE_256",)}),
        KeySpec("ML_KEM_768", "ml-kem", 768, {ENCAPSULATE: ("ML_KEM",)}),
        KeySpec("ML_KEM_1024", "ml-kem", 1024, {ENCAPSULATE: ("ML_KEM",)}),
    )
}
"""Every spec that keys and data key pairs can be made of, by AWS's name."""
