"""AWS Organizations' operations. Their meaning lies in the files beside this one.

IAM is asked for `organizations:<Operation>` on "*": the ARNs of an organisation's parts name an organisation that the
request does not. Invitations, transfers of responsibility, and accounts that leave are not written: an enclave's
accounts are made in it and stay in it.
"""

from __future__ import annotations

from typing import ClassVar

from honmaru.security.calls import Provider
from honmaru.security.identity import Identity
from honmaru.services.organizations.accounts import Accounts
from honmaru.services.organizations.policies import Policies
from honmaru.services.organizations.tree import Tree


class Organizations(Tree, Accounts, Policies, Provider):
    """The Organizations service of one enclave."""

    service: ClassVar[str] = "organizations"

    def __init__(self, identity: Identity) -> None:
        self.identity = identity
