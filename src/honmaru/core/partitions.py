"""Regions, their partition, and the highest label each may hold.

Source: botocore `partitions.json` v1.1 (names and suffixes); the ceilings are honmaru's product decision.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from honmaru.core.errors import ConfigurationFault


@dataclass(frozen=True, slots=True)
class Partition:
    """One AWS partition. `ceiling` is the marking that no session or object in it may exceed."""

    name: str
    region_pattern: re.Pattern[str]
    dns_suffix: str
    ceiling: str


PARTITIONS = (
    Partition("aws-us-gov", re.compile(r"us-gov-[a-z]+-\d"), "amazonaws.com", "CUI"),
    Partition("aws-iso-b", re.compile(r"us-isob-[a-z]+-\d"), "sc2s.sgov.gov", "SECRET"),
    Partition("aws-iso", re.compile(r"us-iso-[a-z]+-\d"), "c2s.ic.gov", "TOP SECRET"),
)


def partition_of(region: str) -> Partition:
    """The partition of a region. Raises ConfigurationFault for a region that honmaru does not serve."""
    for partition in PARTITIONS:
        if partition.region_pattern.fullmatch(region):
            return partition
    raise ConfigurationFault(
        [f"region {region!r} is not one that honmaru serves: use us-gov-west-1, us-isob-east-1 or us-iso-east-1"]
    )
