"""Metrics from log lines by the user's regular expressions, evaluated in a process of its own.

A regular expression can take exponential time and holds the interpreter's lock meanwhile, so users' expressions are
never evaluated inside the enclave: `extract` hands them and the lines to a short-lived child process with limits.

Invariants:
- A metric's values are those of all matches, in the order of the output; the last one is the metric's final value. A
  match that is not a finite number is passed over.
- Of each metric every value is counted, and at most the last `KEPT` are carried: the answer's size is bounded.
- A child that takes too long is killed; its metrics are then absent, and nothing else happens to the job.
"""

from __future__ import annotations

import json
import math
import re
import resource
import subprocess
import sys
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

KEPT = 1000
_TIME_LIMIT_S = 20
_MEMORY_BYTES = 1 << 30


def check(definitions: Sequence[Mapping[str, str]]) -> str | None:
    """What is wrong with the first definition that is no regular expression with at most one group, or None."""
    for definition in definitions:
        try:
            re.compile(definition["Regex"])
        except (re.error, OverflowError, RecursionError) as fault:
            return f"MetricDefinition {definition['Name']!r}: the regular expression does not compile: {fault}"
    return None


@dataclass(frozen=True, slots=True)
class Found:
    """`count` values of a metric in the output, and the last of them, oldest first."""

    count: int
    last: Sequence[float]

    def since(self, seen: int) -> Sequence[float]:
        """The values after the first `seen`, as far as they were carried."""
        new = max(0, self.count - seen)
        return self.last[-new:] if new else ()


def extract(definitions: Sequence[Mapping[str, str]], pages: Iterable[bytes]) -> dict[str, Found]:
    """The values of each metric in the output; empty when the expressions take too long."""
    if not definitions:
        return {}
    header = json.dumps([[definition["Name"], definition["Regex"]] for definition in definitions])
    command = [sys.executable, "-I", "-m", "honmaru.jobs.metrics"]
    content = b"\n".join([header.encode(), b"".join(pages)])
    try:
        answer = subprocess.run(command, input=content, capture_output=True, timeout=_TIME_LIMIT_S, check=False)
    except subprocess.TimeoutExpired:
        return {}
    if answer.returncode != 0:
        return {}
    found = json.loads(answer.stdout)
    return {str(name): Found(int(count), [float(value) for value in last]) for name, (count, last) in found.items()}


def main() -> None:
    """The child: definitions on the first line of standard input, log lines after it, values on standard output."""
    resource.setrlimit(resource.RLIMIT_CPU, (_TIME_LIMIT_S, _TIME_LIMIT_S))
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_BYTES, _MEMORY_BYTES))
    patterns = [(name, re.compile(expression)) for name, expression in json.loads(sys.stdin.buffer.readline())]
    counts: dict[str, int] = {}
    values: dict[str, deque[float]] = {}
    for raw in sys.stdin.buffer:
        line = raw.decode("utf-8", "replace")
        for name, pattern in patterns:
            for match in pattern.finditer(line):
                try:
                    value = float(match[1] if pattern.groups else match[0])
                except (TypeError, ValueError):
                    continue
                if math.isfinite(value):
                    counts[name] = counts.get(name, 0) + 1
                    values.setdefault(name, deque(maxlen=KEPT)).append(value)
    sys.stdout.write(json.dumps({name: [count, list(values[name])] for name, count in counts.items()}))


if __name__ == "__main__":
    main()
