"""Secrets in files: private, made once, atomic."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from honmaru.core.errors import ConfigurationFault
from honmaru.security.crypto.secret_files import private_directory, read_or_create


def never() -> bytes:
    raise AssertionError("there is a secret already")


def test_a_secret_is_made_once_and_private(tmp_path: Path) -> None:
    path = tmp_path / "keys" / "deep" / "a.key"
    assert read_or_create(path, lambda: b"first") == b"first"
    assert read_or_create(path, never) == b"first"
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700
    assert [p.name for p in path.parent.iterdir()] == ["a.key"], "no draft is left"


def test_racing_creators_end_with_one_secret(tmp_path: Path) -> None:
    found: list[bytes] = []
    threads = [
        threading.Thread(target=lambda: found.append(read_or_create(tmp_path / "k" / "a", lambda: os.urandom(32))))
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8
    assert len(set(found)) == 1


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o610])
def test_a_file_open_to_others_is_refused_with_the_repair(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "k" / "a"
    read_or_create(path, lambda: b"s")
    path.chmod(mode)
    with pytest.raises(ConfigurationFault, match=f"chmod 600 {path}"):
        read_or_create(path, never)


def test_a_directory_open_to_others_is_refused_with_the_repair(tmp_path: Path) -> None:
    path = tmp_path / "k" / "a"
    read_or_create(path, lambda: b"s")
    path.parent.chmod(0o750)
    with pytest.raises(ConfigurationFault, match=f"chmod 700 {path.parent}"):
        read_or_create(path, never)
    with pytest.raises(ConfigurationFault, match="chmod 700"):
        private_directory(path.parent)


@pytest.mark.parametrize("kind", ["link", "dangling link", "empty", "directory"])
def test_what_is_no_secret_file_is_refused(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "k" / "a"
    private_directory(path.parent)
    if kind == "link":
        read_or_create(tmp_path / "k" / "b", lambda: b"s")
        path.symlink_to(tmp_path / "k" / "b")
    elif kind == "dangling link":
        path.symlink_to(tmp_path / "nowhere")
    elif kind == "empty":
        path.touch(mode=0o600)
    else:
        path.mkdir(mode=0o700)
    with pytest.raises(ConfigurationFault):
        read_or_create(path, never)


def test_an_empty_secret_is_not_stored(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="empty"):
        read_or_create(tmp_path / "k" / "a", lambda: b"")
    assert not (tmp_path / "k" / "a").exists()


def test_missing_parents_are_private_too(tmp_path: Path) -> None:
    private_directory(tmp_path / "a" / "b" / "c")
    assert [(tmp_path / name).stat().st_mode & 0o777 for name in ("a", "a/b", "a/b/c")] == [0o700] * 3
