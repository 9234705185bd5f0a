"""A workshop with Bedrock on it: imports, batches, async invocations, copies and model servers, without a gateway."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Coroutine
from dataclasses import replace
from pathlib import Path
from typing import Any

from honmaru.deployments import Engines, ModelServers
from honmaru.deployments.catalog import find_artifact, find_custom_model
from honmaru.deployments.server import ServerLimits
from honmaru.jobs.async_invocation import AsyncInvocation
from honmaru.jobs.batch_inference import BatchInference
from honmaru.jobs.environments import Environments
from honmaru.jobs.model_copy import ModelCopy
from honmaru.jobs.model_import import CREATION_KIND, ModelImport
from honmaru.jobs.supervisor import Supervisor
from honmaru.security.calls import Call
from honmaru.services.bedrock import Bedrock
from honmaru.services.bedrock_runtime import BedrockRuntime
from honmaru.testing.keep import ACCOUNT
from honmaru.testing.workshop import BUCKET, ROLE, Workshop


class Forge(Workshop):
    """A workshop with Bedrock on it."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        environments = Environments(directory / "environments.json", sys.prefix)
        kind = ModelImport(
            self.guard, self.identity, self.buckets, environments, self.executor, self.clock, directory / "scratch"
        )
        self.engines = Engines(directory / "engines.json", account=ACCOUNT, problem=print)
        self.batch_servers = ModelServers(
            self.guard, self.executor, environments, self.clock, self.ids, directory / "batch", engines=self.engines
        )
        self.batch_servers.recover()
        batches = BatchInference(
            self.guard,
            self.identity,
            self.buckets,
            self.batch_servers,
            lambda who, name: find_artifact(self.guard, who, name, self.engines),
            self.clock,
        )
        self.imports = Supervisor(
            [
                kind,
                replace(kind, of=CREATION_KIND),
                batches,
                AsyncInvocation(batches),
                ModelCopy(self.guard, self.clock, find_custom_model),
            ],
            self.guard,
            clock=self.clock,
            ids=self.ids,
            owner="forge",
            poll_s=0.2,
        )
        limits = ServerLimits(cpu=1, requests=4)
        self.servers = ModelServers(
            self.guard,
            self.executor,
            environments,
            self.clock,
            self.ids,
            directory / "models",
            engines=self.engines,
            idle_s=60,
            limits=limits,
        )
        self.servers.recover()
        self.bedrock = Bedrock(self.identity, self.imports.wake, self.servers, self.ids, self.engines)
        self.runtime = BedrockRuntime(self.servers, self.clock, self.engines, self.ids, self.imports.wake)
        self.loop = asyncio.new_event_loop()

    def on_loop(self, work: Coroutine[Any, Any, Any]) -> Any:
        return self.loop.run_until_complete(asyncio.wait_for(work, 60))

    def ask(self, operation: str, call: Call | None = None, **request: Any) -> Any:
        return self.on_loop(getattr(self.runtime, operation)(call or self.call("bedrock-runtime"), request))

    def import_model(self, name: str, key: str, **members: Any) -> str:
        request = {
            "jobName": f"job-{name}",
            "importedModelName": name,
            "roleArn": ROLE,
            "modelDataSource": {"s3DataSource": {"s3Uri": f"s3://{BUCKET}/{key}"}},
        }
        return str(self.bedrock.create_model_import_job(self.call("bedrock"), request | members)["jobArn"])

    def job(self, arn: str) -> dict[str, Any]:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            job = self.bedrock.get_model_import_job(self.call("bedrock"), {"jobIdentifier": arn})
            if job["status"] != "InProgress":
                return job
            time.sleep(0.05)
        raise TimeoutError

    def close(self) -> None:
        self.imports.stop()
        self.loop.run_until_complete(asyncio.sleep(0))
        self.servers.close()
        self.loop.run_until_complete(asyncio.sleep(0))  # the watcher ends
        self.batch_servers.close()
        self.loop.close()
        super().close()
