"""The enclave's process: what the operating system and the interpreter should know of a server before it serves.

Nothing here changes what is answered: room for connections, memory given back, short pauses.
"""

from __future__ import annotations

import ctypes
import gc
import resource
import sys

_MOST_FILES = 65_536
_ARENAS, _TRIM_BYTES, _MMAP_BYTES = 2, 8 << 20, 8 << 20
_M_ARENA_MAX, _M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -8, -1, -3
_SWITCH_S = 0.001


def make_room() -> None:
    """As many open files as the hard limit allows: each connection is one. Memory of past requests is given back."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _MOST_FILES if hard == resource.RLIM_INFINITY else min(hard, _MOST_FILES)
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    # glibc gives every thread an arena of its own, and keeps what bodies of a megabyte took from each of them.
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_ARENA_MAX, _ARENAS)
        mallopt(_M_TRIM_THRESHOLD, _TRIM_BYTES)
        mallopt(_M_MMAP_THRESHOLD, _MMAP_BYTES)


def settle() -> None:
    """Once everything is loaded: the collector leaves it alone from now on, and threads hand over quickly.

    A full collection would walk over every compiled model, some 50 ms during which nothing is answered.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(2_000, 20, 50)
    sys.setswitchinterval(_SWITCH_S)
