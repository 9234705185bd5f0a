"""multipart/form-data as browsers send files: small fields first, then one file that streams.

Invariants:
- What comes before the file is bounded (`MAX_FIELDS_BYTES`) and read without waiting for the file.
- The file's bytes are released as they come, less what may be the beginning of the closing boundary; a form that ends
  without its boundary raises before `finish` returns.
- What comes after the file is ignored, as S3 ignores it, and bounded.

Source: RFC 7578, RFC 2046 §5.1.1; S3 API, "POST object".
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from email.message import Message

from honmaru.core.errors import ValidationFault
from honmaru.gateway.aws.post_policy import SizeRange

MAX_FIELDS_BYTES = 20 * 1024
_MAX_BEFORE = MAX_FIELDS_BYTES + 16 * 1024
"""Fields with the headers and boundaries around them."""

_MAX_HEADERS = 4096
_MAX_AFTER = 64 * 1024
_BOUNDARY = re.compile(r"[0-9A-Za-z'()+_,\-./:=? ]{0,69}[0-9A-Za-z'()+_,\-./:=?]")


def boundary_of(content_type: str) -> bytes:
    """The boundary of a multipart/form-data content type. Raises ValidationFault (MalformedPOSTRequest)."""
    message = Message()
    message["content-type"] = content_type
    found = message.get_param("boundary")
    if not isinstance(found, str) or not _BOUNDARY.fullmatch(found):
        raise malformed()
    return found.encode()


class FormHead:
    """Reads a form up to the first byte of its file.

    `fields` are by lower-case name; `filename` is the file's as the browser stated it (None: it stated none). `rest`
    holds the bytes of the file that came with the last piece.
    """

    def __init__(self, boundary: bytes) -> None:
        self.fields: dict[str, str] = {}
        self.filename: str | None = None
        self.rest = b""
        self.delimiter = b"\r\n--" + boundary
        self._buffer = b"\r\n"
        self._seen = 0
        self._held = 0
        self._begun = False

    def feed(self, data: bytes) -> bool:
        """True once the file begins. Raises ValidationFault."""
        self._buffer += data
        self._seen += len(data)
        while True:
            step = self._part()
            if step is not None:
                return step

    def finish(self) -> None:
        """The body has ended before a file came."""
        raise _no_file()

    def _part(self) -> bool | None:
        """Takes one field off the buffer (None), or says whether the file has begun."""
        start = self._buffer.find(self.delimiter)
        if start < 0 or len(self._buffer) < start + len(self.delimiter) + 2:
            return self._wait()
        if not self._begun:
            if start != 0:
                raise malformed()
            self._begun = True
        head = start + len(self.delimiter)
        if self._buffer[head : head + 2] == b"--":
            raise _no_file()
        if self._buffer[head : head + 2] != b"\r\n":
            raise malformed()
        end = self._buffer.find(b"\r\n\r\n", head)
        if end < 0:
            if len(self._buffer) - head > _MAX_HEADERS:
                raise malformed()
            return self._wait()
        name, filename = _disposition(self._buffer[head + 2 : end])
        value = end + 4
        if name.lower() == "file":
            self.filename = filename
            self.rest = self._buffer[value:]
            self._buffer = b""
            return True
        close = self._buffer.find(self.delimiter, value)
        if close < 0:
            return self._wait()
        self._keep(name, self._buffer[value:close])
        self._buffer = self._buffer[close:]
        return None

    def _wait(self) -> bool:
        if len(self._buffer) + self._held > _MAX_BEFORE:
            raise _too_long()
        return False

    def _keep(self, name: str, raw: bytes) -> None:
        self._held += len(name) + len(raw)
        if self._held > MAX_FIELDS_BYTES:
            raise _too_long()
        try:
            value = raw.decode("utf-8")
        except UnicodeDecodeError:
            raise malformed() from None
        self.fields.setdefault(name.lower(), value)


class FilePayload:
    """The file of a form, as a `payloads.Payload`. `size` bounds it; both bounds of S3's content-length-range."""

    def __init__(self, delimiter: bytes, size: SizeRange | None) -> None:
        self.digest = ""
        self._delimiter = delimiter
        self._size = size
        self._buffer = b""
        self._ended = False
        self._after = 0
        self._seen = 0
        self._hash = hashlib.sha256()

    @property
    def trailers(self) -> Mapping[str, str]:
        return {}

    def feed(self, data: bytes) -> bytes:
        if self._ended:
            self._after += len(data)
            if self._after > _MAX_AFTER:
                raise malformed()
            return b""
        self._buffer += data
        at = self._buffer.find(self._delimiter)
        if at >= 0:
            self._ended = True
            self._after = len(self._buffer) - at
            out, self._buffer = self._buffer[:at], b""
        else:
            keep = min(len(self._buffer), len(self._delimiter) - 1)
            cut = len(self._buffer) - keep
            out, self._buffer = self._buffer[:cut], self._buffer[cut:]
        self._seen += len(out)
        if self._size is not None and self._seen > self._size.most:
            raise ValidationFault(
                "Your proposed upload exceeds the maximum allowed size",
                code="EntityTooLarge",
                members={"ProposedSize": str(self._seen), "MaxSizeAllowed": str(self._size.most)},
            )
        self._hash.update(out)
        return out

    def finish(self) -> None:
        if not self._ended:
            raise malformed()
        if self._size is not None and self._seen < self._size.least:
            raise ValidationFault(
                "Your proposed upload is smaller than the minimum allowed size",
                code="EntityTooSmall",
                members={"ProposedSize": str(self._seen), "MinSizeAllowed": str(self._size.least)},
            )
        self.digest = self._hash.hexdigest()


def _disposition(raw: bytes) -> tuple[str, str | None]:
    """(name, filename) of a part's headers. Raises ValidationFault."""
    try:
        lines = raw.decode("utf-8").split("\r\n")
    except UnicodeDecodeError:
        raise malformed() from None
    for line in lines:
        header, _, value = line.partition(":")
        if header.strip().lower() != "content-disposition":
            continue
        kind, _, rest = value.partition(";")
        found = dict(_PARAMETER.findall(";" + rest))
        if kind.strip().lower() != "form-data" or "name" not in found:
            raise malformed()
        filename = found.get("filename")
        return _unquoted(found["name"]), None if filename is None else _unquoted(filename)
    raise malformed()


_PARAMETER = re.compile(r';\s*([A-Za-z-]{1,32}\*?)\s*=\s*("(?:[^"\\]|\\.)*"|[^\s;]*)')


def _unquoted(value: str) -> str:
    """A quoted parameter's text. Browsers percent-encode quotes and leave backslashes; only `\\"` is undone."""
    return value[1:-1].replace('\\"', '"') if value.startswith('"') else value


def malformed() -> ValidationFault:
    return ValidationFault(
        "The body of your POST request is not well-formed multipart/form-data.", code="MalformedPOSTRequest"
    )


def _no_file() -> ValidationFault:
    return ValidationFault(
        "POST requires exactly one file upload per request.",
        code="InvalidArgument",
        members={"ArgumentName": "file", "ArgumentValue": "0"},
    )


def _too_long() -> ValidationFault:
    return ValidationFault(
        "Your POST request fields preceding the upload file were too large.",
        code="MaxPostPreDataLengthExceededError",
        members={"MaxPostPreDataLengthBytes": str(MAX_FIELDS_BYTES)},
    )
