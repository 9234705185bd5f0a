"""`honmaru ledger`: verify the audit ledger, prove that a call is in it, check such a proof, list the newest entries.

Everything here reads files; none of it needs the enclave to run. Exit code 0: all is well; 1: something was found.
"""

from __future__ import annotations

import argparse
import heapq
import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from honmaru.cli import after_the_verb
from honmaru.core.errors import IntegrityFault, NotFound, ValidationFault

if TYPE_CHECKING:
    from rich.console import Console

    from honmaru.security.ledger.reading import StoredLog
    from honmaru.security.ledger.verify import LogReport, Report

NAME = "ledger"
HELP = "verify the audit ledger, prove calls with it, list its newest entries"

_NEWEST_S = 0.5
"""How long an entry may take from durable to signed on a busy disk; `prove` looks again after that."""


def configure(parser: argparse.ArgumentParser) -> None:
    shared = after_the_verb()
    verbs = parser.add_subparsers(title="verbs", metavar="VERB", required=True)

    def verb(name: str, action: Callable[[argparse.Namespace], int], text: str) -> argparse.ArgumentParser:
        made = verbs.add_parser(name, help=text, description=text, parents=[shared])
        made.set_defaults(action=action)
        return made

    check = verb("verify", _verify, "check every entry, tile and signature, offline")
    check.add_argument("directory", nargs="?", type=Path, metavar="DIR", help="a copied ledger, or one log of it")
    check.add_argument("--checkpoint", type=Path, action="append", default=[], metavar="FILE",
                       help="a checkpoint known from before: shows a roll-back (may be repeated)")  # fmt: skip
    check.add_argument("--fingerprint", metavar="HEX", help="SHA-384 of the public key that you trust")
    check.add_argument("--json", action="store_true", help="print one JSON object")
    prove = verb("prove", _prove, "print a proof that a call is in the ledger")
    prove.add_argument("--event-id", required=True, metavar="ID", help="CloudTrail's event id of the call")
    prove.add_argument("--summary", action="store_true", help="say what the proof proves instead of printing it")
    proof = verb("verify-proof", _verify_proof, "check a proof that `prove` printed")
    proof.add_argument("file", type=Path, metavar="FILE", help="the proof; - for standard input")
    proof.add_argument("--fingerprint", metavar="HEX", help="SHA-384 of the public key that you trust")
    newest = verb("list", _list, "list the newest entries of all logs")
    newest.add_argument("-n", "--count", type=int, default=20, metavar="N", help="how many (default 20)")
    newest.add_argument("--json", action="store_true", help="print whole entries, one JSON object a line")


def run(args: argparse.Namespace) -> int:
    code: int = args.action(args)
    return code


# verify


def _verify(args: argparse.Namespace) -> int:
    from honmaru.security.ledger.verify import verify

    known = [_read(path) for path in args.checkpoint]
    if args.directory is None:
        known += [_read(path) for path in sorted((args.data / "keys" / "ledger").glob("*.head"))]
    report = verify(args.directory or args.data / "ledger", checkpoints=known, fingerprint=args.fingerprint)
    if args.json:
        print(json.dumps(report.document()))
    else:
        _show(report, len(known))
    return 0 if report.ok else 1


def _show(report: Report, known: int) -> None:
    console = _console()
    for log in report.logs:
        _show_log(console, log)
    for finding in report.findings:
        console.print(f"[red]FOUND[/red] {finding.code}: ", end="")
        console.print(finding.message, markup=False)
    if report.ok and not report.logs:
        console.print("The ledger is empty: no log was begun yet.")
    elif report.ok:
        total = sum(log.size for log in report.logs)
        against = f" and {known} known checkpoint{'s' if known != 1 else ''}" if known else ""
        console.print(f"[green]The ledger verifies:[/green] {total} entries, both trees, every signature{against}.")
        for fingerprint in sorted({log.fingerprint for log in report.logs}):
            console.print(f"Signed by the ML-DSA-87 key {fingerprint}", markup=False)
        if not known:
            console.print("A roll-back shows only against a checkpoint kept elsewhere: give one with --checkpoint.")
    else:
        count = len(report.findings) + sum(len(log.findings) for log in report.logs)
        console.print(f"[red]The ledger does not verify: {count} finding{'s' if count != 1 else ''}.[/red]")


def _show_log(console: Console, log: LogReport) -> None:
    mark = "[red]FOUND[/red]" if log.findings else "[green]ok[/green]   "
    console.print(f"{mark} ", end="")
    rate = f", {log.size / log.seconds:,.0f}/s" if log.size > 1000 and log.seconds else ""
    console.print(
        f"{_banner(log.label) or Path(log.path).name}: {log.size} entries {_span(log)}in {log.seconds:.2f} s{rate}",
        markup=False,
    )
    if log.unsigned:
        console.print(f"      {log.unsigned} more are durable and not yet under a checkpoint", markup=False)
    for note in log.notes:
        console.print(f"      {note}", markup=False)
    for finding in log.findings[:20]:
        console.print(f"      {finding.code}: {finding.message}", markup=False)
    if len(log.findings) > 20:
        console.print(f"      and {len(log.findings) - 20} more", markup=False)


def _span(log: LogReport) -> str:
    return f"from {log.first_time[:19]}Z to {log.last_time[:19]}Z " if log.first_time else ""


# prove and verify-proof


def _prove(args: argparse.Namespace) -> int:
    from honmaru.security.ledger.verify import check_proof

    log, index = _find(args.data / "ledger", args.event_id)
    proof = log.inclusion_proof(index)
    document = proof.document()
    if not args.summary:
        print(json.dumps(document, indent=2))
        return 0
    _show_proof(check_proof(document), len(proof.sha384), len(json.dumps(document)))
    return 0


def _verify_proof(args: argparse.Namespace) -> int:
    from honmaru.security.ledger.verify import Invalid, check_proof

    text = sys.stdin.buffer.read() if str(args.file) == "-" else _read(args.file)
    try:
        document = json.loads(text)
    except ValueError as error:
        raise ValidationFault(f"{args.file} is not JSON: give the output of `honmaru ledger prove`") from error
    try:
        facts = check_proof(document if isinstance(document, dict) else {}, fingerprint=args.fingerprint)
    except Invalid as error:
        raise IntegrityFault(f"the proof does not hold: {error}") from error
    _show_proof(facts, len(document["sha384"]), len(text))
    if args.fingerprint is None:
        print("The key came with the proof: compare its fingerprint with one that you trust, or give --fingerprint.")
    return 0


def _show_proof(facts: dict[str, Any], steps: int, size: int) -> None:
    entry = facts["entry"]
    who = entry.get("userIdentity", {}).get("arn", "nobody known")
    console = _console()
    console.print("[green]The proof holds.[/green] ", end="")
    console.print(
        f"{entry.get('eventName')} by {who}, recorded {entry['recorded']}, is entry {facts['index']} "
        f"of the {facts['size']} in the log {_banner(facts['label'])}.",
        markup=False,
    )
    console.print(
        f"{steps} hashes (SHA-256 and SHA-384) lead from it to the roots signed {facts['time']} with the ML-DSA-87 key "
        f"{facts['fingerprint'][:32]}…; {size} bytes.",
        markup=False,
    )


def _find(directory: Path, event_id: str) -> tuple[StoredLog, int]:
    """The newest entry with this event id. Raises NotFound."""
    from honmaru.security.ledger.reading import backward, stored_logs

    searched: dict[str, int] = {}
    for pause_s in (0.0, _NEWEST_S):
        time.sleep(pause_s)
        for log in stored_logs(directory):
            for index, entry in backward(log, log.size, [event_id]):
                if index < searched.get(log.label, 0):
                    break
                if entry.get("eventID") == event_id:
                    return log, index
            searched[log.label] = log.size
    raise NotFound(f"no entry of the ledger in {directory} has the event id {event_id!r}")


# list


def _list(args: argparse.Namespace) -> int:
    from honmaru.security.ledger.reading import stored_logs

    merged = heapq.merge(
        *(_newest(log) for log in stored_logs(args.data / "ledger")),
        key=lambda row: str(row[1]["recorded"]),
        reverse=True,
    )
    rows = [row for row, _ in zip(merged, range(max(0, args.count)), strict=False)]
    if args.json:
        for _, entry in rows:
            print(json.dumps(entry))
        return 0
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table("time", "label", "source", "event", "by", "result", box=box.SIMPLE)
    for label, entry in reversed(rows):
        who = entry.get("userIdentity", {}).get("arn", "")
        failed = entry.get("errorCode")
        cells = (entry["recorded"][:19] + "Z", label, entry.get("eventSource", "").removesuffix(".amazonaws.com"),
                 entry.get("eventName", ""), who.rpartition(":")[2])  # fmt: skip
        table.add_row(*(Text(str(cell)) for cell in cells), Text(failed, style="red") if failed else Text("ok"))
    _console().print(table)
    return 0


def _newest(log: StoredLog) -> Iterator[tuple[str, dict[str, Any]]]:
    from honmaru.security.ledger.reading import backward

    banner = _banner(log.label)
    for _, entry in backward(log, log.size):
        yield banner, entry


def _banner(canonical: str) -> str:
    """The marking of a label as people write it; what is stored where that is not a label."""
    from honmaru.core.labels import Label

    try:
        return Label.decode(canonical).banner if canonical else ""
    except IntegrityFault:
        return canonical


def _console() -> Console:
    from rich.console import Console

    console = Console(highlight=False, soft_wrap=True)
    if not console.is_terminal:
        console.width = 200  # what a pipe gets is not cut to a screen
    return console


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ValidationFault(f"{path} cannot be read: {error.strerror}") from error
