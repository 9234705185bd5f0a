"""The supervisor: leases, takeover, bounded attempts, and that nothing ends twice."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from honmaru.app.runtime import SystemClock, SystemIds
from honmaru.core.errors import EngineFailed, ValidationFault
from honmaru.jobs.kinds import LEASE, Claim, LeaseLost
from honmaru.jobs.supervisor import ATTEMPTS, Supervisor
from honmaru.security.guard import Record
from honmaru.testing.keep import Keep, session

WHO = session("SECRET")


class Errands:
    """A kind whose jobs do what the test says."""

    service, kind, claimable, slots = "sagemaker", "errand", frozenset({"Open"}), 2

    def __init__(self, work: Callable[[Claim], None]) -> None:
        self.work = work
        self.runs: list[str] = []

    def run(self, claim: Claim) -> None:
        self.runs.append(claim.record.name)
        self.work(claim)

    def fail(self, claim: Claim, reason: str) -> None:
        def end(body: dict[str, object]) -> str:
            body["reason"] = reason
            return "Failed"

        claim.change(end)


def done(claim: Claim) -> None:
    claim.change(lambda _: "Done")


@pytest.fixture
def keep(tmp_path: Path) -> Iterator[Keep]:
    made = Keep(tmp_path)
    yield made
    made.close()


def create(keep: Keep, name: str, **body: object) -> None:
    keep.guard.records(WHO, "sagemaker").create("errand", name, body, "Open")


def stored(keep: Keep, name: str) -> Record:
    found = keep.guard.records(WHO, "sagemaker").get("errand", name)
    assert found is not None
    return found


def supervised(keep: Keep, kind: Errands, **more: object) -> Supervisor:
    made = Supervisor(
        [kind],
        keep.guard,
        clock=SystemClock(),
        ids=SystemIds(),
        **{"owner": "here", "poll_s": 0.02, **more},  # type: ignore[arg-type]
    )
    made.start()
    return made


def until(condition: Callable[[], bool], limit_s: float = 20) -> None:
    deadline = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_each_job_is_run_and_ended_once(keep: Keep) -> None:
    kind = Errands(done)
    for number in range(6):
        create(keep, f"job-{number}")
    supervisor = supervised(keep, kind)
    until(lambda: all(stored(keep, f"job-{number}").state == "Done" for number in range(6)))
    supervisor.stop()
    assert sorted(kind.runs) == [f"job-{number}" for number in range(6)]


def test_no_more_run_at_once_than_there_are_slots(keep: Keep) -> None:
    gate, inside, most = threading.Event(), [], []

    def work(claim: Claim) -> None:
        inside.append(claim)
        most.append(len(inside))
        gate.wait(10)
        inside.remove(claim)
        done(claim)

    for number in range(5):
        create(keep, f"job-{number}")
    supervisor = supervised(keep, Errands(work))
    until(lambda: len(inside) == 2)
    time.sleep(0.2)
    gate.set()
    until(lambda: all(stored(keep, f"job-{number}").state == "Done" for number in range(5)))
    supervisor.stop()
    assert max(most) == 2


def test_a_fault_of_the_job_fails_it_at_once(keep: Keep) -> None:
    def work(_: Claim) -> None:
        raise ValidationFault("the input is wrong")

    kind = Errands(work)
    create(keep, "wrong")
    supervisor = supervised(keep, kind)
    until(lambda: stored(keep, "wrong").state == "Failed")
    supervisor.stop()
    assert stored(keep, "wrong").body["reason"] == "the input is wrong"
    assert kind.runs == ["wrong"]


def test_a_fault_of_the_platform_is_tried_again_and_then_fails(keep: Keep, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("honmaru.jobs.supervisor.BACKOFF_S", 0.01)

    def work(_: Claim) -> None:
        raise EngineFailed("the engine is gone")

    kind = Errands(work)
    create(keep, "unlucky")
    supervisor = supervised(keep, kind)
    until(lambda: stored(keep, "unlucky").state == "Failed")
    supervisor.stop()
    assert len(kind.runs) == ATTEMPTS
    assert "the engine is gone" in stored(keep, "unlucky").body["reason"]


def test_a_foreign_lease_is_honoured_until_it_ends_and_an_own_old_one_is_not(keep: Keep) -> None:
    foreign = {"owner": "elsewhere", "boot": "x", "until": "2999-01-01T00:00:00+00:00"}
    create(keep, "foreign", lease=foreign)
    create(keep, "ended", lease={**foreign, "until": "2001-01-01T00:00:00+00:00"})
    create(keep, "earlier", lease={**foreign, "owner": "here"})
    supervisor = supervised(keep, Errands(done))
    until(lambda: stored(keep, "ended").state == stored(keep, "earlier").state == "Done")
    time.sleep(0.2)
    supervisor.stop()
    assert stored(keep, "foreign").state == "Open"
    assert stored(keep, "foreign").body[LEASE] == foreign


def test_who_lost_the_lease_changes_nothing_more(keep: Keep) -> None:
    lost: list[bool] = []

    def work(claim: Claim) -> None:
        record = stored(keep, "taken")
        thief = {"owner": "elsewhere", "boot": "x", "until": "2999-01-01T00:00:00+00:00"}
        keep.guard.records(WHO, "sagemaker").update(record, {**record.body, LEASE: thief})
        try:
            done(claim)
        except LeaseLost:
            lost.append(True)
            raise

    create(keep, "taken")
    supervisor = supervised(keep, Errands(work))
    until(lambda: bool(lost))
    supervisor.stop()
    assert stored(keep, "taken").state == "Open"


def test_a_users_change_meanwhile_is_kept(keep: Keep) -> None:
    def work(claim: Claim) -> None:
        record = stored(keep, "shared")
        keep.guard.records(WHO, "sagemaker").update(record, {**record.body, "wish": "stop"})
        claim.change(lambda body: body.update(step=1))
        done(claim)

    create(keep, "shared")
    supervisor = supervised(keep, Errands(work))
    until(lambda: stored(keep, "shared").state == "Done")
    supervisor.stop()
    body = stored(keep, "shared").body
    assert (body["wish"], body["step"]) == ("stop", 1)


def test_a_deleted_job_is_let_go(keep: Keep) -> None:
    finished = threading.Event()

    def work(claim: Claim) -> None:
        keep.guard.records(WHO, "sagemaker").delete(stored(keep, "deleted"))
        try:
            done(claim)
        finally:
            finished.set()

    create(keep, "deleted")
    supervisor = supervised(keep, Errands(work))
    assert finished.wait(10)
    supervisor.stop()
    assert keep.guard.records(WHO, "sagemaker").get("errand", "deleted") is None
