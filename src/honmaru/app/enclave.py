"""The composition root: Settings → Enclave. The only place that names concrete classes.

Invariants:
- Parts start in the order of need and stop in reverse; the address is published last and withdrawn first.
- First start makes keys, an account number, an `admin` and nothing else.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any, cast

from honmaru.api.models import SERVICES
from honmaru.app import run_files
from honmaru.app.background import Background, Step
from honmaru.app.fixed_facts import bubblewrap, fixed_facts
from honmaru.app.issuer_keys import LocalIssuerKeys
from honmaru.app.measurements import measurements
from honmaru.app.operator import OperatorServer, operator_entry
from honmaru.app.quantum import Quantum, quantum_environment
from honmaru.app.quotas import NAMES, quotas
from honmaru.app.runtime import SystemClock, SystemIds
from honmaru.app.saml_signatures import SignedXml
from honmaru.app.service_deliveries import ServiceDeliveries, ServiceQuestion
from honmaru.app.settings import Settings
from honmaru.app.tag_sources import tag_sources
from honmaru.app.traces import SpanFiles
from honmaru.app.unsealing import Unsealed, ring_of
from honmaru.app.usage import EVERY_S as USAGE_EVERY_S
from honmaru.app.usage import Usage
from honmaru.app.workers.fleet import Fleet
from honmaru.app.workers.lent import Lent
from honmaru.core.errors import HonmaruError
from honmaru.core.labels import BOTTOM, Label
from honmaru.core.partitions import partition_of
from honmaru.core.sessions import Session
from honmaru.deployments import Engines, ModelServers
from honmaru.deployments.catalog import find_artifact, find_custom_model
from honmaru.deployments.placement import Placement
from honmaru.executors.local import FscryptVolumes, LocalExecutor
from honmaru.executors.local.accelerators import LocalAccelerators
from honmaru.gateway.app import Gateway, Limits
from honmaru.gateway.links import Forwarder
from honmaru.gateway.meters import RequestMeter
from honmaru.gateway.news import News
from honmaru.gateway.server import serve
from honmaru.gateway.spans import Tracer
from honmaru.jobs.async_invocation import AsyncInvocation
from honmaru.jobs.batch_inference import BatchInference
from honmaru.jobs.environments import Environments
from honmaru.jobs.instances import Capacity
from honmaru.jobs.job_broker import Endpoint, JobBrokers
from honmaru.jobs.model_copy import ModelCopy
from honmaru.jobs.model_customization import ModelCustomization
from honmaru.jobs.model_import import CREATION_KIND, ModelImport
from honmaru.jobs.server_identities import ModelServerIdentities
from honmaru.jobs.supervisor import Supervisor
from honmaru.jobs.training import Training
from honmaru.jobs.volumes import JobVolumes
from honmaru.security import idempotency
from honmaru.security.calls import Provider
from honmaru.security.crypto.certificates import LOOPBACK_NAMES, ServerTls, ensure_server_tls
from honmaru.security.crypto.keyring import Keyring
from honmaru.security.crypto.secret_files import private_directory
from honmaru.security.crypto.workload_identity import WorkloadAuthority
from honmaru.security.guard import Guard
from honmaru.security.identity import Identity
from honmaru.security.identity.usage import USES_EVERY_S
from honmaru.security.ledger import Ledger
from honmaru.security.page_tokens import PageTokens, page_key
from honmaru.services.bedrock import Bedrock
from honmaru.services.bedrock_agent import BedrockAgent
from honmaru.services.bedrock_runtime import BedrockRuntime, InvocationLog
from honmaru.services.cloudtrail import CloudTrail
from honmaru.services.cloudtrail import delivery as trail_delivery
from honmaru.services.cloudwatch import CloudWatch, MetricStore
from honmaru.services.cloudwatch import store as metric_store
from honmaru.services.cloudwatch import watching as alarm_watch
from honmaru.services.ecr import Ecr
from honmaru.services.iam import Iam
from honmaru.services.kms import Custodian, Kms, KmsKeys, KmsSessionKeys
from honmaru.services.kms import Vault as KeyVault
from honmaru.services.kms.custodian import INTERVAL_S as CUSTODY_EVERY_S
from honmaru.services.logs import Logs, LogStore
from honmaru.services.logs import retention as log_retention
from honmaru.services.organizations import Organizations
from honmaru.services.resourcegroupstaggingapi import ResourceTagging
from honmaru.services.s3 import lifecycle_runner
from honmaru.services.s3.access import S3Buckets
from honmaru.services.s3.bucket import BucketCommits
from honmaru.services.s3.cors import CrossOrigin
from honmaru.services.s3.lifecycle_runner import LifecycleRunner
from honmaru.services.s3.provider import S3
from honmaru.services.sagemaker import SageMaker
from honmaru.services.service_quotas import ServiceQuotas
from honmaru.services.sts import Sts
from honmaru.stores.blobs_obstore import ObstoreBlobStore
from honmaru.stores.records_sql import SqlRecordStore

_LOG = logging.getLogger("honmaru")
_SWEEP_EVERY_S = 6 * 3600.0
_HOLD_EVERY_S = 2.0


class Enclave:
    """Everything of one enclave, joined. Construct, then `start`; `close` stops it."""

    def __init__(self, settings: Settings, unsealed: Unsealed | None = None, lent: Lent | None = None) -> None:
        """Raises ConfigurationFault. `unsealed` opens the root key where it is sealed. A worker process is `lent` what
        there is once: it makes the same decisions from the same parts, and starts none that works by itself."""
        data = settings.data
        self.settings = settings
        self.clock = SystemClock()
        self.ids = SystemIds()
        self.region, self.account = fixed_facts(settings, self.ids)
        self.partition = partition_of(self.region)
        keys = data / "keys"
        private_directory(keys)
        self.records = SqlRecordStore(settings.database or f"sqlite:///{data / 'records.sqlite'}")
        self.blobs = ObstoreBlobStore(settings.blobs or str(data / "blobs"), writer=lent.owner if lent else "")
        self.fleet = Fleet(self, unsealed) if lent is None and settings.workers > 1 else None
        keyring = self.keyring = Keyring(ring_of(data), self.ids.secret, unsealed.key if unsealed else None)
        keyring.check()
        if lent is None:
            self.records.hold()
            self.ledger = Ledger(
                data / "ledger", heads=keys / "ledger", clock=self.clock, secret=self.ids.secret, kept=keyring.kept
            )
        else:  # what reads the ledger is never carried out by a worker
            self.ledger = cast(Ledger, lent.ledger)
        self.guard = Guard(
            self.records,
            self.blobs,
            keyring,
            self.ledger,
            self.clock,
            self.ids,
            owner=lent.owner if lent else "",
            peers=lent.blobs if lent else self.fleet,
        )
        self.identity = Identity(
            self.guard,
            partition=self.partition.name,
            region=self.region,
            account=self.account,
            clock=self.clock,
            ids=self.ids,
            keyring=keyring,
            issuer_keys=LocalIssuerKeys(),
            assertions=SignedXml(),
        )
        quantum = quantum_environment()
        self.environments = Environments(data / "environments.json", quantum=quantum)
        self.executor = LocalExecutor(data / "executor", bwrap=bubblewrap())
        key_vault = KeyVault(keyring, self.ids)
        keys_of_kms = KmsKeys(key_vault)
        session_keys = KmsSessionKeys(keys_of_kms, self.guard, self.identity, self.ledger, self.clock, self.ids)
        commits = BucketCommits(keys_of_kms)
        buckets = S3Buckets(self.guard, self.identity, self.ledger, self.clock, self.ids, commits)
        trail_bucket = ServiceDeliveries(
            "cloudtrail.amazonaws.com", self.guard, self.identity, self.ledger, self.clock, self.ids, commits
        )
        metrics = MetricStore(self.guard, self.ids)
        logs_question = ServiceQuestion(self.identity, f"logs.{self.region}.amazonaws.com")
        logs_keys = KmsSessionKeys(keys_of_kms, self.guard, logs_question, self.ledger, self.clock, self.ids)
        logs = LogStore(self.guard, self.clock, self.ids, metrics, logs_keys)
        capacity = Capacity(
            cores=len(os.sched_getaffinity(0)), memory_bytes=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        )
        authority = WorkloadAuthority(self.region, self.clock.now())
        self.brokers = JobBrokers(data / "brokers", self._own_endpoint, self._job_keys, authority, self.clock)
        identities = ModelServerIdentities(self.brokers, authority, self.clock)
        volumes = JobVolumes(FscryptVolumes(), session_keys, data / "scratch")
        training = Training(
            volumes=volumes,
            brokers=self.brokers,
            roles=self.identity,
            buckets=buckets,
            logs=logs,
            ledger=self.ledger,
            environments=self.environments,
            executor=self.executor,
            clock=self.clock,
            ids=self.ids,
            scratch=data / "scratch",
            capacity=capacity,
            metrics=metrics,
        )
        model_import = ModelImport(
            guard=self.guard,
            roles=self.identity,
            buckets=buckets,
            environments=self.environments,
            executor=self.executor,
            clock=self.clock,
            scratch=data / "scratch",
            cores=capacity.cores,
        )
        model_creation = replace(model_import, of=CREATION_KIND)
        self.quantum = Quantum(self, buckets, logs, capacity, quantum)
        self.engines = Engines(data / "engines.json", account=self.account, problem=_LOG.error)
        placement = Placement(LocalAccelerators())
        self.batch_servers = ModelServers(
            self.guard,
            self.executor,
            self.environments,
            self.clock,
            self.ids,
            data / "models-batch",
            engines=self.engines,
            placement=placement,
            idle_s=60.0,
            identities=identities,
        )
        batches = BatchInference(
            guard=self.guard,
            roles=self.identity,
            buckets=buckets,
            servers=self.batch_servers,
            resolve=lambda session, name: find_artifact(self.guard, session, name, self.engines),
            clock=self.clock,
        )
        customization = ModelCustomization(
            guard=self.guard,
            roles=self.identity,
            buckets=buckets,
            environments=self.environments,
            executor=self.executor,
            resolve=batches.resolve,
            clock=self.clock,
            scratch=data / "scratch",
            cores=capacity.cores,
        )
        self.supervisor = Supervisor(
            [
                training,
                model_import,
                model_creation,
                customization,
                batches,
                AsyncInvocation(batches),
                ModelCopy(self.guard, self.clock, find_custom_model),
                self.quantum.jobs,
            ],
            self.guard,
            clock=self.clock,
            ids=self.ids,
            owner=self.account,
        )
        self.model_servers = ModelServers(
            self.guard,
            self.executor,
            self.environments,
            self.clock,
            self.ids,
            data / "models",
            engines=self.engines,
            placement=placement,
            idle_s=settings.model_idle_s,
            identities=identities,
        )
        wake = self.supervisor.wake
        self.limits = Limits(
            principal_requests_s=settings.principal_requests_s, account_requests_s=settings.account_requests_s
        )
        if settings.workers > 1:
            self.limits = replace(self.limits, unverified_bytes=max(64 << 20, self.limits.unverified_bytes // 2))
        carried: tuple[Provider, ...] = (
            Kms(key_vault, self.ledger),
            Sts(self.identity),
            Iam(self.identity),
            Organizations(self.identity),
            S3(self.ids, commits),
            SageMaker(self.identity, buckets, self.environments, wake, capacity, self.ids, volumes),
            Logs(logs, self.clock),
            CloudTrail(self.ledger, trail_bucket, keys_of_kms),
            CloudWatch(metrics),
            Ecr(self.environments),
            ServiceQuotas(NAMES, quotas(self.limits, training_jobs=training.running, cores=capacity.cores)),
            Bedrock(self.identity, wake, self.model_servers, self.ids, self.engines, capacity.cores),
            BedrockAgent(self.ids),
            BedrockRuntime(
                self.model_servers,
                self.clock,
                self.engines,
                self.ids,
                wake,
                InvocationLog(self.guard, self.identity, logs, buckets, self.clock),
            ),
            self.quantum.provider(wake),
        )
        self.providers = (*carried, ResourceTagging(tag_sources(carried)))
        place = {"partition": self.partition.name, "region": self.region}
        expiry = log_retention.Retention(self.guard, logs, self.clock, **place)
        lifecycle = LifecycleRunner(
            self.guard, self.clock, self.ids, commits, partition=self.partition.name, region=self.region
        )
        custodian = Custodian(self.guard, key_vault, self.ledger, self.clock, self.ids, **place)
        self.meter = RequestMeter(self.account, lambda: measurements(self))
        self.spans = self._spans()
        usage = Usage(self.meter, metrics, self.clock, **place)
        self.background = Background(
            (
                Step("usage of APIs", USAGE_EVERY_S, usage.write),
                Step("custody of keys", CUSTODY_EVERY_S, custodian.step),
                Step("expiry of logs", log_retention.EVERY_S, expiry.expire),
                Step(
                    "expiry of metrics",
                    metric_store.EXPIRE_EVERY_S,
                    metric_store.Expiry(self.guard, self.clock, **place).expire,
                ),
                Step(
                    "delivery of trails",
                    trail_delivery.EVERY_S,
                    trail_delivery.Delivery(
                        self.guard, self.ledger, trail_bucket, self.clock, self.ids, **place
                    ).deliver,
                ),
                Step(
                    "states of alarms",
                    alarm_watch.EVERY_S,
                    alarm_watch.AlarmWatch(self.guard, metrics, self.clock, self.ids, **place).evaluate,
                ),
                Step("lifecycle of S3", lifecycle_runner.EVERY_S, lifecycle.run),
                Step("client tokens", idempotency.FORGET_EVERY_S, self._forget_client_tokens),
                Step("last use of keys", USES_EVERY_S, self.identity.write_uses),
                Step("sweep of orphan blobs", _SWEEP_EVERY_S, self._sweep),
                Step("hold of the database", _HOLD_EVERY_S, self._keep_hold),
                *(() if self.fleet is None else (Step("what workers left", 1.0, self.fleet.take_over),)),
            ),
        )
        prompt = not (settings.database or "").startswith("postgresql")
        self.gateway = Gateway(
            providers=self.providers,
            identity=self.identity,
            guard=self.guard,
            ledger=self.ledger,
            clock=self.clock,
            ids=self.ids,
            region=self.region,
            partition=self.partition.name,
            prompt_reads=prompt,
            news=News(self.guard.catch_up, self.clock.monotonic, prompt=prompt) if settings.workers > 1 else None,
            forwarder=Forwarder(lent.forward_to) if lent else None,
            rates_memory=lent.rates_memory if lent else self.fleet.rates_memory if self.fleet else None,
            limits=self.limits,
            cache=data / "cache",
            cross_origin=CrossOrigin(self.guard),
            meter=self.meter,
            tracer=None if self.spans is None else Tracer(self.spans, self.clock, self.ids),
            pages=PageTokens(page_key(keys / "pages.key", keyring, self.account, self.ids.secret)),
        )
        self.tls: ServerTls | None = None
        self.hosts: list[str] = []
        names = list(LOOPBACK_NAMES)
        if settings.real_hostnames:
            from honmaru.app.hostnames import certificate_names, service_hosts

            self.hosts = service_hosts(self.region, SERVICES)
            names += certificate_names(self.hosts)
        if not settings.http:
            self.tls = ensure_server_tls(
                keys, data / "tls", region=self.region, now=self.clock.now(), names=names, kept=keyring.kept
            )
        self.port = settings.port
        self.started = self.clock.now()
        self.stopping = threading.Event()

    def _spans(self) -> SpanFiles | None:
        """Where spans of requests go; None when nobody asked for them."""
        where = self.settings.traces
        if not where:
            return None
        resource = {"service.name": "honmaru", "cloud.region": self.region, "cloud.provider": "honmaru"}
        collector = "" if where == "files" else where
        label = Label.parse(self.settings.traces_label) if self.settings.traces_label else BOTTOM
        return SpanFiles(self.settings.data / "traces", resource, collector=collector, collector_label=label)

    def _own_endpoint(self) -> Endpoint:
        return Endpoint(self.settings.host, self.port, self.tls.ca if self.tls else None)

    def _job_keys(self, session: Session, seconds: int) -> dict[str, str]:
        """Keys of a job's role, as the container credential provider of SDKs reads them."""
        issued = self.identity.service_credential(session, seconds)
        return {
            "AccessKeyId": issued.access_key_id,
            "SecretAccessKey": issued.secret_access_key,
            "Token": issued.session_token,
            "Expiration": issued.expires.strftime("%Y-%m-%dT%H:%M:%SZ"),
        }

    def describe(self) -> dict[str, Any]:
        """What `honmaru status` shows. Holds nothing that users or jobs stored."""
        return {
            "endpoint": f"{'https' if self.tls else 'http'}://{self.settings.host}:{self.port}",
            "host": self.settings.host,
            "port": self.port,
            "region": self.region,
            "partition": self.partition.name,
            "ceiling": self.partition.ceiling,
            "account": self.account,
            "data": str(self.settings.data),
            "pid": run_files.running_pid(self.settings.data),
            "started": self.started.isoformat(timespec="seconds"),
            "ca": str(self.tls.ca) if self.tls else "",
            "hosts": self.hosts,
            "workers": [] if self.fleet is None else self.fleet.describe(),
            "ledger": "writable" if self.ledger.writable else "not writable: requests are refused",
        }

    def note_unsealing(self, unsealed: Unsealed) -> None:
        """The ledger says how the root key was opened, before anybody is answered."""
        details = {"lock": unsealed.kind, "failures": unsealed.failures}
        self.ledger.append(BOTTOM, operator_entry(self, "Unseal", details)).result()

    def run(self, announce: Callable[[dict[str, Any]], None]) -> None:
        """Serve until `stopping` is set."""
        self.guard.drain_outbox()
        sweep = threading.Thread(target=self._first_sweep, name="sweep", daemon=True)
        sweep.start()
        self.model_servers.recover()
        self.batch_servers.recover()
        self.identity.bootstrap()
        self.quantum.tasks.start()
        self.supervisor.start()
        self.background.start()
        if self.spans is not None:
            self.spans.start()
        operator = OperatorServer(self, self.settings.data / "run" / "operator.sock")

        def ready(port: int) -> None:
            self.port = port
            run_files.publish(self.settings.data, self.describe())
            announce(self.describe())

        try:
            if self.fleet is not None:
                self.fleet.serve(ready)
            else:
                serve(
                    self.gateway,
                    host=self.settings.host,
                    port=self.settings.port,
                    certificate=self.tls.certificate if self.tls else None,
                    key=self.tls.key if self.tls else None,
                    limits=self.limits,
                    ready=ready,
                    stopping=self.stopping,
                )
        finally:
            run_files.withdraw(self.settings.data)
            operator.close()
            self.gateway.close()
            if self.spans is not None:
                self.spans.close()
            sweep.join()
            self.background.stop()
            self.supervisor.stop()
            self.quantum.tasks.stop()
            self.model_servers.close()
            self.batch_servers.close()
            self.ledger.close()
            self.records.close()

    def _keep_hold(self) -> None:
        """Nobody serves from a database that another enclave may serve from."""
        if not self.records.held():
            _LOG.error("another enclave holds this database: this one stops")
            self.stopping.set()

    def _sweep(self, alone: bool = False) -> None:
        """Free what a crash left behind in the blob store; ends early when the enclave is about to stop."""
        swept = self.guard.sweep_blobs(alone=alone, go_on=lambda: not self.stopping.wait(0.005))
        if swept:
            _LOG.info("the sweep freed %d blobs that no record named", swept)

    def _forget_client_tokens(self) -> None:
        idempotency.forget_old(self.guard, SERVICES, self.clock.now())

    def _first_sweep(self) -> None:
        # Beside the first requests: with millions of objects a sweep takes longer than anybody wants to wait.
        try:
            self._sweep(alone=True)
        except HonmaruError as fault:
            _LOG.error("the sweep of orphan blobs deleted nothing: %s; see `honmaru doctor`", type(fault).__name__)
