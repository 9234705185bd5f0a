"""The walls of one instance: the bubblewrap command line, the files it needs, and the proof that the walls stand.

What is visible inside: /usr and its links, a made-up /etc, the Python environment read-only, honmaru's `core` and
`workloads` packages read-only, /opt/ml from the job's scratch (input read-only), small tmpfs on /tmp and /dev/shm,
stated socket directories. Nothing else of the host exists there.

Invariants:
- Every instance has its own user, pid, ipc, uts, cgroup and mount namespace, no capabilities, no new privileges, a
  system call filter and uid 1000. Its network namespace has only loopback; instances of one job share it.
- bubblewrap sets up all of it or does not start the program at all.
- `examine` believes what a probe measured inside the walls, not what was asked for.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

USER = 1000
_TMPFS_BYTES = 1 << 30
_SCRATCH = "/tmp"  # noqa: S108  inside the sandbox, a tmpfs of its own
_SHARED_MEMORY = "/dev/shm"  # noqa: S108  likewise

_PROBE_SCRIPT = (
    "echo uid $(id -u); grep -E '^(CapEff|CapBnd|NoNewPrivs|Seccomp):' /proc/self/status; "
    "for n in user pid ipc uts cgroup mnt net; do echo ns $n $(readlink /proc/self/ns/$n); done; "
    "echo nets $(sed -n 's/^ *\\([^:]*\\):.*/\\1/p' /proc/net/dev); "
    "for d in / /usr /opt/ml/input; do ( : > $d/.probe ) 2>/dev/null && echo writable $d; done; true"
)
PROBE = ("/bin/sh", "-c", _PROBE_SCRIPT)


class Refused(Exception):
    """The sandbox cannot be set up as promised; the message says which layer is missing."""


@dataclass(frozen=True, slots=True)
class Walls:
    """What the command line of an instance is made of. Paths are the host's."""

    bwrap: str
    instance: int
    hosts: int
    etc: Path
    ml: Path
    prefix: Path
    package: Path
    loopback: bool
    variables: Mapping[str, str]
    sockets: Mapping[str, str]
    memory_bytes: int
    writable: tuple[str, ...] = ()
    devices: tuple[str, ...] = ()

    @property
    def shared_network(self) -> bool:
        return self.hosts > 1


def command(walls: Walls, filter_descriptor: int, argv: tuple[str, ...]) -> list[str]:
    """bubblewrap's argv. Source: bwrap(1) 0.8."""
    tmpfs = str(min(_TMPFS_BYTES, max(walls.memory_bytes // 2, 16 << 20)))
    line = [walls.bwrap, "--unshare-user", "--unshare-ipc", "--unshare-pid", "--unshare-uts", "--unshare-cgroup"]
    if not walls.shared_network:
        line.append("--unshare-net")
    line += ["--disable-userns", "--uid", str(USER), "--gid", str(USER), "--hostname", f"algo-{walls.instance}"]
    line += ["--new-session", "--die-with-parent", "--cap-drop", "ALL", "--clearenv"]
    line += ["--seccomp", str(filter_descriptor)]
    for folder in map(Path, ("/usr", "/lib", "/lib32", "/lib64", "/libx32", "/bin", "/sbin")):
        if folder.is_symlink():
            line += ["--symlink", str(folder.readlink()), str(folder)]
        elif folder.is_dir():
            line += ["--ro-bind", str(folder), str(folder)]
    line += ["--ro-bind", str(walls.etc), "/etc", "--proc", "/proc", "--dev", "/dev"]
    line += ["--size", tmpfs, "--tmpfs", _SHARED_MEMORY, "--size", tmpfs, "--tmpfs", _SCRATCH]
    for needed in environment_folders(walls.prefix):
        if not needed.startswith("/usr/"):
            line += ["--ro-bind", needed, needed]
    for installed in sorted(walls.prefix.glob("lib/python*/site-packages/honmaru")):
        line += ["--tmpfs", str(installed), "--remount-ro", str(installed)]
    for part in ("__init__.py", "core", "workloads"):
        line += ["--ro-bind", str(walls.package / part), f"/opt/honmaru/honmaru/{part}"]
    line += ["--bind", str(walls.ml), "/opt/ml", "--ro-bind", str(walls.ml / "input"), "/opt/ml/input"]
    for below in walls.writable:
        if (walls.ml / below).is_dir():
            line += ["--bind", str(walls.ml / below), f"/opt/ml/{below}"]
    for outside, inside in sorted(walls.sockets.items()):
        line += ["--bind", outside, inside]
    for node in walls.devices:
        line += ["--dev-bind", node, node]
    line += ["--remount-ro", "/dev", "--remount-ro", "/", "--chdir", "/opt/ml"]
    for name, value in sorted(_variables(walls).items()):
        line += ["--setenv", name, value]
    return [*line, "--", *argv]


def environment_folders(prefix: Path) -> list[str]:
    """The folders that a Python environment consists of: itself and its base interpreter's, outermost first."""
    folders = {str(prefix), str(prefix.resolve())}
    configuration = prefix / "pyvenv.cfg"
    if configuration.exists():
        home = re.search(r"^home\s*=\s*(.+?)\s*$", configuration.read_text(), re.MULTILINE)
        if home:
            base = Path(home[1]).parent
            folders |= {str(base), str(base.resolve())}
    interpreter = prefix / "bin" / "python"
    folders.add(str(interpreter.resolve().parent.parent))
    # A base interpreter in / or /usr is visible already; a shorter path would show the whole host.
    return sorted(folder for folder in folders if folder not in {"/", "/usr"})


def write_etc(folder: Path, hosts: int) -> None:
    """A made-up /etc: one user, the job's hosts, no name service, the host's linker cache."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = ["127.0.0.1 localhost", "::1 localhost"]
    lines += [f"127.0.0.{number + 1} algo-{number}" for number in range(1, hosts + 1)]
    files = {
        "passwd": f"root:x:0:0:root:/:/bin/false\nhonmaru:x:{USER}:{USER}:job:/tmp:/bin/sh\n",
        "group": f"root:x:0:\nhonmaru:x:{USER}:\n",
        "hosts": "\n".join(lines) + "\n",
        "nsswitch.conf": "passwd: files\ngroup: files\nhosts: files\n",
        "resolv.conf": "",
    }
    for name, text in files.items():
        (folder / name).write_text(text)
    cache = Path("/etc/ld.so.cache")
    if cache.exists():
        (folder / "ld.so.cache").write_bytes(cache.read_bytes())
    alternatives = Path("/etc/alternatives")
    if alternatives.is_dir() and not (folder / "alternatives").exists():
        (folder / "alternatives").mkdir()
        for link in alternatives.iterdir():
            if link.is_symlink():
                (folder / "alternatives" / link.name).symlink_to(link.readlink())


def examine(report: str, walls: Walls, own: Mapping[str, str]) -> dict[str, str]:
    """Turn what the probe printed into the achieved isolation.

    Args:
        own: Namespace name → identity of the runner's own namespace; the instance's must differ (the network's
            may be shared by the instances of one job, then it must differ from the machine's, which `own` holds).
    Raises:
        Refused: a layer that is promised is not there.
    """
    facts: dict[str, str] = {}
    namespaces: dict[str, str] = {}
    writable: list[str] = []
    for line in report.splitlines():
        words = line.replace(":", " ", 1).split() if not line.startswith("ns ") else line.split()
        if len(words) == 3 and words[0] == "ns":
            namespaces[words[1]] = words[2]
        elif words and words[0] == "writable":
            writable += words[1:]
        elif words:
            facts[words[0]] = " ".join(words[1:])
    missing = [name for name in own if namespaces.get(name, own[name]) == own[name]]
    if missing:
        raise Refused(f"namespaces not separated: {', '.join(missing)}")
    if facts.get("nets") != "lo":
        raise Refused(f"the network shows {facts.get('nets')!r}, expected only loopback")
    if facts.get("uid") != str(USER) or facts.get("NoNewPrivs") != "1":
        raise Refused("user or no-new-privileges not as promised")
    if int(facts.get("CapEff", "f"), 16) or int(facts.get("CapBnd", "f"), 16):
        raise Refused("capabilities were not dropped")
    if facts.get("Seccomp") != "2":
        raise Refused("the system call filter is not in force")
    if writable:
        raise Refused(f"read-only places are writable: {', '.join(writable)}")
    return {
        "sandbox": "bubblewrap",
        "namespaces": ",".join(sorted(namespaces)),
        "network": "loopback, shared by the job's instances" if walls.shared_network else "none but loopback",
        "sockets": "unix,inet on loopback" if walls.loopback else "unix",
        "filesystem": "private, read-only but /opt/ml, /tmp, /dev/shm",
        "capabilities": "none",
        "no_new_privileges": "yes",
        "seccomp": f"deny list, {os.uname().machine}",
    }


def own_namespaces() -> dict[str, str]:
    """Identities of the namespaces that the caller is in."""
    return {
        name: str(Path(f"/proc/self/ns/{name}").readlink())
        for name in ("user", "pid", "ipc", "uts", "cgroup", "mnt", "net")
    }


def _variables(walls: Walls) -> dict[str, str]:
    fixed = {
        "PATH": f"{walls.prefix}/bin:/usr/local/bin:/usr/bin:/bin",
        "HOME": _SCRATCH,
        "TMPDIR": _SCRATCH,
        "USER": "honmaru",
        "LANG": "C.UTF-8",
        "PYTHONPATH": "/opt/honmaru",
        "PYTHONUNBUFFERED": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    return {**walls.variables, **fixed}
