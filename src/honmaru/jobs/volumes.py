"""The scratch directories of jobs: encrypted under a key of the key service where a job asks for it (VolumeKmsKeyId).

Invariants:
- The data key is asked for by the job's own session when its inputs are staged, so the key's policy decides then; it is
  kept nowhere but in the kernel. A job that is run again asks again.
- A job that asks for an encrypted volume never runs on another.
- When a scratch directory is gone its key is forgotten, so what is left of it on the disk opens for nobody.

Source: Amazon SageMaker API reference, ResourceConfig.VolumeKmsKeyId.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from honmaru.core.errors import ValidationFault
from honmaru.core.sessions import Session
from honmaru.jobs.staging import private_folder
from honmaru.ports.keys import SessionKeys
from honmaru.ports.volumes import Volumes

_SERVICE = "sagemaker"
CONTEXT = "aws:sagemaker:arn"


@dataclass(frozen=True, slots=True)
class JobVolumes:
    """Args: what encrypts directories, the key service, and where the directories lie. Without the first two every
    encrypted volume is refused."""

    volumes: Volumes | None = None
    keys: SessionKeys | None = None
    scratch: Path = Path()

    def check(self) -> None:
        """Raises ValidationFault where no encrypted volume can be had."""
        if self.volumes is None or self.keys is None or not self.volumes.supported(self.scratch):
            raise ValidationFault(
                "ResourceConfig.VolumeKmsKeyId: the file system of this enclave's data directory does not encrypt "
                "(fscrypt; on ext4 `tune2fs -O encrypt`). Leave it out, or ask the operator"
            )

    def maker(self, session: Session, key: str, arn: str) -> Callable[[Path], None]:
        """What makes the root of a job that names a key; "" makes a plain one."""
        if not key:
            return private_folder

        def make(root: Path) -> None:
            self.check()
            if self.volumes is not None and self.keys is not None:
                self.volumes.create(root, self.keys.data_key(session, key, {CONTEXT: arn}, _SERVICE).plain)

        return make

    def held(self, root: Path) -> bytes:
        """Names the key that a job's root needs; to be asked before the root is deleted."""
        return b"" if self.volumes is None else self.volumes.held(root)

    def discard(self, root: Path, held: bytes) -> None:
        """Delete a job's root, if it is still there, and forget its key."""
        shutil.rmtree(root, ignore_errors=True)
        if self.volumes is not None:
            self.volumes.release(root.parent, held)
