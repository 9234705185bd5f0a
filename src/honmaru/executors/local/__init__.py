"""The local executor; its runner process imports this package too, so it must stay light."""

from honmaru.executors.local.executor import LocalExecutor

__all__ = ["LocalExecutor"]
