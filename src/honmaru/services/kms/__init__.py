"""AWS Key Management Service."""

from honmaru.services.kms.access import KmsKeys
from honmaru.services.kms.custodian import Custodian
from honmaru.services.kms.provider import Kms
from honmaru.services.kms.session_keys import KmsSessionKeys
from honmaru.services.kms.vault import Vault

__all__ = ["Custodian", "Kms", "KmsKeys", "KmsSessionKeys", "Vault"]
