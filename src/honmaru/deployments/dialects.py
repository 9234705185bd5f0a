"""The dialects that model servers speak: OpenAI's (all but two), Anthropic's Messages, and Bedrock's own Converse.

A dialect writes a Generation as a request and reads the answers; what it has no member for it refuses.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from typing import Any, Protocol

from honmaru.core.conversation import anthropic_upstream, bedrock_upstream, upstream
from honmaru.core.conversation.model import FEATURES, Completion, Delta, Generation
from honmaru.deployments.client import Reply


class Reader(Protocol):
    """Reads one streamed answer."""

    def read(self, event: Any) -> Delta | None: ...

    def end(self) -> Delta: ...


class Dialect:
    """OpenAI's; the others differ from it.

    Args:
        usage: Whether to ask for counts in streams. schema_as: see `upstream.request`.
    """

    features: frozenset[str] = frozenset(FEATURES)
    """What an engine that speaks it may be declared to have."""
    root, health = "/v1", "/v1/models"

    def __init__(self, usage: bool = True, schema_as: str = "json_schema") -> None:
        self._usage, self._schema_as = usage, schema_as

    def request(self, generation: Generation, model: str, *, stream: bool) -> tuple[str, dict[str, Any]]:
        """(path below the root, body). Raises ValidationFault."""
        return upstream.request(generation, model, stream=stream, usage=self._usage, schema_as=self._schema_as)

    def count_request(self, generation: Generation, model: str) -> tuple[str, dict[str, Any]] | None:  # noqa: ARG002
        """What counts the tokens of a prompt; None where only an answer does."""
        return None

    def count(self, answer: Any) -> int:
        return int(answer["count"])

    def completion(self, answer: Any) -> Completion:
        """Raises upstream.Malformed."""
        return upstream.completion(answer)

    def reader(self) -> Reader:
        return upstream.StreamReader()

    def events(self, reply: Reply, quiet_s: float) -> AsyncIterator[list[Any]]:
        return reply.events(quiet_s)

    def headers(self, secret: str) -> Mapping[str, str]:
        """Lines of every request's head; `secret` is "" for a server that wants none."""
        return {"authorization": f"Bearer {secret}"} if secret else {}


class Anthropic(Dialect):
    features = anthropic_upstream.FEATURES

    def request(self, generation: Generation, model: str, *, stream: bool) -> tuple[str, dict[str, Any]]:
        return anthropic_upstream.request(generation, model, stream=stream)

    def count_request(self, generation: Generation, model: str) -> tuple[str, dict[str, Any]] | None:
        return anthropic_upstream.count_request(generation, model)

    def count(self, answer: Any) -> int:
        return anthropic_upstream.count(answer)

    def completion(self, answer: Any) -> Completion:
        return anthropic_upstream.completion(answer)

    def reader(self) -> Reader:
        return anthropic_upstream.StreamReader()

    def events(self, reply: Reply, quiet_s: float) -> AsyncIterator[list[Any]]:
        return reply.events(quiet_s, anthropic_upstream.last)

    def headers(self, secret: str) -> Mapping[str, str]:
        return {"anthropic-version": "2023-06-01", **({"x-api-key": secret} if secret else {})}


class Bedrock(Dialect):
    """With a bearer token of Bedrock's as the secret."""

    features = bedrock_upstream.FEATURES
    root, health = "", "/"

    def request(self, generation: Generation, model: str, *, stream: bool) -> tuple[str, dict[str, Any]]:
        return bedrock_upstream.request(generation, model, stream=stream)

    def count_request(self, generation: Generation, model: str) -> tuple[str, dict[str, Any]] | None:
        return bedrock_upstream.count_request(generation, model)

    def count(self, answer: Any) -> int:
        return bedrock_upstream.count(answer)

    def completion(self, answer: Any) -> Completion:
        return bedrock_upstream.completion(answer)

    def reader(self) -> Reader:
        return bedrock_upstream.StreamReader()

    def events(self, reply: Reply, quiet_s: float) -> AsyncIterator[list[Any]]:
        return reply.frames(quiet_s)


DIALECTS: Mapping[str, type[Dialect]] = {"openai": Dialect, "anthropic": Anthropic, "bedrock": Bedrock}
EMBEDDED = Dialect()
"""What the embedded engines speak."""
