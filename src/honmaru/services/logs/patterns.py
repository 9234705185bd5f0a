"""CloudWatch Logs filter patterns over plain text: terms, phrases, optional and excluded ones.

    ERROR                 the message contains the term       ERROR timeout     both
    "disk full"           the phrase                          ?ERROR ?WARN      any of them
    -DEBUG                not the term                        (empty)           every message

Terms are case-sensitive and match anywhere in the message. Patterns on JSON members, on columns and regular
expressions are refused by name (a user's regular expression would be evaluated inside the enclave).

Source: CloudWatch Logs user guide, "Filter pattern syntax".
"""

from __future__ import annotations

import re
from collections.abc import Callable

from honmaru.core.errors import ValidationFault

_TERM = re.compile(r'\s*(?P<sign>[?-]?)(?:"(?P<phrase>(?:[^"\\]|\\.)*)"|(?P<word>[^\s"]+))')


def compiled(pattern: str) -> Callable[[str], bool]:
    """The predicate of a pattern. Raises ValidationFault (InvalidParameterException) for one that is not supported."""
    text = pattern.strip()
    if text.startswith(("{", "[", "%")):
        raise ValidationFault(
            "Invalid filter pattern: only terms and quoted phrases are supported, not JSON, columns or %regex%",
            code="InvalidParameterException",
        )
    wanted: list[str] = []
    optional: list[str] = []
    excluded: list[str] = []
    at = 0
    while at < len(text):
        match = _TERM.match(text, at)
        if match is None:
            raise ValidationFault(f"Invalid filter pattern at {text[at:]!r}", code="InvalidParameterException")
        phrase = match["phrase"]
        term = match["word"] if phrase is None else re.sub(r"\\(.)", r"\1", phrase)
        {"": wanted, "?": optional, "-": excluded}[match["sign"]].append(term)
        at = match.end()

    def matches(message: str) -> bool:
        return (
            all(term in message for term in wanted)
            and (not optional or bool(wanted) or any(term in message for term in optional))
            and not any(term in message for term in excluded)
        )

    return matches
