"""Clearances: what a person may be trusted with, and ceilings: what an enclave may hold.

A clearance is not a label. It holds a level, read-ins, a nationality and an employer; `may_hold` says whether a person
with it may act at a label. A role or enclave without a clearance of its own is limited by the partition's ceiling only.

Invariants:
- `may_hold` is downward closed: who may hold a label may hold any that it dominates.
- A country that is not in a label's releasable set never holds it, whatever the level.
- If `a.covers(b)`, then a may hold every label that b may hold. Nobody grants more than they cover.

Text form (it fits an AWS tag value): a marking, then optional `nationality=GBR employer=contractor tenants=a+b
purposes=x+y`. Absent: USA, government, none. A level above UNCLASSIFIED, or bare CUI, covers all CUI categories.

Source: EO 13526 4.1 (level, need-to-know); ICD 710 (PROPIN, NOCON and contractors); CAPCO Manual 2016 H.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache

from honmaru.core import markings
from honmaru.core.countries import COUNTRIES
from honmaru.core.errors import ValidationFault
from honmaru.core.labels import Label
from honmaru.core.markings import UNCLASSIFIED
from honmaru.core.partitions import Partition

READ_IN_DISSEM = frozenset(("ND", "XD"))
"""NODIS and EXDIS go to named readers only: a clearance must list them."""
GOVERNMENT_ONLY = frozenset(("NOCON", "FED ONLY", "PR"))
"""Not for contractors: no-contractor, federal employees only, and other companies' proprietary information."""

_SUFFIX = re.compile(r"(?: (?:nationality|employer|tenants|purposes)=[A-Za-z0-9+._-]+)*$")


@dataclass(frozen=True, slots=True)
class Clearance:
    """What a principal may be trusted with. `cui` None means every category."""

    level: int = UNCLASSIFIED
    cui: frozenset[str] | None = frozenset()
    sci: frozenset[str] = frozenset()
    sar: frozenset[str] = frozenset()
    aea: frozenset[str] = frozenset()
    nato: bool = False
    dissem: frozenset[str] = frozenset()
    nationality: str = "USA"
    employer: str = "government"
    tenants: frozenset[str] = frozenset()
    purposes: frozenset[str] = frozenset()

    @staticmethod
    def parse(text: str) -> Clearance:
        """Text form → Clearance. Raises ValidationFault for anything not understood."""
        return _parse(text)

    def covers(self, other: Clearance) -> bool:
        """Whether this clearance may hold all that `other` may hold (so its bearer may grant `other`)."""
        return (
            self.level >= other.level
            and (self.cui is None or (other.cui is not None and self.cui >= other.cui))
            and self.sci >= other.sci
            and self.sar >= other.sar
            and self.aea >= other.aea
            and self.nato >= other.nato
            and self.dissem >= other.dissem
            and self.nationality == other.nationality
            and (self.employer == "government" or other.employer == "contractor")
            and self.tenants >= other.tenants
            and self.purposes >= other.purposes
        )


@lru_cache(maxsize=4096)
def _parse(text: str) -> Clearance:
    match = _SUFFIX.search(text)
    suffix = match.group() if match else ""
    axes = markings.read(text.removesuffix(suffix))
    attributes: dict[str, str] = {}
    for part in suffix.split():
        key, _, value = part.partition("=")
        if key in attributes:
            raise ValidationFault(f"{text!r} is not a clearance: {key} is repeated")
        attributes[key] = value
    nationality = attributes.get("nationality", "USA").upper()
    employer = attributes.get("employer", "government")
    if nationality not in COUNTRIES:
        raise ValidationFault(f"{nationality!r} is not a nationality; expected a country trigraph such as USA or GBR")
    if employer not in ("government", "contractor"):
        raise ValidationFault(f"{employer!r} is not an employer; expected government or contractor")
    every_category = axes.level > UNCLASSIFIED or axes.cui == {"CUI"}
    return Clearance(
        level=axes.level,
        cui=None if every_category and not axes.cui - {"CUI"} else axes.cui,
        sci=axes.sci,
        sar=axes.sar,
        aea=axes.aea,
        nato="NATO" in axes.fgi,
        dissem=axes.dissem & READ_IN_DISSEM,
        nationality=nationality,
        employer=employer,
        tenants=frozenset(filter(None, attributes.get("tenants", "").split("+"))),
        purposes=frozenset(filter(None, attributes.get("purposes", "").split("+"))),
    )


def may_hold(clearance: Clearance, label: Label) -> bool:
    """Whether a person with this clearance may act (read and write) at this label."""
    axes = label.axes
    return (
        clearance.level >= axes.level
        and (clearance.cui is None or clearance.cui >= axes.cui)
        and clearance.sci >= axes.sci
        and clearance.sar >= axes.sar
        and clearance.aea >= axes.aea
        and (clearance.nato or "NATO" not in axes.fgi)
        and clearance.dissem >= axes.dissem & READ_IN_DISSEM
        and (axes.rel is None or clearance.nationality in axes.rel)
        and (clearance.employer == "government" or not axes.dissem & GOVERNMENT_ONLY)
        and clearance.tenants >= axes.tenants
        and clearance.purposes >= axes.purposes
    )


def ceiling_permits(partition: Partition, label: Label) -> bool:
    """Whether an enclave of this partition may hold the label at all.

    A ceiling permits every caveat at or below its level; the ceiling CUI is UNCLASSIFIED with any CUI category, and a
    ceiling UNCLASSIFIED permits no CUI.
    """
    ceiling = Label.parse(partition.ceiling).axes
    if label.level > ceiling.level:
        return False
    return ceiling.level > UNCLASSIFIED or bool(ceiling.cui) or not label.axes.cui
