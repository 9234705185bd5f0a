"""AWS's own host names of a region, for clients that hard-code them: which they are, and the lines that lead them here.

Invariants:
- The names are those that boto3 computes for the carried services (botocore's endpoint rules: plain, FIPS and
  dual-stack), so nothing that a client derives is forgotten and nothing of another region is claimed.
- Nothing is resolved, and nothing on the machine is changed: the operator puts the lines where they belong.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from botocore.endpoint_provider import EndpointProvider
from botocore.exceptions import EndpointProviderError
from botocore.loaders import Loader

REAL_PORT = 443


def service_hosts(region: str, services: Iterable[str]) -> list[str]:
    """The host names of `services` (botocore's names) in `region`, sorted, S3's first."""
    loader = Loader()
    partitions = loader.load_data("partitions")
    found: set[str] = set()
    for service in services:
        rules = EndpointProvider(loader.load_service_model(service, "endpoint-rule-set-1"), partitions)
        for fips, dual in ((False, False), (True, False), (False, True)):
            try:
                answer = rules.resolve_endpoint(Region=region, UseFIPS=fips, UseDualStack=dual)
            except EndpointProviderError:  # the partition has no such variant
                continue
            host = answer.url.partition("://")[2].partition("/")[0]
            found.update(f"{prefix}{host}" for prefix in ("", *_prefixes(loader, service)))
    return sorted(found, key=lambda name: (not name.startswith(("s3.", "s3-")), name))


def _prefixes(loader: Loader, service: str) -> set[str]:
    """What some operations put in front of the service's host (`stream-` of StartLiveTail)."""
    operations = loader.load_service_model(service, "service-2")["operations"].values()
    stated = {operation.get("endpoint", {}).get("hostPrefix", "") for operation in operations}
    return {prefix for prefix in stated if prefix and "{" not in prefix}


def certificate_names(hosts: Sequence[str]) -> list[str]:
    """What the server's certificate must name: the hosts, and every bucket in front of S3's."""
    return [*hosts, *(f"*.{host}" for host in _s3(hosts))]


def default_buckets(region: str, account: str) -> list[str]:
    """Buckets that AWS's SDKs make by themselves, for the lines of a hosts file, which has no wildcards."""
    return [f"sagemaker-{region}-{account}", f"amazon-braket-{region}-{account}"]


def hosts_lines(address: str, hosts: Sequence[str], buckets: Iterable[str]) -> list[str]:
    """Lines for /etc/hosts. Each of `buckets` is given names of its own in front of S3's."""
    names = [*hosts, *(f"{bucket}.{host}" for bucket in buckets for host in _s3(hosts))]
    return [f"{address} {name}" for name in names]


def dns_lines(address: str, hosts: Sequence[str]) -> list[str]:
    """Lines for dnsmasq (split DNS), which cover every bucket."""
    return [f"address=/{host}/{address}" for host in hosts]


def _s3(hosts: Sequence[str]) -> list[str]:
    return [host for host in hosts if host.startswith(("s3.", "s3-"))]
