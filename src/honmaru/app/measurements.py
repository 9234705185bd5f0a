"""The numbers of an enclave beside those of its requests, each at the label that it belongs to.

Invariant: what all labels share (memory, processor time, threads) is shown only to whoever may see every label in use,
because its course tells of work at any of them. Such numbers are at the join of all labels that have a log.
"""

from __future__ import annotations

import os
import resource
import threading
from collections import Counter
from collections.abc import Iterator
from functools import reduce
from typing import TYPE_CHECKING

from honmaru.core.labels import BOTTOM, Label
from honmaru.gateway.meters import Measurement

if TYPE_CHECKING:
    from honmaru.app.enclave import Enclave


def measurements(enclave: Enclave) -> Iterator[Measurement]:
    """What is true now."""
    labels = enclave.ledger.labels()
    for label in labels:
        yield Measurement(
            "honmaru_ledger_entries",
            "Durable entries of the audit ledger.",
            label,
            enclave.ledger.size(label),
            {},
            "counter",
        )
        yield Measurement(
            "honmaru_ledger_lag_entries",
            "Durable entries that no signed checkpoint covers yet.",
            label,
            enclave.ledger.lag(label),
            {},
        )
    writable = 1.0 if enclave.ledger.writable else 0.0
    yield Measurement("honmaru_ledger_writable", "1 while the ledger can be written.", BOTTOM, writable, {})
    yield from _jobs(enclave)
    yield from _model_servers(enclave)
    yield from _process(enclave, reduce(Label.join, labels, BOTTOM))


def _jobs(enclave: Enclave) -> Iterator[Measurement]:
    running: Counter[tuple[str, str, Label]] = Counter(enclave.supervisor.running())
    for (account, kind, label), count in running.items():
        yield Measurement(
            "honmaru_jobs_running", "Jobs that the supervisor works on.", label, count, {"kind": kind}, account=account
        )


def _model_servers(enclave: Enclave) -> Iterator[Measurement]:
    running: Counter[tuple[str, str]] = Counter(
        (account, canonical) for account, _, canonical in enclave.model_servers.running()
    )
    for (account, canonical), count in running.items():
        label = enclave.guard.label(canonical)
        yield Measurement("honmaru_model_servers", "Model servers that run.", label, count, {}, account=account)


def _process(enclave: Enclave, label: Label) -> Iterator[Measurement]:
    used = resource.getrusage(resource.RUSAGE_SELF)
    numbers = (
        ("process_resident_memory_bytes", "Resident memory.", _resident_bytes(), "gauge"),
        ("process_cpu_seconds_total", "Processor time, user and system.", used.ru_utime + used.ru_stime, "counter"),
        ("process_open_fds", "Open files.", float(len(os.listdir("/proc/self/fd"))), "gauge"),  # noqa: PTH208
        ("process_threads", "Threads.", float(threading.active_count()), "gauge"),
        ("process_start_time_seconds", "When the enclave started.", enclave.started.timestamp(), "gauge"),
    )
    for name, text, value, kind in numbers:
        yield Measurement(name, text, label, value, {}, kind)


def _resident_bytes() -> float:
    with open("/proc/self/statm") as file:  # noqa: PTH123 - read at every scrape
        return float(int(file.read().split()[1]) * resource.getpagesize())
