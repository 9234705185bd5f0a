"""Labels: the product lattice that every byte, session and log carries.

`a <= b` (b dominates a) means that information may flow from a to b. Axis by axis: level and the sets of CUI, SCI, SAR,
AEA, FGI, originators, dissemination controls, tenants and purposes grow upwards; the countries that may be given
(`rel`) or shown (`disp`) the information shrink upwards; RELIDO is lost upwards.

Invariants:
- Labels form a lattice under `join` and `meet`; BOTTOM (UNCLASSIFIED, everybody) is below every label.
- A Label is immutable and interned: equal labels are one object, so equality and hashing are those of identity.
- Above UNCLASSIFIED `rel` is an explicit set that holds USA, and `rel` is a subset of `disp`.
- Every Label is consistent (`markings.inconsistency`), and consistent labels are closed under join and meet.
- `decode(x.canonical) == x` for every label, and equal labels have equal canonical text.

Not here: integrity (Biba). No marking states it, and it is a property of an object's evidence, not of its secrecy.
Source: Denning 1976; CAPCO Register and Manual 2016 D.2 table 3 (roll-up).
"""

from __future__ import annotations

import hashlib
import re
import threading
import weakref
from collections.abc import Iterable
from typing import NoReturn

from honmaru.core import markings
from honmaru.core.errors import IntegrityFault, ValidationFault
from honmaru.core.markings import LEVEL_LETTERS, UNCLASSIFIED, USA_ONLY, Axes

_CACHE_LIMIT = 1 << 16
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
_SETS = ("cui", "sci", "sar", "aea", "fgi", "orcon", "dissem", "tenants", "purposes")


class Label:
    """An element of the lattice. Make one with `parse`, `decode`, `join`, `meet` or `restricted`."""

    __slots__ = ("__weakref__", "_banner", "_canonical", "_number", "_portion", "_token", "axes")

    axes: Axes
    _number: int
    _canonical: str
    _banner: str
    _portion: str
    _token: str

    def __new__(cls, axes: Axes) -> Label:
        """The one Label with these values. Raises ValidationFault when they break an invariant."""
        with _LOCK:
            known = _INTERNED.get(axes)
        if known is not None:
            return known
        _check(axes)
        made = object.__new__(cls)
        put = object.__setattr__
        put(made, "axes", axes)
        canonical = _encode(axes)
        put(made, "_canonical", canonical)
        put(made, "_banner", markings.render(axes, banner=True))
        put(made, "_portion", f"({markings.render(axes, banner=False)})")
        put(made, "_token", hashlib.sha384(canonical.encode()).hexdigest()[:16])
        with _LOCK:
            known = _INTERNED.get(axes)
            if known is not None:
                return known
            _NUMBERS[0] += 1
            put(made, "_number", _NUMBERS[0])
            _INTERNED[axes] = made
        return made

    @staticmethod
    def parse(marking: str) -> Label:
        """A banner or portion marking → Label. Raises ValidationFault for anything not understood (fail closed)."""
        return Label(markings.parse(marking))

    @staticmethod
    def decode(canonical: str) -> Label:
        """The inverse of `canonical`; raises IntegrityFault for anything else."""
        known = _DECODED.get(canonical)
        if known is not None:
            return known
        try:
            label = Label(_decode(canonical))
        except (ValidationFault, ValueError) as cause:
            raise IntegrityFault("stored text is not a canonical label") from cause
        if label.canonical != canonical:
            raise IntegrityFault("stored text is not a canonical label")
        if len(_DECODED) >= _CACHE_LIMIT:
            _DECODED.clear()
        _DECODED[canonical] = label
        return label

    @property
    def level(self) -> int:
        """0 UNCLASSIFIED, 1 CONFIDENTIAL, 2 SECRET, 3 TOP SECRET."""
        return self.axes.level

    @property
    def canonical(self) -> str:
        """A lossless text form: equal labels have equal text. What records, blobs and ledger entries store."""
        return self._canonical

    @property
    def banner(self) -> str:
        """The banner line, for example TOP SECRET//SI-G//ORCON/NOFORN. Classified banners omit CUI."""
        return self._banner

    @property
    def portion(self) -> str:
        """The portion marking, for example (TS//SI-G//OC/NF)."""
        return self._portion

    @property
    def token(self) -> str:
        """16 hex characters that name the label in file names without telling it."""
        return self._token

    def dominates(self, other: Label) -> bool:
        """Whether information at `other` may flow to this label. Reflexive, antisymmetric, transitive."""
        if self is other:
            return True
        try:
            return _DOMINATES[self._number, other._number]
        except KeyError:
            answer = _dominates(self.axes, other.axes)
        if len(_DOMINATES) >= _CACHE_LIMIT:
            _DOMINATES.clear()
        _DOMINATES[self._number, other._number] = answer
        return answer

    def join(self, other: Label) -> Label:
        """The least label that dominates both: the label of what is derived from both."""
        key = (self._number, other._number)
        known = _JOINS.get(key)
        if known is not None:
            return known
        if self.dominates(other):
            return self
        if other.dominates(self):
            return other
        a, b = self.axes, other.axes
        label = Label(
            Axes(
                level=max(a.level, b.level),
                rel=_intersection(a.rel, b.rel),
                disp=_intersection(a.disp, b.disp),
                relido=a.relido and b.relido,
                **{axis: getattr(a, axis) | getattr(b, axis) for axis in _SETS},
            )
        )
        if len(_JOINS) >= _CACHE_LIMIT:
            _JOINS.clear()
        _JOINS[key] = label
        return label

    def meet(self, other: Label) -> Label:
        """The greatest label that both dominate: what is left of two limits taken together."""
        if self.dominates(other):
            return other
        if other.dominates(self):
            return self
        a, b = self.axes, other.axes
        return Label(
            Axes(
                level=min(a.level, b.level),
                rel=_union(a.rel, b.rel),
                disp=_union(a.disp, b.disp),
                relido=a.relido or b.relido,
                **{axis: getattr(a, axis) & getattr(b, axis) for axis in _SETS},
            )
        )

    def restricted(self, *, tenants: Iterable[str] = (), purposes: Iterable[str] = ()) -> Label:
        """This label raised by tenants (communities of interest) and purposes, which no marking states."""
        a = self.axes
        return Label(a._replace(tenants=a.tenants | frozenset(tenants), purposes=a.purposes | frozenset(purposes)))

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise AttributeError("a Label is immutable")

    __delattr__ = __setattr__  # type: ignore[assignment]

    def __copy__(self) -> Label:
        return self

    def __deepcopy__(self, memo: object) -> Label:
        return self

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return Label.decode, (self._canonical,)

    def __repr__(self) -> str:
        return f"Label({self._canonical!r})"

    def __str__(self) -> str:
        return self._banner


_LOCK = threading.Lock()
_INTERNED: weakref.WeakValueDictionary[Axes, Label] = weakref.WeakValueDictionary()
_NUMBERS = [0]
_DOMINATES: dict[tuple[int, int], bool] = {}
_JOINS: dict[tuple[int, int], Label] = {}
_DECODED: dict[str, Label] = {}


def _dominates(high: Axes, low: Axes) -> bool:
    return (
        high.level >= low.level
        and (low.rel is None or (high.rel is not None and high.rel <= low.rel))
        and (low.disp is None or (high.disp is not None and high.disp <= low.disp))
        and high.relido <= low.relido
        and all(getattr(high, axis) >= getattr(low, axis) for axis in _SETS)
    )


def _intersection(a: frozenset[str] | None, b: frozenset[str] | None) -> frozenset[str] | None:
    if a is None or b is None:
        return b if a is None else a
    return a & b


def _union(a: frozenset[str] | None, b: frozenset[str] | None) -> frozenset[str] | None:
    return None if a is None or b is None else a | b


def _check(axes: Axes) -> None:
    rel, disp = axes.rel, axes.disp
    problem = markings.inconsistency(axes)
    if not problem and any(markings.closed(paths) != paths for paths in (axes.sci, axes.sar, axes.aea)):
        problem = "compartments must be prefix-closed"
    if not problem and axes.cui and "CUI" not in axes.cui:
        problem = "CUI categories need CUI"
    if not problem and "OC" in axes.orcon and "OC-USGOV" not in axes.orcon:
        problem = "ORCON includes ORCON-USGOV"
    if not problem:
        if rel is None or disp is None:
            if not (rel is None and disp is None and axes.relido and axes.level == UNCLASSIFIED):
                problem = "only UNCLASSIFIED may go to everybody"
        elif not USA_ONLY <= rel <= disp:
            problem = "releasable countries must hold USA and be displayable too"
    if not problem and any(not _NAME.fullmatch(name) for name in axes.tenants | axes.purposes):
        problem = "tenants and purposes are lower-case names of at most 64 characters"
    if problem:
        raise ValidationFault(f"inconsistent label: {problem}")


def _encode(axes: Axes) -> str:
    """Level letter, then `;axis=values` for every axis that is not at the bottom, in fixed order."""
    parts = [LEVEL_LETTERS[axes.level]]
    for axis in _SETS:
        values = getattr(axes, axis)
        if values:
            parts.append(f"{axis}={','.join(sorted(values))}")
    if axes.rel is not None:
        parts.append(f"rel={','.join(sorted(axes.rel))}")
        if axes.disp is not None and axes.disp != axes.rel:
            parts.append(f"disp={','.join(sorted(axes.disp))}")
        if axes.relido:
            parts.append("relido=1")
    return ";".join(parts)


def _decode(text: str) -> Axes:
    head, *parts = text.split(";")
    values = dict(part.split("=", 1) for part in parts)
    sets = {axis: frozenset(values.pop(axis).split(",")) for axis in (*_SETS, "rel", "disp") if axis in values}
    relido = values.pop("relido", None)
    if values:
        raise ValueError("unknown axis")
    rel = sets.pop("rel", None)
    disp = sets.pop("disp", rel)
    return Axes(level=LEVEL_LETTERS.index(head), rel=rel, disp=disp, relido=rel is None or relido is not None, **sets)


BOTTOM = Label(Axes())
