"""The key of KMS that a job's outputs are sealed under, checked when the job is made: at its end it would be too late.

Whether the job's role may use the key is found out when it is used, by the key's policy at that time.
"""

from __future__ import annotations

from honmaru.core.errors import ValidationFault
from honmaru.security.calls import Call


def require_output_key(call: Call, key: str | None, member: str) -> None:
    """Raises ValidationFault, naming the request's member, for a key that this session does not see."""
    if not key or key.endswith("alias/aws/s3"):
        return
    sight, last = call.sight("kms"), key.rpartition(":")[2].removeprefix("key/")
    alias = sight.get("alias", last) if last.startswith("alias/") else None
    if sight.get("key", last if alias is None else alias.body["key"]) is None:
        raise ValidationFault(f"{member} names no key that this session sees: {key}")
