"""AWS CloudTrail."""

from honmaru.services.cloudtrail.provider import CloudTrail

__all__ = ["CloudTrail"]
