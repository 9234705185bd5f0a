"""Model servers as the services see them: a model at a label, reached over HTTP in OpenAI's words.

Implemented by `deployments`, joined by `app`. A process serves one model at one label for one account, never two.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from honmaru.core.conversation.model import Completion, Delta, Generation, Vectors
from honmaru.core.sessions import Session

__all__ = ["Completion", "Delta", "FoundationModels", "Generation", "ModelArtifact", "ModelServers", "Vectors"]

MODEL_SERVICE = "bedrock"
MODEL_KIND = "imported-model"
"""Records of imported models, named by their id (the last part of the ARN). Their body:
{"id", "name", "job_id", "job_name", "source", "files": {name: blob id}, "architecture", "context_length",
"instruct", "parameters", "engine", "tags"}."""
MODEL_NAME_KIND = "imported-model-name"
"""Records that keep a model's name taken: named by it, body {"id"}. Made and deleted together with the model's."""
CUSTOM_MODEL_KIND = "custom-model"
"""Records of custom models (fine-tuned here, or copied): as imported models, and {"base", "job_arn", ...}."""

CUSTOM_MODEL_NAME_KIND = "custom-model-name"
"""Records that keep a custom model's name taken, as MODEL_NAME_KIND does."""

INVOCATION_LOGGING_KIND = "invocation-logging"
"""The record "configuration" says where invocations of models are logged to; see services.bedrock."""

EMBEDDED_FEATURES: Mapping[str, frozenset[str]] = {
    "openvino": frozenset({"completions", "json_schema", "logprobs", "n", "penalties", "tools", "top_k"}),
    "transformers": frozenset({"completions", "logprobs", "top_logprobs", "n", "penalties", "logit_bias", "top_k"}),
    "embedding": frozenset({"embeddings"}),
}
"""What the embedded engines can do, by their name in a model's record."""


@dataclass(frozen=True, slots=True)
class ModelArtifact:
    """A model that can be asked: one with files (guarded blobs, at the model's label), or one of a declared engine."""

    arn: str
    name: str
    label: str
    files: Mapping[str, str]
    """File name inside the model directory → blob id; empty for the model of a declared engine."""
    architecture: str
    context_length: int
    instruct: bool
    features: frozenset[str] = frozenset()
    """Names of core.conversation.model.FEATURES."""
    engine: str = ""
    """Name of the declared engine; "" for the embedded ones."""
    families: Sequence[str] = ()
    """The native bodies that the model reads; none: all."""
    details: Mapping[str, Any] = field(default_factory=dict)
    """Of a declared engine, what its declaration says for listings: provider, display name."""
    arn_type: str = "AWS::Bedrock::ImportedModel"


class FoundationModels(Protocol):
    """The models of declared engines."""

    def find(self, session: Session, identifier: str) -> ModelArtifact | None:
        """By id or ARN; None for what is not declared and for what the session's label may not reach, alike."""
        ...

    def all(self, session: Session) -> Sequence[ModelArtifact]:
        """Every one that the session may reach, by id."""
        ...


class ModelServers(Protocol):
    """Every method starts the model's server when needed, at the session's label, and raises NotReady, Throttled,
    ValidationFault (the engine says that the request is wrong) or EngineFailed."""

    def generate(self, session: Session, model: ModelArtifact, generation: Generation) -> AsyncGenerator[Delta, None]:
        """Stream an answer. Closing the iterator cancels the generation."""
        ...

    async def complete(self, session: Session, model: ModelArtifact, generation: Generation) -> Completion:
        """All answers, whole. Cancelling the task cancels the generation."""
        ...

    async def embed(
        self, session: Session, model: ModelArtifact, texts: Sequence[str], dimensions: int | None
    ) -> Vectors: ...

    async def count_tokens(self, session: Session, model: ModelArtifact, generation: Generation) -> int: ...

    def retire(self, model_arn: str) -> None:
        """Stop every server of a model, because it was deleted."""
        ...
