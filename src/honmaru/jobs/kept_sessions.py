"""The session that started work, kept in the work's record, so that what is done later is done as that session.

Invariants:
- The kept session has the label of its record, whatever the record says.
- Nothing is allowed by having been kept: what the session may do is asked anew whenever it does something.
"""

from __future__ import annotations

import copy
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from honmaru.core.sessions import Session

if TYPE_CHECKING:
    from honmaru.security.guard import Record

_PLAIN = {each.name for each in fields(Session)} - {"label", "transitive_tags", "chain", "tags"}


def kept_session(session: Session) -> dict[str, Any]:
    """A session as a record keeps it (its label is the record's), JSON values only."""
    kept: dict[str, Any] = {name: getattr(session, name) for name in sorted(_PLAIN)}
    kept["tags"] = dict(session.tags)
    kept["transitive_tags"] = sorted(session.transitive_tags)
    kept["chain"] = [list(each) for each in session.chain]
    return kept


def session_of(record: Record) -> Session:
    """The session that the record's member "session" keeps."""
    kept = copy.deepcopy(dict(record.body["session"]))
    transitive, chain = frozenset(kept.pop("transitive_tags")), tuple(tuple(each) for each in kept.pop("chain"))
    return Session(**kept, label=record.label, transitive_tags=transitive, chain=chain)
