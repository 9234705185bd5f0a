"""The root key: sealed under each kind of lock, rotated, and cut short anywhere."""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from honmaru.core.errors import ConfigurationFault, IntegrityFault
from honmaru.security.crypto import locks, root_key, secret_files
from honmaru.security.crypto.keyring import Keyring
from honmaru.security.crypto.root_key import RootKey, RootKeySealed, sealed_lock
from honmaru.testing.keep import quick_directory

PLACES = [("1", "U"), ("1", "S"), ("2", "S")]
MODULE = Path("/usr/lib/softhsm/libsofthsm2.so")


@pytest.fixture
def ring() -> Iterator[Path]:
    with quick_directory() as directory:
        path = directory / "ring"
        keyring = Keyring(path, os.urandom)
        for place in PLACES:
            (directory / f"{place[0]}{place[1]}").write_bytes(keyring.seal(*place, b"live", b""))
        yield path


def opens(ring: Path, unlocking: bytes | None = None) -> bool:
    keyring = Keyring(ring, os.urandom, unlocking)
    return all(keyring.open(*p, (ring.parent / f"{p[0]}{p[1]}").read_bytes(), b"") == b"live" for p in PLACES)


@pytest.fixture
def quick_argon2(monkeypatch: pytest.MonkeyPatch) -> None:
    """The least memory that is taken, so that these tests are quick."""
    monkeypatch.setattr(locks, "_MEMORY_KIB", 1024)


@pytest.mark.usefixtures("quick_argon2")
def test_a_passphrase_unlocks_and_another_does_not(ring: Path) -> None:
    made = locks.with_passphrase("correct horse battery", os.urandom)
    RootKey(ring, os.urandom).seal(made.lock, made.key)
    assert not (ring / "root.key").exists()
    with pytest.raises(RootKeySealed):
        opens(ring)
    lock = sealed_lock(ring)
    assert lock is not None
    assert opens(ring, locks.by_passphrase(lock, "correct horse battery"))
    with pytest.raises(ConfigurationFault, match="does not open"):
        opens(ring, locks.by_passphrase(lock, "correct horse batteri"))
    with pytest.raises(ConfigurationFault, match="12 or more"):
        locks.with_passphrase("short", os.urandom)
    # Another passphrase, by who knows the old one; the old one is over.
    other = locks.with_passphrase("another passphrase", os.urandom)
    RootKey(ring, os.urandom, made.key).seal(other.lock, other.key)
    assert opens(ring, other.key)
    with pytest.raises(ConfigurationFault):
        opens(ring, made.key)


@pytest.mark.usefixtures("quick_argon2")
def test_a_weakened_lock_is_refused_and_breaks_the_seal(ring: Path) -> None:
    made = locks.with_passphrase("correct horse battery", os.urandom)
    for change in ({"memory_kib": 8}, {"passes": 1}, {"kdf": "plain"}, {"salt": ""}):
        with pytest.raises(ConfigurationFault, match="damaged"):
            locks.by_passphrase({**made.lock, **change}, "correct horse battery")
    RootKey(ring, os.urandom).seal(made.lock, made.key)
    raw = (ring / "root.sealed").read_bytes()
    (ring / "root.sealed").write_bytes(raw.replace(b'"passes":3', b'"passes":4'))
    with pytest.raises(ConfigurationFault):
        opens(ring, made.key)


def test_any_three_of_five_shares_unlock(ring: Path) -> None:
    made = locks.with_shares(3, 5, os.urandom)
    RootKey(ring, os.urandom).seal(made.lock, made.key)
    assert not any(share.encode() in path.read_bytes() for share in made.shares for path in ring.iterdir())
    for chosen in itertools.combinations(made.shares, 3):
        assert locks.by_shares(made.lock, chosen) == made.key
    assert opens(ring, locks.by_shares(made.lock, made.shares[1:4]))
    with pytest.raises(ConfigurationFault):
        locks.by_shares(made.lock, made.shares[:2])
    with pytest.raises(ConfigurationFault):
        locks.by_shares(made.lock, [made.shares[0], made.shares[0], made.shares[1]])
    foreign = locks.with_shares(3, 5, os.urandom).shares
    with pytest.raises(ConfigurationFault):
        locks.by_shares(made.lock, [*made.shares[:2], foreign[2]])
    assert locks.check_share(made.shares[0].upper())[0] == locks.check_share(made.shares[1])[0]
    wrong = made.shares[0].rsplit(" ", 1)[0] + " academic"
    with pytest.raises(ConfigurationFault, match="misspelt"):
        locks.check_share(wrong if wrong != made.shares[0] else wrong + " acid")
    for threshold, count in ((1, 3), (4, 3), (2, 17)):
        with pytest.raises(ConfigurationFault):
            locks.with_shares(threshold, count, os.urandom)


# Source: SLIP-0039's published vectors, number 1 and 4 (passphrase "TREZOR").
VECTORS = (
    (
        """duckling enlarge academic academic agency result length solution fridge kidney coal piece deal husband
        erode duke ajar critical decision keyboard""",
        "bb54aac4b89dc868ba37d9cc21b2cece",
    ),
    (
        """shadow pistol academic always adequate wildlife fancy gross oasis cylinder mustang wrist rescue view short
        owner flip making coding armed
        | shadow pistol academic acid actress prayer class unknown daughter sweater depict flip twice unkind craft
        early superior advocate guest smoking""",
        "b43ceb7e57a0ea8766221624d01b0864",
    ),
)


@pytest.mark.parametrize(("shares", "secret"), VECTORS)
def test_the_library_agrees_with_the_published_vectors(shares: str, secret: str) -> None:
    import shamir_mnemonic

    words = [" ".join(share.split()) for share in shares.split("|")]
    assert shamir_mnemonic.combine_mnemonics(words, b"TREZOR").hex() == secret


@pytest.fixture
def token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    if not MODULE.exists() or shutil.which("softhsm2-util") is None:
        pytest.skip("SoftHSM is not installed: apt-get install softhsm2")
    (tmp_path / "tokens").mkdir()
    (tmp_path / "softhsm2.conf").write_text(f"directories.tokendir = {tmp_path / 'tokens'}\n")
    monkeypatch.setenv("SOFTHSM2_CONF", str(tmp_path / "softhsm2.conf"))
    init = ["softhsm2-util", "--init-token", "--free", "--label", "honmaru", "--pin", "1234", "--so-pin", "5678"]
    subprocess.run(init, check=True, capture_output=True)
    return "honmaru"


def test_a_token_unlocks(ring: Path, token: str, tmp_path: Path) -> None:
    made = locks.with_token(str(MODULE), token, "root", "1234", os.urandom)
    RootKey(ring, os.urandom).seal(made.lock, made.key)
    lock = sealed_lock(ring)
    assert lock is not None and opens(ring, locks.by_token(lock, "1234"))
    again = locks.with_token(str(MODULE), token, "root", "1234", os.urandom)  # the same key in the token
    assert locks.by_token(again.lock, "1234") == again.key
    with pytest.raises(ConfigurationFault, match="PIN"):
        locks.by_token(lock, "0000")
    with pytest.raises(ConfigurationFault, match="cannot be opened"):
        locks.by_token({**lock, "token": "nobody"}, "1234")
    with pytest.raises(ConfigurationFault, match="no AES key"):
        locks.by_token({**lock, "label": "other"}, "1234")
    wrapped = bytearray.fromhex(lock["wrapped"])
    wrapped[3] ^= 1
    with pytest.raises(ConfigurationFault):
        locks.by_token({**lock, "wrapped": wrapped.hex()}, "1234")


# Rotation


@pytest.mark.parametrize("sealed", [False, True])
def test_rotation_seals_every_key_under_a_new_root_key(ring: Path, sealed: bool) -> None:
    unlocking = None
    if sealed:
        made = locks.with_shares(2, 3, os.urandom)
        RootKey(ring, os.urandom).seal(made.lock, made.key)
        unlocking = made.key
    before = {path.name: path.read_bytes() for path in ring.iterdir()}
    keyring = Keyring(ring, os.urandom, unlocking)
    assert keyring.rotate() == 3
    after = {path.name: path.read_bytes() for path in ring.iterdir()}
    assert set(before) == set(after)
    assert all(before[name] != after[name] for name in before if name != "lock")
    assert opens(ring, unlocking)
    old = "root.sealed" if sealed else "root.key"
    (ring / old).write_bytes(before[old])
    with pytest.raises(IntegrityFault):
        opens(ring, unlocking)


class Cut(Exception):
    pass


@pytest.mark.parametrize("sealed", [False, True])
def test_a_rotation_cut_short_anywhere_loses_no_key(ring: Path, sealed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every write of a rotation in turn is the last one that happens."""
    unlocking = None
    if sealed:
        made = locks.with_shares(2, 3, os.urandom)
        RootKey(ring, os.urandom).seal(made.lock, made.key)
        unlocking = made.key
    for left in range(6):
        steps = itertools.count()

        def step(real: object, limit: int = left, steps: Iterator[int] = steps) -> object:
            def run(*args: object) -> object:
                if next(steps) >= limit:
                    raise Cut
                return real(*args)  # type: ignore[operator]

            return run

        with monkeypatch.context() as patched:
            for module in (secret_files, root_key):
                patched.setattr(module, "sync_directory", step(secret_files.sync_directory))
            try:
                Keyring(ring, os.urandom, unlocking).rotate()
            except Cut:
                pass
            else:
                assert left == 5
        assert opens(ring, unlocking)
        assert not (ring / "root.next").exists()


def test_a_sealing_cut_short_leaves_the_sealed_key_in_force(ring: Path) -> None:
    plain = (ring / "root.key").read_bytes()
    made = locks.with_shares(2, 2, os.urandom)
    RootKey(ring, os.urandom).seal(made.lock, made.key)
    (ring / "root.key").write_bytes(plain)
    (ring / "root.key").chmod(0o600)
    with pytest.raises(RootKeySealed):
        opens(ring)
    Keyring(ring, os.urandom, made.key).check()
    assert not (ring / "root.key").exists() and opens(ring, made.key)


def test_key_files_of_the_first_version_are_read_and_turned(ring: Path) -> None:
    for path in ring.glob("*.kek"):
        raw = path.read_bytes()
        path.write_bytes(raw[8 + int.from_bytes(raw[4:8], "big") :])
    with pytest.raises(ConfigurationFault, match="older version"):
        Keyring(ring, os.urandom).rotate()
    assert opens(ring)
    assert Keyring(ring, os.urandom).rotate() == 3
    assert opens(ring)
