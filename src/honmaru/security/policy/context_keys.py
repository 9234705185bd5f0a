"""Which condition keys a policy asks for, in conditions and in variables."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache

from honmaru.security.policy.documents import PolicyKind, read_policy
from honmaru.security.policy.patterns import Variable, split


@lru_cache(maxsize=4096)
def context_keys(text: str, kind: PolicyKind = PolicyKind.IDENTITY) -> frozenset[str]:
    """Condition keys as the policy writes them; those of variables in lower case. Raises MalformedPolicy."""
    document = read_policy(text, kind)
    found: set[str] = set()
    for statement in document.statements:
        texts: list[str] = list(statement.resources)
        for keys in statement.condition.values():
            for key, values in keys.items():
                found.add(key)
                texts += [value for value in values if isinstance(value, str)]
        if document.variables:
            found.update(_variables(texts))
    return frozenset(found)


def _variables(texts: Iterable[str]) -> Iterable[str]:
    for text in texts:
        for part in split(text, variables=True):
            if isinstance(part, Variable):
                yield part.key
