"""Amazon Bedrock's build time: managed prompts."""

from honmaru.services.bedrock_agent.provider import BedrockAgent

__all__ = ["BedrockAgent"]
