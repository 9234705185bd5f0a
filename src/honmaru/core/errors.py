"""Every error that honmaru raises on purpose, in one tree.

    HonmaruError
    ├─ RequestFault          the caller can fix it
    │   ├─ ValidationFault   NotFound   Conflict   QuotaExceeded   Throttled   NotReady
    │   └─ Refused           AccessDenied   AuthenticationFailed
    ├─ PlatformFault         ours to fix
    │   └─ NotImplementedYet   StoreUnavailable   ExecutorLost   EngineFailed   LedgerUnavailable
    ├─ IntegrityFault        never swallowed, always recorded
    └─ ConfigurationFault    raised at start, all problems together

Invariants:
- A message says what was received, what was expected and what to do; it never holds anything above the caller's label.
- What a label hides is a plain NotFound: there is no error class that says "exists, but above you".
- Gateways translate class and code to a wire in one table; services may state the AWS code of their service, and
  leave it None where the gateway's per-service default for the class is right.
"""

from __future__ import annotations


class HonmaruError(Exception):
    """Root of the tree. `code` is the wire's error code (None: the gateway's default for the class)."""

    def __init__(self, message: str, *, code: str | None = None, members: dict[str, object] | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.code = code
        self.members = members or {}
        """Further members of the modelled error shape, for example S3's BucketName."""


class RequestFault(HonmaruError):
    """The caller can fix it: a 4xx."""


class ValidationFault(RequestFault):
    """A value is malformed, missing, unknown or contradicts another."""


class NotFound(RequestFault):
    """Nothing of that name exists for this session."""


class Conflict(RequestFault):
    """The name is taken, or the state does not allow the operation, or a concurrent change won."""


class QuotaExceeded(RequestFault):
    """A stated limit of the account or enclave is reached."""


class Throttled(RequestFault):
    """Too many requests; the same request may succeed later."""


class NotReady(RequestFault):
    """The thing exists and is not ready yet; the same request may succeed later."""


class Refused(RequestFault):
    """A gate said no."""


class AccessDenied(Refused):
    """Policy does not allow the action. `explanation` says why, to who may decode it (DecodeAuthorizationMessage)."""

    explanation = ""


class AuthenticationFailed(Refused):
    """Who is calling could not be established."""


class PlatformFault(HonmaruError):
    """Ours to fix: a 5xx."""


class NotImplementedYet(PlatformFault):
    """The operation is modelled and nobody has written it."""


class StoreUnavailable(PlatformFault):
    """A store does not answer."""


class LedgerUnavailable(PlatformFault):
    """No audit, no answer: the ledger cannot be written, so requests are refused until it can."""


class ExecutorLost(PlatformFault):
    """An executor or its job can no longer be reached."""


class EngineFailed(PlatformFault):
    """A model server failed while it answered."""


class IntegrityFault(HonmaruError):
    """Stored bytes do not verify. Never swallowed, always recorded."""


class ConfigurationFault(HonmaruError):
    """The enclave cannot start as configured; `problems` lists everything that is wrong, each with its repair."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("; ".join(problems))
        self.problems = problems
