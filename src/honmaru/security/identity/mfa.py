"""One-time passwords of virtual MFA devices: RFC 6238 (TOTP) with 6 digits, 30 seconds, SHA-1, as every app has it.

Invariants:
- A code is accepted once: the step it belongs to, and all before it, are spent for the label that accepted it.
- A code is good for its own step and one on either side.

Source: RFC 6238 5.2; IAM user guide "Enabling a virtual MFA device"; NIST SP 800-63B 5.1.4.2 (single use).
"""

from __future__ import annotations

import base64
from collections.abc import Iterable

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.hashes import SHA1
from cryptography.hazmat.primitives.twofactor import InvalidToken
from cryptography.hazmat.primitives.twofactor.totp import TOTP

STEP_S = 30
SEED_BYTES = 20
_DIGITS = 6


def text_seed(seed: bytes) -> str:
    """The seed as apps read it: base32."""
    return base64.b32encode(seed).decode().rstrip("=")


def matching_step(seed: bytes, code: str, now_s: float, steps: Iterable[int] = (-1, 0, 1)) -> int | None:
    """The step that a code belongs to, of those around now; None when it belongs to none."""
    if len(code) != _DIGITS or not (code.isascii() and code.isdigit()):
        return None
    try:
        totp = TOTP(seed, _DIGITS, SHA1(), STEP_S, enforce_key_length=False)  # noqa: S303 - what the apps have
    except UnsupportedAlgorithm:
        return None
    now = int(now_s) // STEP_S
    for step in steps:
        try:
            totp.verify(code.encode(), (now + step) * STEP_S)
        except InvalidToken:
            continue
        return now + step
    return None


def consecutive(seed: bytes, first: str, second: str, now_s: float) -> int | None:
    """The step of the second of two codes that follow each other, within an hour around now; None when they do not."""
    for offset in sorted(range(-120, 121), key=abs):
        step = matching_step(seed, first, now_s, (offset,))
        if step is not None and matching_step(seed, second, now_s, (offset + 1,)) is not None:
            return step + 1
    return None
