"""What an operator decides before an enclave starts, checked all at once.

Invariants:
- The enclave listens on loopback only.
- TLS is on unless plain http is asked for by name.
- Region and account are fixed by the first start; a later start with another region is refused.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from pathlib import Path

from honmaru.core.errors import ConfigurationFault
from honmaru.core.partitions import partition_of

DEFAULT_REGION = "us-gov-west-1"
DEFAULT_PORT = 8443
MOST_WORKERS = 64


@dataclass(frozen=True, slots=True)
class Settings:
    """`database` and `blobs` are URLs; None means SQLite and a directory inside `data`. Times are in seconds."""

    data: Path
    region: str | None = None
    host: str = "127.0.0.1"
    port: int = DEFAULT_PORT
    http: bool = False
    database: str | None = None
    blobs: str | None = None
    model_idle_s: float = 600.0
    principal_requests_s: float = 5_000.0
    """Requests of one person at one label in a second, beyond which they are throttled; 0 for no limit."""
    account_requests_s: float = 20_000.0
    """As above, of one account at one label."""
    real_hostnames: bool = False
    """Serve AWS's own host names of the region under the private CA, for clients that hard-code them."""

    traces: str = ""
    """Where spans of requests go: "" nowhere, "files" into the data directory, or the URL of a collector
    on loopback."""
    traces_label: str = ""
    """The highest label whose spans a collector is told; the lowest when left out."""

    workers: int = 1
    """Processes that answer requests. With more than one, a further process keeps the ledger and all that is once."""

    sealed: bool = False
    """Refuse to start unless the root key is sealed; a sealed one waits for `honmaru unseal` in any case."""

    def check(self) -> None:
        """Raises ConfigurationFault with every problem and its repair."""
        problems: list[str] = []
        if self.region is not None:
            try:
                partition_of(self.region)
            except ConfigurationFault as fault:
                problems += fault.problems
        if not ipaddress.ip_address(self.host).is_loopback:
            problems.append(f"host {self.host} is not a loopback address; use 127.0.0.1")
        if self.real_hostnames and self.http:
            problems.append("--real-hostnames needs TLS, for clients ask AWS's names over https: leave out --http")
        if min(self.principal_requests_s, self.account_requests_s) < 0:
            problems.append("a rate of requests is below 0; use 0 for no limit")
        if not 1 <= self.workers <= MOST_WORKERS:
            problems.append(f"{self.workers} workers cannot serve: use 1 to {MOST_WORKERS}, one for each core or fewer")
        if not 0 <= self.port <= 65535:
            problems.append(f"port {self.port} is outside 0..65535")
        if self.data.exists() and not self.data.is_dir():
            problems.append(f"{self.data} is a file; name a directory with --data")
        if problems:
            raise ConfigurationFault(problems)
