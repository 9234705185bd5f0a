"""The model servers of an enclave: started on demand, watched, stopped when idle.

Invariants:
- One process serves one model at one label for one account; no process ever sees requests of two labels.
- Concurrent first requests wait for one start. A server that fails to start is not started again before a pause that
  doubles with each failure (1 s to 60 s).
- Closing an answer's iterator cancels the generation. A request over the limit is Throttled, never queued unseen.
- At start, servers left behind by a killed enclave are ended: their prompts and answers belonged to requests that died.

Threads: everything that touches `_deployments` runs on the event loop of the first request, except `retire` and
`close`, which hand over to it or run after it.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from honmaru.core.errors import EngineFailed, HonmaruError, NotReady, Throttled, ValidationFault
from honmaru.core.sessions import Session
from honmaru.deployments.client import Reply, ServerGone, ServerRefused, call, error_message
from honmaru.deployments.server import SOCKET, Environments, Server, ServerLimits, discard
from honmaru.ports.executors import Executor
from honmaru.ports.models import Delta, Generation, ModelArtifact
from honmaru.ports.runtime import Clock, Ids
from honmaru.security.guard import Guard

ENVIRONMENT = "serve"
_WATCH_S = 1.0
_HEAD_S = 300.0
_QUIET_S = 120.0
_LONGEST_PAUSE_S = 60.0

_Key = tuple[str, str, str]


@dataclass(slots=True)
class _Deployment:
    """A model at a label: its server when there is one, and the memory of failed starts."""

    server: Server | None = None
    starting: asyncio.Task[Server] | None = None
    failures: int = 0
    not_before: float = 0.0
    reason: str = ""


class ModelServers:
    """Implements `ports.models.ModelServers`.

    Args:
        directory: Where servers' folders live (sockets, plain model files while they run); 0700.
        idle_s: A server without a request for so long is stopped.
    """

    def __init__(
        self,
        guard: Guard,
        executor: Executor,
        environments: Environments,
        clock: Clock,
        ids: Ids,
        directory: Path,
        *,
        idle_s: float = 900.0,
        limits: ServerLimits | None = None,
    ) -> None:
        self._guard, self._executor, self._environments = guard, executor, environments
        self._clock, self._ids, self._directory = clock, ids, directory
        self._idle_s, self._limits = idle_s, limits or ServerLimits()
        self._deployments: dict[_Key, _Deployment] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._watcher: asyncio.Task[None] | None = None
        self._closed = False

    def recover(self) -> int:
        """End the servers of an earlier enclave process; returns how many. Call once, before the first request."""
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        folders = [path for path in self._directory.iterdir() if path.is_dir()]
        for folder in folders:
            discard(self._executor, folder)
        return len(folders)

    def running(self) -> list[tuple[str, str, str]]:
        """(account, model ARN, canonical label) of every running server."""
        return sorted(key for key, deployment in self._deployments.items() if deployment.server is not None)

    async def generate(
        self, session: Session, model: ModelArtifact, generation: Generation
    ) -> AsyncGenerator[Delta, None]:
        """See `ports.models`. Label: the server runs at the session's label, which must dominate the model's."""
        path, body = _request(generation)
        body |= {"stream": True, "stream_options": {"include_usage": True}}
        async with self._using(session, model) as server:
            finish: dict[str, Any] | None = None
            try:
                async with await self._call(server, path, body) as reply:
                    async for event in reply.events(_QUIET_S):
                        if "error" in event:
                            raise EngineFailed(f"the model failed: {error_message(event)}")
                        if event.get("usage"):
                            yield _last(finish or {}, event["usage"])
                            return
                        choice = event["choices"][0]
                        text = choice["delta"].get("content", "") if "delta" in choice else choice["text"]
                        if choice.get("finish_reason") is not None:
                            finish = choice
                        if text:
                            yield Delta(text=text)
                raise ServerGone("the model server ended its answer without usage counts")
            except ServerRefused as refused:
                raise _fault(refused) from None
            except (ServerGone, KeyError, IndexError, TypeError, AttributeError) as gone:
                raise EngineFailed(f"the model server failed while it answered: {gone}") from None

    async def count_tokens(self, session: Session, model: ModelArtifact, generation: Generation) -> int:
        """Tokens of the prompt as the model would read it."""
        body = {name: value for name, value in _request(generation)[1].items() if name in ("messages", "prompt")}
        async with self._using(session, model) as server:
            try:
                async with await self._call(server, "/tokenize", body) as reply:
                    return int((await reply.json())["count"])
            except ServerRefused as refused:
                raise _fault(refused) from None
            except (ServerGone, KeyError, TypeError, ValueError) as gone:
                raise EngineFailed(f"the model server failed: {gone}") from None

    def retire(self, model_arn: str) -> None:
        """Stop every server of a model. Any thread; returns at once, requests that are being answered break off."""
        loop = self._loop
        if loop is not None and not loop.is_closed():
            loop.call_soon_threadsafe(self._retire, model_arn)

    def _retire(self, model_arn: str) -> None:
        for key in [key for key in self._deployments if key[1] == model_arn]:
            deployment = self._deployments.pop(key)
            if deployment.starting is not None:
                deployment.starting.cancel()
            if deployment.server is not None:
                self._destroy_later(deployment.server)

    def close(self) -> None:
        """Stop every server. Call after the last request; blocking."""
        self._closed = True
        if self._watcher is not None and self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._watcher.cancel)
        self._deployments.clear()
        self.recover()

    @contextlib.asynccontextmanager
    async def _using(self, session: Session, model: ModelArtifact) -> AsyncIterator[Server]:
        server = await self._ready(session, model)
        if server.busy >= self._limits.requests:
            raise Throttled(
                f"{server.busy} requests to model {model.name} are being answered, which is the limit; try again later"
            )
        server.busy += 1
        try:
            yield server
        finally:
            server.busy -= 1
            server.used_at = self._clock.monotonic()

    async def _call(self, server: Server, path: str, body: Any) -> Reply:
        return await call(server.sockets, SOCKET, "POST", path, body, head_s=_HEAD_S)

    async def _ready(self, session: Session, model: ModelArtifact) -> Server:
        if self._closed:
            raise NotReady("the enclave is stopping")
        self._loop = asyncio.get_running_loop()
        if self._watcher is None:
            self._watcher = self._loop.create_task(self._watch())
        key = (session.account, model.arn, session.label.canonical)
        deployment = self._deployments.setdefault(key, _Deployment())
        if deployment.server is not None:
            ended = await asyncio.to_thread(deployment.server.ending) if not deployment.server.busy else ""
            if ended and deployment.server is not None:
                self._crashed(deployment)
            if deployment.server is not None:
                return deployment.server
        if deployment.starting is None:
            wait = deployment.not_before - self._clock.monotonic()
            if wait > 0:
                raise NotReady(
                    f"model {model.name} failed to start and is tried again in {wait:.0f} s: {deployment.reason}"
                )
            deployment.starting = asyncio.create_task(self._start(session, model, deployment))
        try:
            # A caller that goes away must not end the start that others wait for.
            return await asyncio.shield(deployment.starting)
        except asyncio.CancelledError:
            if deployment.starting is not None and deployment.starting.cancelled():
                raise NotReady(f"model {model.name} was deleted while it started") from None
            raise

    async def _start(self, session: Session, model: ModelArtifact, deployment: _Deployment) -> Server:
        folder = self._directory / f"server-{self._ids.uuid()}"
        environment = self._environments.named(ENVIRONMENT)
        server = Server(self._guard, self._executor, environment, folder, self._limits)
        try:
            await server.start(session, model)
        except HonmaruError as fault:
            self._failed(deployment, fault.message)
            raise
        except OSError as fault:
            self._failed(deployment, f"{type(fault).__name__} while its files were laid out")
            raise EngineFailed(f"the model server could not be started: {deployment.reason}") from fault
        finally:
            deployment.starting = None
        server.used_at = self._clock.monotonic()
        deployment.server = server
        return server

    def _failed(self, deployment: _Deployment, reason: str) -> None:
        deployment.failures += 1
        pause = min(_LONGEST_PAUSE_S, 2.0 ** (deployment.failures - 1))
        deployment.not_before = self._clock.monotonic() + pause
        deployment.reason = reason

    def _crashed(self, deployment: _Deployment) -> None:
        server = deployment.server
        if server is not None:
            deployment.server = None
            self._destroy_later(server)
            # A server that ran for a while is started again at once; one that keeps crashing is not.
            if self._clock.monotonic() - server.used_at < _WATCH_S:
                self._failed(deployment, "it crashed")
            else:
                deployment.failures = 0

    def _destroy_later(self, server: Server) -> None:
        assert self._loop is not None  # noqa: S101 - set by the request that started the server
        self._loop.run_in_executor(None, server.destroy)

    async def _watch(self) -> None:
        """Notice servers that ended by themselves, and stop the idle ones."""
        while not self._closed:
            await asyncio.sleep(_WATCH_S)
            for key, deployment in list(self._deployments.items()):
                server = deployment.server
                if server is None:
                    continue
                idle = not server.busy and self._clock.monotonic() - server.used_at > self._idle_s
                if idle:
                    del self._deployments[key]
                    self._destroy_later(server)
                elif await asyncio.to_thread(server.ending) and deployment.server is server:
                    self._crashed(deployment)


def _request(generation: Generation) -> tuple[str, dict[str, Any]]:
    body: dict[str, Any] = {
        "max_tokens": generation.max_tokens,
        "temperature": generation.temperature,
        "top_p": generation.top_p,
        "stop": list(generation.stop),
        "seed": generation.seed,
    }
    body = {name: value for name, value in body.items() if value is not None}
    if generation.messages is not None:
        return "/v1/chat/completions", body | {"messages": [dict(message) for message in generation.messages]}
    return "/v1/completions", body | {"prompt": generation.prompt or ""}


def _last(choice: dict[str, Any], usage: dict[str, Any]) -> Delta:
    sequence = choice.get("stop_reason")
    return Delta(
        finish="stop_sequence" if isinstance(sequence, str) else choice.get("finish_reason") or "stop",
        stop_sequence=sequence if isinstance(sequence, str) else None,
        input_tokens=int(usage["prompt_tokens"]),
        output_tokens=int(usage["completion_tokens"]),
        details={"context_full": bool(choice.get("context_full"))},
    )


def _fault(refused: ServerRefused) -> HonmaruError:
    if refused.status == 429:
        return Throttled(refused.message)
    if refused.status < 500:
        return ValidationFault(refused.message)
    return EngineFailed(refused.message)
