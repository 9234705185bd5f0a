"""SEARCH in metric math: `SEARCH('{AWS/Usage,Service,Type} MetricName="CallCount" bedrock', 'Sum', 60)`.

    {Namespace,Dimension,...}   metrics of the namespace with exactly these dimensions
    Key="value"                 a namespace, MetricName or dimension that is exactly so; without quotes: contains it
    word                        stands somewhere in the namespace, name or dimensions, in any case

Every term must fit. OR, NOT and parentheses are refused by name.

Invariants: a search sees what its session sees; it gives at most `MAX_SERIES` series, and says so by refusing more.
Source: Amazon CloudWatch user guide, "CloudWatch search expression syntax".
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from honmaru.services.cloudwatch.faults import malformed

MAX_SERIES = 100
_SCHEMA = re.compile(r"\s*\{([^{}]*)\}")
_TERM = re.compile(r'\s*(?:(?P<key>[\w.:/ -]+?)\s*=\s*)?(?:"(?P<text>[^"]*)"|(?P<word>[^\s"=(){}]+))')

Metric = Mapping[str, Any]
"""A metric's body: namespace, name, dimensions."""


def parsed(text: str) -> tuple[str, Callable[[Metric], bool]]:
    """(namespace or "", whether a metric fits). Raises ValidationFault (ValidationError)."""
    namespace, tests = "", list[Callable[[Metric], bool]]()
    schema = _SCHEMA.match(text)
    at = 0
    if schema is not None:
        namespace, *names = [part.strip().strip('"') for part in schema[1].split(",")]
        wanted = set(names)
        tests.append(lambda metric: {name for name, _ in metric["dimensions"]} == wanted)
        at = schema.end()
    text = text.rstrip()
    while at < len(text):
        match = _TERM.match(text, at)
        if match is None or (match["key"] is None and match["word"] in ("OR", "NOT")):
            raise malformed(f'SEARCH: {text[at:].strip()[:40]!r} is not carried: use words and Key="value"')
        at = match.end()
        if match["key"] is None and match["word"] == "AND":
            continue
        tests.append(_test(match))
    if not tests:
        raise malformed("SEARCH needs a namespace or a term")
    return namespace, lambda metric: all(test(metric) for test in tests)


def _test(match: re.Match[str]) -> Callable[[Metric], bool]:
    exact = match["text"] is not None
    value = match["text"] if exact else match["word"]
    key = match["key"]
    if key is None:
        lower = value.lower()
        return lambda metric: any(lower in text.lower() for text in _texts(metric))
    name = key.strip()

    def of_key(metric: Metric) -> bool:
        stated = {"MetricName": metric["name"], "Namespace": metric["namespace"]}.get(name)
        found = stated if stated is not None else dict(metric["dimensions"]).get(name)
        return found is not None and (found == value if exact else value.lower() in found.lower())

    return of_key


def _texts(metric: Metric) -> list[str]:
    return [metric["namespace"], metric["name"], *(text for pair in metric["dimensions"] for text in pair)]
