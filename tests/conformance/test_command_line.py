"""The command line as its users meet it: starting, stopping, asking, and being told what is wrong."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from honmaru.testing.enclaves import LiveEnclave


def honmaru(data: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "honmaru", *arguments, "--data", str(data)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory):  # type: ignore[no-untyped-def]
    directory = tmp_path_factory.mktemp("cli")
    live = LiveEnclave(directory, "us-gov-west-1").up()
    yield directory
    live.down()


def test_status_says_where(data: Path) -> None:
    facts = json.loads(honmaru(data, "status", "--json").stdout)
    assert facts["running"] is True
    assert facts["endpoint"].startswith("https://127.0.0.1:")
    assert (facts["partition"], facts["ceiling"]) == ("aws-us-gov", "CUI")


def test_a_second_enclave_in_the_same_directory_is_refused(data: Path) -> None:
    for arguments in (("up", "--port", "0"), ("up", "--port", "0", "--detach")):
        done = honmaru(data, *arguments)
        assert done.returncode == 1
        assert "already runs" in done.stderr
        assert "Traceback" not in done.stderr


def test_env_is_shell_lines(data: Path) -> None:
    done = honmaru(data, "env", "--user", "admin")
    assert done.returncode == 0
    shell = subprocess.run(
        ["sh", "-c", f'{done.stdout}\nprintf %s "$AWS_ENDPOINT_URL $AWS_REGION"'],
        capture_output=True,
        text=True,
        check=True,
    )
    assert shell.stdout.startswith("https://127.0.0.1:")
    assert shell.stdout.endswith("us-gov-west-1")


def test_env_of_nobody_and_above_clearance_is_one_clear_line(data: Path) -> None:
    for arguments in (("--user", "nobody"), ("--label", "TOP SECRET"), ("--label", "COSMIC BANANA")):
        done = honmaru(data, "env", *arguments)
        assert done.returncode == 1
        assert done.stdout == ""
        assert len(done.stderr.strip().splitlines()) == 1


def test_users_are_made_and_listed(data: Path) -> None:
    assert honmaru(data, "user", "create", "reader", "--clearance", "CUI", "--policy", "ReadOnlyAccess").returncode == 0
    again = honmaru(data, "user", "create", "reader")
    assert again.returncode == 1
    assert "reader" in again.stderr
    unknown = honmaru(data, "user", "create", "other", "--policy", "NoSuchPolicy")
    assert unknown.returncode == 1
    assert "NoSuchPolicy" in unknown.stderr
    assert honmaru(data, "user", "create", "cleared", "--clearance", "TOP SECRET").returncode == 0
    above = honmaru(data, "env", "--user", "cleared", "--label", "TOP SECRET")
    assert above.returncode == 1
    assert above.stdout == ""
    listed = honmaru(data, "user", "list").stdout
    assert "reader" in listed
    assert "other" not in listed
    assert "cleared" in listed


def test_environments_are_listed(data: Path) -> None:
    listed = honmaru(data, "environment", "list").stdout
    for name in ("pytorch", "honmaru-lm"):
        assert name in listed


def test_doctor_finds_a_loose_secret_and_names_the_repair(data: Path) -> None:
    assert honmaru(data, "doctor").returncode == 0
    keys = data / "keys"
    keys.chmod(0o755)
    try:
        done = honmaru(data, "doctor")
        assert done.returncode == 1
        assert f"chmod -R go= {keys}" in done.stdout
    finally:
        keys.chmod(0o700)


def test_secrets_are_closed_to_others(data: Path) -> None:
    assert data.stat().st_mode & 0o077 == 0
    for path in (data / "keys").rglob("*"):
        assert path.stat().st_mode & 0o077 == 0, path


def test_ledger_verifies_offline_in_a_copy(data: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    subprocess.run(["cp", "-r", str(data / "ledger"), str(copy)], check=True)
    done = subprocess.run(
        [sys.executable, "-m", "honmaru", "ledger", "verify", str(copy)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_another_region_a_taken_port_and_an_unknown_region_are_refused(tmp_path: Path) -> None:
    unknown = honmaru(tmp_path / "a", "up", "--region", "mars-north-1")
    assert unknown.returncode == 1
    assert "us-isob-east-1" in unknown.stderr
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        done = honmaru(tmp_path / "b", "up", "--port", str(taken.getsockname()[1]), "--detach")
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert str(taken) not in done.stderr
    other = honmaru(tmp_path / "b", "up", "--region", "us-iso-east-1", "--port", "0", "--detach")
    assert other.returncode == 1
    assert "us-gov-west-1" in other.stderr


def test_without_an_enclave_the_repair_is_named(tmp_path: Path) -> None:
    for arguments in (("env",), ("user", "list"), ("environment", "list")):
        done = honmaru(tmp_path, *arguments)
        assert done.returncode == 1
        assert "honmaru up" in done.stderr
    status = honmaru(tmp_path, "status")
    assert status.returncode == 1
    assert honmaru(tmp_path, "down").returncode == 0


def test_plain_http_says_so(tmp_path: Path) -> None:
    live = LiveEnclave(tmp_path, "us-gov-west-1", http=True)
    try:
        done = honmaru(tmp_path, "up", "--region", "us-gov-west-1", "--http", "--port", "0", "--detach")
        assert "unencrypted" in done.stdout
        assert "http://127.0.0.1:" in done.stdout
    finally:
        live.down()


def test_the_operators_socket_is_closed_to_others(data: Path) -> None:
    socket_file = data / "run" / "operator.sock"
    assert socket_file.stat().st_mode & 0o077 == 0
    assert os.stat(data / "run").st_mode & 0o077 == 0
