"""The system call filter of a sandbox, assembled by hand as classic BPF (no library needed).

A deny list on top of namespaces and dropped capabilities: what could reach more of the kernel than a job needs.

Invariants:
- Another architecture's system calls (32-bit, x32) never pass: the process is killed, or the call does not exist.
- Sockets other than UNIX ones fail with EAFNOSUPPORT; with `loopback`, IPv4, IPv6 and routing netlink pass too.
- New namespaces fail: unshare and setns by EPERM, clone by its flags, clone3 as ENOSYS (its flags lie in memory
  that a filter cannot read; C libraries then fall back to clone).
- A machine whose architecture is not in the tables has no filter: `build` raises and nothing runs.

Source: linux/seccomp.h, linux/bpf_common.h, asm/unistd_64.h, asm-generic/unistd.h (Linux 6.12).
"""

from __future__ import annotations

import errno
import struct
from dataclasses import dataclass

_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_NUMBER, _ARCHITECTURE, _ARGUMENT_0, _ARGUMENT_1, _ARGUMENT_2 = 0, 4, 16, 24, 32
_ALLOW, _KILL, _ERRNO = 0x7FFF0000, 0x80000000, 0x00050000
_NEW_NAMESPACE = 0x00020000 | 0x02000000 | 0x04000000 | 0x08000000 | 0x10000000 | 0x20000000 | 0x40000000
_TERMINAL_INJECTION = (0x5412, 0x541C)  # TIOCSTI, TIOCLINUX
_UNIX, _INET, _INET6, _NETLINK = 1, 2, 10, 16

_COMMON = {
    "io_uring_setup": 425,
    "io_uring_enter": 426,
    "io_uring_register": 427,
    "open_tree": 428,
    "move_mount": 429,
    "fsopen": 430,
    "fsconfig": 431,
    "fsmount": 432,
    "fspick": 433,
    "pidfd_getfd": 438,
    "mount_setattr": 442,
    "quotactl_fd": 443,
    "open_tree_attr": 467,
}
_X86_64 = {
    "ptrace": 101,
    "syslog": 103,
    "uselib": 134,
    "sysfs": 139,
    "vhangup": 153,
    "modify_ldt": 154,
    "pivot_root": 155,
    "_sysctl": 156,
    "adjtimex": 159,
    "chroot": 161,
    "acct": 163,
    "settimeofday": 164,
    "mount": 165,
    "umount2": 166,
    "swapon": 167,
    "swapoff": 168,
    "reboot": 169,
    "sethostname": 170,
    "setdomainname": 171,
    "iopl": 172,
    "ioperm": 173,
    "init_module": 175,
    "delete_module": 176,
    "quotactl": 179,
    "nfsservctl": 180,
    "lookup_dcookie": 212,
    "clock_settime": 227,
    "kexec_load": 246,
    "add_key": 248,
    "request_key": 249,
    "keyctl": 250,
    "unshare": 272,
    "perf_event_open": 298,
    "fanotify_init": 300,
    "name_to_handle_at": 303,
    "open_by_handle_at": 304,
    "clock_adjtime": 305,
    "setns": 308,
    "process_vm_readv": 310,
    "process_vm_writev": 311,
    "kcmp": 312,
    "finit_module": 313,
    "kexec_file_load": 320,
    "bpf": 321,
    "userfaultfd": 323,
}
_AARCH64 = {
    "lookup_dcookie": 18,
    "umount2": 39,
    "mount": 40,
    "pivot_root": 41,
    "nfsservctl": 42,
    "chroot": 51,
    "vhangup": 58,
    "quotactl": 60,
    "acct": 89,
    "unshare": 97,
    "kexec_load": 104,
    "init_module": 105,
    "delete_module": 106,
    "clock_settime": 112,
    "syslog": 116,
    "ptrace": 117,
    "reboot": 142,
    "sethostname": 161,
    "setdomainname": 162,
    "settimeofday": 170,
    "adjtimex": 171,
    "add_key": 217,
    "request_key": 218,
    "keyctl": 219,
    "swapon": 224,
    "swapoff": 225,
    "perf_event_open": 241,
    "fanotify_init": 262,
    "name_to_handle_at": 264,
    "open_by_handle_at": 265,
    "clock_adjtime": 266,
    "setns": 268,
    "process_vm_readv": 270,
    "process_vm_writev": 271,
    "kcmp": 272,
    "finit_module": 273,
    "bpf": 280,
    "userfaultfd": 282,
    "kexec_file_load": 294,
}


@dataclass(frozen=True, slots=True)
class _Architecture:
    audit: int
    denied: dict[str, int]
    socket: int
    clone: int
    ioctl: int
    clone3: int = 435


_ARCHITECTURES = {
    "x86_64": _Architecture(0xC000003E, _COMMON | _X86_64, socket=41, clone=56, ioctl=16),
    "aarch64": _Architecture(0xC00000B7, _COMMON | _AARCH64, socket=198, clone=220, ioctl=29),
}


class NoFilter(Exception):
    """There is no filter for this machine's architecture."""


def build(machine: str, *, loopback: bool) -> bytes:
    """The filter program for `bwrap --seccomp`, for a machine name as `os.uname().machine` has it.

    Raises:
        NoFilter: the architecture is not known.
    """
    if machine not in _ARCHITECTURES:
        raise NoFilter(f"no system call filter for {machine!r}: known are {', '.join(sorted(_ARCHITECTURES))}")
    table = _ARCHITECTURES[machine]
    program = [
        _step(_LOAD, _ARCHITECTURE),
        _step(_EQUAL, table.audit, 1, 0),
        _step(_RETURN, _KILL),
        _step(_LOAD, _NUMBER),
    ]
    if machine == "x86_64":
        program += [_step(_AT_LEAST, 0x40000000, 0, 1), _refuse(errno.ENOSYS)]
    for number in sorted(table.denied.values()):
        program += [_step(_EQUAL, number, 0, 1), _refuse(errno.EPERM)]
    program += [_step(_EQUAL, table.clone3, 0, 1), _refuse(errno.ENOSYS)]
    families = (_UNIX, _INET, _INET6) if loopback else (_UNIX,)
    # Gloo lists the interfaces, which is a routing question over netlink (protocol 0); no other netlink passes.
    routing = [_step(_EQUAL, _NETLINK, 0, 2), _step(_LOAD, _ARGUMENT_2), _step(_EQUAL, 0, 1, 0)] if loopback else []
    program += _when(
        table.socket,
        [
            _step(_LOAD, _ARGUMENT_0),
            *(_step(_EQUAL, family, len(families) - at + len(routing), 0) for at, family in enumerate(families)),
            *routing,
            _refuse(errno.EAFNOSUPPORT),
            _step(_RETURN, _ALLOW),
        ],
    )
    program += _when(
        table.clone,
        [
            _step(_LOAD, _ARGUMENT_0),
            _step(_ANY_BIT, _NEW_NAMESPACE, 0, 1),
            _refuse(errno.EPERM),
            _step(_RETURN, _ALLOW),
        ],
    )
    program += _when(
        table.ioctl,
        [
            _step(_LOAD, _ARGUMENT_1),
            *(
                _step(_EQUAL, code, len(_TERMINAL_INJECTION) - place, 0)
                for place, code in enumerate(_TERMINAL_INJECTION)
            ),
            _step(_RETURN, _ALLOW),
            _refuse(errno.EPERM),
        ],
    )
    program.append(_step(_RETURN, _ALLOW))
    return b"".join(program)


def _step(code: int, operand: int, if_true: int = 0, if_false: int = 0) -> bytes:
    return struct.pack("=HBBI", code, if_true, if_false, operand)


def _refuse(number: int) -> bytes:
    return _step(_RETURN, _ERRNO | number)


def _when(number: int, steps: list[bytes]) -> list[bytes]:
    return [_step(_EQUAL, number, 0, len(steps)), *steps]
