"""A real enclave in a process of its own, driven by unmodified clients."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from honmaru.app.operator import ask
from honmaru.app.run_files import published, running_pid

ALL_POLICIES = ("AdministratorAccess",)


class LiveEnclave:
    """`honmaru up` on a free port. Users are made on first use of `client`, cleared to `clearance`."""

    def __init__(self, data: Path, region: str = "us-isob-east-1", *, http: bool = False) -> None:
        self.data, self.region, self.http = data, region, http
        self.facts: dict[str, Any] = {}
        self.port = 0
        self._sessions: dict[tuple[str, str], Any] = {}

    def up(self, *extra: str) -> LiveEnclave:
        command = [sys.executable, "-m", "honmaru", "up", "--detach", "--json", "--data", str(self.data)]
        command += ["--region", self.region, "--port", str(self.port), *(["--http"] if self.http else []), *extra]
        done = subprocess.run(command, capture_output=True, text=True, timeout=180, check=False)
        if done.returncode:
            raise RuntimeError(f"the enclave did not start: {done.stderr}")
        self.facts = json.loads(done.stdout)
        self.port = int(self.facts["port"])
        return self

    @property
    def endpoint(self) -> str:
        return str(self.facts["endpoint"])

    @property
    def account(self) -> str:
        return str(self.facts["account"])

    @property
    def pid(self) -> int:
        return int(self.facts["pid"])

    def kill(self) -> None:
        """kill -9, and wait until the lock is free."""
        pid = self.pid
        os.kill(pid, signal.SIGKILL)
        while running_pid(self.data) == pid:
            time.sleep(0.01)

    def down(self) -> None:
        if running_pid(self.data) is not None:
            subprocess.run(
                [sys.executable, "-m", "honmaru", "down", "--data", str(self.data)],
                check=True,
                capture_output=True,
                timeout=60,
            )

    def running(self) -> bool:
        return published(self.data) is not None

    def user(self, name: str, clearance: str, policies: Sequence[str] = ALL_POLICIES) -> None:
        ask(self.data, "CreateUser", name=name, clearance=clearance, policies=list(policies))

    def credentials(self, user: str = "admin", label: str = "") -> dict[str, str]:
        return ask(self.data, "GetCredentials", user=user, label=label)

    def variables(self, user: str = "admin", label: str = "") -> dict[str, str]:
        """The environment that `honmaru env` would set."""
        command = [sys.executable, "-m", "honmaru", "env", "--json", "--data", str(self.data)]
        command += ["--user", user, "--label", label]
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
        variables: dict[str, str] = json.loads(done.stdout)
        return variables

    def client(self, service: str, user: str = "admin", label: str = "", **config: Any) -> Any:
        """A plain boto3 client, signed in as `user` at `label`."""
        import boto3
        from botocore.config import Config

        if (user, label) not in self._sessions:
            credentials = self.credentials(user, label)
            self._sessions[user, label] = boto3.Session(
                aws_access_key_id=credentials["access_key_id"],
                aws_secret_access_key=credentials["secret_access_key"],
                region_name=self.region,
            )
        return self._sessions[user, label].client(
            service,
            endpoint_url=self.endpoint,
            verify=self.facts["ca"] or None,
            config=Config(**{"retries": {"total_max_attempts": 1}, **config}),
        )
