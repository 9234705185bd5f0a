"""Random tampering with a ledger directory is found offline: flip, delete, insert, reorder, truncate, roll back."""

from __future__ import annotations

import json
import os
import random
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from honmaru.app.runtime import SystemClock
from honmaru.core.labels import BOTTOM, Label
from honmaru.security.ledger import Ledger, verify
from honmaru.security.ledger.recovery import bundle_files, tile_files
from honmaru.security.ledger.tail import TailKey, frame, segment_paths
from honmaru.security.ledger.tiles import ALGORITHMS, bundle_path, pack, unpack
from honmaru.security.ledger.tree import WIDTH, Tree

SIZES = (5, 256, 300, 700)


class Scene:
    """A ledger of 700 entries, valid copies of it from earlier, and its heads as kept outside."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.past: list[Path] = []
        done = 0
        for size in SIZES:
            ledger = Ledger(root / "ledger", clock=SystemClock(), secret=os.urandom)
            futures = [ledger.append(BOTTOM, entry(number)) for number in range(done, size)]
            futures.append(ledger.append(Label.parse("SECRET"), {"eventID": f"s{size}"}))
            for future in futures:
                future.result(10)
            self.fingerprint = ledger.signer.verifier.fingerprint
            ledger.close()
            done = size
            if size != SIZES[-1]:
                self.past.append(root / f"past-{size}")
                shutil.copytree(root / "ledger", self.past[-1])
        self.heads = [path.read_bytes() for path in sorted((root / "keys" / "ledger").glob("*.head"))]

    def copy(self, source: Path | None = None) -> Path:
        target = self.root / "copy"
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(source or self.root / "ledger", target)
        return target


def entry(number: int) -> dict[str, object]:
    return {"eventID": f"e{number}", "eventName": "PutObject", "n": number, "filler": "x" * (number % 40)}


def files(copy: Path) -> list[Path]:
    return sorted(path for path in copy.rglob("*") if path.is_file())


def entries_of(log: Path) -> list[bytes]:
    """All entries, from the full bundles and the partial one."""
    found: list[bytes] = []
    for path in sorted((log / "tile" / "entries").rglob("*")):
        if path.is_file():
            found += unpack(path.read_bytes())
    return found


def rebuild(log: Path, entries: list[bytes]) -> None:
    """What an attacker without the signing key can do best: every file made consistent with the new entries."""
    origin = json.loads((log / "label.json").read_bytes())["origin"]
    for top in ("tile", "sha384", "tail"):
        shutil.rmtree(log / top, ignore_errors=True)
    made = bundle_files(0, entries, 0, len(entries) // WIDTH)
    if len(entries) % WIDTH:
        made[bundle_path(len(entries) // WIDTH, len(entries) % WIDTH)] = pack(entries[len(entries) // WIDTH * WIDTH :])
    for algorithm in ALGORITHMS:
        tree = Tree(algorithm)
        made |= tile_files(algorithm, tree.extend([algorithm.leaf(item) for item in entries]))
        made |= tile_files(algorithm, tree.partial())
    made["tail/" + "0" * 20] = frame(TailKey(b"guessed", origin), 0, entries) if entries else b""
    for name, content in made.items():
        (log / name).parent.mkdir(parents=True, exist_ok=True)
        (log / name).write_bytes(content)


def renumber(entries: list[bytes]) -> list[bytes]:
    """Entries with indices as they stand and times in order, as a careful forger would leave them."""
    stamps = sorted(item.split(b'"recorded":"')[1][:27] for item in entries)
    return [
        b'{"index":%d,"recorded":"%s"' % (index, stamp) + item.split(stamp_end(item), 1)[1]
        for index, (item, stamp) in enumerate(zip(entries, stamps, strict=True))
    ]


def stamp_end(item: bytes) -> bytes:
    return b'"recorded":"' + item.split(b'"recorded":"')[1][:27] + b'"'


def edit_entries(copy: Path, chance: random.Random, change: Callable[[list[bytes]], None]) -> None:
    """Change the list of entries: in one bundle file only, everywhere, or everywhere and renumbered."""
    log = copy / BOTTOM.token
    thoroughness = chance.randrange(3)
    if thoroughness == 0:
        path = chance.choice([p for p in (log / "tile" / "entries").rglob("*") if p.is_file()])
        entries = unpack(path.read_bytes())
        change(entries)
        path.write_bytes(pack(entries))
        return
    entries = entries_of(log)
    change(entries)
    rebuild(log, renumber(entries) if thoroughness == 2 else entries)


def flip(scene: Scene, chance: random.Random) -> Path:
    copy = scene.copy()
    path = chance.choice(files(copy))
    content = bytearray(path.read_bytes())
    content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
    path.write_bytes(content)
    return copy


def delete(scene: Scene, chance: random.Random) -> Path:
    copy = scene.copy()
    match chance.randrange(3):
        case 0:
            chance.choice(files(copy)).unlink()
        case 1:
            shutil.rmtree(chance.choice([path for path in copy.rglob("*") if path.is_dir()]))
        case _:

            def remove(entries: list[bytes]) -> None:
                del entries[chance.randrange(len(entries))]

            edit_entries(copy, chance, remove)
    return copy


def insert(scene: Scene, chance: random.Random) -> Path:
    copy = scene.copy()
    if chance.random() < 0.3:
        folder = chance.choice([copy, *(path for path in copy.rglob("*") if path.is_dir())])
        name = chance.choice(["note.txt", "900", "00000000000000009999", "x001"])
        (folder / name).write_bytes(b"foreign")
        return copy

    def add(entries: list[bytes]) -> None:
        at = chance.randrange(len(entries))
        entries.insert(at, entries[at].replace(b"PutObject", b"GetObject"))

    edit_entries(copy, chance, add)
    return copy


def reorder(scene: Scene, chance: random.Random) -> Path:
    copy = scene.copy()
    if chance.random() < 0.3:
        log = copy / BOTTOM.token
        by_content = {path.read_bytes(): path for path in files(log) if "tail" not in str(path)}
        (first, one), (second, other) = chance.sample(sorted(by_content.items()), 2)
        one.write_bytes(first), other.write_bytes(second)
        one.write_bytes(second), other.write_bytes(first)
        return copy

    def swap(entries: list[bytes]) -> None:
        one, other = chance.sample(range(len(entries)), 2)
        entries[one], entries[other] = entries[other], entries[one]

    edit_entries(copy, chance, swap)
    return copy


def truncate(scene: Scene, chance: random.Random) -> Path:
    copy = scene.copy()
    if chance.random() < 0.5:
        path = chance.choice(files(copy))
        path.write_bytes(path.read_bytes()[: chance.randrange(path.stat().st_size)])
        return copy

    def cut(entries: list[bytes]) -> None:
        del entries[chance.randrange(len(entries)) :]

    edit_entries(copy, chance, cut)
    return copy


def roll_back(scene: Scene, chance: random.Random) -> Path:
    past = chance.choice(scene.past)
    if chance.random() < 0.5:
        return scene.copy(past)
    copy = scene.copy()  # only one of the logs goes back
    log = chance.choice([path.name for path in past.iterdir()])
    shutil.rmtree(copy / log)
    shutil.copytree(past / log, copy / log)
    return copy


TAMPERS = (flip, delete, insert, reorder, truncate, roll_back)


def tamper_often(scene: Scene, count: int, seed: int) -> Counter[str]:
    chance = random.Random(seed)
    found: Counter[str] = Counter()
    for number in range(count):
        tamper = TAMPERS[number % len(TAMPERS)]
        copy = tamper(scene, chance)
        report = verify.verify(copy, checkpoints=scene.heads, fingerprint=scene.fingerprint)
        assert not report.ok, f"tamper {number} ({tamper.__name__}, seed {seed}) was not found"
        found[tamper.__name__] += 1
    return found


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Scene:
    return Scene(tmp_path_factory.mktemp("scene"))


def test_the_untouched_ledger_and_its_past_verify(scene: Scene) -> None:
    assert verify.verify(scene.copy(), checkpoints=scene.heads, fingerprint=scene.fingerprint).ok
    for past in scene.past:
        assert verify.verify(past, fingerprint=scene.fingerprint).ok


def test_the_attacker_of_these_tests_can_rebuild_a_ledger(scene: Scene) -> None:
    """Rebuilding the same entries is not found: what is found below is the change, not the attacker's clumsiness."""
    copy = scene.copy()
    log = copy / BOTTOM.token
    entries = entries_of(log)
    assert len(entries) == SIZES[-1]
    rebuild(log, renumber(entries))
    assert verify.verify(copy, checkpoints=scene.heads).ok
    assert len(segment_paths(log)) == 1


def test_random_tampers_are_found(scene: Scene) -> None:
    assert tamper_often(scene, 60, seed=1).total() == 60


@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.skipif(os.environ.get("HONMARU_LONG") != "1", reason="2,000 tampers: make test-long")
def test_two_thousand_tampers_are_found(scene: Scene) -> None:
    found = tamper_often(scene, 2000, seed=int.from_bytes(os.urandom(4)))
    assert found.total() == 2000


def test_every_byte_of_a_small_ledger_counts(tmp_path: Path) -> None:
    """Not at random: each byte of each file, one bit flipped, is found."""
    ledger = Ledger(tmp_path / "ledger", clock=SystemClock(), secret=os.urandom)
    ledger.append(BOTTOM, {"eventID": "e"}).result(10)
    ledger.close()
    for path in files(tmp_path / "ledger"):
        content = path.read_bytes()
        step = 1 if len(content) < 600 else 29  # keys and signatures are long: every 29th byte and the last
        for at in {*range(0, len(content), step), len(content) - 1}:
            changed = bytearray(content)
            changed[at] ^= 1 << at % 8
            path.write_bytes(changed)
            report = verify.verify(tmp_path / "ledger")
            # The last frame of a tail may be torn: but its entry is signed, so then it is missed.
            assert not report.ok, f"byte {at} of {path.relative_to(tmp_path)}"
        path.write_bytes(content)
    assert verify.verify(tmp_path / "ledger").ok


def test_a_ledger_signed_anew_with_another_key_is_found(scene: Scene, tmp_path: Path) -> None:
    forged = Ledger(tmp_path / "ledger", clock=SystemClock(), secret=os.urandom)
    for number in range(SIZES[-1]):
        forged.append(BOTTOM, entry(number))
    forged.append(Label.parse("SECRET"), {"eventID": "s"}).result(10)
    forged.close()
    assert verify.verify(tmp_path / "ledger").ok, "in itself it is a valid ledger"
    for report in (
        verify.verify(tmp_path / "ledger", checkpoints=scene.heads),
        verify.verify(tmp_path / "ledger", fingerprint=scene.fingerprint),
    ):
        assert {finding.code for log in report.logs for finding in log.findings} <= {
            "foreign-checkpoint",
            "untrusted-key",
        }
        assert not report.ok


def test_the_verifier_needs_nothing_of_honmaru(scene: Scene, tmp_path: Path) -> None:
    """The file alone, in an isolated interpreter with honmaru blocked, verifies a copied ledger."""
    import subprocess
    import sys

    alone = tmp_path / "verify.py"
    shutil.copy(Path(verify.__file__), alone)
    program = (
        "import sys, runpy; sys.modules['honmaru'] = None; sys.argv = sys.argv[1:]; "
        "runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    for make, code in ((scene.copy, 0), (lambda: flip(scene, random.Random(5)), 1)):
        done = subprocess.run(
            [sys.executable, "-c", program, str(alone), str(make())], capture_output=True, text=True, check=False
        )
        assert done.returncode == code, done.stderr
        assert json.loads(done.stdout)["ok"] is (code == 0)
