"""Amazon CloudWatch: metrics and alarms."""

from honmaru.services.cloudwatch.provider import CloudWatch
from honmaru.services.cloudwatch.store import MetricStore

__all__ = ["CloudWatch", "MetricStore"]
