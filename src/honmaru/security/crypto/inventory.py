"""The cryptographic inventory: every algorithm in use, where, for what, and whether CNSA 2.0 holds it.

Invariants:
- What is not listed here is not used: a test compares the primitives that the source names with this table.
- An algorithm outside CNSA 2.0 states why it is used all the same.
- Nothing here is called validated: the modules that compute it (OpenSSL in pyca/cryptography, in Python) are not.
Source: NSA "Announcing the Commercial National Security Algorithm Suite 2.0" and its FAQ (version 2.1, December 2024).
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Algorithm:
    """One algorithm for one purpose.

    `where` names the packages or modules that use it; `primitive` is what their source calls it, so that a test can
    find uses that are not listed. `cnsa` is True when CNSA 2.0 holds it for this purpose; else `reason` says why it is
    here. `security` is False for checksums that protect against accidents only.
    """

    name: str
    primitive: str
    standard: str
    purpose: str
    where: tuple[str, ...]
    cnsa: bool
    reason: str = ""
    security: bool = True


_AWS = "AWS defines it so, and unmodified AWS clients send it"
_KEYS = "users of AWS have such keys; a site that must not make them denies kms:CreateKey by kms:KeySpec"
_ISSUERS = "the issuers that a site trusts sign so; no issuer signs with a post-quantum algorithm today"
_AUTHENTICATORS = "the authenticator programs that people have know no other"

INVENTORY = (
    Algorithm(
        "ML-DSA-87",
        "mldsa",
        "FIPS 204",
        "signatures of ledger checkpoints",
        ("honmaru.security.ledger",),
        True,
    ),
    Algorithm(
        "SHA-384",
        "sha384",
        "FIPS 180-4",
        "Merkle trees of the ledger, key fingerprints, digests of requests, policies, environments, bodies",
        ("honmaru.security", "honmaru.services", "honmaru.gateway", "honmaru.jobs", "honmaru.core", "honmaru.app"),
        True,
    ),
    Algorithm(
        "HMAC-SHA-384",
        "hmac-sha384",
        "FIPS 198-1",
        "authenticates ledger entries between fsync and signed checkpoint",
        ("honmaru.security.ledger.tail",),
        True,
    ),
    Algorithm(
        "AES-256-GCM",
        "AESGCM",
        "FIPS 197, SP 800-38D",
        "sealing of records, blobs, session tokens, events of log groups under keys of KMS; wrapping of their keys",
        ("honmaru.security.crypto.keyring", "honmaru.security.guard", "honmaru.services.logs.seals"),
        True,
    ),
    Algorithm(
        "AES-256-SIV",
        "AESSIV",
        "FIPS 197, RFC 5297",
        "sealing of page tokens, where the same place must give the same token",
        ("honmaru.security.page_tokens",),
        True,
    ),
    Algorithm(
        "AES-256-GCM",
        "AESGCM",
        "FIPS 197, SP 800-38D",
        "ciphertexts of the key service's symmetric keys",
        ("honmaru.security.crypto.ciphertexts",),
        True,
    ),
    Algorithm(
        "KBKDF HMAC-SHA-384",
        "kbkdf",
        "SP 800-108r1",
        "a key of its own for each ciphertext of the key service",
        ("honmaru.security.crypto.ciphertexts",),
        True,
    ),
    Algorithm(
        "AES-256 key wrap with padding",
        "keywrap",
        "SP 800-38F, RFC 5649",
        "the way of imported key material into the key service",
        ("honmaru.services.kms.import_material",),
        True,
    ),
    Algorithm(
        "HMAC-SHA-384",
        "hmac-sha384",
        "FIPS 198-1",
        "identifiers of imported key material",
        ("honmaru.services.kms.import_material",),
        True,
    ),
    Algorithm(
        "ML-DSA-87",
        "mldsa",
        "FIPS 204",
        "keys of the key service (ML_DSA_87)",
        ("honmaru.security.crypto.key_material",),
        True,
    ),
    Algorithm(
        "ML-KEM-1024",
        "mlkem",
        "FIPS 203",
        "keys of the key service (ML_KEM_1024)",
        ("honmaru.security.crypto.key_material",),
        True,
    ),
    Algorithm(
        "HMAC-SHA-384, HMAC-SHA-512",
        "hmac",
        "FIPS 198-1",
        "keys of the key service (HMAC_384, HMAC_512)",
        ("honmaru.security.crypto.key_material",),
        True,
    ),
    Algorithm(
        "HMAC-SHA-224, HMAC-SHA-256",
        "hmac",
        "FIPS 198-1",
        "keys of the key service (HMAC_224, HMAC_256)",
        ("honmaru.security.crypto.key_material",),
        False,
        _KEYS,
    ),
    Algorithm(
        "ML-DSA-44, ML-DSA-65",
        "mldsa",
        "FIPS 204",
        "keys of the key service (ML_DSA_44, ML_DSA_65)",
        ("honmaru.security.crypto.key_material",),
        False,
        _KEYS,
    ),
    Algorithm(
        "ML-KEM-768",
        "mlkem",
        "FIPS 203",
        "keys of the key service (ML_KEM_768)",
        ("honmaru.security.crypto.key_material",),
        False,
        _KEYS,
    ),
    Algorithm(
        "RSA-2048, RSA-3072, RSA-4096",
        "rsa",
        "FIPS 186-5, RFC 8017",
        "keys of the key service (RSA_*), and of the way of imported key material",
        ("honmaru.security.crypto.key_material",),
        False,
        _KEYS,
    ),
    Algorithm(
        "RSASSA-PSS, RSASSA-PKCS1-v1_5, RSAES-OAEP",
        "padding",
        "RFC 8017",
        "signatures and encryption with RSA keys of the key service; OAEP with SHA-1 too, which AWS lists",
        ("honmaru.security.crypto.key_material",),
        False,
        _KEYS,
    ),
    Algorithm(
        "ECDSA and ECDH on P-256, P-384, P-521 and secp256k1",
        "ec",
        "FIPS 186-5, SP 800-56A, SEC 2",
        "keys of the key service (ECC_*)",
        ("honmaru.security.crypto.key_material",),
        False,
        _KEYS,
    ),
    Algorithm(
        "Digests that were made by the caller (SHA-256, SHA-384, SHA-512)",
        "utils",
        "FIPS 180-4",
        "Sign and Verify of the key service with MessageType DIGEST",
        ("honmaru.security.crypto.key_material",),
        False,
        _KEYS,
    ),
    Algorithm(
        "Ed25519",
        "ed25519",
        "FIPS 186-5, RFC 8032",
        "keys of the key service (ECC_NIST_EDWARDS25519)",
        ("honmaru.security.crypto.key_material",),
        False,
        _KEYS,
    ),
    Algorithm(
        "AES-256-GCM",
        "AESGCM",
        "FIPS 197, SP 800-38D",
        "sealing of the root key under its lock, and of backups",
        ("honmaru.security.crypto.root_key", "honmaru.security.crypto.sealed_stream"),
        True,
    ),
    Algorithm(
        "Argon2id",
        "argon2",
        "RFC 9106",
        "stretching of the passphrase of a root key or a backup",
        ("honmaru.security.crypto.locks",),
        False,
        "CNSA 2.0 names no function for passphrases; a token or shares need none",
    ),
    Algorithm(
        "scrypt",
        "scrypt",
        "RFC 7914",
        "passwords of IAM users are kept stretched",
        ("honmaru.services.iam.passwords",),
        False,
        "CNSA 2.0 names no function for passwords",
    ),
    Algorithm(
        "Shamir's secret sharing over GF(256)",
        "shamir_mnemonic",
        "SLIP-0039",
        "the root key's lock in shares of several people",
        ("honmaru.security.crypto.locks",),
        False,
        "CNSA 2.0 names no secret sharing; it hides information-theoretically, so no computer breaks it",
    ),
    Algorithm(
        "SHA-256",
        "sha256",
        "FIPS 180-4",
        "second Merkle tree of the ledger and key ids of its notes",
        ("honmaru.security.ledger",),
        False,
        "the C2SP formats fix it; every checkpoint covers the SHA-384 tree as well, which suffices alone",
    ),
    Algorithm(
        "SHA-256",
        "sha256",
        "FIPS 180-4",
        "Signature Version 4, S3 checksums and identifiers, digests of blobs and model artefacts as AWS shows them",
        (
            "honmaru.gateway",
            "honmaru.services",
            "honmaru.security.guard",
            "honmaru.security.identity",
            "honmaru.jobs",
            "honmaru.deployments",
            "honmaru.workloads",
            "honmaru.executors",
            "honmaru.cli",
            "honmaru.app",
        ),
        False,
        _AWS,
    ),
    Algorithm(
        "HMAC-SHA-256",
        "hmac-sha256",
        "FIPS 198-1",
        "Signature Version 4",
        ("honmaru.gateway.aws", "honmaru.security.identity"),
        False,
        _AWS,
    ),
    Algorithm(
        "ECDSA P-384",
        "ec",
        "FIPS 186-5",
        "the enclave's own certificate authority and its server certificate; identities of workloads",
        ("honmaru.security.crypto.certificates", "honmaru.security.crypto.workload_identity"),
        False,
        "unmodified AWS clients verify no post-quantum certificate today; P-384 is CNSA 1.0's",
    ),
    Algorithm(
        "TLS 1.2 and 1.3",
        "ssl",
        "RFC 5246, RFC 8446",
        "the server's transport on loopback, that of a job's broker to it, between a job and its broker, and to model "
        "servers, its own and those that a site names",
        (
            "honmaru.gateway",
            "honmaru.app",
            "honmaru.cli",
            "honmaru.jobs",
            "honmaru.deployments",
            "honmaru.security.crypto.workload_identity",
            "honmaru.workloads.broker",
            "honmaru.workloads.serving_identity",
            "honmaru.ports.server_identities",
        ),
        False,
        "key exchange is what Python's OpenSSL offers, classical before OpenSSL 3.5",
    ),
    Algorithm(
        "RSASSA-PKCS1-v1_5, RSASSA-PSS (2048 bits and more)",
        "rsa",
        "RFC 7518, RFC 8017",
        "signatures of identity tokens and SAML assertions that outside issuers made",
        ("honmaru.security.identity.jwt", "honmaru.app.saml_signatures"),
        False,
        _ISSUERS,
    ),
    Algorithm(
        "RSASSA-PKCS1-v1_5, RSASSA-PSS (2048 bits and more)",
        "padding",
        "RFC 7518, RFC 8017",
        "signatures of identity tokens and SAML assertions that outside issuers made",
        ("honmaru.security.identity.jwt", "honmaru.app.saml_signatures"),
        False,
        _ISSUERS,
    ),
    Algorithm(
        "ECDSA P-256, P-384, P-521",
        "ec",
        "RFC 7518, FIPS 186-5",
        "signatures of identity tokens and SAML assertions that outside issuers made",
        ("honmaru.security.identity.jwt", "honmaru.app.saml_signatures"),
        False,
        _ISSUERS,
    ),
    Algorithm(
        "SHA-256, SHA-384, SHA-512",
        "hashes",
        "FIPS 180-4",
        "signatures of identity tokens and SAML assertions that outside issuers made",
        ("honmaru.security.identity.jwt", "honmaru.app.saml_signatures"),
        False,
        _ISSUERS,
    ),
    Algorithm(
        "ECDSA signatures as RFC 7518 writes them",
        "utils",
        "RFC 7518",
        "signatures of identity tokens and SAML assertions that outside issuers made",
        ("honmaru.security.identity.jwt", "honmaru.app.saml_signatures"),
        False,
        _ISSUERS,
    ),
    Algorithm(
        "XML Signature with RSA or ECDSA and SHA-256, SHA-384 or SHA-512",
        "signxml",
        "XML Signature 1.1",
        "signatures of SAML assertions that outside identity providers made",
        ("honmaru.app.saml_signatures",),
        False,
        _ISSUERS,
    ),
    Algorithm(
        "AES-256-XTS, AES-256-CBC-CTS",
        "fcntl",
        "FIPS 197, SP 800-38E",
        "scratch of training jobs with a VolumeKmsKeyId, by the kernel (fscrypt)",
        ("honmaru.executors.local.volumes",),
        False,
        "the kernel's modes for files carry no authentication; the scratch ends with its job",
    ),
    Algorithm(
        "TOTP with HMAC-SHA-1",
        "totp",
        "RFC 6238",
        "one-time passwords of virtual MFA devices",
        ("honmaru.security.identity.mfa",),
        False,
        _AUTHENTICATORS,
    ),
    Algorithm(
        "TOTP with HMAC-SHA-1",
        "twofactor",
        "RFC 6238",
        "one-time passwords of virtual MFA devices",
        ("honmaru.security.identity.mfa",),
        False,
        _AUTHENTICATORS,
    ),
    Algorithm(
        "SHA-1",
        "hashes",
        "FIPS 180-4",
        "one-time passwords of virtual MFA devices",
        ("honmaru.security.identity.mfa",),
        False,
        _AUTHENTICATORS,
    ),
    Algorithm(
        "SHA-1",
        "sha1",
        "FIPS 180-4",
        "thumbprints of the certificates of OpenID Connect issuers and SAML:namequalifier, as IAM shows them",
        ("honmaru.app.issuer_keys", "honmaru.security.identity.saml_federation"),
        False,
        _AWS,
    ),
    Algorithm(
        "BLAKE2b",
        "blake2b",
        "RFC 7693",
        "places in the table of rates that processes share",
        ("honmaru.gateway.shared_rates",),
        False,
        "nothing secret and nothing trusted rests on it",
        security=False,
    ),
    Algorithm(
        "MD5",
        "md5",
        "RFC 1321",
        "ETag and Content-MD5 of S3",
        ("honmaru.services.s3", "honmaru.gateway.aws.digests"),
        False,
        _AWS,
        security=False,
    ),
    Algorithm(
        "SHA-1",
        "sha1",
        "FIPS 180-4",
        "optional S3 checksum",
        ("honmaru.services.s3", "honmaru.gateway.aws.digests"),
        False,
        _AWS,
        security=False,
    ),
    Algorithm(
        "SHA-512",
        "sha512",
        "FIPS 180-4",
        "optional S3 checksum",
        ("honmaru.services.s3", "honmaru.gateway.aws.digests"),
        True,
        security=False,
    ),
)


def outside_cnsa() -> list[Algorithm]:
    """What is used although CNSA 2.0 does not hold it, each with its reason."""
    return [algorithm for algorithm in INVENTORY if not algorithm.cnsa]


def listed(primitive: str, module: str) -> bool:
    """Whether a module's use of a primitive is in the inventory."""
    return any(
        algorithm.primitive == primitive
        and any(module == root or module.startswith(root + ".") for root in algorithm.where)
        for algorithm in INVENTORY
    )
