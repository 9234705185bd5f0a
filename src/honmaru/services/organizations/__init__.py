"""AWS Organizations: accounts, units and control policies of one enclave."""

from honmaru.services.organizations.provider import Organizations

__all__ = ["Organizations"]
