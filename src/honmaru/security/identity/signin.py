"""Who is it? Access keys, bearer keys and session tokens → sessions.

Invariants:
- Unknown, inactive and uncleared credentials are refused with the same words.
- A key opens sessions at the label that it is bound to, from the networks that its user is bound to.
"""

from __future__ import annotations

import hmac
from datetime import datetime

from honmaru.core.errors import AuthenticationFailed
from honmaru.core.labels import BOTTOM, Label
from honmaru.core.sessions import Session
from honmaru.security.guard import Record
from honmaru.security.identity import entities
from honmaru.security.identity.credentials import Credential
from honmaru.security.identity.directory import Directory, Principal
from honmaru.security.identity.part import Link, Part, unknown
from honmaru.security.identity.tokens import OpenedToken, open_token

BEARER_PREFIX = "honmaru-"


def bearer_token(key_id: str, secret: str) -> str:
    """The text of a bearer key, as clients send it."""
    return f"{BEARER_PREFIX}{key_id}-{secret}"


class SignIn(Part):
    """See the module."""

    def credential(self, access_key_id: str, session_token: str | None) -> Credential:
        """The secret and session of an access key, or of a temporary key with its token.

        Raises AuthenticationFailed: unknown, inactive, expired, or no longer cleared for its label.
        """
        if session_token is None:
            directory = self._home_of(access_key_id)
            return directory.cached(
                ("key", access_key_id), lambda: self._key(directory, entities.ACCESS_KEY, access_key_id)
            )
        opened = self._opened(access_key_id, session_token)
        if self.clock.now() >= opened.expires:
            raise AuthenticationFailed("The security token included in the request is expired", code="ExpiredToken")
        return Credential(access_key_id, opened.secret, opened.session)

    def nobody(self) -> Session:
        """The session of an operation that needs no signature: at BOTTOM, with no principal and no policies."""
        return Session(
            account=self.account,
            partition=self.partition,
            region=self.region,
            principal_arn="anonymous",
            principal_id="anonymous",
            kind="anonymous",
            label=BOTTOM,
            issuer_arn="anonymous",
        )

    def bearer(self, token: str) -> Session:
        """The session of a bearer key. Raises AuthenticationFailed."""
        key_id, _, secret = token.removeprefix(BEARER_PREFIX).partition("-")
        if not token.startswith(BEARER_PREFIX) or not key_id or not secret:
            raise unknown()
        directory = self._home_of(key_id)
        known = directory.cached(("bearer", key_id), lambda: self._key(directory, entities.BEARER_KEY, key_id))
        if not hmac.compare_digest(known.secret_access_key.encode(), secret.encode()):
            raise unknown()
        ends = next(iter(directory.records(entities.BEARER_KEY, key_id))).body.get("expires")
        if ends is not None and self.clock.now() >= datetime.fromisoformat(ends):
            raise unknown()
        return known.session

    def _home_of(self, key_id: str) -> Directory:
        """The directory of the account that a key id states, where there is such an account; else the enclave's own."""
        account = entities.account_of_key(key_id)
        if account != self.account and self.organization.known(account):
            return self.directories.of(account)
        return self.directory

    def _key(self, directory: Directory, kind: str, key_id: str) -> Credential:
        records = directory.records(kind, key_id)
        if len(records) != 1 or records[0].state != entities.ACTIVE:
            raise unknown()
        record = records[0]
        body = record.body
        label = Label.decode(body["label"])
        account = directory.account
        user = directory.principal(entities.USER, body["user"], label, body["user_id"])
        chain: tuple[Link, ...] = (
            (kind, key_id, "", account),
            (entities.USER, body["user"], body["user_id"], account),
        )
        if user is None or not label.dominates(record.label) or not self.chain_holds(chain, label, label):
            raise unknown()
        return Credential(key_id, body["secret"], self._user_session(user, record, label, chain))

    def _user_session(self, user: Principal, key: Record, label: Label, chain: tuple[Link, ...]) -> Session:
        return Session(
            account=key.account,
            partition=self.partition,
            region=self.region,
            principal_arn=user.arn,
            principal_id=user.id,
            kind="user",
            label=label,
            issuer_arn=user.arn,
            access_key_id=key.name,
            human=user.arn,
            chain=chain,
            networks=user.networks,
        )

    def _opened(self, access_key_id: str, session_token: str) -> OpenedToken:
        """What a token holds, opened once and checked anew after every change that could end it."""
        key = ("token", access_key_id, session_token)
        home = self.directory
        opened = home.cached(("opened", *key), lambda: open_token(self._keyring, self.account, session_token))
        if not hmac.compare_digest(opened.session.access_key_id.encode(), access_key_id.encode()):
            raise unknown()
        session = opened.session
        accounts = dict.fromkeys(self._account_of(link) for link in session.chain)
        # A chain through several accounts is checked for each of them: a change in any makes its directory forget.
        for account in accounts or (session.account,):
            if not self.organization.known(account):
                raise unknown()
            self.directories.of(account).cached(key, lambda: self._checked(session))
        return opened

    def _checked(self, session: Session) -> bool:
        if not self.chain_holds(session.chain, session.label, session.label):
            raise unknown()
        return True
