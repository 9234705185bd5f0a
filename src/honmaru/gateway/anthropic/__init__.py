"""Anthropic's dialect: messages, their token counts, and models, under /v1."""

from honmaru.gateway.anthropic.wire import AnthropicWire

__all__ = ["AnthropicWire"]
