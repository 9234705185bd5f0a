"""The model servers of an enclave: started on demand, watched, stopped when idle.

Invariants:
- A process serves one model at one label for one account; no process ever sees requests of two labels or accounts.
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
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from honmaru.core.conversation import upstream
from honmaru.core.errors import EngineFailed, HonmaruError, NotFound, NotReady, Throttled, ValidationFault
from honmaru.core.sessions import Session
from honmaru.deployments.client import Pool, Reply, ServerGone, ServerRefused, error_message
from honmaru.deployments.dialects import EMBEDDED, Dialect
from honmaru.deployments.engines import Engine, Engines
from honmaru.deployments.placement import Placement
from honmaru.deployments.replicas import Replica, choose
from honmaru.deployments.server import Environments, Server, ServerLimits, discard
from honmaru.ports.executors import Executor
from honmaru.ports.models import Completion, Delta, Generation, ModelArtifact, Vectors
from honmaru.ports.runtime import Clock, Ids
from honmaru.ports.server_identities import ServerIdentities
from honmaru.security.guard import Guard

ENVIRONMENT = "serve"
_WATCH_S = 1.0
_HEAD_S = 300.0
_QUIET_S = 120.0
_RETRY_STATUS = frozenset({500, 502, 503, 504})

_Key = tuple[str, str, str]


@dataclass(slots=True)
class _Deployment:
    """A model at a label for an account: its replicas, and the declaration behind them if there is one."""

    replicas: list[Replica]
    engine: Engine | None


class ModelServers:
    """Implements `ports.models.ModelServers`.

    Args:
        directory: Where servers' folders live (sockets, plain model files while they run); 0700.
        engines: What the operator declared; None when nothing can be declared.
        placement: Gives out the machine's accelerators; None when there shall be none.
        identities: Gives each server an identity of its own; None leaves the sockets bare (tests of one part).
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
        engines: Engines | None = None,
        placement: Placement | None = None,
        idle_s: float = 900.0,
        limits: ServerLimits | None = None,
        identities: ServerIdentities | None = None,
    ) -> None:
        self._guard, self._executor, self._environments = guard, executor, environments
        self._clock, self._ids, self._directory = clock, ids, directory
        self._engines = engines
        self._placement = placement
        self._identities = identities
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
            discard(self._executor, folder, self._identities)
        return len(folders)

    def running(self) -> list[tuple[str, str, str]]:
        """(account, model ARN, canonical label) of every running server of ours."""
        return sorted(
            key
            for key, deployment in self._deployments.items()
            for replica in deployment.replicas
            if replica.server is not None
        )

    # Asking

    async def generate(
        self, session: Session, model: ModelArtifact, generation: Generation
    ) -> AsyncGenerator[Delta, None]:
        """See `ports.models`. Label: the server runs at the session's label, which must dominate the model's."""
        dialect = self._dialect(model)
        path, body = dialect.request(generation, self._name(model), stream=True)
        async with self._answer(session, model, path, body) as reply:
            reader = dialect.reader()
            try:
                async for events in dialect.events(reply, _QUIET_S):
                    for delta in upstream.joined(map(reader.read, map(_without_error, events))):
                        yield delta
                last = reader.end()
            except (ServerGone, ServerRefused, upstream.Malformed, TypeError) as gone:
                raise EngineFailed(f"the model server failed while it answered: {gone}") from None
        engine = self._engine(model)
        if engine is not None and not engine.stream_usage:
            last = replace(last, input_tokens=await self.count_tokens(session, model, generation))
        yield last

    async def complete(self, session: Session, model: ModelArtifact, generation: Generation) -> Completion:
        """See `ports.models`."""
        dialect = self._dialect(model)
        path, body = dialect.request(generation, self._name(model), stream=False)
        return upstream_value(dialect.completion, await self._json(session, model, path, body))

    async def embed(
        self, session: Session, model: ModelArtifact, texts: Sequence[str], dimensions: int | None
    ) -> Vectors:
        """See `ports.models`."""
        body = upstream.embeddings_request(texts, self._name(model), dimensions)
        answer = await self._json(session, model, upstream.EMBEDDINGS, body)
        return upstream_value(lambda value: upstream.vectors(value, len(texts)), answer)

    async def count_tokens(self, session: Session, model: ModelArtifact, generation: Generation) -> int:
        """Tokens of the prompt as the model would read it."""
        dialect = self._dialect(model)
        if counting := dialect.count_request(generation, self._name(model)):
            return upstream_value(dialect.count, await self._json(session, model, *counting))
        path, body = dialect.request(generation, self._name(model), stream=False)
        engine = self._engine(model)
        if engine is None or engine.count_tokens:
            kept = {name: value for name, value in body.items() if name in ("model", "messages", "prompt", "tools")}
            answer = await self._json(session, model, "!/tokenize", kept)
            return upstream_value(dialect.count, answer)
        # An engine that counts nothing by itself says what it read when it answers: one token is asked for.
        answer = await self._json(session, model, path, {**body, "max_tokens": 1, "temperature": 0})
        return upstream_value(dialect.completion, answer).input_tokens

    def _engine(self, model: ModelArtifact) -> Engine | None:
        return self._engines.named(model.engine) if model.engine and self._engines is not None else None

    def _name(self, model: ModelArtifact) -> str:
        engine = self._engine(model)
        return model.name if engine is None else engine.model

    def _dialect(self, model: ModelArtifact) -> Dialect:
        engine = self._engine(model)
        return EMBEDDED if engine is None else engine.dialect

    async def _json(self, session: Session, model: ModelArtifact, path: str, body: Any) -> Any:
        async with self._answer(session, model, path, body) as reply:
            try:
                return await reply.json(_QUIET_S)
            except ServerGone as gone:
                raise EngineFailed(f"the model server failed while it answered: {gone}") from None

    @contextlib.asynccontextmanager
    async def _answer(self, session: Session, model: ModelArtifact, path: str, body: Any) -> AsyncIterator[Reply]:
        """The begun answer of the replica that took the request, with its place among the busy ones held."""
        deployment = self._deployment(session, model)
        tried: list[Replica] = []
        while True:
            replica = choose(deployment.replicas, tried, model.name, self._clock.monotonic())
            tried.append(replica)
            replica.busy += 1
            try:
                reply = await self._ask(session, model, deployment, replica, path, body, last=len(tried) > 2)
                if reply is None:
                    continue
                async with reply:
                    yield reply
                return
            finally:
                replica.busy -= 1
                replica.used_at = self._clock.monotonic()

    async def _ask(
        self,
        session: Session,
        model: ModelArtifact,
        deployment: _Deployment,
        replica: Replica,
        path: str,
        body: Any,
        *,
        last: bool,
    ) -> Reply | None:
        """The begun answer; None when the request is to be tried again. Raises HonmaruError."""
        pool = replica.pool or await self._started(session, model, deployment, replica)
        where = path[1:] if path.startswith("!") else replica.root + path
        try:
            reply = await pool.call("POST", where, body, head_s=_HEAD_S)
            if reply.status < 400:
                replica.well()
                return reply
            async with reply:
                await reply.json(_QUIET_S)
            raise ServerGone("the model server answered an error without a body")
        except ServerRefused as refused:
            if refused.status in _RETRY_STATUS:
                replica.failed(refused.message, self._clock.monotonic(), at_once=False)
                if not last and len(deployment.replicas) > 1:
                    return None
            raise _fault(refused) from None
        except ServerGone as gone:
            replica.failed(str(gone), self._clock.monotonic(), at_once=False)
            if replica.server is not None and await _ending(replica.server):
                self._crashed(replica)
                if not last:
                    return None
            elif not last and len(deployment.replicas) > 1:
                return None
            raise EngineFailed(f"the model server failed while it answered: {gone}") from None

    # Starting and stopping

    def retire(self, model_arn: str) -> None:
        """Stop every server of a model. Any thread; returns at once, requests that are being answered break off."""
        loop = self._loop
        if loop is not None and not loop.is_closed():
            loop.call_soon_threadsafe(self._retire, model_arn)

    def _retire(self, model_arn: str) -> None:
        for key in [key for key in self._deployments if key[1] == model_arn]:
            self._drop(self._deployments.pop(key))

    def _drop(self, deployment: _Deployment) -> None:
        for replica in deployment.replicas:
            if replica.starting is not None:
                replica.starting.cancel()
            if replica.pool is not None:
                replica.pool.close()
            if replica.server is not None:
                self._destroy_later(replica.server)

    def close(self) -> None:
        """Stop every server. Call after the last request; blocking."""
        self._closed = True
        if self._watcher is not None and self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._watcher.cancel)
        self._deployments.clear()
        self.recover()

    def _deployment(self, session: Session, model: ModelArtifact) -> _Deployment:
        if self._closed:
            raise NotReady("the enclave is stopping")
        engine = self._engine(model)
        arn = model.arn
        if engine is not None and engine.base and self._engines is not None:
            # An adapter: the processes of its base model serve it, and are chosen and limited together.
            arn, engine = arn.removesuffix(engine.id) + engine.base, self._engines.named(engine.base)
        key = (session.account, arn, session.label.canonical)
        deployment = self._deployments.get(key)
        if deployment is not None and deployment.engine is engine:
            return deployment
        if deployment is not None:
            self._drop(self._deployments.pop(key))  # declared anew
        self._loop = asyncio.get_running_loop()
        if self._watcher is None:
            self._watcher = self._loop.create_task(self._watch())
        if model.engine and engine is None:
            raise NotFound(f"the engine of model {model.name} is no longer declared")
        deployment = self._deployments[key] = _Deployment(self._replicas(session, engine), engine)
        return deployment

    def _replicas(self, session: Session, engine: Engine | None) -> list[Replica]:
        if engine is None:
            return [Replica(self._limits.requests)]
        if engine.command:
            return [Replica(engine.requests, root=engine.root) for _ in range(engine.replicas)]
        return [
            Replica(engine.requests, remote=remote, pool=Pool(remote.place, remote.headers), root=remote.root)
            for remote in engine.remotes_for(session)
        ]

    async def _started(self, session: Session, model: ModelArtifact, deployment: _Deployment, replica: Replica) -> Pool:
        """The pool of a replica of ours, once its server runs. Raises HonmaruError."""
        if replica.starting is None:
            replica.starting = asyncio.create_task(self._start(session, model, deployment, replica))
        starting = replica.starting
        try:
            # A caller that goes away must not end the start that others wait for.
            await asyncio.shield(starting)
        except asyncio.CancelledError:
            if starting.cancelled():
                raise NotReady(f"model {model.name} was deleted while it started") from None
            raise
        if replica.pool is None:
            raise NotReady(f"model {model.name} ended as soon as it had started; try again")
        return replica.pool

    async def _start(self, session: Session, model: ModelArtifact, deployment: _Deployment, replica: Replica) -> None:
        folder = self._directory / f"server-{self._ids.uuid()}"
        engine = deployment.engine
        environment = self._environments.named(ENVIRONMENT if engine is None else engine.environment)
        server = Server(
            self._guard, self._executor, environment, folder, self._limits, engine, self._placement, self._identities
        )
        try:
            await server.start(session, model)
        except HonmaruError as fault:
            replica.failed(fault.message, self._clock.monotonic(), at_once=True)
            raise
        except OSError as fault:
            reason = f"{type(fault).__name__} while its files were laid out"
            replica.failed(reason, self._clock.monotonic(), at_once=True)
            raise EngineFailed(f"the model server could not be started: {reason}") from fault
        finally:
            replica.starting = None
        replica.used_at = self._clock.monotonic()
        replica.server, replica.pool = server, server.pool

    def _crashed(self, replica: Replica) -> None:
        server = replica.server
        if server is not None:
            replica.server = replica.pool = None
            server.pool.close()
            self._destroy_later(server)
            # A server that ran for a while is started again at once; one that keeps crashing is not.
            if self._clock.monotonic() - replica.used_at < _WATCH_S and replica.failures > 1:
                replica.failed("it crashed", self._clock.monotonic(), at_once=True)

    def _destroy_later(self, server: Server) -> None:
        assert self._loop is not None  # noqa: S101 - set by the request that started the server
        self._loop.run_in_executor(None, server.destroy)

    async def _watch(self) -> None:
        """Notice servers that ended by themselves, and stop the idle ones."""
        while not self._closed:
            await asyncio.sleep(_WATCH_S)
            for key, deployment in list(self._deployments.items()):
                now = self._clock.monotonic()
                if all(not replica.busy and now - replica.used_at > self._idle_s for replica in deployment.replicas):
                    self._drop(self._deployments.pop(key))
                    continue
                for replica in deployment.replicas:
                    server = replica.server
                    if server is not None and await _ending(server) and replica.server is server:
                        self._crashed(replica)
                    elif replica.remote is not None and replica.failures and not replica.busy:
                        await self._probe(deployment, replica)

    async def _probe(self, deployment: _Deployment, replica: Replica) -> None:
        """Whether a remote that failed is well again."""
        if deployment.engine is None or replica.pool is None:
            return
        with contextlib.suppress(ServerGone, ServerRefused):
            async with await replica.pool.call("GET", deployment.engine.health, head_s=2) as reply:
                await reply.text(2)
                if reply.status < 500:
                    replica.well()


def _without_error(event: Any) -> Any:
    """An event. Raises EngineFailed for one that says that the engine failed."""
    if "error" in event:
        raise EngineFailed(f"the model failed: {error_message(event)}")
    return event


_T = TypeVar("_T")


def upstream_value(read: Callable[[Any], _T], answer: Any) -> _T:
    """What `read` finds in an engine's answer. Raises EngineFailed for an answer that is not what it should be."""
    try:
        return read(answer)
    except (upstream.Malformed, KeyError, TypeError, ValueError) as wrong:
        raise EngineFailed(f"the model server answered something else than it should: {wrong}") from None


async def _ending(server: Server) -> str:
    return await asyncio.to_thread(server.ending)


def _fault(refused: ServerRefused) -> HonmaruError:
    if refused.status == 429:
        return Throttled(refused.message)
    if refused.status < 500:
        return ValidationFault(refused.message)
    # An engine's own trace is nothing for its callers.
    return EngineFailed(f"the model server failed: {refused.message.splitlines()[0][:300] if refused.message else ''}")
