"""Deployments keep model servers running: one sandboxed process per account, model and label, never shared."""

from honmaru.deployments.servers import ModelServers

__all__ = ["ModelServers"]
