"""Ceph from Debian in one directory: a monitor, an OSD in memory and the S3 gateway, for the contract of blob stores.

Ports are free ones of loopback; daemons end with the `with` block. Nothing outside the directory is touched.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
import uuid
from pathlib import Path
from types import TracebackType
from typing import Any

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

_PROGRAMS = ("ceph", "ceph-authtool", "ceph-mon", "ceph-osd", "monmaptool", "radosgw", "radosgw-admin")
_CONF = """[global]
fsid = {fsid}
mon host = [v2:127.0.0.1:{mon}]
keyring = {root}/keyring
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = 4
osd crush chooseleaf type = 0
mon allow pool size one = true
mon max pg per osd = 1000
mon data avail warn = 1
mon data avail crit = 0
public addr = 127.0.0.1
run dir = {root}/run
log file = {root}/log/$name.log
pid file = {root}/run/$name.pid
admin socket = {root}/run/$name.asok
[mon.a]
mon data = {root}/mon
[osd.0]
osd data = {root}/osd
osd objectstore = memstore
memstore device bytes = 2147483648
osd class load list = *
osd class default list = *
[client.admin]
rgw frontends = beast endpoint=127.0.0.1:{s3}
rgw data = {root}/rgw
"""


class Radosgw:
    """See the module. `location` makes a new bucket and names it as a blob store does; `keys` go with it."""

    def __init__(self, root: Path) -> None:
        missing = [name for name in _PROGRAMS if shutil.which(name) is None]
        if missing:
            raise RuntimeError(f"{', '.join(missing)} missing: run `scripts/system radosgw ceph-mon ceph-osd`")
        self._root = root
        self.keys = {"access_key_id": "CONTRACT", "secret_access_key": uuid.uuid4().hex}
        self.endpoint = ""

    def __enter__(self) -> Radosgw:
        try:
            self._start()
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()

    def location(self) -> str:
        bucket = f"blobs-{uuid.uuid4().hex[:12]}"
        self.client().create_bucket(Bucket=bucket)
        return f"s3://{bucket}/some/prefix?endpoint={self.endpoint}&region=us-east-1"

    def client(self) -> Any:
        return boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            region_name="us-east-1",
            aws_access_key_id=self.keys["access_key_id"],
            aws_secret_access_key=self.keys["secret_access_key"],
            config=Config(retries={"total_max_attempts": 1}, request_checksum_calculation="when_required"),
        )

    def _start(self) -> None:
        root = self._root
        for name in ("run", "log", "mon", "osd", "rgw"):
            (root / name).mkdir()
        monitor, s3 = _free_port(), _free_port()
        fsid = str(uuid.uuid4())
        (root / "ceph.conf").write_text(_CONF.format(fsid=fsid, mon=monitor, s3=s3, root=root))
        grants = {"mon.": ("mon",), "client.admin": ("mon", "osd", "mgr"), "osd.0": ("mon", "osd")}
        for number, (name, services) in enumerate(grants.items()):
            caps = [word for service in services for word in ("--cap", service, "allow *")]
            create = ["--create-keyring"] if number == 0 else []
            self._run("ceph-authtool", *create, f"{root}/keyring", "--gen-key", "-n", name, *caps)
        self._run(
            "monmaptool", "--create", "--addv", "a", f"[v2:127.0.0.1:{monitor}]", "--fsid", fsid, f"{root}/monmap"
        )
        conf = ("-c", f"{root}/ceph.conf")
        self._run("ceph-mon", *conf, "-i", "a", "--mkfs", "--monmap", f"{root}/monmap", "--keyring", f"{root}/keyring")
        self._run("ceph-mon", *conf, "-i", "a")
        osd = str(uuid.uuid4())
        self._run("ceph", *conf, "osd", "new", osd, "0")
        self._run("ceph-osd", *conf, "-i", "0", "--mkfs", "--osd-uuid", osd)
        self._run("ceph-osd", *conf, "-i", "0")
        user = ("--uid=contract", "--display-name=contract", f"--access-key={self.keys['access_key_id']}")
        self._run("radosgw-admin", *conf, "user", "create", *user, f"--secret-key={self.keys['secret_access_key']}")
        self._run("radosgw", *conf, "--name", "client.admin")
        self.endpoint = f"http://127.0.0.1:{s3}"
        self._wait()

    def _wait(self) -> None:
        for _ in range(120):
            try:
                self.client().list_buckets()
            except (BotoCoreError, ClientError):
                time.sleep(0.5)
            else:
                return
        raise RuntimeError("radosgw did not answer within a minute")

    def _run(self, *command: str) -> None:
        done = subprocess.run(command, capture_output=True, text=True, timeout=180, check=False)
        if done.returncode:
            raise RuntimeError(f"{' '.join(command[:3])} failed: {done.stderr[-2000:]}")

    def _stop(self) -> None:
        """The gateway first: it does not end while it waits for the others."""
        files = sorted((self._root / "run").glob("*.pid"), key=lambda path: "client" not in path.name)
        for path in files:
            try:
                os.kill(int(path.read_text()), signal.SIGKILL)
            except (ProcessLookupError, ValueError):
                continue


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
