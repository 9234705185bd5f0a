"""Placeholder with the final interface; the lattice's owner replaces the inside."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from honmaru.core.errors import ValidationFault

_LEVELS = ("UNCLASSIFIED", "CUI", "SECRET", "TOP SECRET")


@dataclass(frozen=True, slots=True)
class Label:
    level: int

    @staticmethod
    def parse(marking: str) -> Label:
        """A banner or portion marking → Label. Raises ValidationFault for anything not understood (fail closed)."""
        try:
            return Label(_LEVELS.index(marking.strip().upper()))
        except ValueError:
            raise ValidationFault(f"{marking!r} is not a marking") from None

    @staticmethod
    def decode(canonical: str) -> Label:
        """The inverse of `canonical`; raises IntegrityFault for anything else."""
        return Label.parse(canonical)

    @property
    def canonical(self) -> str:
        """A lossless text form: equal labels have equal text. What records, blobs and ledger entries store."""
        return _LEVELS[self.level]

    @property
    def banner(self) -> str:
        return _LEVELS[self.level]

    @property
    def portion(self) -> str:
        return f"({_LEVELS[self.level][0]})"

    @property
    def token(self) -> str:
        """16 hex characters that name the label in file names without telling it."""
        return hashlib.sha384(self.canonical.encode()).hexdigest()[:16]

    def dominates(self, other: Label) -> bool:
        return self.level >= other.level

    def join(self, other: Label) -> Label:
        return Label(max(self.level, other.level))

    def meet(self, other: Label) -> Label:
        return Label(min(self.level, other.level))


BOTTOM = Label(0)
