"""The authenticator and the policy decision point of an enclave, for all of its accounts.

Invariants, beside those of the parts:
- A key that is inactive or gone, or a principal that is gone or no longer cleared, ends every session behind it at
  once: also those of session tokens (stricter than AWS).
- A key made over the API opens nothing, and is raised to nothing, that its maker was not cleared for: who may make
  keys for others (a matter of policy) does not thereby gain their clearance.

Source: IAM user guide "Policy evaluation logic"; STS API reference; NIST SP 800-207 (policy decision point).
"""

from __future__ import annotations

from honmaru.core.partitions import partition_of
from honmaru.ports.assertions import AssertionVerifier
from honmaru.ports.issuers import IssuerKeys
from honmaru.ports.runtime import Clock, Ids
from honmaru.security.crypto.keyring import Keyring
from honmaru.security.guard import Guard
from honmaru.security.identity.directory import Directories
from honmaru.security.identity.federation import Federation
from honmaru.security.identity.local import ADMIN, LocalOperator
from honmaru.security.identity.organization import Organization
from honmaru.security.identity.resources import Resources
from honmaru.security.identity.saml_federation import SamlFederation
from honmaru.security.identity.signin import SignIn
from honmaru.security.identity.usage import Usage

__all__ = ["ADMIN", "Identity"]


class Identity(SignIn, Federation, SamlFederation, Usage, LocalOperator):
    """Credentials, sessions and authorisation of one enclave. Thread-safe; no database on the hot path.

    Args:
        account: The enclave's own account; further ones come with an organisation.
        issuer_keys: Asks OpenID Connect issuers for their keys; None asks nobody.
        assertions: Checks the signatures of SAML responses; None reads none.
    """

    def __init__(
        self,
        guard: Guard,
        *,
        partition: str,
        region: str,
        account: str,
        clock: Clock,
        ids: Ids,
        keyring: Keyring,
        issuer_keys: IssuerKeys | None = None,
        assertions: AssertionVerifier | None = None,
    ) -> None:
        self.partition = partition
        self.region = region
        self.account = account
        self.clock = clock
        self.ids = ids
        self._keyring = keyring
        self._ceiling = partition_of(region)
        self.directories = Directories(guard, partition=partition)
        self.organization = Organization(guard, management=account)
        self.resources = Resources(guard)
        self.issuer_keys = issuer_keys
        self.assertions = assertions
        self._published = {}
        self._missed = {}
        self._uses = {}
        self._written = {}
