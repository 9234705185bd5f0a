"""Model invocation logging: what was asked and answered, to a log group and to S3, where the account wants it.

Invariants:
- An entry carries the label of the invocation: it is written by a session at that label.
- Delivery is beside the answer and never delays or fails it; an entry that cannot be delivered is said in the
  enclave's own log, without its content. (The ledger's entry, which is before every answer, holds no content.)

Source: Amazon Bedrock user guide, "Monitor model invocation using CloudWatch Logs and Amazon S3".
"""

from __future__ import annotations

import asyncio
import gzip
import logging
import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Protocol

from honmaru.core.conversation.native import written
from honmaru.core.labels import Label
from honmaru.core.sessions import Session
from honmaru.ports.buckets import Buckets
from honmaru.ports.logs import LogEvent, LogSink
from honmaru.ports.models import INVOCATION_LOGGING_KIND, MODEL_SERVICE
from honmaru.ports.runtime import Clock
from honmaru.security.calls import Call
from honmaru.security.guard import Guard

_LOG = logging.getLogger("honmaru.bedrock")
_STREAM = "aws/bedrock/modelinvocations"
_FRESH_S = 2.0
_WAITING = 1000
_WAITING_BYTES = 64 << 20
"""What waits of one account at one label, at most."""
PRINCIPAL = "bedrock.amazonaws.com"
_Place = tuple[str, str]


class Roles(Protocol):
    """What this needs of `security.identity.Identity`."""

    def service_session(
        self, role_arn: str, *, label: Label, service: str, session_name: str, human: str, account: str
    ) -> Session: ...


@dataclass(slots=True)
class InvocationLog:
    """Thread-safe. `buckets` writes as the session that asked, through both gates."""

    guard: Guard
    roles: Roles
    logs: LogSink
    buckets: Buckets
    clock: Clock
    _known: dict[tuple[str, str], tuple[float, Mapping[str, Any] | None]] = field(default_factory=dict)
    _pool: ThreadPoolExecutor = field(
        default_factory=lambda: ThreadPoolExecutor(1, thread_name_prefix="invocation-log")
    )
    _waiting: dict[_Place, tuple[int, int]] = field(default_factory=dict)
    """(account, label) → entries that wait, and their bytes."""
    _lock: threading.Lock = field(default_factory=threading.Lock)

    async def wanted(self, session: Session) -> Mapping[str, Any] | None:
        """The configuration that holds for a session; looked up anew every two seconds."""
        key = (session.account, session.label.canonical)
        now = self.clock.monotonic()
        known = self._known.get(key)
        if known is not None and now - known[0] < _FRESH_S:
            return known[1]
        record = await asyncio.to_thread(
            self.guard.records(session, MODEL_SERVICE).get, INVOCATION_LOGGING_KIND, "configuration"
        )
        found = dict(record.body) if record is not None else None
        self._known[key] = (now, found)
        return found

    def note(
        self, config: Mapping[str, Any], call: Call, model: str, asked: Any, answered: Any, details: Mapping[str, Any]
    ) -> None:
        """Deliver one entry, later. Beyond a thousand that wait, or 64 MiB, entries are left out, and that is said."""
        entry: dict[str, Any] = {
            "schemaType": "ModelInvocationLog",
            "schemaVersion": "1.0",
            "timestamp": call.now.strftime("%Y-%m-%dT%H:%M:%SZ"),
            "accountId": call.session.account,
            "identity": {"arn": call.session.principal_arn},
            "region": call.session.region,
            "requestId": call.request_id,
            "operation": call.operation,
            "modelId": model,
            "label": call.session.label.banner,
            "input": {"inputContentType": "application/json", "inputTokenCount": details.get("inputTokens", 0)},
            "output": {"outputContentType": "application/json", "outputTokenCount": details.get("outputTokens", 0)},
        }
        if config.get("text", True):
            entry["input"]["inputBodyJson"] = asked
            entry["output"]["outputBodyJson"] = answered
        if "requestMetadata" in details:
            entry["requestMetadata"] = details["requestMetadata"]
        try:
            text = written(entry)
        except RecursionError:
            entry["input"]["inputBodyJson"] = {"tooDeep": True}
            text = written(entry)
        place = (call.session.account, call.session.label.canonical)
        with self._lock:
            number, size = self._waiting.get(place, (0, 0))
            if number and (number >= _WAITING or size + len(text) > _WAITING_BYTES):
                _LOG.error("request %s: its invocation is not logged, %d entries wait", call.request_id, number)
                return
            self._waiting[place] = (number + 1, size + len(text))
        self._pool.submit(self._deliver, dict(config), call, text)

    def _deliver(self, config: Mapping[str, Any], call: Call, entry: bytes) -> None:
        try:
            if config.get("cloud"):
                self._to_group(config, call, entry)
            if config.get("bucket"):
                self._to_bucket(config["bucket"], call, entry)
        except Exception as fault:  # nobody waits for this: what is not said here is said nowhere
            _LOG.error("request %s: its invocation is not logged: %s", call.request_id, type(fault).__name__)
        finally:
            place = (call.session.account, call.session.label.canonical)
            with self._lock:
                number, size = self._waiting.pop(place)
                if number > 1:
                    self._waiting[place] = (number - 1, size - len(entry))

    def _to_group(self, config: Mapping[str, Any], call: Call, entry: bytes) -> None:
        session = self.roles.service_session(
            config["cloud"]["role"],
            label=call.session.label,
            service=PRINCIPAL,
            session_name="bedrock-logging",
            human=config.get("human", ""),
            account=call.session.account,
        )
        event = LogEvent(int(call.now.timestamp() * 1000), entry.decode())
        self.logs.append(session, config["cloud"]["group"], _STREAM, [event])

    def _to_bucket(self, bucket: Mapping[str, Any], call: Call, entry: bytes) -> None:
        session = call.session
        folder = f"AWSLogs/{session.account}/BedrockModelInvocationLogs/{session.region}/{call.now:%Y/%m/%d/%H}"
        key = "/".join(part for part in (bucket["prefix"].strip("/"), folder, f"{call.request_id}.json.gz") if part)
        self.buckets.write(session, bucket["name"], key, [gzip.compress(entry + b"\n")])
