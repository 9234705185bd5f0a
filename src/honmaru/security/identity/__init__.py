"""Who acts: users, roles, keys and session tokens; and what IAM lets them do (the discretionary gate).

The mandatory gate is the guard. What binds both is the session's label, which is fixed here, when the session is made.
"""

from honmaru.security.identity.credentials import AssumeRole, Credential, TemporaryCredential
from honmaru.security.identity.identity import Identity

__all__ = ["AssumeRole", "Credential", "Identity", "TemporaryCredential"]
