"""AWS Service Quotas."""

from honmaru.services.service_quotas.provider import Quota, ServiceQuotas

__all__ = ["Quota", "ServiceQuotas"]
