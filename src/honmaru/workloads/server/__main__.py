"""Entry point of the embedded model server; see the package's docstring."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from honmaru.core.errors import HonmaruError
from honmaru.workloads.server.application import Application
from honmaru.workloads.server.engine import Engine
from honmaru.workloads.server.text import Vocabulary


def load_engine(directory: Path, threads: int) -> Engine:
    """openvino over model.gguf where the model was converted, else transformers."""
    gguf = directory / "model.gguf"
    if gguf.exists():
        from honmaru.workloads.server.engine_openvino import OpenVinoEngine

        return OpenVinoEngine(gguf, threads)
    from honmaru.workloads.server.engine_torch import TorchEngine

    return TorchEngine(directory, threads)


def main() -> int:
    """Load the model, then listen on the socket until SIGTERM. Exit code 1 with the reason on stderr if it fails."""
    parser = argparse.ArgumentParser(prog="honmaru.workloads.server")
    parser.add_argument("--model", type=Path, required=True, help="model directory: Hugging Face files, model.gguf")
    parser.add_argument("--socket", type=Path, required=True, help="path of the UNIX socket to listen on")
    parser.add_argument("--name", default="model", help="the model's name in answers")
    parser.add_argument("--threads", type=int, default=0, help="compute threads; 0: as many as cores")
    arguments = parser.parse_args()
    # The sandbox has no network; these keep the libraries from trying.
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_HUB_DISABLE_TELEMETRY", "DO_NOT_TRACK"):
        os.environ[name] = "1"
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # spinning threads would take cores from the enclave
    threads = arguments.threads or len(os.sched_getaffinity(0))
    try:
        vocabulary = Vocabulary(arguments.model)
        engine = load_engine(arguments.model, threads)
    except (HonmaruError, OSError, ValueError, RuntimeError) as fault:
        print(f"cannot serve {arguments.model.name}: {type(fault).__name__}: {fault}", file=sys.stderr, flush=True)
        return 1
    import uvicorn

    print(f"serving {arguments.name} with {engine.name}, {threads} threads", flush=True)
    uvicorn.run(
        Application(arguments.name, vocabulary, engine),
        uds=str(arguments.socket),
        http="httptools",
        loop="uvloop",
        lifespan="off",
        access_log=False,
        log_level="warning",
        timeout_graceful_shutdown=2,
    )
    engine.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
