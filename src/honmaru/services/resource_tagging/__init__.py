"""AWS Resource Groups Tagging API."""

from honmaru.services.resource_tagging.provider import ResourceTagging
from honmaru.services.resource_tagging.sources import TagSource

__all__ = ["ResourceTagging", "TagSource"]
