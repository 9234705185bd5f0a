"""Model servers as the services see them: a model at a label, reached over a UNIX socket speaking the OpenAI HTTP API.

Implemented by `deployments`, joined by `app`. One process serves one model at one label, never two.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from honmaru.core.sessions import Session

MODEL_SERVICE = "bedrock"
MODEL_KIND = "imported-model"
"""Records of imported models, named by their id (the last part of the ARN). Their body:
{"id", "name", "job_id", "job_name", "source", "files": {name: blob id}, "architecture", "context_length",
"instruct", "parameters", "engine", "tags"}."""
MODEL_NAME_KIND = "imported-model-name"
"""Records that keep a model's name taken: named by it, body {"id"}. Made and deleted together with the model's."""


@dataclass(frozen=True, slots=True)
class ModelArtifact:
    """An imported model: the guarded blobs of its files, at the model's label."""

    arn: str
    name: str
    label: str
    files: Mapping[str, str]
    """File name inside the model directory → blob id."""
    architecture: str
    context_length: int
    instruct: bool


@dataclass(frozen=True, slots=True)
class Generation:
    """One request to a model. Exactly one of `messages` and `prompt` is set."""

    messages: Sequence[Mapping[str, str]] | None = None
    prompt: str | None = None
    max_tokens: int = 512
    temperature: float | None = None
    top_p: float | None = None
    stop: Sequence[str] = ()
    seed: int | None = None


@dataclass(frozen=True, slots=True)
class Delta:
    """A piece of an answer. The last one has `finish` set ("stop", "length", "stop_sequence") and the true usage."""

    text: str = ""
    finish: str | None = None
    stop_sequence: str | None = None
    input_tokens: int = 0
    output_tokens: int = 0
    details: Mapping[str, Any] = field(default_factory=dict)


class ModelServers(Protocol):
    def generate(self, session: Session, model: ModelArtifact, generation: Generation) -> AsyncGenerator[Delta, None]:
        """Stream an answer, starting the server when needed. Closing the iterator cancels the generation.

        The server runs at the session's label. Raises NotReady, Throttled or EngineFailed.
        """
        ...

    async def count_tokens(self, session: Session, model: ModelArtifact, generation: Generation) -> int: ...

    def retire(self, model_arn: str) -> None:
        """Stop every server of a model, because it was deleted."""
        ...
