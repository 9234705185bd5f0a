"""What an engine is asked and what it answers, in no dialect.

Invariants:
- Exactly one of `messages` and `prompt` of a Generation is set.
- The last Delta of an answer, and no other, has `finish` set; its counts are the engine's own.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from honmaru.core.errors import ValidationFault

FEATURES: Mapping[str, str] = {
    "tools": "tool use",
    "json_schema": "structured output (a JSON schema)",
    "logprobs": "log probabilities",
    "top_logprobs": "log probabilities of alternatives",
    "n": "several answers at once (n)",
    "penalties": "frequency and presence penalties",
    "logit_bias": "logit bias",
    "top_k": "top_k sampling",
    "images": "images",
    "reasoning": "reasoning",
    "prompt_cache": "cache points",
    "embeddings": "embeddings",
    "completions": "raw prompts",
}
"""What a model may or may not be able to do, by the name that a model's profile lists, and how a refusal words it."""


def unsupported(model: str, feature: str) -> ValidationFault:
    """The refusal of a feature, naming model and feature."""
    return ValidationFault(f"This model doesn't support {feature}: {model}. Remove it from the request and try again.")


@dataclass(frozen=True, slots=True)
class Generation:
    """One request to a model. `messages`, `tools` and `tool_choice` have the shapes of OpenAI's chat completions.

    `schema` constrains the answer to JSON that it describes. `logprobs` is None (none wanted) or the number of
    alternatives beside each token.
    """

    messages: Sequence[Mapping[str, Any]] | None = None
    prompt: str | None = None
    max_tokens: int = 512
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    stop: Sequence[str] = ()
    seed: int | None = None
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    logit_bias: Mapping[str, float] = field(default_factory=dict)
    logprobs: int | None = None
    n: int = 1
    tools: Sequence[Mapping[str, Any]] = ()
    tool_choice: str | Mapping[str, Any] = "auto"
    parallel_tool_calls: bool = True
    schema: Mapping[str, Any] | None = None
    reasoning_effort: str | None = None
    content: frozenset[str] = frozenset()
    """Features that the messages themselves need: "images", "tools", "reasoning", "prompt_cache"."""

    def wants(self) -> list[str]:
        """The features, by their names in FEATURES, that an engine must have for this."""
        asked = {
            "tools": bool(self.tools) or "tools" in self.content,
            "json_schema": self.schema is not None,
            "logprobs": self.logprobs is not None,
            "top_logprobs": bool(self.logprobs),
            "n": self.n > 1,
            "penalties": bool(self.frequency_penalty or self.presence_penalty),
            "logit_bias": bool(self.logit_bias),
            "top_k": self.top_k is not None,
            "images": "images" in self.content,
            "reasoning": self.reasoning_effort is not None or "reasoning" in self.content,
            "prompt_cache": "prompt_cache" in self.content,
            "completions": self.prompt is not None,
        }
        return [name for name, wanted in asked.items() if wanted]

    def check(self, model: str, features: Collection[str]) -> None:
        """Raises ValidationFault naming model and feature for the first thing that the model cannot do."""
        for name in self.wants():
            if name not in features:
                raise unsupported(model, FEATURES[name])


@dataclass(frozen=True, slots=True)
class ToolPiece:
    """A piece of a call of a tool. `id` and `name` come with the first piece of the call number `index`."""

    index: int
    id: str = ""
    name: str = ""
    arguments: str = ""


@dataclass(frozen=True, slots=True)
class Delta:
    """A piece of an answer.

    `finish` is "stop", "length", "stop_sequence", "tool_calls" or "content_filter" in the last piece. `logprobs` are
    OpenAI's entries for the tokens of this piece. `cached_tokens` of the input were read from a cache.
    """

    text: str = ""
    reasoning: str = ""
    tools: Sequence[ToolPiece] = ()
    logprobs: Sequence[Mapping[str, Any]] = ()
    finish: str | None = None
    stop_sequence: str | None = None
    context_full: bool = False
    input_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int = 0


@dataclass(frozen=True, slots=True)
class ToolCall:
    id: str
    name: str
    arguments: str
    """JSON as the model wrote it."""


@dataclass(frozen=True, slots=True)
class Choice:
    """One whole answer."""

    text: str = ""
    reasoning: str = ""
    tools: Sequence[ToolCall] = ()
    logprobs: Sequence[Mapping[str, Any]] = ()
    finish: str = "stop"
    stop_sequence: str | None = None
    context_full: bool = False


@dataclass(frozen=True, slots=True)
class Completion:
    """Every answer to one Generation (`n` of them) and what they cost together."""

    choices: Sequence[Choice]
    input_tokens: int
    output_tokens: int
    cached_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Vectors:
    """Embeddings of texts, in their order."""

    vectors: Sequence[Sequence[float]]
    input_tokens: int
