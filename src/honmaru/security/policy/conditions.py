"""Condition operators: one row for each, from policy values and request values to a truth value.

Rules, for a key that the request does not have:
- a positive operator is false, a negated one (Not...) true; `...IfExists` is true;
- `ForAllValues:` is true, `ForAnyValue:` false (true with IfExists); `Null` tells exactly this.
For a key with several values and no set prefix, a positive operator wants one of them to match, a negated one wants
none of them to match. Values of one key are alternatives; keys and operators must all hold.

Source: IAM user guide, "IAM JSON policy elements: Condition operators", "Multivalued context keys".
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Any

from honmaru.security.policy.patterns import compile_arn, compile_pattern, split, substitute

KEY = re.compile(r"[A-Za-z0-9_./-]+:[^\s*?]{1,256}")
_NUMBER = re.compile(r"[+-]?[0-9]{1,40}(\.[0-9]{1,40})?")

Context = Mapping[str, Any]
"""Condition keys in lower case → str, number, bool, datetime, bytes, or a list of them. None is the same as absent."""
Test = Callable[[Any, Context], bool]
"""Does one request value match this policy value?"""


@dataclass(frozen=True, slots=True)
class Operator:
    """A condition operator as written. `family` names a row of `_FAMILIES`; `quantifier` is "", "all" or "any"."""

    family: str
    negated: bool
    if_exists: bool
    quantifier: str


def _string(value: Any, variables: bool) -> Test:
    return _string_test(value, variables, fold=False)


def _string_test(value: Any, variables: bool, *, fold: bool) -> Test:
    parts = split(_text(value), variables=variables, wildcards=False)

    def test(given: Any, context: Context) -> bool:
        resolved = substitute(parts, context)
        if resolved is None:
            return False
        wanted, text = "".join(map(str, resolved)), _text(given)
        return wanted.lower() == text.lower() if fold else wanted == text

    return test


def _string_folded(value: Any, variables: bool) -> Test:
    return _string_test(value, variables, fold=True)


def _like(value: Any, variables: bool) -> Test:
    pattern = compile_pattern(_text(value), variables=variables)

    def test(given: Any, context: Context) -> bool:
        matcher = pattern.resolve(context)
        return matcher is not None and matcher(_text(given))

    return test


def _arn(value: Any, variables: bool) -> Test:
    pattern = compile_arn(str(value), variables=variables)
    return lambda given, context: bool(pattern.matches(_text(given), context))


def _number(value: Any) -> Decimal:
    if isinstance(value, bool) or not _NUMBER.fullmatch(str(value)):
        raise ValueError(f"{str(value)[:64]!r} is not a number")
    return Decimal(str(value))


def _date(value: Any) -> datetime:
    if isinstance(value, datetime):
        return value if value.tzinfo else value.replace(tzinfo=UTC)
    text = str(value)
    try:
        if re.fullmatch(r"[0-9]{1,11}", text):
            return datetime.fromtimestamp(int(text), UTC)
        found = datetime.fromisoformat(text)
    except (ValueError, OverflowError, OSError):
        raise ValueError(f"{text[:64]!r} is not an ISO 8601 date or a number of seconds") from None
    return found if found.tzinfo else found.replace(tzinfo=UTC)


def _compare(read: Callable[[Any], Any], holds: Callable[[Any, Any], bool]) -> Callable[[Any, bool], Test]:
    def build(value: Any, _: bool) -> Test:
        wanted = read(value)

        def test(given: Any, _context: Context) -> bool:
            try:
                return holds(read(given), wanted)
            except ValueError:
                return False

        return test

    return build


def _truth(value: Any) -> bool:
    text = _text(value).lower()
    if text not in ("true", "false"):
        raise ValueError(f"{text[:64]!r} is not true or false")
    return text == "true"


def _bytes(value: Any) -> bytes:
    if isinstance(value, bytes):
        return value
    try:
        return base64.b64decode(str(value), validate=True)
    except binascii.Error:
        raise ValueError(f"{str(value)[:64]!r} is not base64") from None


@lru_cache(maxsize=4096)
def _address(text: str) -> IPv4Address | IPv6Address:
    found = ip_address(text)
    mapped = found.ipv4_mapped if isinstance(found, IPv6Address) else None
    return mapped or found


def _ip(value: Any, _: bool) -> Test:
    try:
        network: IPv4Network | IPv6Network = ip_network(str(value), strict=False)
    except ValueError:
        raise ValueError(f"{str(value)[:64]!r} is not an IP address or range") from None

    def test(given: Any, _context: Context) -> bool:
        try:
            return _address(str(given)) in network
        except ValueError:
            return False

    return test


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, datetime):
        return value.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    return str(value)


_FAMILIES: dict[str, Callable[[Any, bool], Test]] = {
    "StringEquals": _string,
    "StringEqualsIgnoreCase": _string_folded,
    "StringLike": _like,
    "NumericEquals": _compare(_number, lambda a, b: bool(a == b)),
    "NumericLessThan": _compare(_number, lambda a, b: bool(a < b)),
    "NumericLessThanEquals": _compare(_number, lambda a, b: bool(a <= b)),
    "NumericGreaterThan": _compare(_number, lambda a, b: bool(a > b)),
    "NumericGreaterThanEquals": _compare(_number, lambda a, b: bool(a >= b)),
    "DateEquals": _compare(_date, lambda a, b: bool(a == b)),
    "DateLessThan": _compare(_date, lambda a, b: bool(a < b)),
    "DateLessThanEquals": _compare(_date, lambda a, b: bool(a <= b)),
    "DateGreaterThan": _compare(_date, lambda a, b: bool(a > b)),
    "DateGreaterThanEquals": _compare(_date, lambda a, b: bool(a >= b)),
    "Bool": _compare(_truth, lambda a, b: bool(a == b)),
    "BinaryEquals": _compare(_bytes, lambda a, b: bool(a == b)),
    "IpAddress": _ip,
    "ArnEquals": _arn,
    "ArnLike": _arn,
    "Null": _compare(_truth, lambda a, b: bool(a == b)),
}
_NEGATED = {
    "StringNotEquals": "StringEquals",
    "StringNotEqualsIgnoreCase": "StringEqualsIgnoreCase",
    "StringNotLike": "StringLike",
    "NumericNotEquals": "NumericEquals",
    "DateNotEquals": "DateEquals",
    "NotIpAddress": "IpAddress",
    "ArnNotEquals": "ArnEquals",
    "ArnNotLike": "ArnLike",
}


@lru_cache(maxsize=512)
def operator(name: str) -> Operator | None:
    """The operator of that name, prefixes and suffix included; None when there is no such operator."""
    quantifier = ""
    for prefix, meaning in (("ForAllValues:", "all"), ("ForAnyValue:", "any")):
        if name.startswith(prefix):
            name, quantifier = name.removeprefix(prefix), meaning
            break
    if_exists = name.endswith("IfExists")
    name = name.removesuffix("IfExists")
    family = _NEGATED.get(name, name)
    if family not in _FAMILIES or (name == "Null" and (if_exists or quantifier)):
        return None
    return Operator(family, name in _NEGATED, if_exists, quantifier)


def compile_values(op: Operator, values: Iterable[Any], *, variables: bool) -> list[Test]:
    """One test for each policy value. Raises ValueError for a value that the operator cannot compare."""
    build = _FAMILIES[op.family]
    return [build(value, variables) for value in values]


def compile_condition(
    condition: Mapping[str, Mapping[str, Sequence[Any]]], *, variables: bool
) -> list[Callable[[Context], bool]]:
    """A checked Condition element → predicates that must all hold."""
    predicates: list[Callable[[Context], bool]] = []
    for name, keys in condition.items():
        op = operator(name)
        if op is None:
            raise ValueError(f"{name!r} is not a condition operator")
        for key, values in keys.items():
            tests = compile_values(op, values, variables=variables)
            predicates.append(_null(key.lower(), tests) if op.family == "Null" else _predicate(op, key.lower(), tests))
    return predicates


def _given(context: Context, key: str) -> list[Any]:
    value = context.get(key)
    if value is None:
        return []
    if isinstance(value, (list, tuple, set, frozenset)):
        return list(value)
    return [value]


def _null(key: str, tests: list[Test]) -> Callable[[Context], bool]:
    def holds(context: Context) -> bool:
        absent = not _given(context, key)
        return any(test(absent, context) for test in tests)

    return holds


def _predicate(op: Operator, key: str, tests: list[Test]) -> Callable[[Context], bool]:
    negated = op.negated
    absent = op.if_exists or op.quantifier == "all" or (negated and op.quantifier != "any")
    # Without a prefix a negated operator wants none of the values to match: the same as for all values.
    every = op.quantifier == "all" or (negated and op.quantifier == "")

    def holds(context: Context) -> bool:
        given = _given(context, key)
        if not given:
            return absent
        answers = (any(test(value, context) for test in tests) != negated for value in given)
        return all(answers) if every else any(answers)

    return holds
