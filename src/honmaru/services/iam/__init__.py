"""IAM: users, roles, access keys, policies."""

from honmaru.services.iam.provider import Iam

__all__ = ["Iam"]
