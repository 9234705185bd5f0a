"""Is this machine fit for an enclave? Each check says what it saw and, where it is not right, the repair."""

from __future__ import annotations

import importlib.util
import os
import shutil
import socket
import stat
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from honmaru.app.run_files import published, running_pid
from honmaru.executors.local.accelerators import LocalAccelerators

_MIN_DISK_BYTES = 5 << 30
_MIN_MEMORY_BYTES = 4 << 30


@dataclass(frozen=True, slots=True)
class Finding:
    """`level` is "ok", "warn" (works, not as it should) or "fail" (does not work)."""

    level: str
    subject: str
    seen: str
    repair: str = ""


def _python(_data: Path) -> Finding:
    version = ".".join(map(str, sys.version_info[:3]))
    return Finding("ok", "Python", version)


def _bubblewrap(_data: Path) -> Finding:
    path = shutil.which("bwrap")
    if path is None:
        return Finding("fail", "Sandbox", "bubblewrap is not installed", "apt-get install bubblewrap")
    probe = subprocess.run(
        [path, "--unshare-all", "--ro-bind", "/", "/", "--proc", "/proc", "--dev", "/dev", "true"],
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    if probe.returncode:
        return Finding(
            "fail",
            "Sandbox",
            f"bwrap cannot make namespaces: {probe.stderr.strip()[:120]}",
            "allow user namespaces: sysctl user.max_user_namespaces, kernel.apparmor_restrict_unprivileged_userns=0",
        )
    return Finding("ok", "Sandbox", f"{path} makes user, mount, pid and network namespaces")


def _control_groups(_data: Path) -> Finding:
    for root in (Path("/sys/fs/cgroup"), Path("/sys/fs/cgroup/memory")):
        if os.access(root / "cgroup.procs", os.W_OK) and (
            (root / "memory.limit_in_bytes").exists() or (root / "cgroup.subtree_control").exists()
        ):
            return Finding("ok", "Limits", f"control groups writable at {root}")
    return Finding(
        "warn",
        "Limits",
        "control groups are not writable; jobs are limited by rlimits instead",
        "run under a delegated cgroup (systemd Delegate=yes) or as a user that owns one",
    )


def _environment(_data: Path) -> Finding:
    missing = [name for name in ("torch", "transformers", "tokenizers", "openvino_genai", "gguf") if not _has(name)]
    if missing:
        return Finding("warn", "Environments", f"missing {', '.join(missing)}", "install with: make install")
    return Finding("ok", "Environments", "pytorch, honmaru-lm and serve can run")


def _has(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def _disk(data: Path) -> Finding:
    place = next(p for p in (data, *data.absolute().parents) if p.exists())
    free = shutil.disk_usage(place).free
    if free < _MIN_DISK_BYTES:
        return Finding("warn", "Disk", f"{free >> 30} GiB free at {place}", "free at least 5 GiB, or choose --data")
    return Finding("ok", "Disk", f"{free >> 30} GiB free at {place}")


def _memory(_data: Path) -> Finding:
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if total < _MIN_MEMORY_BYTES:
        return Finding("warn", "Memory", f"{total >> 30} GiB", "training and serving want at least 4 GiB")
    return Finding("ok", "Memory", f"{total >> 30} GiB")


def _accelerators(_data: Path) -> Finding:
    found = LocalAccelerators().found()
    seen = ", ".join(f"{one.id} {one.name} with {one.free_bytes >> 30} GiB free" for one in found)
    return Finding("ok", "Accelerators", seen or "none that NVML or neuron-ls knows")


def _permissions(data: Path) -> Finding:
    keys = data / "keys"
    if not keys.exists():
        return Finding("ok", "Secrets", "none yet; the first start makes them")
    loose = [p for p in (keys, *keys.rglob("*")) if stat.S_IMODE(p.stat().st_mode) & 0o077]
    if loose:
        return Finding("fail", "Secrets", f"{loose[0]} is open to others", f"chmod -R go= {keys}")
    return Finding("ok", "Secrets", f"{keys} is closed to others")


def _certificate(data: Path) -> Finding:
    path = data / "tls" / "server.pem"
    if not path.exists():
        return Finding("ok", "TLS", "no certificate yet; the first start makes it")
    from cryptography import x509

    ends = x509.load_pem_x509_certificate(path.read_bytes()).not_valid_after_utc
    if ends - datetime.now(UTC) < timedelta(days=7):
        return Finding("warn", "TLS", f"the server certificate ends {ends:%Y-%m-%d}", "honmaru down && honmaru up")
    return Finding("ok", "TLS", f"certificate until {ends:%Y-%m-%d}")


def _enclave(data: Path) -> Finding:
    if running_pid(data) is None:
        return Finding("ok", "Enclave", "not running; start it with: honmaru up --detach")
    facts = published(data)
    if facts is None:
        return Finding("warn", "Enclave", "a process holds the lock and does not answer yet", "honmaru down")
    if facts.get("sealed"):
        return Finding("warn", "Enclave", "waits for what opens its root key", "honmaru unseal")
    try:
        socket.create_connection((facts["host"], facts["port"]), timeout=3).close()
    except OSError as error:
        return Finding("fail", "Enclave", f"does not accept connections: {error}", "honmaru down && honmaru up")
    return Finding("ok", "Enclave", f"answers at {facts['endpoint']}")


CHECKS: tuple[Callable[[Path], Finding], ...] = (
    _python,
    _bubblewrap,
    _control_groups,
    _environment,
    _disk,
    _memory,
    _accelerators,
    _permissions,
    _certificate,
    _enclave,
)


def examine(data: Path) -> list[Finding]:
    """Run every check. Reads only."""
    return [check(data) for check in CHECKS]
