"""`honmaru seal`, `up --sealed`, `unseal`, `crypto`: as an operator runs them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from honmaru.app.operator import ask
from honmaru.app.run_files import running_pid
from honmaru.testing.enclaves import LiveEnclave


def honmaru(*arguments: str, data: Path | None = None, stdin: str = "") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "honmaru", *arguments, *(["--data", str(data)] if data else [])]
    return subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=90, check=False)


def answers(enclave: LiveEnclave) -> bool:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        path = enclave.data / "run" / "enclave.json"
        if path.exists() and not (facts := json.loads(path.read_text())).get("sealed"):
            enclave.facts = facts
            return True
        time.sleep(0.05)
    return False


def up_sealed(enclave: LiveEnclave) -> dict[str, Any]:
    # The port is taken from the facts once it is unsealed.
    command = ["up", "--sealed", "--detach", "--json", "--port", "0", "--region", enclave.region, "--workers", "2"]
    done = honmaru(*command, data=enclave.data)
    assert done.returncode == 0, done.stderr
    facts: dict[str, Any] = json.loads(done.stdout)
    return facts


@pytest.mark.long
@pytest.mark.skipif(not os.environ.get("HONMARU_LONG"), reason="starts an enclave four times: make test-keys")
def test_an_enclave_is_sealed_opened_by_two_of_three_people_and_rotated(tmp_path: Path) -> None:
    enclave = LiveEnclave(tmp_path / "data").up()
    kms = enclave.client("kms", "admin", "SECRET")
    key = kms.create_key()["KeyMetadata"]["KeyId"]
    blob = kms.encrypt(KeyId=key, Plaintext=b"before")["CiphertextBlob"]
    assert "is not sealed" in honmaru("unseal", data=enclave.data).stdout
    refused = honmaru("seal", "--shares", "2/3", data=enclave.data)
    assert refused.returncode == 1 and "already runs" in refused.stderr
    enclave.down()
    assert "not sealed" in honmaru("up", "--sealed", data=enclave.data).stderr

    sealed = honmaru("seal", "--shares", "2/3", data=enclave.data)
    shares = [line.partition(": ")[2] for line in sealed.stdout.splitlines() if line.startswith("share ")]
    assert len(shares) == 3 and not (enclave.data / "keys" / "ring" / "root.key").exists()
    facts = up_sealed(enclave)
    assert facts["sealed"] and "endpoint" not in facts
    try:
        assert ask(enclave.data, "Status")["threshold"] == 2
        assert "misspelt" in honmaru("unseal", data=enclave.data, stdin="academic academic\n").stderr
        assert "is sealed" in honmaru("user", "list", data=enclave.data).stderr
        assert "1 of 2" in honmaru("unseal", data=enclave.data, stdin=f"{shares[2]}\n").stdout
        assert "1 of 2" in honmaru("unseal", data=enclave.data, stdin=f"{shares[2]}\n").stdout
        assert "Unsealed" in honmaru("unseal", data=enclave.data, stdin=f"{shares[0]}\n").stdout
        assert answers(enclave)
        kms = enclave.client("kms", "admin", "SECRET")
        assert kms.decrypt(CiphertextBlob=blob)["Plaintext"] == b"before"
        kept = {path.name for path in (enclave.data / "keys").rglob("*") if path.is_file()}
        assert {"signing.key.sealed", "tail.key.sealed", "ca.key.pem.sealed", "root.sealed"} <= kept
        assert not {"signing.key", "tail.key", "ca.key.pem", "root.key"} & kept
        made = honmaru("backup", "--to", str(tmp_path / "sealed.hmb"), data=enclave.data, stdin="a long passphrase\n")
        assert made.returncode == 0, made.stderr
        rotated = honmaru("crypto", "rotate", data=enclave.data)
        assert "under a new root key" in rotated.stdout, rotated.stderr
        assert kms.decrypt(CiphertextBlob=blob)["Plaintext"] == b"before"
    finally:
        pid = running_pid(enclave.data)
        if pid is not None:
            os.kill(pid, signal.SIGKILL)
            while running_pid(enclave.data) is not None:
                time.sleep(0.02)
    # After kill -9: the same people open it, and the ledger says how it was opened.
    up_sealed(enclave)
    try:
        for share in shares[1:]:
            honmaru("unseal", data=enclave.data, stdin=f"{share}\n")
        assert answers(enclave)
        kms = enclave.client("kms", "admin", "SECRET")
        assert kms.decrypt(CiphertextBlob=blob)["Plaintext"] == b"before"
        trail = enclave.client("cloudtrail")
        lookup = [{"AttributeKey": "EventName", "AttributeValue": "Unseal"}]
        found = [json.loads(e["CloudTrailEvent"]) for e in trail.lookup_events(LookupAttributes=lookup)["Events"]]
        assert {"lock": "shares", "failures": 1} in [event["honmaru"]["details"] for event in found]
    finally:
        enclave.down()
    refused = honmaru("backup", "--to", str(tmp_path / "no.hmb"), data=enclave.data, stdin="a long passphrase\n")
    assert "start and unseal" in refused.stderr
    # The backup is sealed as the enclave was: the same people open what is restored, with the root key of that time.
    restored = LiveEnclave(tmp_path / "restored")
    source = str(tmp_path / "sealed.hmb")
    assert honmaru("restore", "--from", source, data=restored.data, stdin="a long passphrase\n").returncode == 0
    up_sealed(restored)
    try:
        for share in shares[:2]:
            honmaru("unseal", data=restored.data, stdin=f"{share}\n")
        assert answers(restored)
        kms = restored.client("kms", "admin", "SECRET")
        assert kms.decrypt(CiphertextBlob=blob)["Plaintext"] == b"before"
    finally:
        restored.down()


def test_the_inventory_is_printed_both_ways() -> None:
    text = honmaru("crypto", "inventory")
    assert "CNSA 2.0  ML-DSA-87" in text.stdout and "nothing here is FIPS validated" in text.stdout
    document = json.loads(honmaru("crypto", "inventory", "--json").stdout)
    names = {component["name"] for component in document["components"]}
    assert (document["bomFormat"], document["specVersion"]) == ("CycloneDX", "1.6")
    assert {"ML-KEM-1024", "Argon2id", "AES-256-GCM", "MD5"} <= names
    outside = [
        component
        for component in document["components"]
        if {"name": "honmaru:cnsa2.0", "value": "no"} in component["properties"]
    ]
    assert outside and all(any(p["name"] == "honmaru:reason" for p in one["properties"]) for one in outside)


@pytest.mark.long
@pytest.mark.skipif(not os.environ.get("HONMARU_LONG"), reason="starts an enclave twice: make test-keys")
def test_a_new_enclave_is_sealed_by_a_token_then_by_a_passphrase(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = Path("/usr/lib/softhsm/libsofthsm2.so")
    if not module.exists():
        pytest.skip("SoftHSM is not installed: apt-get install softhsm2")
    (tmp_path / "tokens").mkdir()
    (tmp_path / "softhsm2.conf").write_text(f"directories.tokendir = {tmp_path / 'tokens'}\n")
    monkeypatch.setenv("SOFTHSM2_CONF", str(tmp_path / "softhsm2.conf"))
    init = ["softhsm2-util", "--init-token", "--free", "--label", "keep", "--pin", "1234", "--so-pin", "5678"]
    subprocess.run(init, check=True, capture_output=True)
    enclave = LiveEnclave(tmp_path / "data")
    seal = ("seal", "--token", "keep", "--module", str(module))
    wrong = honmaru(*seal, data=enclave.data, stdin="0000\n")
    assert wrong.returncode == 1 and "PIN" in wrong.stderr
    assert honmaru(*seal, data=enclave.data, stdin="1234\n").returncode == 0
    assert not list(enclave.data.rglob("root.key"))
    up_sealed(enclave)
    try:
        assert "PIN" in honmaru("unseal", data=enclave.data, stdin="9999\n").stderr
        assert "Unsealed" in honmaru("unseal", data=enclave.data, stdin="1234\n").stdout
        assert answers(enclave)
        key = enclave.client("kms").create_key()["KeyMetadata"]["KeyId"]
        assert "under a new root key" in honmaru("crypto", "rotate", data=enclave.data).stdout
    finally:
        enclave.down()
    passphrase = "correct horse battery"
    differ = honmaru("seal", "--passphrase", data=enclave.data, stdin=f"1234\n{passphrase}\n{passphrase}!\n")
    assert differ.returncode == 1 and "differ" in differ.stderr
    changed = honmaru("seal", "--passphrase", data=enclave.data, stdin=f"1234\n{passphrase}\n{passphrase}\n")
    assert changed.returncode == 0, changed.stderr
    up_sealed(enclave)
    try:
        assert "does not open" in honmaru("unseal", data=enclave.data, stdin="a wrong passphrase\n").stderr
        assert "Unsealed" in honmaru("unseal", data=enclave.data, stdin=f"{passphrase}\n").stdout
        assert answers(enclave)
        enclave.client("kms").encrypt(KeyId=key, Plaintext=b"x")
    finally:
        enclave.down()
