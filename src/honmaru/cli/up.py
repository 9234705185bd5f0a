"""`honmaru up`: start the enclave."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from typing import Any

from honmaru.app.run_files import published, running_pid
from honmaru.app.settings import DEFAULT_PORT, Settings
from honmaru.core.errors import ConfigurationFault

NAME = "up"
HELP = "start the enclave"
_START_TIMEOUT_S = 60.0


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--region", help="us-gov-west-1 (CUI), us-isob-east-1 (SECRET) or us-iso-east-1 (TOP SECRET)")
    parser.add_argument(
        "--port", type=int, help=f"default {DEFAULT_PORT}, with --real-hostnames 443; 0 takes a free one"
    )
    parser.add_argument(
        "--real-hostnames",
        action="store_true",
        help="serve AWS's own host names of the region, for clients that hard-code them",
    )
    parser.add_argument("--http", action="store_true", help="plain http instead of TLS, on loopback only")
    parser.add_argument("--database", metavar="URL", help="postgresql://... (default: SQLite in the data directory)")
    parser.add_argument("--blobs", metavar="URL", help="object store URL (default: a directory in the data directory)")
    says = "processes that answer requests (default 1); more of them use more cores"
    parser.add_argument("--workers", type=int, default=1, metavar="N", help=says)
    parser.add_argument("--model-idle", type=float, default=600.0, metavar="S", help="stop an idle model server after")
    for holder, rate in (("principal", 5_000.0), ("account", 20_000.0)):
        says = f"requests/s of one {holder} at one label (default {rate:,.0f}; 0 for no limit)"
        parser.add_argument(f"--{holder}-rate", type=float, default=rate, metavar="N", help=says)
    says = "`files` keeps OTLP-JSON spans in the data directory; or a collector's URL on loopback (default: off)"
    parser.add_argument("--traces", metavar="WHERE", default="", help=says)
    parser.add_argument("--traces-label", metavar="LABEL", default="", help="the highest label a collector is told")
    parser.add_argument("--sealed", action="store_true", help="insist on a sealed root key; then `honmaru unseal`")
    parser.add_argument("--detach", action="store_true", help="run in the background; returns when it answers")
    parser.add_argument("--json", action="store_true", help="print one JSON object when it answers")


def run(args: argparse.Namespace) -> int:
    settings = Settings(
        data=args.data.absolute(),
        region=args.region,
        port=args.port if args.port is not None else 443 if args.real_hostnames else DEFAULT_PORT,
        real_hostnames=args.real_hostnames,
        http=args.http,
        database=args.database,
        blobs=args.blobs,
        model_idle_s=args.model_idle,
        traces=args.traces,
        traces_label=args.traces_label,
        sealed=args.sealed,
        workers=args.workers,
        principal_requests_s=args.principal_rate,
        account_requests_s=args.account_rate,
    )
    settings.check()
    if args.detach:
        return _detach(settings, as_json=args.json)
    from honmaru.app.starting import run_enclave

    return run_enclave(settings, announce=lambda facts: _announce(facts, as_json=args.json))


def _announce(facts: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        print(json.dumps(facts), flush=True)
        return
    if facts.get("sealed"):
        print(f"honmaru is sealed ({facts['lock']}), pid {facts['pid']}: run `honmaru unseal`", flush=True)
        return
    if str(facts["endpoint"]).startswith("http:"):
        print("Warning: plain http. Secrets and answers cross the loopback interface unencrypted.", flush=True)
    print(f"honmaru {facts['region']} (ceiling {facts['ceiling']}) answers at {facts['endpoint']}", flush=True)
    print(f"  account {facts['account']}, data in {facts['data']}, pid {facts['pid']}", flush=True)
    print('  clients: eval "$(honmaru env --user admin)"', flush=True)
    if facts["hosts"]:
        _announce_hosts(facts)


def _announce_hosts(facts: Mapping[str, Any]) -> None:
    """The lines that lead AWS's names here, and what else clients of these names need."""
    from honmaru.app.hostnames import REAL_PORT, default_buckets, hosts_lines

    if facts["port"] != REAL_PORT:
        print(f"  AWS's names mean port {REAL_PORT}: redirect it to {facts['port']}, or start with --port {REAL_PORT}")
    print(
        "  /etc/hosts of the clients (`honmaru hosts --dns` prints split DNS, which covers every bucket):", flush=True
    )
    for line in hosts_lines(facts["host"], facts["hosts"], default_buckets(facts["region"], facts["account"])):
        print(line, flush=True)


def _detach(settings: Settings, *, as_json: bool) -> int:
    if (pid := running_pid(settings.data)) is not None:
        raise ConfigurationFault(
            [f"an enclave (pid {pid}) already runs in {settings.data}: `honmaru status` or `honmaru down`"]
        )
    log = settings.data / "log"
    log.mkdir(mode=0o700, parents=True, exist_ok=True)
    settings.data.chmod(0o700)
    command = [sys.executable, "-m", "honmaru", "up", "--data", str(settings.data), "--port", str(settings.port)]
    command += ["--model-idle", str(settings.model_idle_s)]
    command += ["--principal-rate", str(settings.principal_requests_s)]
    command += ["--account-rate", str(settings.account_requests_s)]
    command += ["--workers", str(settings.workers)]
    for flag, value in (
        ("--region", settings.region),
        ("--database", settings.database),
        ("--blobs", settings.blobs),
        ("--traces", settings.traces),
        ("--traces-label", settings.traces_label),
    ):
        command += [flag, value] if value else []
    command += ["--http"] if settings.http else []
    command += ["--sealed"] if settings.sealed else []
    command += ["--real-hostnames"] if settings.real_hostnames else []
    errors = log / "enclave.log"
    offset = errors.stat().st_size if errors.exists() else 0
    with errors.open("ab") as out:
        child = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True, cwd="/", env=os.environ
        )
    limit_s = _START_TIMEOUT_S * (1 if settings.workers == 1 else 2)
    deadline = time.monotonic() + limit_s
    while time.monotonic() < deadline:
        if (facts := published(settings.data)) and facts["pid"] == child.pid:
            _announce(facts, as_json=as_json)
            return 0
        if child.poll() is not None:
            said = errors.read_bytes()[offset:].decode(errors="replace").strip().splitlines()
            raise ConfigurationFault([line.removeprefix("honmaru: ") for line in said[-5:]] or ["it ended at once"])
        time.sleep(0.05)
    raise ConfigurationFault([f"the enclave does not answer after {limit_s:.0f} s; see {errors}"])
