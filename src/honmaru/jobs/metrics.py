"""Metrics from log lines by the user's regular expressions, evaluated in a process of its own.

A regular expression can take exponential time and holds the interpreter's lock meanwhile, so users' expressions are
never evaluated inside the enclave: `extract` hands them and the lines to a short-lived child process with limits.

Invariants:
- The last match of a metric wins; a match that is not a finite number is passed over.
- A child that takes too long is killed; its metrics are then absent, and nothing else happens to the job.
"""

from __future__ import annotations

import json
import math
import re
import resource
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence

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


def extract(definitions: Sequence[Mapping[str, str]], pages: Iterable[bytes]) -> dict[str, float]:
    """Last value of each metric in the output; empty when the expressions take too long."""
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
    return {str(name): float(value) for name, value in found.items()}


def main() -> None:
    """The child: definitions on the first line of standard input, log lines after it, values on standard output."""
    resource.setrlimit(resource.RLIMIT_CPU, (_TIME_LIMIT_S, _TIME_LIMIT_S))
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_BYTES, _MEMORY_BYTES))
    patterns = [(name, re.compile(expression)) for name, expression in json.loads(sys.stdin.buffer.readline())]
    values: dict[str, float] = {}
    for raw in sys.stdin.buffer:
        line = raw.decode("utf-8", "replace")
        for name, pattern in patterns:
            for match in pattern.finditer(line):
                try:
                    value = float(match[1] if pattern.groups else match[0])
                except (TypeError, ValueError):
                    continue
                if math.isfinite(value):
                    values[name] = value
    sys.stdout.write(json.dumps(values))


if __name__ == "__main__":
    main()
