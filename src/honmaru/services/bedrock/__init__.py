"""Amazon Bedrock's control plane: importing models into the enclave."""

from honmaru.services.bedrock.provider import Bedrock

__all__ = ["Bedrock"]
