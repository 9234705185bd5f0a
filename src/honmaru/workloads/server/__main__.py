"""Entry point of the embedded model server; see the package's docstring."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import sys
from pathlib import Path

from honmaru.core.errors import HonmaruError
from honmaru.core.model_files import is_encoder_architecture
from honmaru.workloads.server.application import Application, EmbeddingApplication
from honmaru.workloads.server.embedder import Embedder
from honmaru.workloads.server.engine import Engine
from honmaru.workloads.server.text import Vocabulary
from honmaru.workloads.serving_identity import ServingIdentity


def load_engine(directory: Path, threads: int) -> Engine:
    """openvino over model.gguf where the model was converted, else transformers."""
    gguf = directory / "model.gguf"
    if gguf.exists():
        from honmaru.workloads.server.engine_openvino import OpenVinoEngine

        return OpenVinoEngine(gguf, threads)
    from honmaru.workloads.server.engine_torch import TorchEngine

    return TorchEngine(directory, threads)


def is_encoder(directory: Path) -> bool:
    """Whether the model embeds texts and writes none."""
    config = json.loads((directory / "config.json").read_text("utf-8"))
    return is_encoder_architecture(str((config.get("architectures") or [""])[0]))


def answering(identity: ServingIdentity) -> type[asyncio.Protocol]:
    """uvicorn's protocol for connections of which only the enclave's are answered."""
    from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

    class Answering(HttpToolsProtocol):
        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override, unused-ignore]
            super().connection_made(transport)
            if not identity.answers(transport):
                transport.abort()

    return Answering


def main() -> int:
    """Load the model, then listen on the socket until SIGTERM. Exit code 1 with the reason on stderr if it fails."""
    parser = argparse.ArgumentParser(prog="honmaru.workloads.server")
    parser.add_argument("--model", type=Path, required=True, help="model directory: Hugging Face files, model.gguf")
    parser.add_argument("--socket", type=Path, required=True, help="path of the UNIX socket to listen on")
    parser.add_argument("--name", default="model", help="the model's name in answers")
    parser.add_argument("--threads", type=int, default=0, help="compute threads; 0: as many as cores")
    parser.add_argument("--identity", type=Path, help="directory that hands out this server's identity")
    arguments = parser.parse_args()
    # The sandbox has no network; these keep the libraries from trying.
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_HUB_DISABLE_TELEMETRY", "DO_NOT_TRACK"):
        os.environ[name] = "1"
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # spinning threads would take cores from the enclave
    threads = arguments.threads or len(os.sched_getaffinity(0))
    application: Application | EmbeddingApplication
    engine: Engine | None = None
    try:
        if is_encoder(arguments.model):
            application = EmbeddingApplication(arguments.name, Embedder(arguments.model, threads))
        else:
            vocabulary = Vocabulary(arguments.model)
            engine = load_engine(arguments.model, threads)
            application = Application(arguments.name, vocabulary, engine)
    except (HonmaruError, OSError, ValueError, RuntimeError) as fault:
        print(f"cannot serve {arguments.model.name}: {type(fault).__name__}: {fault}", file=sys.stderr, flush=True)
        return 1
    import uvicorn

    # uvicorn ends at SIGTERM and then raises it again, for whoever stood there before.
    signal.signal(signal.SIGTERM, lambda *_: None)

    name = "embedding" if engine is None else engine.name
    print(f"serving {arguments.name} with {name}, {threads} threads", flush=True)
    identity = None if arguments.identity is None else ServingIdentity(arguments.identity)
    config = uvicorn.Config(
        application,
        uds=str(arguments.socket),
        http="httptools" if identity is None else answering(identity),
        loop="uvloop",
        lifespan="off",
        access_log=False,
        log_level="warning",
        timeout_graceful_shutdown=2,
    )
    if identity is not None:
        config.load()
        config.ssl = identity.context
    uvicorn.Server(config).run()
    if engine is not None:
        engine.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
