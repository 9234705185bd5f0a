"""Values of shapes, drawn by chance within the model's constraints, extremes first: for round trips.

`Values(rng, service, wire).members(shape, how)` draws a structure's members:

    how = "minimal"   only what is required, everything as short as it may be
    how = "full"      every member, everything in it
    how = "some"      any subset

A wire cannot say everything: `Wire` states what cannot be told apart on it, so that it is never drawn.
"""

from __future__ import annotations

import math
import string
import sys
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from sampling import SKIP, _text

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
FIRST, LAST = datetime(1900, 1, 1, tzinfo=UTC), datetime(2242, 1, 1, tzinfo=UTC)


SPAN_MS = int((LAST - FIRST) / timedelta(milliseconds=1))


@dataclass(frozen=True)
class Wire:
    """What bodies of a protocol hold, in one direction."""

    controls: bool = True
    """Control characters survive."""
    empty_maps: bool = True
    empty_structures: bool = True
    empty_flattened: bool = True
    """A flattened list that is empty differs from none."""
    timestamp: str = "unixTimestamp"
    infinities: bool = True
    """botocore reads infinities as numbers; in JSON it leaves the text that AWS writes for them."""


INPUTS = {
    "json": Wire(),
    "rest-json": Wire(),
    "smithy-rpc-v2-cbor": Wire(),
    "query": Wire(empty_maps=False, empty_structures=False, timestamp="iso8601"),
    "rest-xml": Wire(controls=False, empty_flattened=False, timestamp="iso8601"),
}
OUTPUTS = {
    "json": Wire(infinities=False),
    "rest-json": Wire(infinities=False),
    "smithy-rpc-v2-cbor": Wire(),
    "query": Wire(controls=False, empty_flattened=False, timestamp="iso8601"),
    "rest-xml": Wire(controls=False, empty_flattened=False, timestamp="iso8601"),
}

_LETTERS = string.ascii_letters + string.digits
_ODD = "é漢🜏\u0301ÿ ​\ufeff\U0010ffff&<>\"'\\/%+?#=;:,.@~*()[]{}|^`$!- \t\n"
_CONTROLS = "\x00\x01\x08\x0b\x1b\x1f\x7f\x85\u2028\r"


class Values:
    def __init__(self, rng, service, wire):
        self.rng = rng
        self.service = service
        self.wire = wire

    def members(self, shape, how):
        """Members of a top-level structure; SKIP when a required one cannot be drawn."""
        return self._structure("", shape, how, 0)

    def value(self, reference, how, depth, place="body"):
        name = reference["shape"]
        shape = self.service.shapes[name]
        kind = shape["type"]
        if shape.get("document"):
            return {"a": [1, "ü", {"b": True}], "c": 0.5}
        if kind == "structure":
            if shape.get("eventstream") or depth > 7:
                return SKIP
            return self._structure(name, shape, how, depth)
        if kind == "list":
            return self._list(reference, shape, how, depth, place)
        if kind == "map":
            return self._map(reference, shape, how, depth, place)
        return self._scalar(reference, shape, kind, how, place)

    def _structure(self, name, shape, how, depth):
        required = set(shape.get("required", ()))
        members = shape["members"]
        if shape.get("union"):
            order = list(members)
            self.rng.shuffle(order)
            for member in order:
                value = self.value(members[member], how, depth + 1)
                if value is not SKIP:
                    return {member: value}
            return SKIP
        out = {}
        for member, reference in members.items():
            wanted = member in required or (how != "minimal" and (how == "full" or self.rng.random() < 0.5))
            if not wanted or (depth > 4 and member not in required):
                continue
            value = self.value(reference, how, depth + 1, reference.get("location", "body"))
            if value is not SKIP:
                out[member] = value
            elif member in required:
                return SKIP
        if not out and depth and not self.wire.empty_structures:
            for member, reference in members.items():
                value = self.value(reference, "minimal", depth + 1)
                if value is not SKIP:
                    return {member: value}
            return SKIP
        return out

    def _count(self, shape, how, *, empty):
        least = max(shape.get("min", 0), 0 if empty else 1)
        if how == "minimal":
            return least
        return max(least, min(shape.get("max", 3), self.rng.choice((0, 1, 1, 2, 3))))

    def _list(self, reference, shape, how, depth, place):
        flattened = reference.get("flattened") or shape.get("flattened")
        count = self._count(shape, how, empty=place == "body" and (self.wire.empty_flattened or not flattened))
        items = [self.value(shape["member"], how, depth + 1, place) for _ in range(count)]
        return SKIP if any(item is SKIP for item in items) else items

    def _map(self, reference, shape, how, depth, place):
        flattened = reference.get("flattened") or shape.get("flattened")
        empty = place == "body" and self.wire.empty_maps and (self.wire.empty_flattened or not flattened)
        if place in ("headers", "header"):
            return {"meta": "value", "x-y": "1"}
        out = {}
        for number in range(self._count(shape, how, empty=empty)):
            key = self.value(shape["key"], how, depth + 1, place)
            value = self.value(shape["value"], how, depth + 1, place)
            if key is SKIP or value is SKIP:
                return SKIP
            if key in out:
                key = f"{key}{number}"[: self.service.shapes[shape["key"]["shape"]].get("max", 99)]
            out[key] = value
        return out

    def _scalar(self, reference, shape, kind, how, place):
        rng = self.rng
        if kind == "string":
            return self._string(shape, how, place)
        if kind == "boolean":
            return rng.random() < 0.5
        if kind in ("integer", "long"):
            bits = 31 if kind == "integer" else 63
            least, most = int(shape.get("min", -(2**bits))), int(shape.get("max", 2**bits - 1))
            return max(least, min(most, rng.choice((least, most, 0, 1, -1, 7, rng.randint(least, most)))))
        if kind in ("float", "double"):
            return self._number(shape, kind)
        if kind == "timestamp":
            return self._moment(shape, place)
        least, most = shape.get("min", 0), min(shape.get("max", 300), 300)
        size = least if how == "minimal" else rng.choice((least, most, max(least, min(most, 5))))
        raw = bytes(rng.randrange(256) for _ in range(size))
        return raw if size or place == "body" else b""

    def _number(self, shape, kind):
        least, most = shape.get("min"), shape.get("max")
        if least is not None or most is not None:
            low = float(least if least is not None else -1e9)
            high = float(most if most is not None else 1e9)
            return self.rng.choice((low, high, (low + high) / 2))
        if kind == "float":  # of 32 bits in CBOR
            return self.rng.choice((0.0, -0.5, 1.5, 2.0**100, -(2.0**-100)))
        finite = (0.0, -0.0, 0.1, 1e308, -1e308, 5e-324, 1 / 3, 12345678901234567.0)
        return self.rng.choice((*finite, math.inf, -math.inf) if self.wire.infinities else finite)

    def _moment(self, shape, place):
        form = shape.get("timestampFormat", "rfc822" if place == "header" else self.wire.timestamp)
        if place == "querystring":
            form = shape.get("timestampFormat", "iso8601")
        moment = self.rng.choice(
            (
                EPOCH,
                FIRST,
                LAST,
                FIRST + timedelta(milliseconds=self.rng.randrange(SPAN_MS)),
                EPOCH - timedelta(days=1),
            )
        )
        return moment.replace(microsecond=0) if form == "rfc822" or place == "header" else moment

    def _string(self, shape, how, place):
        if shape.get("enum"):
            return self.rng.choice(shape["enum"])
        if shape.get("pattern"):
            return _text(shape)
        least, most = shape.get("min", 0), min(shape.get("max", 40), 40)
        most = max(least, most)
        if place in ("header", "headers"):
            return "plain text"[: max(least, min(most, 10))] + "x" * max(0, least - 10)
        if place == "uri":
            least = max(least, 1)
        size = least if how == "minimal" else self.rng.randint(least, most)
        pool = _LETTERS + _ODD * 3 + (_CONTROLS if self.wire.controls or place == "querystring" else "")
        if place == "uri":
            pool = _LETTERS + "é漢🜏 &<>'\"%+?#=;:,@~*()[]{}|^`$!-"
        text = "".join(self.rng.choice(pool) for _ in range(size))
        return text if place == "body" or text.strip() == text else "a" * size
