"""Carries out lifecycle rules: expires objects, removes older versions and lone delete markers, aborts stale uploads.

A trusted subject in a narrow sense: it finds the buckets that have rules at every label, and then works on each as a
session of the platform at that bucket's label. Through the guard this session sees nothing above, and what it deletes
or makes lies at exactly that label.

Invariants:
- A rule acts on what lies at its bucket's own label: never on lower objects that are visible through the same name.
- What object lock keeps is kept.
- Each removal is decided again on the state that it replaces: an object that was written again meanwhile stays.
- Removals go the way of every deletion: one transaction, an event, an entry in the ledger under the service's name.
- Repeatable: cut short by `kill -9`, the next run does the rest.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import date, datetime
from itertools import groupby

from honmaru.core.errors import AccessDenied, Conflict, NotFound
from honmaru.core.labels import Label
from honmaru.core.sessions import platform_session
from honmaru.ports.runtime import Clock, Ids
from honmaru.security.calls import Call
from honmaru.security.guard import Guard, Record
from honmaru.services.s3 import bucket as buckets
from honmaru.services.s3 import contents, lifecycle, multipart, notification, version_listing, versions
from honmaru.services.s3.events import EXPIRATION

EVERY_S = 900.0
"""How often the rules are looked at. What they mean changes at midnight UTC, or when they are put."""

_LOG = logging.getLogger(__name__)


class _WrittenAgain(Exception):
    """The object that was to be removed is not the one that was looked at."""


class LifecycleRunner:
    """See the module. Not thread-safe: one thread runs it.

    Args:
        commits: The one that the S3 provider holds.
    """

    def __init__(
        self, guard: Guard, clock: Clock, ids: Ids, commits: buckets.BucketCommits, *, partition: str, region: str
    ) -> None:
        self._guard = guard
        self._clock = clock
        self._ids = ids
        self._commits = commits
        self._partition = partition
        self._region = region
        self._buckets = guard.trusted("s3", {"bucket"})
        self._done: dict[tuple[str, str, str], tuple[date, int]] = {}

    def run(self) -> Counter[str]:
        """Do what is due now; returns how much of what was done, over all buckets.

        A bucket is gone through once a day, and again when it has changed.
        """
        done: Counter[str] = Counter()
        now = self._clock.now()
        places = set()
        for bucket in self._buckets.list("bucket"):
            places.add((bucket.account, bucket.label))
            rules = lifecycle.rules_of(bucket)
            place = (bucket.account, bucket.label.canonical, bucket.name)
            state = (now.date(), bucket.version)
            if rules and self._done.get(place) != state:
                try:
                    done += self._of_bucket(bucket, rules, now)
                except Exception as fault:  # whatever one bucket's owner made of it, the others' are gone through
                    _LOG.error("a bucket's lifecycle could not be carried out: %s", type(fault).__name__)
                    continue
                self._done[place] = state
        for account, label in places:
            call = self._call(account, label, now)
            done["events forgotten"] += notification.prune(call.records, now)
        return done

    def _of_bucket(self, bucket: Record, rules: Sequence[lifecycle.Rule], now: datetime) -> Counter[str]:
        done: Counter[str] = Counter()
        call = self._call(bucket.account, bucket.label, now)
        lines = version_listing.walk(call.records, bucket.name)
        for key, group in groupby(lines, key=lambda line: line.key):
            own = [line.record for line in group if line.record is not None and line.record.label == bucket.label]
            for what, request, check in _due(rules, bucket, key, own, now):
                done[what] += self._remove(call, request, check)
        for upload in call.records.iterate("upload", prefix=f"{bucket.name}/"):
            if upload.label == bucket.label:
                done["uploads aborted"] += self._abort(call, bucket, upload, rules, now)
        return done

    def _remove(self, call: Call, request: Mapping[str, str], check: Callable[[Record | None], None]) -> int:
        try:
            contents.remove(call, self._commits, request, check)
        except (AccessDenied, Conflict, NotFound, _WrittenAgain):
            return 0  # locked, or not what it was: the next run looks again
        return 1

    def _abort(self, call: Call, bucket: Record, upload: Record, rules: Sequence[lifecycle.Rule], now: datetime) -> int:
        key = upload.body["key"]
        found = lifecycle.aborts(rules, key, datetime.fromisoformat(upload.body["initiated"]))
        if found is None or found[0] > now:
            return 0
        try:
            request = {"Bucket": bucket.name, "Key": key, "UploadId": upload.body["id"]}
            multipart.abort(call, request)
        except (Conflict, NotFound):
            return 0  # completed or aborted meanwhile
        return 1

    def _call(self, account: str, label: Label, now: datetime) -> Call:
        return Call(
            session=platform_session(account, self._partition, self._region, "lifecycle.s3", label),
            service="s3",
            operation=EXPIRATION,
            request_id=self._ids.uuid(),
            now=now,
            guard=self._guard,
            headers={},
            query={},
            authorizer=_nothing,
        )


_Removal = tuple[str, Mapping[str, str], Callable[[Record | None], None]]


def _due(
    rules: Sequence[lifecycle.Rule], bucket: Record, key: str, own: Sequence[Record], now: datetime
) -> Iterator[_Removal]:
    """What the rules remove of one key: (what it is called, request, check of the current version).

    Args:
        own: The key's versions at the bucket's label, newest first; the first is the current one if it is a head.
    """
    head = own[0] if own and own[0].kind == "object" else None
    older = own[1:] if head is not None else own
    left = 0
    kept = 0  # noncurrent versions that are newer and stay
    for version in older:
        marker = versions.is_marker(version)
        size = None if marker else version.body["size"]
        tags = {} if marker else version.body["tags"]
        if lifecycle.removes_noncurrent(rules, key, size, tags, version.created, kept, now):
            request = {"Bucket": bucket.name, "Key": key, "VersionId": versions.id_of(version.body)}
            yield "older versions removed", request, _anything
        else:
            left += 1
        kept += not marker
    if head is None:
        return
    since = datetime.fromisoformat(head.body["modified"])
    if versions.is_marker(head):
        if not left and lifecycle.removes_lone_marker(rules, key, since, now):
            request = {"Bucket": bucket.name, "Key": key, "VersionId": versions.id_of(head.body)}
            yield "delete markers removed", request, _only(head)
        return
    found = lifecycle.expires(rules, key, head.body["size"], head.body["tags"], since)
    if found is not None and found[0] <= now:
        yield "objects expired", {"Bucket": bucket.name, "Key": key}, _only(head)


def _only(head: Record) -> Callable[[Record | None], None]:
    def check(current: Record | None) -> None:
        if current is None or (current.version, current.label) != (head.version, head.label):
            raise _WrittenAgain

    return check


def _anything(_: Record | None) -> None:
    """An older version is named by its id, and ids are never used again."""


def _nothing(*_: object) -> str:
    """The platform's own work for the bucket's owner, who put the rules: no policy is asked."""
    return ""
