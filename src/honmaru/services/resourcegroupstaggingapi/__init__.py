"""AWS Resource Groups Tagging API."""

from honmaru.services.resourcegroupstaggingapi.provider import ResourceTagging
from honmaru.services.resourcegroupstaggingapi.sources import TagSource

__all__ = ["ResourceTagging", "TagSource"]
