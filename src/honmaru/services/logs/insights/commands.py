"""Commands of a query, joined by `|`: fields, display, filter, parse, stats, sort, limit, dedup.

    fields @timestamp, ms / 1000 as s | filter level = "error" and ms > 100 | sort @timestamp desc | limit 20
    parse @message "user=* took *" as user, ms | stats count(*), pct(ms, 99) as p99 by bin(5m), user

Invariants:
- A command that is not understood is refused by name, never ignored.
- Rows come newest first unless the query sorts them; at most 10,000 are given.
- Groups of `stats` are bounded: a query that makes more is refused, not cut short.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from honmaru.services.logs.insights.expressions import Expression, Reader, malformed, ordering, truth
from honmaru.services.logs.insights.rows import Row, Value, number, shown

LIMIT = 10_000
MAX_GROUPS = 100_000
_MAX_COMMANDS = 50
Stage = Callable[[Iterable[Row]], Iterable[Row]]


@dataclass(slots=True)
class Query:
    """A parsed query. `run` gives the rows; `columns` are those that results show."""

    text: str
    stages: list[Stage] = field(default_factory=list)
    named: list[str] = field(default_factory=list)
    displayed: list[str] | None = None
    grouped: bool = False
    ordered: bool = False
    limit: int | None = None

    @property
    def columns(self) -> list[str]:
        if self.displayed is not None:
            return self.displayed
        return self.named or ["@timestamp", "@message"]

    def run(self, rows: Iterable[Row], limit: int) -> list[Row]:
        """The first rows of the answer, at most `limit`, LIMIT and the query's own."""
        for stage in self.stages:
            rows = stage(rows)
        if not self.ordered and not self.grouped:
            rows = sorted(rows, key=lambda row: ordering(row.get("@timestamp")), reverse=True)
        wanted = min(limit, LIMIT, LIMIT if self.limit is None else self.limit)
        return [row for row, _ in zip(rows, range(wanted), strict=False)]


def parse(text: str) -> Query:
    """Raises ValidationFault (MalformedQueryException) for whatever is not understood."""
    query = Query(text)
    reader = Reader(text)
    reader.take("|")
    for _ in range(_MAX_COMMANDS):
        if reader.ended():
            return query
        start = reader.at
        command = reader.word(*_COMMANDS)
        if not command:
            word = text[start:].split(None, 1)[0][:80]
            raise malformed(f"command {word!r} is not supported; use {', '.join(_COMMANDS)}")
        _COMMANDS[command](query, reader)
        if not reader.ended():
            reader.expect("|")
    raise malformed(f"a query has at most {_MAX_COMMANDS} commands")


def _fields(query: Query, reader: Reader) -> None:
    query.named += [name for name in _named(query, reader) if name not in query.named]


def _display(query: Query, reader: Reader) -> None:
    query.displayed = _named(query, reader)


def _named(query: Query, reader: Reader) -> list[str]:
    names = []
    for name, expression in _columns(reader):
        names.append(name)

        def add(rows: Iterable[Row], name: str = name, expression: Expression = expression) -> Iterator[Row]:
            for row in rows:
                row.fields[name] = expression(row)
                yield row

        query.stages.append(add)
    return names


def _columns(reader: Reader) -> Iterator[tuple[str, Expression]]:
    while True:
        reader.skip()
        start = reader.at
        expression = reader.expression()
        name = reader.text[start : reader.at].strip().strip("`")
        if reader.word("as"):
            name = reader.name()
        yield name, expression
        if not reader.take(","):
            return


def _filter(query: Query, reader: Reader) -> None:
    test = reader.expression()
    query.stages.append(lambda rows: (row for row in rows if truth(test(row))))


def _sort(query: Query, reader: Reader) -> None:
    keys: list[tuple[Expression, bool]] = []
    while True:
        expression = _output_or(reader, query)
        keys.append((expression, reader.word("asc", "desc") == "desc"))
        if not reader.take(","):
            break

    def ordered(rows: Iterable[Row]) -> list[Row]:
        found = list(rows)
        for expression, descending in reversed(keys):
            found.sort(key=lambda row, key=expression: ordering(key(row)), reverse=descending)  # type: ignore[misc]
        return found

    query.ordered = True
    query.stages.append(ordered)


def _output_or(reader: Reader, query: Query) -> Expression:
    """A column that an earlier command made, by its text such as `count(*)`; else an expression."""
    reader.skip()
    for name in sorted(query.named, key=len, reverse=True):
        end = reader.at + len(name)
        if "(" in name and reader.text.startswith(name, reader.at) and not reader.text[end : end + 1].strip(" ,|\n\t"):
            reader.at = end
            return lambda row, name=name: row.get(name)  # type: ignore[misc]
    return reader.expression()


def _limit(query: Query, reader: Reader) -> None:
    query.limit = reader.integer()
    if query.limit == 0:
        raise malformed("limit must be at least 1")


def _dedup(query: Query, reader: Reader) -> None:
    names = [reader.name()]
    while reader.take(","):
        names.append(reader.name())

    def first(rows: Iterable[Row]) -> Iterator[Row]:
        seen: set[tuple[Value, ...]] = set()
        newest = rows if query.ordered else sorted(rows, key=lambda row: ordering(row.get("@timestamp")), reverse=True)
        for row in newest:
            key = tuple(row.get(name) for name in names)
            if key not in seen and len(seen) < MAX_GROUPS:
                seen.add(key)
                yield row

    query.stages.append(first)


def _parse(query: Query, reader: Reader) -> None:
    source: Expression = lambda row: row.get("@message")  # noqa: E731
    if reader.text[reader.at :].lstrip()[:1] not in ("/", '"', "'"):
        name = reader.name()
        source = lambda row: row.get(name)  # noqa: E731
    expression = reader.regex()
    take: Callable[[str], Sequence[str | None] | None]
    if expression is not None:
        names = sorted(expression.names, key=expression.names.__getitem__)
        places = [expression.names[each] for each in names]
        if not names:
            raise malformed("parse with a regular expression needs named groups, (?<name>...)")

        def groups(text: str) -> Sequence[str | None] | None:
            found = expression.groups_of(text)
            return None if found is None else [found[place] for place in places]

        take = groups
    else:
        glob = reader.string()
        if glob is None:
            raise malformed(f"parse needs a text with * or a /regular expression/ at {reader.rest()!r}")
        if not reader.word("as"):
            raise malformed("parse with a text names its fields: parse field 'a * b *' as x, y")
        names = [reader.name()]
        while reader.take(","):
            names.append(reader.name())
        if glob.count("*") != len(names):
            raise malformed(f"the text has {glob.count('*')} * and {len(names)} names")
        take = _globbed(glob)

    def parsed(rows: Iterable[Row]) -> Iterator[Row]:
        for row in rows:
            value = source(row)
            found = None if value is None else take(shown(value))
            if found is not None:
                row.fields.update(zip(names, found, strict=True))
            yield row

    query.stages.append(parsed)


def _globbed(glob: str) -> Callable[[str], Sequence[str] | None]:
    """What each * stands for: as little as possible, the last one the rest when it ends the text."""
    first, *rest = glob.split("*")

    def take(text: str) -> Sequence[str] | None:
        start = text.find(first)
        if start < 0:
            return None
        at = start + len(first)
        found = []
        for place, part in enumerate(rest):
            end = len(text) if part == "" and place == len(rest) - 1 else text.find(part, at)
            if end < 0:
                return None
            found.append(text[at:end])
            at = end + len(part)
        return found

    return take


# Statistics


class _Group:
    """The rows of one group, for its aggregates. Values are kept only where an aggregate needs all of them."""

    __slots__ = ("state",)

    def __init__(self, count: int) -> None:
        self.state: list[list[tuple[Value, float]]] = [[] for _ in range(count)]


def _percentile(values: Sequence[float], wanted: float) -> float:
    ordered = sorted(values)
    place = (len(ordered) - 1) * wanted / 100
    low = math.floor(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


def _deviation(values: Sequence[float]) -> float | None:
    if len(values) < 2:
        return None
    mean = math.fsum(values) / len(values)
    return math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1))


_Aggregate = Callable[[Sequence[tuple[Value, float]]], Value]


def _of_numbers(apply: Callable[[Sequence[float]], Value]) -> _Aggregate:
    def aggregate(pairs: Sequence[tuple[Value, float]]) -> Value:
        numbers = [stated for value, _ in pairs if (stated := number(value)) is not None]
        return apply(numbers) if numbers else None

    return aggregate


AGGREGATES: dict[str, _Aggregate] = {
    "count": lambda pairs: float(len(pairs)),
    "count_distinct": lambda pairs: float(len({shown(value) for value, _ in pairs})),
    "sum": _of_numbers(math.fsum),
    "avg": _of_numbers(lambda numbers: math.fsum(numbers) / len(numbers)),
    "min": _of_numbers(min),
    "max": _of_numbers(max),
    "median": _of_numbers(lambda numbers: _percentile(numbers, 50)),
    "stddev": _of_numbers(_deviation),
    "earliest": lambda pairs: min(pairs, key=lambda pair: pair[1])[0] if pairs else None,
    "latest": lambda pairs: max(pairs, key=lambda pair: pair[1])[0] if pairs else None,
    "sortsfirst": lambda pairs: min((value for value, _ in pairs), key=ordering, default=None),
    "sortslast": lambda pairs: max((value for value, _ in pairs), key=ordering, default=None),
}


def _stats(query: Query, reader: Reader) -> None:
    aggregates = [_aggregate(reader)]
    while reader.take(","):
        aggregates.append(_aggregate(reader))
    keys = list(_columns(reader)) if reader.word("by") else []

    def grouped(rows: Iterable[Row]) -> list[Row]:
        groups: dict[tuple[Value, ...], _Group] = {}
        for row in rows:
            key = tuple(expression(row) for _, expression in keys)
            group = groups.get(key)
            if group is None:
                if len(groups) == MAX_GROUPS:
                    raise malformed(f"stats makes more than {MAX_GROUPS} groups: group by less")
                group = groups[key] = _Group(len(aggregates))
            at = number(row.get("@timestamp")) or 0.0
            for place, (_, source, _) in enumerate(aggregates):
                value = source(row)
                if value is not None:
                    group.state[place].append((value, at))
        if not groups and not keys:
            groups[()] = _Group(len(aggregates))
        return [
            Row(
                {name: value for (name, _), value in zip(keys, key, strict=True)}
                | {name: take(pairs) for (name, _, take), pairs in zip(aggregates, group.state, strict=True)}
            )
            for key, group in groups.items()
        ]

    query.named = [name for name, _ in keys] + [name for name, _, _ in aggregates]
    query.displayed = None
    query.grouped = True
    query.ordered = False
    query.stages.append(grouped)


def _aggregate(reader: Reader) -> tuple[str, Expression, _Aggregate]:
    reader.skip()
    start = reader.at
    kind = reader.name().lower()
    reader.expect("(")
    source: Expression
    if kind == "count" and (reader.take("*") or reader.text[reader.at :].lstrip().startswith(")")):
        source = lambda _row: True  # noqa: E731
    else:
        source = reader.expression()
    aggregate = AGGREGATES.get(kind)
    if kind in ("pct", "percentile"):
        reader.expect(",")
        constant = reader.expression()(Row({}))
        wanted = number(constant)
        if wanted is None or not 0 <= wanted <= 100:
            raise malformed("pct takes a field and a percentage from 0 to 100")
        aggregate = _of_numbers(lambda numbers: _percentile(numbers, wanted))
    if aggregate is None:
        raise malformed(f"{kind} is no aggregate; use {', '.join(AGGREGATES)}, pct")
    reader.expect(")")
    name = reader.text[start : reader.at].strip()
    if reader.word("as"):
        name = reader.name()
    return name, source, aggregate


_COMMANDS: dict[str, Callable[[Query, Reader], None]] = {
    "fields": _fields,
    "display": _display,
    "filter": _filter,
    "parse": _parse,
    "stats": _stats,
    "sort": _sort,
    "limit": _limit,
    "dedup": _dedup,
}
