"""The local executor and its volumes; its runner process imports this package too, so it must stay light."""

from honmaru.executors.local.executor import LocalExecutor
from honmaru.executors.local.volumes import FscryptVolumes

__all__ = ["FscryptVolumes", "LocalExecutor"]
