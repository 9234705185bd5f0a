"""Amazon Bedrock's data plane: asking imported models."""

from honmaru.services.bedrock_runtime.invocation_log import InvocationLog
from honmaru.services.bedrock_runtime.provider import BedrockRuntime

__all__ = ["BedrockRuntime", "InvocationLog"]
