"""Following a sandboxed job to its end: what kinds of jobs that run a JobSpec share."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from honmaru.core.errors import NotFound
from honmaru.jobs.kinds import Claim
from honmaru.ports.executors import Executor, JobStatus, Phase

if TYPE_CHECKING:
    from honmaru.security.guard import Record


def status_of(executor: Executor, job_id: str) -> JobStatus | None:
    """The job's status, or None when the executor knows no such job."""
    try:
        return executor.status(job_id)
    except NotFound:
        return None


def follow(
    claim: Claim,
    executor: Executor,
    job_id: str,
    *,
    stop_wanted: Callable[[Record], bool],
    grace_s: float,
    tick: Callable[[], None],
    poll_s: float = 0.5,
) -> JobStatus | None:
    """Wait until the job no longer runs; `tick` is called about every `poll_s`.

    Returns:
        The final status (EXITED or LOST), or None when the enclave leaves and the job goes on without it.
    Raises:
        LeaseLost: somebody else follows it now.
    """
    stopping = False
    while not claim.leaving:
        status = executor.status(job_id)
        tick()
        if status.phase is not Phase.RUNNING:
            return status
        if not stopping and stop_wanted(claim.refresh()):
            executor.stop(job_id, grace_s)
            stopping = True
        claim.wait(poll_s)
    return None
