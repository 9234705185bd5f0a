"""IAM, STS and Organizations through the unmodified AWS CLI: the commands an administrator types, in one sitting."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from honmaru.testing.enclaves import LiveEnclave

pytestmark = pytest.mark.long

# One process for many commands: the CLI takes most of a second to start.
DRIVER = """
import contextlib, io, json, sys
from awscli.clidriver import create_clidriver
driver = create_clidriver()
for command in json.load(sys.stdin):
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        status = driver.main(command)
    print(json.dumps([status, out.getvalue()]), flush=True)
"""


class Terminal:
    """A shell in which the AWS CLI is set up for an enclave."""

    def __init__(self, enclave: LiveEnclave, home: Path) -> None:
        self.enclave = enclave
        keep = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
        self.environment = {**keep, **enclave.variables(), "HOME": str(home), "AWS_PAGER": ""}

    def run(self, *commands: str, **more: str) -> list[tuple[int, Any]]:
        """(exit status, parsed output) of each command."""
        asked = json.dumps([[*command.split(" "), "--output", "json"] for command in commands])
        done = subprocess.run(
            [sys.executable, "-c", DRIVER],
            input=asked,
            capture_output=True,
            text=True,
            env={**self.environment, **more},
            check=True,
            timeout=120,
        )
        found = [json.loads(line) for line in done.stdout.splitlines()]
        return [(status, json.loads(text) if text.strip() else None) for status, text in found]

    def all_good(self, *commands: str, **more: str) -> list[Any]:
        answers = self.run(*commands, **more)
        assert [status for status, _ in answers] == [0] * len(commands), list(zip(commands, answers, strict=True))
        return [answer for _, answer in answers]


@pytest.fixture(scope="module")
def terminal(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Terminal]:
    if os.environ.get("HONMARU_LONG") != "1":
        pytest.skip("set HONMARU_LONG=1 (make test-identity)")
    home = tmp_path_factory.mktemp("cli")
    enclave = LiveEnclave(home / "e").up()
    yield Terminal(enclave, home)
    enclave.down()


def document(**statement: Any) -> str:
    return json.dumps({"Version": "2012-10-17", "Statement": [statement]}, separators=(",", ":"))


def test_an_administrators_sitting(terminal: Terminal) -> None:
    account = terminal.enclave.account
    trust = document(Effect="Allow", Principal={"AWS": account}, Action="sts:AssumeRole")
    read = document(Effect="Allow", Action="iam:List*", Resource="*")
    role = f"arn:aws-iso-b:iam::{account}:role/auditor"
    answers = terminal.all_good(
        "sts get-caller-identity",
        "iam create-group --group-name auditors",
        f"iam put-group-policy --group-name auditors --policy-name read --policy-document {read}",
        "iam create-user --user-name ann --path /teams/red/ --tags Key=team,Value=red",
        "iam add-user-to-group --group-name auditors --user-name ann",
        f"iam create-role --role-name auditor --assume-role-policy-document {trust}",
        f"iam create-policy --policy-name read --policy-document {read}",
        f"iam attach-role-policy --role-name auditor --policy-arn arn:aws-iso-b:iam::{account}:policy/read",
        f"sts assume-role --role-arn {role} --role-session-name sitting --tags Key=honmaru:label,Value=SECRET",
        "iam create-access-key --user-name ann",
        f"iam simulate-principal-policy --policy-source-arn {role} --action-names iam:ListUsers iam:CreateUser",
        "iam get-account-summary",
        "iam create-instance-profile --instance-profile-name box",
        "iam create-open-id-connect-provider --url https://issuer.example --client-id-list me",
        "iam list-entities-for-policy --policy-arn arn:aws-iso-b:iam::aws:policy/AdministratorAccess",
        "organizations create-organization",
        "organizations create-account --email red@site.example --account-name red",
        "organizations list-accounts",
    )
    assert answers[0]["Account"] == account
    assert answers[10]["EvaluationResults"][0]["EvalDecision"] == "allowed"
    assert answers[10]["EvaluationResults"][1]["EvalDecision"] == "implicitDeny"
    assert {each["Name"] for each in answers[17]["Accounts"]} == {"management", "red"}
    made = answers[8]["Credentials"]
    keys = {
        "AWS_ACCESS_KEY_ID": made["AccessKeyId"],
        "AWS_SECRET_ACCESS_KEY": made["SecretAccessKey"],
        "AWS_SESSION_TOKEN": made["SessionToken"],
    }
    listed, refused = terminal.run("iam list-users", "iam delete-user --user-name ann", **keys)
    assert listed[0] == 0 and {user["UserName"] for user in listed[1]["Users"]} == {"admin", "ann"}
    assert refused[0] != 0
