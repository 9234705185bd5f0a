"""A network of its own with a hosts file of its own: where AWS's real host names lead to an enclave and nowhere else.

bubblewrap makes the namespace: inside, loopback is the only interface, port 443 may be bound, and /etc/hosts is a file
of the test's. Nothing on the machine changes, and whatever a client resolves or reaches inside comes from the enclave.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path


def in_private_network(
    command: Sequence[str], hosts: Path, *, environment: Mapping[str, str] | None = None, timeout_s: float = 120.0
) -> subprocess.CompletedProcess[str]:
    """Run a command in a new network namespace with `hosts` as its /etc/hosts; the file may change while it runs."""
    wrapped = [
        *("bwrap", "--die-with-parent", "--dev-bind", "/", "/", "--bind", str(hosts), "/etc/hosts"),
        *("--unshare-net", "--unshare-user", "--uid", "0", "--gid", "0", "--cap-add", "CAP_NET_BIND_SERVICE"),
        "--",
        *command,
    ]
    return subprocess.run(
        wrapped,
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
        env={**os.environ, **(environment or {})},
    )
