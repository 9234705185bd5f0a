"""AWS's three timestamp formats, read and written.

Source: Smithy 2.0 "timestampFormat trait"; what botocore 1.44 reads and writes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from datetime import UTC, datetime
from email.utils import format_datetime, parsedate_to_datetime

from honmaru.api.misreads import Misread


def read_unix(value: object) -> datetime:
    """Seconds since 1970 as an int or float → aware UTC. Raises Misread."""
    if type(value) not in (int, float) or not math.isfinite(value):  # type: ignore[arg-type]
        raise Misread("a timestamp in seconds since 1970", value)
    try:
        return datetime.fromtimestamp(value, UTC)  # type: ignore[arg-type]
    except (OverflowError, ValueError, OSError):
        raise Misread("a timestamp between the years 1 and 9999", value) from None


def read_iso(value: object) -> datetime:
    """ISO 8601 date and time with an offset (or none: UTC) → aware UTC. Raises Misread."""
    if type(value) is not str or len(value) < 10 or len(value) > 40:
        raise Misread("an ISO 8601 timestamp", value)
    try:
        moment = datetime.fromisoformat(value)
        return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    except (OverflowError, ValueError):
        raise Misread("an ISO 8601 timestamp", value) from None


def read_http(value: object) -> datetime:
    """An HTTP date (RFC 9110 §5.6.7, the obsolete forms too), or ISO 8601, which some clients send → aware UTC."""
    if type(value) is not str or len(value) > 64:
        raise Misread("an HTTP date", value)
    if value[:4].isdigit():
        return read_iso(value)
    try:
        moment = parsedate_to_datetime(value)
        return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    except (OverflowError, ValueError, TypeError, IndexError):
        raise Misread("an HTTP date", value) from None


def read_unix_text(value: object) -> datetime:
    """Seconds since 1970 in decimal text → aware UTC. Raises Misread."""
    try:
        return read_unix(float(value))  # type: ignore[arg-type]
    except (TypeError, ValueError):
        raise Misread("a timestamp in seconds since 1970", value) from None


def write_unix(value: datetime) -> float | int:
    """Seconds since 1970 with milliseconds, an int when they are zero."""
    seconds = round(value.timestamp(), 3)
    return int(seconds) if seconds.is_integer() else seconds


def write_iso(value: datetime) -> str:
    """`2026-01-02T03:04:05.678Z`, always with milliseconds, as S3 and IAM write it."""
    moment = value.astimezone(UTC)
    return f"{moment.year:04d}{moment.strftime('-%m-%dT%H:%M:%S')}.{moment.microsecond // 1000:03d}Z"


def write_http(value: datetime) -> str:
    """`Fri, 02 Jan 2026 03:04:05 GMT`."""
    return format_datetime(value.astimezone(UTC), usegmt=True)


def write_unix_text(value: datetime) -> str:
    return str(write_unix(value))


READERS: dict[str, Callable[[object], datetime]] = {
    "unixTimestamp": read_unix,
    "iso8601": read_iso,
    "rfc822": read_http,
}
TEXT_READERS: dict[str, Callable[[object], datetime]] = {**READERS, "unixTimestamp": read_unix_text}
WRITERS: dict[str, Callable[[datetime], float | int | str]] = {
    "unixTimestamp": write_unix,
    "iso8601": write_iso,
    "rfc822": write_http,
}
TEXT_WRITERS: dict[str, Callable[[datetime], str]] = {
    "unixTimestamp": write_unix_text,
    "iso8601": write_iso,
    "rfc822": write_http,
}
