"""STS: who am I, and sessions out of sessions."""

from honmaru.services.sts.provider import Sts

__all__ = ["Sts"]
