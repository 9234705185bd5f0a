"""The thread that an engine works in.

Invariant: an engine whose loop fails ends its process, so the enclave sees it and starts another; it never leaves
requests hanging.
"""

from __future__ import annotations

import os
import sys
import threading
import traceback
from collections.abc import Callable


def start_loop(loop: Callable[[], None], name: str) -> threading.Thread:
    """Start an engine's loop in a thread of its own. If it raises, the process says why on stderr and ends: code 70."""

    def run() -> None:
        try:
            loop()
        except BaseException:
            traceback.print_exc()
            sys.stderr.flush()
            os._exit(70)

    thread = threading.Thread(target=run, name=name, daemon=True)
    thread.start()
    return thread
