"""honmaru's inference beside others, in one go, on the same machine.

(a) The gateway in front of a model server that costs next to nothing: honmaru with keys or signatures, IAM, labels and
ledger on, beside LiteLLM's proxy (one worker, a master key, no database). Gateway on one core, engine and client on
another. (b) The embedded engine behind the gateway, beside the bare engine and transformers, on one small random
model, at 1, 8 and 32 concurrent requests. Weights of the first two are f16, of transformers bf16.

    python benchmarks/bench_inference.py [--seconds S] [--only gateway|engine] [--soak S]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from honmaru.testing.enclaves import LiveEnclave

HERE = Path(__file__).resolve().parent
LITELLM = HERE.parent / ".venv-peers" / "inference" / "bin" / "litellm"
CHUNKS, TOKENS = 20, 64
BODY = {"model": "bench.fast", "messages": [{"role": "user", "content": "word " * 20}], "max_tokens": 64}
AIM_TIMES, AIM_ADDED_MS, AIM_FIRST_MS, AIM_SHARE = 25.0, 0.5, 0.5, 0.95


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


@contextmanager
def on_core(core: int) -> Iterator[None]:
    """What is started inside stays on one core."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {sorted(before)[core % len(before)]})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def tree(pid: int) -> list[int]:
    """A process and what descends from it."""
    found = [pid]
    for one in found:
        for task in Path(f"/proc/{one}/task").glob("*/children"):
            found += [int(child) for child in task.read_text().split()]
    return found


def request(path: str, headers: dict[str, str], body: dict[str, Any]) -> str:
    data = json.dumps(body)
    lines = {"host": "127.0.0.1", "content-type": "application/json", "content-length": str(len(data)), **headers}
    return (
        f"POST {path} HTTP/1.1\r\n" + "".join(f"{name}: {value}\r\n" for name, value in lines.items()) + "\r\n" + data
    )


def signed(path: str, credentials: dict[str, str], region: str, host: str, body: dict[str, Any]) -> str:
    """A request for boto3's Converse, signed for the next minutes."""
    from botocore.auth import SigV4Auth
    from botocore.awsrequest import AWSRequest
    from botocore.credentials import Credentials

    made = AWSRequest("POST", f"http://{host}{path}", {"content-type": "application/json"}, json.dumps(body).encode())
    keys = Credentials(credentials["access_key_id"], credentials["secret_access_key"])
    SigV4Auth(keys, "bedrock", region).add_auth(made)
    return request(path, {"host": host, **{name.lower(): value for name, value in made.headers.items()}}, body)


def load(port: int, asked: str, connections: int, seconds: float, pids: list[int], warm: float = 1.0) -> dict[str, Any]:
    plan = {"port": port, "request": asked, "connections": connections, "seconds": seconds, "pids": pids, "warm": warm}
    with on_core(1):
        done = subprocess.run(
            [sys.executable, str(HERE / "inference_load.py")], input=json.dumps(plan) + "\n", text=True,
            capture_output=True, check=True,
        )  # fmt: skip
    found: dict[str, Any] = json.loads(done.stdout)
    if found["bad"]:
        raise RuntimeError(f"{found['bad']} requests failed: {found['example']}")
    return found


def show(name: str, figures: dict[str, Any]) -> None:
    print(
        f"{name:36}{figures['rps']:>10.0f}{figures['p50_ms']:>9.2f}{figures['p99_ms']:>9.2f}"
        f"{figures['first_ms']:>9.2f}{figures['cpu_us']:>10.0f}{figures['rss_mb']:>8.0f}",
        flush=True,
    )


@contextmanager
def fast_engine() -> Iterator[int]:
    port = free_port()
    with on_core(1):
        process = subprocess.Popen([sys.executable, str(HERE / "fast_engine.py"), str(port), str(CHUNKS)])
    try:
        time.sleep(1)
        yield port
    finally:
        process.terminate()
        process.wait()


@contextmanager
def honmaru(folder: Path, engine: int) -> Iterator[LiveEnclave]:
    folder.mkdir(mode=0o700)
    declared = {
        "bench.fast": {
            "model": "fast",
            "replicas": [{"url": f"http://127.0.0.1:{engine}", "label": "UNCLASSIFIED"}],
            "requests": 512,
        }
    }
    (folder / "engines.json").write_text(json.dumps(declared))
    with on_core(0):
        enclave = LiveEnclave(folder, "us-gov-west-1", http=True).up()
    try:
        yield enclave
    finally:
        enclave.down()


@contextmanager
def litellm(folder: Path, engine: int) -> Iterator[tuple[int, int]]:
    """(port, pid) of LiteLLM's proxy."""
    port = free_port()
    model = {"model": "openai/fast", "api_base": f"http://127.0.0.1:{engine}/v1", "api_key": "none"}
    config = {
        "model_list": [{"model_name": "bench.fast", "litellm_params": model}],
        "litellm_settings": {"num_retries": 0},
        "general_settings": {"master_key": "sk-Qm3vZ8tL1xW5rK9pJ2dF7hB4nS6yC0gU"},
    }
    (folder / "litellm.yaml").write_text(json.dumps(config))  # JSON is YAML
    environment = {**os.environ, "LITELLM_LOG": "ERROR", "LITELLM_LOCAL_MODEL_COST_MAP": "True"}
    command = [str(LITELLM), "--config", str(folder / "litellm.yaml"), "--port", str(port), "--num_workers", "1"]
    with on_core(0):
        process = subprocess.Popen(
            [*command, "--host", "127.0.0.1"], env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
    try:
        deadline = time.monotonic() + 180
        while True:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health/liveliness", timeout=2).read()
                break
            except OSError:
                if time.monotonic() > deadline or process.poll() is not None:
                    raise RuntimeError("LiteLLM's proxy did not start") from None
                time.sleep(0.5)
        yield port, process.pid
    finally:
        process.terminate()
        process.wait()


def gateways(seconds: float, soak: float) -> dict[str, Any]:
    print(f"\n{'(a) gateways':36}{'req/s':>10}{'p50 ms':>9}{'p99 ms':>9}{'first':>9}{'CPU us':>10}{'MB':>8}")
    streams = {**BODY, "stream": True}
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name, fast_engine() as engine:
        folder = Path(name)
        for label, body in (("whole", BODY), ("stream", streams)):
            found[f"engine-{label}"] = load(engine, request("/v1/chat/completions", {}, body), 1, seconds, [])
            show(f"engine alone, {label}, 1 connection", found[f"engine-{label}"])
        with honmaru(folder / "data", engine) as enclave:
            pids = tree(enclave.pid)
            key = {"authorization": f"Bearer {enclave.credentials()['bearer_token']}"}
            for label, body in (("whole", BODY), ("stream", streams)):
                asked = request("/openai/v1/chat/completions", key, body)
                for connections in (1, 16, 64):
                    figures = found[f"honmaru-{label}-{connections}"] = load(
                        enclave.port, asked, connections, seconds, pids
                    )
                    show(f"honmaru, key, {label}, {connections}", figures)
            turn = {"messages": [{"role": "user", "content": [{"text": "word " * 20}]}]}
            host = f"127.0.0.1:{enclave.port}"
            asked = signed("/model/bench.fast/converse", enclave.credentials(), enclave.region, host, turn)
            found["honmaru-signed"] = load(enclave.port, asked, 16, seconds, pids)
            show("honmaru, Converse signed, 16", found["honmaru-signed"])
            if soak:
                asked = request("/openai/v1/chat/completions", key, BODY)
                found["soak"] = load(enclave.port, asked, 16, soak, pids)
                show(f"honmaru, soak of {soak:.0f} s", found["soak"])
        if LITELLM.exists():
            with litellm(folder, engine) as (port, pid):
                key = {"authorization": "Bearer sk-Qm3vZ8tL1xW5rK9pJ2dF7hB4nS6yC0gU"}
                for label, body in (("whole", BODY), ("stream", streams)):
                    asked = request("/v1/chat/completions", key, body)
                    for connections in (1, 16):
                        figures = load(port, asked, connections, seconds, tree(pid), warm=3.0)
                        found[f"litellm-{label}-{connections}"] = figures
                        show(f"LiteLLM, {label}, {connections}", figures)
        else:
            print("LiteLLM is not installed: run `scripts/install-peers inference`")
    return found


def small_model(folder: Path) -> Path:
    """27.8 million parameters, random: its speed is that of a trained one."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from honmaru.testing.tiny_models import _TEXT
    from honmaru.workloads.convert import convert
    from honmaru.workloads.language_model.tokenizer import END, PAD, save_tokenizer, train_tokenizer

    folder.mkdir()
    tokenizer = train_tokenizer([_TEXT], 400, 1)
    torch.manual_seed(7)
    config = LlamaConfig(
        vocab_size=8192, hidden_size=512, intermediate_size=1376, num_hidden_layers=8, num_attention_heads=8,
        num_key_value_heads=4, max_position_embeddings=512, tie_word_embeddings=True,
        eos_token_id=tokenizer.token_to_id(END), bos_token_id=tokenizer.token_to_id(END),
        pad_token_id=tokenizer.token_to_id(PAD),
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(str(folder))
    save_tokenizer(tokenizer, folder, 512)
    convert(folder, folder / "model.gguf")
    return folder


async def closed_loop(port: int, asked: str, concurrent: int, seconds: float) -> float:
    """Tokens per second of `concurrent` askers."""
    written = 0

    async def one() -> None:
        nonlocal written
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        while time.perf_counter() < until:
            writer.write(asked.encode())
            head = await reader.readuntil(b"\r\n\r\n")
            size = int(head.lower().partition(b"content-length:")[2].split(b"\r\n", 1)[0])
            answer = json.loads(await reader.readexactly(size))
            if time.perf_counter() < until:
                written += answer["usage"]["completion_tokens"]
        writer.close()

    begun = time.perf_counter()
    until = begun + seconds
    await asyncio.gather(*(one() for _ in range(concurrent)))
    return written / seconds


def engines(seconds: float) -> dict[str, Any]:
    cores = len(os.sched_getaffinity(0))
    print(f"\n{'(b) tokens/s':24}{'1':>10}{'8':>10}{'32':>10}   ({cores} cores)")
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        model = small_model(Path(name) / "model")
        measured: dict[str, dict[int, int]] = {
            "openvino": {1: 8, 8: 6, 32: 4},
            "transformers": {1: 1, 8: 1, 32: 1},
        }
        show_engine("openvino, bare", found, "openvino", model, measured["openvino"], cores)
        enclave = LiveEnclave(Path(name) / "data", "us-gov-west-1", http=True).up()
        try:
            imported = import_model(enclave, model)
            key = {"authorization": f"Bearer {enclave.credentials()['bearer_token']}"}
            prompt = "The inner keep holds what matters. " * 6
            body = {"model": imported, "messages": [{"role": "user", "content": prompt}], "max_tokens": TOKENS}
            asked = request("/openai/v1/chat/completions", key, {**body, "temperature": 0})
            asyncio.run(closed_loop(enclave.port, asked, 1, 2))
            for concurrent in (1, 8, 32):
                found[f"honmaru-{concurrent}"] = asyncio.run(closed_loop(enclave.port, asked, concurrent, seconds * 2))
        finally:
            enclave.down()
        row("honmaru, embedded", [found[f"honmaru-{concurrent}"] for concurrent in (1, 8, 32)])
        show_engine("transformers, bare", found, "transformers", model, measured["transformers"], cores)
    return found


def row(name: str, values: list[float]) -> None:
    print(f"{name:24}" + "".join(f"{value:>10.0f}" for value in values), flush=True)


def show_engine(name: str, found: dict[str, Any], engine: str, model: Path, rounds: dict[int, int], cores: int) -> None:
    """Measure one engine without honmaru, in a process of its own for each number of requests."""
    for concurrent, count in rounds.items():
        arguments = [engine, str(model), str(concurrent), str(TOKENS), str(count), str(cores)]
        command = [sys.executable, str(HERE / "bare_engines.py"), *arguments]
        done = subprocess.run(command, text=True, capture_output=True, check=True)
        found[f"{engine}-{concurrent}"] = float(done.stdout.splitlines()[-1])
    row(name, [found[f"{engine}-{concurrent}"] for concurrent in rounds])


def import_model(enclave: LiveEnclave, model: Path) -> str:
    iam, s3, bedrock = (enclave.client(name) for name in ("iam", "s3", "bedrock"))
    trust = {"Effect": "Allow", "Principal": {"Service": "bedrock.amazonaws.com"}, "Action": "sts:AssumeRole"}
    document = json.dumps({"Version": "2012-10-17", "Statement": [trust]})
    role = iam.create_role(RoleName="bench", AssumeRolePolicyDocument=document)["Role"]["Arn"]
    iam.attach_role_policy(RoleName="bench", PolicyArn="arn:aws-us-gov:iam::aws:policy/AdministratorAccess")
    s3.create_bucket(Bucket="bench", CreateBucketConfiguration={"LocationConstraint": enclave.region})
    for path in model.iterdir():
        if path.name != "model.gguf":
            s3.upload_file(str(path), "bench", f"model/{path.name}")
    job = bedrock.create_model_import_job(
        jobName="bench", importedModelName="bench", roleArn=role,
        modelDataSource={"s3DataSource": {"s3Uri": "s3://bench/model/"}},
    )["jobArn"]  # fmt: skip
    while (found := bedrock.get_model_import_job(jobIdentifier=job))["status"] == "InProgress":
        time.sleep(0.2)
    if found["status"] != "Completed":
        raise RuntimeError(found["failureMessage"])
    return "bench"


def summary(found: dict[str, Any]) -> str:
    parts = []
    if "litellm-whole-16" in found:
        ours, theirs = found["honmaru-whole-16"], found["litellm-whole-16"]
        parts.append(f"{ours['rps'] / theirs['rps']:.0f}x LiteLLM's requests/s on a core (aim {AIM_TIMES:.0f})")
        parts.append(f"{theirs['cpu_us'] / ours['cpu_us']:.0f}x less CPU a request")
        parts.append(f"{ours['rss_mb']:.0f} MB beside {theirs['rss_mb']:.0f} MB")
    if "honmaru-whole-1" in found:
        added = found["honmaru-whole-1"]["p50_ms"] - found["engine-whole"]["p50_ms"]
        tail = found["honmaru-whole-1"]["p99_ms"] - found["engine-whole"]["p99_ms"]
        first = found["honmaru-stream-1"]["first_ms"] - found["engine-stream"]["first_ms"]
        parts.append(f"added p50 {added:.2f} ms (aim {AIM_ADDED_MS}), p99 {tail:.2f} ms")
        parts.append(f"first token +{first:.2f} ms (aim {AIM_FIRST_MS})")
        parts.append(f"{found['honmaru-whole-16']['cpu_us']:.0f} us CPU a request")
    if "soak" in found:
        grown = found["soak"]["rss_mb"] - found["honmaru-signed"]["rss_mb"]
        parts.append(f"memory {grown:+.0f} MB over the soak, at {found['soak']['rps']:.0f} requests/s")
    if "honmaru-32" in found:
        share = found["honmaru-32"] / found["openvino-32"]
        parts.append(f"{share:.0%} of the bare engine's tokens/s at 32 (aim {AIM_SHARE:.0%})")
    return "inference: " + "; ".join(parts)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--soak", type=float, default=0.0)
    parser.add_argument("--only", choices=("gateway", "engine"))
    chosen = parser.parse_args()
    print(f"load average {os.getloadavg()[0]:.1f}")
    found: dict[str, Any] = {}
    if chosen.only != "engine":
        found |= gateways(chosen.seconds, chosen.soak)
    if chosen.only != "gateway":
        found |= engines(chosen.seconds)
    print(f"load average {os.getloadavg()[0]:.1f}")
    print(summary(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
