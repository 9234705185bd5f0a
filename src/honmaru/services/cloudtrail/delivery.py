"""Delivery of trails: log files and digest files into the trail's bucket. A background step.

    AWSLogs/<account>/CloudTrail/<region>/2026/11/24/<account>_CloudTrail_<region>_20261124T0240Z_<unique>.json.gz
    AWSLogs/<account>/CloudTrail-Digest/<region>/2026/11/24/..._<trail>_..._20261124T030000Z.json.gz

A log file holds events of one log of the ledger, as the ledger has them (CloudTrail's records, with "index", "recorded"
and "honmaru" beside AWS's members). A digest names the files since the digest before it with their SHA-256, that
digest's own SHA-256, and the signed checkpoints of the ledger's logs; its SHA-384 is an entry of the ledger, so
`honmaru ledger` proves a digest, and through it every file.

Invariants:
- Each event is delivered once. What a file will hold is noted in the trail's record before it is written, and its name
  and bytes depend on nothing else: after `kill -9` the same file is written again in the same place.
- A trail is worked for as CloudTrail's session at the trail's own label: it reads no log and reaches no bucket above
  it, and writes at it.
- CloudTrail's own deliveries are not delivered, so an idle enclave's trail comes to rest.
- The step reads across labels only which trails there are (a trusted handle on the kind `trail`).
"""

from __future__ import annotations

import gzip
import hashlib
import logging
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import orjson

from honmaru.core.errors import AccessDenied, Conflict, NotFound, ValidationFault
from honmaru.core.labels import Label
from honmaru.core.sessions import Session, platform_session
from honmaru.ports.deliveries import Deliveries
from honmaru.ports.runtime import Clock, Ids
from honmaru.security.guard import Guard, GuardedRecords, Record
from honmaru.security.ledger import Ledger
from honmaru.security.ledger.entries import API_CALL, api_call
from honmaru.services.cloudtrail.selectors import selected
from honmaru.services.cloudtrail.trails import CONTEXT, TRAIL, arn, base

EVERY_S = 60.0
FILE_ENTRIES = 5000
"""Entries of a log that one file is made from, at most."""

_FILES_EACH = 20
_DIGEST_EVERY = timedelta(hours=1)
_LOG = logging.getLogger(__name__)


class Delivery:
    """The step."""

    def __init__(
        self,
        guard: Guard,
        ledger: Ledger,
        deliveries: Deliveries,
        clock: Clock,
        ids: Ids,
        *,
        partition: str,
        region: str,
    ) -> None:
        self._guard = guard
        self._ledger = ledger
        self._deliveries = deliveries
        self._clock = clock
        self._ids = ids
        self._place = (partition, region)
        self._trails = guard.trusted("cloudtrail", frozenset({TRAIL}))
        self.passed: dict[tuple[str, str], int] = {}
        """(trail's uid, log) → entries looked at that are not the trail's to deliver."""

    def deliver(self) -> int:
        """Deliver what waits, of every trail; returns the number of files."""
        files = 0
        for trail in self._trails.list(TRAIL):
            session = platform_session(trail.account, *self._place, "cloudtrail", trail.label)
            records = self._guard.records(session, "cloudtrail")
            try:
                files += _Work(self, session, records, trail).run()
            except Conflict:
                continue  # the trail was changed meanwhile; the next time will do
            except Exception as fault:  # one trail holds no other up
                _LOG.error("a trail could not be delivered: %s", type(fault).__name__)
        return files


class _Work:
    """One trail, once."""

    def __init__(self, step: Delivery, session: Session, records: GuardedRecords, trail: Record) -> None:
        self._step = step
        self._ledger = step._ledger
        self._session = session
        self._records = records
        self._trail = trail
        self._now = step._clock.now()

    def run(self) -> int:
        try:
            files = self._logs()
            self._digest()
        except (NotFound, AccessDenied, ValidationFault) as fault:
            code = "NoSuchBucket" if isinstance(fault, NotFound) else fault.code or "AccessDenied"
            if self._trail.body.get("error") != code:
                self._note(error=code, attempted=self._now.isoformat())
            return 0
        return files

    # Log files

    def _logs(self) -> int:
        files = 0
        if self._trail.body.get("pending"):
            files += self._write_pending()
        for label in sorted(self._ledger.labels(), key=lambda each: each.canonical):
            if not self._session.label.dominates(label):
                continue
            for _ in range(_FILES_EACH):
                if not self._next(label):
                    break
                files += self._write_pending()
        return files

    def _next(self, label: Label) -> bool:
        """Note the next file of a log; False when nothing waits."""
        body, token = self._trail.body, label.token
        if not body["logging"] and not body["until"]:
            return False
        end = self._ledger.size(label) if body["logging"] else int(body["until"].get(token, 0))
        # What was passed over is remembered here only: to write it down would itself be an entry to pass over.
        place = (body["uid"], token)
        start = max(int(body["positions"].get(token, 0)), self._step.passed.get(place, 0))
        while start < end:
            stop = min(end, start + FILE_ENTRIES)
            if any(True for _ in self._events(label, start, stop)):
                self._note(pending={"label": label.canonical, "start": start, "stop": stop})
                return True
            self._step.passed[place] = start = stop
        return False

    def _write_pending(self) -> int:
        pending = self._trail.body["pending"]
        label, start, stop = Label.decode(pending["label"]), int(pending["start"]), int(pending["stop"])
        events = list(self._events(label, start, stop))
        files = list(self._trail.body["files"])
        if events:
            content = gzip.compress(orjson.dumps({"Records": events}), mtime=0)
            key = self._file_key(label, start, events[0])
            self._put(key, content)
            files.append(
                {
                    "s3Bucket": self._trail.body["settings"]["bucket"],
                    "s3Object": key,
                    "hashValue": hashlib.sha256(content).hexdigest(),
                    "hashAlgorithm": "SHA-256",
                    "newestEventTime": events[-1]["eventTime"],
                    "oldestEventTime": events[0]["eventTime"],
                }
            )
        stamp = self._now.isoformat()
        kept = files if self._trail.body["settings"]["digests"] else []
        self._note(
            pending=None,
            positions={**self._trail.body["positions"], label.token: stop},
            files=kept,
            delivered=stamp,
            attempted=stamp,
            error="",
        )
        return 1 if events else 0

    def _events(self, label: Label, start: int, stop: int) -> Any:
        settings, account = self._trail.body["settings"], self._trail.account
        for entry in self._ledger.entries(label, start, stop):
            if entry.get("eventType") != API_CALL or entry.get("recipientAccountId") != account:
                continue
            if (entry.get("userIdentity") or {}).get("arn") == self._session.principal_arn:
                continue
            if selected(entry, settings):
                yield entry

    def _file_key(self, label: Label, start: int, first: Mapping[str, Any]) -> str:
        at = datetime.fromisoformat(str(first["recorded"])).astimezone(UTC)
        unique = hashlib.sha384(f"{self._trail.body['uid']} {label.token} {start}".encode()).hexdigest()[:16]
        account, region = self._trail.account, self._session.region
        name = f"{account}_CloudTrail_{region}_{at:%Y%m%dT%H%MZ}_{unique}.json.gz"
        return f"{base(self._trail.body['settings'])}AWSLogs/{account}/CloudTrail/{region}/{at:%Y/%m/%d}/{name}"

    # Digests

    def _digest(self) -> None:
        body = self._trail.body
        if not body["settings"]["digests"] or not body.get("started"):
            return
        begin = datetime.fromisoformat(body.get("digested") or body["started"])
        if not body["logging"] and not body["files"]:
            return
        if self._now - begin < _DIGEST_EVERY:
            return
        key = self._digest_key()
        previous: Mapping[str, Any] = body.get("digest") or {}
        verifier = self._ledger.signer.verifier
        document = {
            "awsAccountId": self._trail.account,
            "digestStartTime": _seconds(begin),
            "digestEndTime": _seconds(self._now),
            "digestS3Bucket": body["settings"]["bucket"],
            "digestS3Object": key,
            "digestPublicKeyFingerprint": verifier.fingerprint,
            "digestSignatureAlgorithm": "ML-DSA-87",
            "newestEventTime": max((each["newestEventTime"] for each in body["files"]), default=None),
            "oldestEventTime": min((each["oldestEventTime"] for each in body["files"]), default=None),
            "previousDigestS3Bucket": previous.get("bucket"),
            "previousDigestS3Object": previous.get("object"),
            "previousDigestHashValue": previous.get("sha256"),
            "previousDigestHashAlgorithm": "SHA-256" if previous else None,
            "previousDigestSignature": None,
            "logFiles": body["files"],
            "honmaru": {"trail": arn(self._session, self._trail.name), "checkpoints": self._checkpoints()},
        }
        content = gzip.compress(orjson.dumps(document), mtime=0)
        self._put(key, content)
        self._record(key, content)
        digest = {
            "bucket": body["settings"]["bucket"],
            "object": key,
            "sha256": hashlib.sha256(content).hexdigest(),
        }
        self._note(files=[], digest=digest, digested=self._now.isoformat())

    def _checkpoints(self) -> Sequence[str]:
        return [
            self._ledger.checkpoint(label).note
            for label in sorted(self._ledger.labels(), key=lambda each: each.canonical)
            if self._session.label.dominates(label)
        ]

    def _digest_key(self) -> str:
        account, region = self._trail.account, self._session.region
        name = f"{account}_CloudTrail-Digest_{region}_{self._trail.name}_{region}_{self._now:%Y%m%dT%H%M%SZ}.json.gz"
        day = f"{self._now:%Y/%m/%d}"
        return f"{base(self._trail.body['settings'])}AWSLogs/{account}/CloudTrail-Digest/{region}/{day}/{name}"

    def _record(self, key: str, content: bytes) -> None:
        """An entry that holds the digest's digest: what the ledger's signature covers."""
        identifier = self._step._ids.uuid()
        entry = api_call(
            event_id=identifier,
            session=self._session,
            service="cloudtrail",
            event_source="cloudtrail.amazonaws.com",
            operation="DeliverDigest",
            request_id=identifier,
            at=self._now,
            decision="Allow",
            resources=[(arn(self._session, self._trail.name), "AWS::CloudTrail::Trail")],
            details={"object": key, "sha384": hashlib.sha384(content).hexdigest()},
            region=self._session.region,
            account=self._session.account,
            read_only=False,
        )
        self._ledger.append(self._session.label, {**entry, "eventType": "AwsServiceEvent"}).result()

    # Both

    def _put(self, key: str, content: bytes) -> None:
        source = arn(self._session, self._trail.name)
        bucket = self._trail.body["settings"]["bucket"]
        kms_key = self._trail.body["settings"].get("key") or ""
        context = {CONTEXT: source} if kms_key else {}
        self._step._deliveries.write(
            self._session, bucket, key, [content], source_arn=source, kms_key=kms_key, context=context
        )

    def _note(self, **members: Any) -> None:
        self._trail = self._records.update(self._trail, {**self._trail.body, **members})


def _seconds(at: datetime) -> str:
    return at.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
