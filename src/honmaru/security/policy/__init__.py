"""IAM's policy language: documents are read and checked (`documents`), compiled (`statements`), decided (`evaluation`).

Pure functions over values: no store, no clock, no session. Labels are not decided here: that is the guard's part, and
no statement can widen it.
"""

from honmaru.security.policy.documents import MalformedPolicy, PolicyKind
from honmaru.security.policy.evaluation import Decision, ResourcePolicy, decide
from honmaru.security.policy.statements import Caller, Effect, Naming, Outcome, PolicySet, compile_policy

__all__ = [
    "Caller",
    "Decision",
    "Effect",
    "MalformedPolicy",
    "Naming",
    "Outcome",
    "PolicyKind",
    "PolicySet",
    "ResourcePolicy",
    "compile_policy",
    "decide",
]
