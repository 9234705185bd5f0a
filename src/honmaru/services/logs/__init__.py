"""Amazon CloudWatch Logs."""

from honmaru.services.logs.provider import Logs
from honmaru.services.logs.store import LogStore

__all__ = ["LogStore", "Logs"]
