"""Model servers: the embedded one and those of declared engines, started on demand for one model at one label."""

from honmaru.deployments.engines import Engines
from honmaru.deployments.servers import ModelServers

__all__ = ["Engines", "ModelServers"]
