"""What a sealed root key is locked with: a passphrase, shares of several people, or a PKCS#11 token.

Every lock yields the same thing, an unlocking key of 32 bytes, from what people or a token bring. The lock itself is a
JSON object that lies beside the sealed root key and holds nothing secret: salts, costs, numbers, names.

Invariants:
- What is wrong (passphrase, share, PIN) yields ConfigurationFault or a key that opens nothing; never part of one.
- A passphrase is stretched by Argon2id with the second recommended parameter set of RFC 9106 or more.
- Fewer shares than the threshold tell nothing about the key (Shamir's scheme, as SLIP-39 encodes it in words).
- A token's AES key never leaves it: it wraps the unlocking key by AES-GCM inside the token.

Source: RFC 9106 section 4; SLIP-0039; PKCS #11 v2.40, CKM_AES_GCM. docs/adr/0007 says why these.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from cryptography.hazmat.primitives.kdf.argon2 import Argon2id

from honmaru.core.errors import ConfigurationFault

KEY_BYTES = 32
_MEMORY_KIB, _PASSES, _LANES = 64 << 10, 3, 4
_MAX_MEMORY_KIB, _MAX_PASSES = 4 << 20, 64
_LEAST_PASSPHRASE = 12
PASSPHRASE, SHARES, TOKEN = "passphrase", "shares", "token"

Lock = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Locked:
    """A new lock, the key that it yields, and for `shares` what to hand to people: it is kept nowhere."""

    lock: Lock
    key: bytes = field(repr=False)
    shares: tuple[str, ...] = field(default=(), repr=False)


def with_passphrase(passphrase: str, secret: Callable[[int], bytes]) -> Locked:
    """A lock that a passphrase opens. Raises ConfigurationFault for a short one."""
    if len(passphrase) < _LEAST_PASSPHRASE:
        raise ConfigurationFault([f"the passphrase has {len(passphrase)} characters: take {_LEAST_PASSPHRASE} or more"])
    lock = {
        "kind": PASSPHRASE,
        "kdf": "argon2id",
        "salt": secret(16).hex(),
        "memory_kib": _MEMORY_KIB,
        "passes": _PASSES,
        "lanes": _LANES,
    }
    return Locked(lock, by_passphrase(lock, passphrase))


def by_passphrase(lock: Lock, passphrase: str) -> bytes:
    """The key that a passphrase yields, right or wrong; it takes about 0.1 s and 64 MiB."""
    try:
        memory, passes, lanes = (int(lock[name]) for name in ("memory_kib", "passes", "lanes"))
        salt = bytes.fromhex(lock["salt"])
    except (KeyError, ValueError, TypeError):
        raise _damaged() from None
    if lock.get("kdf") != "argon2id" or not _MEMORY_KIB <= memory <= _MAX_MEMORY_KIB or not 1 <= lanes <= 64:
        raise _damaged()
    if not _PASSES <= passes <= _MAX_PASSES or len(salt) < 16:
        raise _damaged()
    return Argon2id(salt=salt, length=KEY_BYTES, iterations=passes, lanes=lanes, memory_cost=memory).derive(
        passphrase.encode()
    )


def with_shares(threshold: int, count: int, secret: Callable[[int], bytes]) -> Locked:
    """A lock that any `threshold` of `count` shares open. Raises ConfigurationFault."""
    if not 2 <= threshold <= count <= 16:
        raise ConfigurationFault([f"{threshold} of {count} shares: take 2 to 16 shares, and 2 of them or more to open"])
    scheme = _scheme()
    key = secret(KEY_BYTES)
    group = scheme.generate_mnemonics(1, [(threshold, count)], key)[0]
    return Locked({"kind": SHARES, "threshold": threshold, "shares": count}, key, tuple(group))


def check_share(share: str) -> tuple[int, int]:
    """(set, number) of a share in words. Raises ConfigurationFault for one with a wrong word or checksum."""
    scheme = _scheme()
    try:
        found = scheme.Share.from_mnemonic(" ".join(share.split()).lower())
    except (scheme.MnemonicError, ValueError):
        raise ConfigurationFault(["this is no share: look for a misspelt or missing word"]) from None
    return int(found.identifier), int(found.index)


def by_shares(lock: Lock, shares: Sequence[str]) -> bytes:
    """The key of exactly `threshold` shares. Raises ConfigurationFault when they do not belong together."""
    scheme = _scheme()
    words = [" ".join(share.split()).lower() for share in shares]
    try:
        key: bytes = scheme.combine_mnemonics(words[: int(lock["threshold"])])
    except (scheme.MnemonicError, ValueError, KeyError):
        raise ConfigurationFault(["these shares do not open the root key: they are not of one set"]) from None
    return key


def _scheme() -> Any:
    try:
        import shamir_mnemonic
    except ImportError:
        raise ConfigurationFault(["shares need the package shamir-mnemonic: install honmaru[split]"]) from None
    return shamir_mnemonic


def with_token(module: str, token: str, label: str, pin: str, secret: Callable[[int], bytes]) -> Locked:
    """A lock that an AES-256 key in a PKCS#11 token opens; the key is made there when there is none of this label."""
    key, nonce = secret(KEY_BYTES), secret(12)
    with _session(module, token, pin) as session:
        wrapped = _token_key(session, label, make=True).encrypt(key, mechanism_param=_gcm(nonce), mechanism=_AES_GCM())
    names = {"kind": TOKEN, "module": module, "token": token, "label": label}
    return Locked({**names, "nonce": nonce.hex(), "wrapped": bytes(wrapped).hex()}, key)


def by_token(lock: Lock, pin: str) -> bytes:
    """The key that a token unwraps. Raises ConfigurationFault for a wrong PIN, or when token or key are not there."""
    import pkcs11

    with _session(lock["module"], lock["token"], pin) as session:
        wrapping = _token_key(session, lock["label"], make=False)
        try:
            key = wrapping.decrypt(
                bytes.fromhex(lock["wrapped"]),
                mechanism_param=_gcm(bytes.fromhex(lock["nonce"])),
                mechanism=_AES_GCM(),
            )
        except pkcs11.exceptions.PKCS11Error:
            raise ConfigurationFault(["the token's key does not open the root key: it is another key"]) from None
    return bytes(key)


def _gcm(nonce: bytes) -> Any:
    from pkcs11 import GCMParams

    return GCMParams(nonce, b"honmaru root key", 128)


def _AES_GCM() -> Any:  # noqa: N802 - named as PKCS#11 names it
    from pkcs11 import Mechanism

    return Mechanism.AES_GCM


def _session(module: str, token: str, pin: str) -> Any:
    try:
        import pkcs11
    except ImportError:
        raise ConfigurationFault(["a token needs the package python-pkcs11: install honmaru[hsm]"]) from None
    try:
        return pkcs11.lib(module).get_token(token_label=token).open(rw=True, user_pin=pin)
    except (pkcs11.exceptions.PKCS11Error, RuntimeError, OSError) as error:
        raise ConfigurationFault(
            [f"token {token!r} in {module} cannot be opened ({type(error).__name__}): check module, token and PIN"]
        ) from error


def _token_key(session: Any, label: str, *, make: bool) -> Any:
    from pkcs11 import Attribute, KeyType, ObjectClass
    from pkcs11.exceptions import NoSuchKey

    try:
        return session.get_key(object_class=ObjectClass.SECRET_KEY, key_type=KeyType.AES, label=label)
    except NoSuchKey:
        if not make:
            raise ConfigurationFault([f"the token holds no AES key {label!r}"]) from None
    hidden = {Attribute.SENSITIVE: True, Attribute.EXTRACTABLE: False}
    return session.generate_key(KeyType.AES, 256, label=label, store=True, template=hidden)


def _damaged() -> ConfigurationFault:
    return ConfigurationFault(["the lock of the root key is damaged: put root.sealed back from a backup"])
