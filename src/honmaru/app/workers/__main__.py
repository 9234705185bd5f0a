"""A worker process: `python -m honmaru.app.workers CHANNEL LISTENER RATES`, three inherited descriptors.

Invariants:
- Everything it must know comes over the channel, the key of a sealed root key too: nothing secret stands in its
  arguments or environment.
- It answers what any process may (`Provider.anywhere`) and hands everything else to the first process.
- When the channel ends before it was told to stop, the process ends at once.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import sys
import threading
from pathlib import Path
from typing import Any

import orjson

from honmaru.app import process
from honmaru.app.background import Background, Step
from honmaru.app.settings import Settings
from honmaru.app.unsealing import Unsealed, no_core_dumps
from honmaru.app.workers.channel import Channel, ChannelClosed, Kind
from honmaru.app.workers.lent import Lent, LentBlobs, LentLedger, listener
from honmaru.core.errors import HonmaruError
from honmaru.security.identity.usage import USES_EVERY_S

_HELLO_S = 30.0
_COUNT_EVERY_S = 1.0


class _Worker:
    def __init__(self, connection: socket.socket, rates_memory: int) -> None:
        self._rates_memory = rates_memory
        self._hello: dict[str, Any] = {}
        self._greeted = threading.Event()
        self._built = threading.Event()
        self._leaving = False
        self.channel = Channel(connection, self._handle, self._ended)
        self.ledger = LentLedger(self.channel)
        self.blobs = LentBlobs(self.channel)
        self._enclave: Any = None
        self._handler = listener(lambda: self.channel, self.ledger, self.blobs, self._vault)

    def _handle(self, kind: int, payload: bytes) -> None:
        if kind == Kind.HELLO:
            self._hello = orjson.loads(payload)
            self._greeted.set()
        else:
            self._handler(kind, payload)

    def _vault(self) -> Any:
        self._built.wait()
        return self._enclave.guard.vault

    def _ended(self) -> None:
        self.ledger.fail()
        if not self._leaving:
            os._exit(70)

    def run(self, listening: socket.socket) -> int:
        from honmaru.app.enclave import Enclave
        from honmaru.gateway.server import serve

        self.channel.start()
        if not self._greeted.wait(_HELLO_S):
            raise ChannelClosed("the first process does not say what to do")
        hello = self._hello
        settings = Settings(**{**hello["settings"], "data": Path(hello["settings"]["data"])})
        root = hello.pop("root")
        unsealed = None if root is None else Unsealed(bytes.fromhex(root[0]), root[1], 0)
        forward_to = settings.data / "run" / "forward.sock"
        lent = Lent(hello["owner"], self.ledger, self.blobs, forward_to, self._rates_memory)
        enclave = self._enclave = Enclave(settings, unsealed, lent)
        enclave.port = hello["port"]
        enclave.guard.vault.tell_sweep(bool(hello["sweeping"]))
        self._built.set()
        process.settle()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: enclave.stopping.set())
        background = Background(
            (
                Step("last use of keys", USES_EVERY_S, enclave.identity.write_uses),
                Step("counts of requests", _COUNT_EVERY_S, lambda: self._count(enclave)),
            )
        )
        if enclave.spans is not None:
            enclave.spans.start()
        background.start()
        try:
            serve(
                enclave.gateway,
                host=settings.host,
                port=enclave.port,
                certificate=enclave.tls.certificate if enclave.tls else None,
                key=enclave.tls.key if enclave.tls else None,
                limits=enclave.limits,
                ready=lambda _port: self.channel.send(Kind.READY),
                stopping=enclave.stopping,
                listener=listening,
            )
        finally:
            enclave.gateway.close()
            background.stop()
            if enclave.spans is not None:
                enclave.spans.close()
            with contextlib.suppress(HonmaruError):
                enclave.identity.write_uses()
            self._count(enclave)
            self._leaving = True
            self.channel.close()
            enclave.records.close()
        return 0

    def _count(self, enclave: Any) -> None:
        try:
            self.channel.send(Kind.COUNTED, orjson.dumps(enclave.meter.rows()))
        except ChannelClosed:
            return


def main() -> int:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    process.make_room()
    no_core_dumps()
    channel, listening, rates = map(int, sys.argv[1:4])
    for inherited in (channel, listening, rates):
        os.set_inheritable(inherited, False)
    try:
        return _Worker(socket.socket(fileno=channel), rates).run(socket.socket(fileno=listening))
    except HonmaruError as fault:
        logging.getLogger("honmaru.workers").error("this worker cannot start: %s", fault.message)
        return 1


if __name__ == "__main__":
    sys.exit(main())
