"""IAM's policy language: documents are read and checked (`documents`), compiled and evaluated (`evaluation`).

Pure functions over values: no store, no clock, no session. Labels are not decided here: that is the guard's part, and
no statement can widen it.
"""

from honmaru.security.policy.documents import MalformedPolicy, PolicyKind
from honmaru.security.policy.evaluation import Caller, Decision, Effect, Outcome, PolicySet, compile_policy, decide

__all__ = [
    "Caller",
    "Decision",
    "Effect",
    "MalformedPolicy",
    "Outcome",
    "PolicyKind",
    "PolicySet",
    "compile_policy",
    "decide",
]
