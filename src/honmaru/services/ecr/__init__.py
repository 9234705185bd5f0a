"""Amazon Elastic Container Registry."""

from honmaru.services.ecr.provider import Ecr

__all__ = ["Ecr"]
