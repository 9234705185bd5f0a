"""Amazon Bedrock's data plane: asking imported models."""

from honmaru.services.bedrock_runtime.provider import BedrockRuntime

__all__ = ["BedrockRuntime"]
