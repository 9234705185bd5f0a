"""OpenAI's dialect: chat completions and models, under /openai/v1 and /v1."""

from honmaru.gateway.openai.wire import OpenAiWire

__all__ = ["OpenAiWire"]
