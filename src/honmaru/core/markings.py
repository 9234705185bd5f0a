"""The grammar of US classification markings: text → axes of a label, and axes → banner and portion text.

Grammar: (US | //non-US | //JOINT class) // SCI // SAP // AEA // FGI // CUI // CUI categories // dissemination // non-IC
dissemination. `//` separates categories, `/` values, `-` compartments, a space sub-compartments and country lists,
`, ` countries of REL TO and DISPLAY ONLY (a plain space is accepted there too: AWS tag values cannot hold a comma).

Invariants:
- Whatever is not understood is refused (ValidationFault); no token is ever skipped, so no marking is read as lower.
- An unmarked classified text means releasable to USA only, which is also what NOFORN says.
- Companion constraints (SI-G needs TS and ORCON ...) are validity. Each has the form "this value needs at least that",
  so the valid labels are closed under join and meet, and whatever the platform derives can be written and read again.
- parse(portion(x)) == x unless x has tenants, purposes, or open foreign sources beside a concealed one;
  parse(banner(x)) == x unless, in addition, x is classified and has CUI (a classified banner omits it).
  `Label.canonical` has no exceptions.

Source: CAPCO Register and Manual 2016 A.6, D.2, G.1, H; 32 CFR 2002; ISO 3166.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple, NoReturn

from honmaru.core.countries import COUNTRIES, ORGANISATIONS, abbreviate, country_order, expand
from honmaru.core.errors import ValidationFault

UNCLASSIFIED, CONFIDENTIAL, SECRET, TOP_SECRET = range(4)
LEVEL_NAMES = ("UNCLASSIFIED", "CONFIDENTIAL", "SECRET", "TOP SECRET")
LEVEL_LETTERS = ("U", "C", "S", "TS")
_LEVELS = {name: i for i, name in enumerate(LEVEL_NAMES)} | {letter: i for i, letter in enumerate(LEVEL_LETTERS)}
_FOREIGN_LEVELS = _LEVELS | {"RESTRICTED": CONFIDENTIAL, "R": CONFIDENTIAL}
_NATO_CLASSES = {
    "COSMIC TOP SECRET": TOP_SECRET,
    "CTS": TOP_SECRET,
    "NATO SECRET": SECRET,
    "NS": SECRET,
    "NATO CONFIDENTIAL": CONFIDENTIAL,
    "NC": CONFIDENTIAL,
    "NATO RESTRICTED": CONFIDENTIAL,
    "NR": CONFIDENTIAL,
    "NATO UNCLASSIFIED": UNCLASSIFIED,
    "NU": UNCLASSIFIED,
}


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


USA_ONLY = frozenset(("USA",))
CONCEALED = "*"
MARKING_LIMIT = 2048

_SCI_CONTROLS = {"HCS": ("O", "P", "X"), "KDK": None, "RSV": None, "SI": None, "TK": ("BLFH", "IDIT", "KAND")}
_SCI_NAMES = {
    "COMINT": "SI",
    "SPECIAL INTELLIGENCE": "SI",
    "TALENT KEYHOLE": "TK",
    "RESERVE": "RSV",
    "KLONDIKE": "KDK",
    "GAMMA": "G",
    "BLUEFISH": "BLFH",
    "IDITAROD": "IDIT",
    "KANDIK": "KAND",
}
_AEA_ROOTS = ("RD", "FRD", "DCNI", "UCNI", "TFNI", "ATOMAL")
_AEA_NAMES = {
    "RESTRICTED DATA": "RD",
    "FORMERLY RESTRICTED DATA": "FRD",
    "DOD UCNI": "DCNI",
    "DOE UCNI": "UCNI",
    "TRANSCLASSIFIED FOREIGN NUCLEAR INFORMATION": "TFNI",
    "SG": "SIGMA",
}
_AEA_BANNERS = {"DCNI": "DOD UCNI", "UCNI": "DOE UCNI"}

# (key, banner, portion) in Register order. REL TO and DISPLAY ONLY take a country list.
_IC_DISSEM = (
    ("RSEN", "RSEN", "RS"),
    ("FOUO", "FOUO", "FOUO"),
    ("OC", "ORCON", "OC"),
    ("OC-USGOV", "ORCON-USGOV", "OC-USGOV"),
    ("IMC", "IMCON", "IMC"),
    ("NF", "NOFORN", "NF"),
    ("PR", "PROPIN", "PR"),
    ("REL TO", "REL TO", "REL TO"),
    ("RELIDO", "RELIDO", "RELIDO"),
    ("DSEN", "DEA SENSITIVE", "DSEN"),
    ("FISA", "FISA", "FISA"),
    ("FED ONLY", "FED ONLY", "FED ONLY"),
    ("FEDCON", "FEDCON", "FEDCON"),
    ("NOCON", "NOCON", "NOCON"),
    ("DL ONLY", "DL ONLY", "DL ONLY"),
    ("AC", "ATTORNEY-CLIENT", "AC"),
    ("AWP", "ATTORNEY-WP", "AWP"),
    ("DELIB", "DELIBERATIVE", "DELIB"),
    ("DISPLAY ONLY", "DISPLAY ONLY", "DISPLAY ONLY"),
)
_OTHER_DISSEM = (
    ("DS", "LIMDIS", "DS"),
    ("XD", "EXDIS", "XD"),
    ("ND", "NODIS", "ND"),
    ("SBU", "SBU", "SBU"),
    ("LES", "LES", "LES"),
    ("SSI", "SSI", "SSI"),
)
_BANNER_OF = {key: banner for key, banner, _ in _IC_DISSEM + _OTHER_DISSEM}
_PORTION_OF = {key: portion for key, _, portion in _IC_DISSEM + _OTHER_DISSEM}
_IC_KEYS = {text: key for key, banner, portion in _IC_DISSEM for text in (banner, portion)}
_OTHER_KEYS = {text: key for key, banner, portion in _OTHER_DISSEM for text in (banner, portion)}
_IC_ORDER = [key for key, _, _ in _IC_DISSEM]
_OTHER_ORDER = [key for key, _, _ in _OTHER_DISSEM]
_OWN_AXES = frozenset(("FOUO", "OC", "OC-USGOV", "NF", "REL TO", "RELIDO", "DISPLAY ONLY"))
DISSEM_TOKENS = frozenset((*_IC_ORDER, *_OTHER_ORDER)) - _OWN_AXES

# Abbreviations of the CUI registry; "SP-" before one marks CUI Specified.
CUI_CATEGORIES = _words(
    """
    ADJ ADPO ALIEN ARCHR ASYL AIV AG AGMT BATT BTH BUDG CCI CEII CENS CHEM CHRI CMPRS CONREP CONTRACT CRIT CTI CVI
    DCRIT DNA DPRIV DREC EMGT EXPT EXPTR FHFNPI FINT FNC FSEC FUND GENETIC GEO GJ HISTP HLTH IFNC INF INFRA INTEL INTL
    INV IT ISVI JURY JUV LCOMM LDNA LFNC LMI LPROT LPROF LSCRN LVIC MERG MFC MIL MIT NNPI NPSR NUC OPSEC PAT PATF PCII
    PEN PERS PHYS PII PIN POST POW PRES PRIIG PRIVILEGE PROC PROT PRVCY PSYCH RAIL RETAIL SAFE SAFETY SEC
    SGI SRI SSEL STAT STU SURVEY SUBJ TAX TDOC TSAP UEI VETS VISA WATER WDT WHSTL
    """
)

_IDENTIFIER = re.compile(r"[A-Z0-9]{1,32}")
_TEXT = re.compile(r"[A-Z0-9 ,()/-]+")


class Axes(NamedTuple):
    """The values of a label, one per axis of the product lattice. `rel` and `disp` None mean everybody.

    `sci`, `sar`, `aea` hold paths ("SI", "SI-G", "SI-G ABCD") and are prefix-closed; `cui` holds "CUI" whenever it
    holds anything; `orcon` holds "OC-USGOV" whenever it holds "OC".
    """

    level: int = 0
    cui: frozenset[str] = frozenset()
    sci: frozenset[str] = frozenset()
    sar: frozenset[str] = frozenset()
    aea: frozenset[str] = frozenset()
    fgi: frozenset[str] = frozenset()
    rel: frozenset[str] | None = None
    disp: frozenset[str] | None = None
    relido: bool = True
    orcon: frozenset[str] = frozenset()
    dissem: frozenset[str] = frozenset()
    tenants: frozenset[str] = frozenset()
    purposes: frozenset[str] = frozenset()


def parse(text: str) -> Axes:
    """A banner or portion marking → its axes, companion constraints included.

    Raises ValidationFault for anything not understood, out of order, or inconsistent (fail closed).
    """
    reader = _Reader(text)
    axes = reader.axes()
    # A text that does not say NOFORN does not satisfy "needs NOFORN", although it is not releasable either.
    stated = reader.controls & {"NF", "REL TO", "RELIDO", "DISPLAY ONLY"}
    problem = inconsistency(axes if stated else axes._replace(relido=True))
    if problem:
        _refuse(text, problem)
    return axes


def read(text: str) -> Axes:
    """As `parse`, without the companion constraints: what a clearance states is not a document's marking."""
    return _Reader(text).axes()


def _refuse(text: str, why: str) -> NoReturn:
    shown = text if len(text) <= 160 else text[:160] + "..."
    raise ValidationFault(f"{shown!r} is not a marking: {why}; expected for example SECRET//NOFORN or (S//SI//NF)")


def closed(paths: Iterable[str]) -> frozenset[str]:
    """The prefix-closed set of compartment paths: "SI-G ABCD" brings "SI-G" and "SI".

    RSV alone is no value (it needs a compartment), so "RSV-ABC" does not bring it; labels stay closed under meet.
    """
    found: set[str] = set()
    for path in paths:
        found.add(path)
        for i, character in enumerate(path):
            if character in "- " and path[:i] != "RSV":
                found.add(path[:i])
    return frozenset(found)


def _numeric_first(value: str) -> tuple[int, int, str]:
    return (0, int(value), "") if value.isdigit() else (1, 0, value)


class _Reader:
    """One pass over one marking. Categories must come in order, each at most once."""

    def __init__(self, text: str) -> None:
        self.text = text
        if not isinstance(text, str) or not text.isascii():
            _refuse(str(text), "it has characters outside ASCII")
        if len(text) > MARKING_LIMIT:
            _refuse(text, f"it is longer than {MARKING_LIMIT} characters")
        body = text.strip(" ").upper()
        if body.startswith("(") and body.endswith(")"):
            body = body[1:-1]
        if not body or not _TEXT.fullmatch(body) or "(" in body or ")" in body or "  " in body:
            self.refuse("it is empty or has characters that no marking has")
        self.body = body
        self.values: dict[str, frozenset[str]] = {}
        self.release: frozenset[str] | None = None
        self.display: frozenset[str] = frozenset()
        self.controls: set[str] = set()
        self.joint = False

    def refuse(self, why: str) -> NoReturn:
        _refuse(self.text, why)

    def axes(self) -> Axes:
        foreign = self.body.startswith("//")
        segments = (self.body[2:] if foreign else self.body).split("//")
        if any(not s or s != s.strip(" ") for s in segments):
            self.refuse("a category is empty")
        level = self._foreign_class(segments[0]) if foreign else self._class(segments[0])
        position = -1
        for segment in segments[1:]:
            position = self._category(segment, position)
        return self._assemble(level)

    def _class(self, segment: str) -> int:
        if segment in ("CUI", "CONTROLLED"):
            self.values["cui"] = frozenset(("CUI",))
            return UNCLASSIFIED
        if segment not in _LEVELS:
            self.refuse(f"{segment!r} is not a classification")
        return _LEVELS[segment]

    def _foreign_class(self, segment: str) -> int:
        if segment in _NATO_CLASSES:
            self.values["fgi"] = frozenset(("NATO",))
            return _NATO_CLASSES[segment]
        if segment.startswith("JOINT "):
            words = segment.removeprefix("JOINT ").split(" ")
            taken = 2 if words[:2] == ["TOP", "SECRET"] else 1
            level, owners = " ".join(words[:taken]), words[taken:]
            if level not in _FOREIGN_LEVELS or len(owners) < 2 or "USA" not in owners:
                self.refuse("JOINT needs a classification and at least two countries, USA among them")
            self._ordered(owners, None, "JOINT countries")
            if any(o not in COUNTRIES for o in owners):
                self.refuse("JOINT names an unknown country")
            self.joint = True
            self.release = frozenset(owners)
            self.values["fgi"] = frozenset(owners) - USA_ONLY
            return _FOREIGN_LEVELS[level]
        country, _, level = segment.partition(" ")
        if country not in COUNTRIES or country == "USA" or level not in _FOREIGN_LEVELS:
            self.refuse(f"{segment!r} is not a non-US classification")
        self.values["fgi"] = frozenset((country,))
        return _FOREIGN_LEVELS[level]

    def _category(self, segment: str, position: int) -> int:
        """Read one category; returns its place in the order, which must be past `position`."""
        values = segment.split("/")
        head = values[0]
        root = _SCI_NAMES.get(head, head).split("-", 1)[0]
        found: int
        read: Callable[[], None]
        if _SCI_NAMES.get(root, root) in _SCI_CONTROLS:
            found, read = 0, lambda: self._paths("sci", values, _SCI_NAMES, self._sci_path)
        elif head.startswith(("SAR-", "SPECIAL ACCESS REQUIRED-")):
            programs = [head.split("-", 1)[1], *values[1:]]
            found, read = 1, lambda: self._paths("sar", programs, {}, lambda _: None)
        elif _AEA_NAMES.get(head, head).split("-", 1)[0] in _AEA_ROOTS:
            found, read = 2, lambda: self._paths("aea", values, _AEA_NAMES, self._aea_path)
        elif head == "FGI" or head.startswith("FGI "):
            found, read = 3, lambda: self._fgi(values)
        elif segment == "CUI":
            found, read = 4, lambda: self._cui([])
        elif "cui" in self.values and all(v.removeprefix("SP-") in CUI_CATEGORIES for v in values):
            found, read = 5, lambda: self._cui(values)
        elif self._dissem_key(head) is not None:
            found, read = 6, lambda: self._dissem(values, _IC_ORDER)
        elif head in _OTHER_KEYS:
            found, read = 7, lambda: self._dissem(values, _OTHER_ORDER)
        else:
            self.refuse(f"{segment!r} is not known")
        if found <= position:
            self.refuse(f"{segment!r} is out of order or repeated")
        read()
        return found

    def _ordered(self, given: Sequence[str], key: Callable[[str], Any] | None, what: str) -> None:
        if len(set(given)) != len(given):
            self.refuse(f"{what} repeat")
        expected = sorted(given, key=key) if key else sorted(given)
        if list(given) != expected:
            self.refuse(f"{what} are out of order; expected {', '.join(expected)}")

    def _paths(
        self, axis: str, values: Sequence[str], names: dict[str, str], check: Callable[[Sequence[str]], None]
    ) -> None:
        roots: list[str] = []
        paths: list[str] = []
        for value in values:
            root, *compartments = names.get(value, value).split("-")
            root = names.get(root, root)
            if not _IDENTIFIER.fullmatch(root):
                self.refuse(f"{value!r} is not a control system or program")
            roots.append(root)
            if root != "RSV" or not compartments:
                paths.append(root)
            keys: list[str] = []
            for compartment in compartments:
                key, *subs = compartment.split(" ")
                key = names.get(key, key)
                if any(not _IDENTIFIER.fullmatch(part) for part in (key, *subs)):
                    self.refuse(f"{value!r} has a malformed compartment")
                self._ordered(subs, _numeric_first, f"sub-compartments of {root}-{key}")
                keys.append(key)
                paths.append(f"{root}-{key}")
                paths.extend(f"{root}-{key} {sub}" for sub in subs)
            self._ordered(keys, _numeric_first, f"compartments of {root}")
            check((root, *keys))
        order: Callable[[str], Any] = _AEA_ROOTS.index if axis == "aea" else _numeric_first
        if axis == "aea" and any(root not in _AEA_ROOTS for root in roots):
            self.refuse("an atomic energy marking is not known")
        self._ordered(roots, order, "control systems and programs")
        self.values[axis] = frozenset(paths)

    def _sci_path(self, path: Sequence[str]) -> None:
        root, *compartments = path
        if root not in _SCI_CONTROLS:
            self.refuse(f"{root!r} is not an SCI control system")
        allowed = _SCI_CONTROLS[root]
        if allowed is not None and any(c not in allowed for c in compartments):
            self.refuse(f"{root} has only the compartments {', '.join(allowed)}")

    def _aea_path(self, path: Sequence[str]) -> None:
        root, *compartments = path
        allowed = {"RD": ("CNWDI", "SIGMA"), "FRD": ("SIGMA",)}.get(root, ())
        if any(c not in allowed for c in compartments):
            self.refuse(f"{root} does not have that compartment")

    def _fgi(self, values: Sequence[str]) -> None:
        if len(values) != 1:
            self.refuse("FGI sources are separated by spaces")
        sources = values[0].split(" ")[1:]
        if any(s == "USA" or (s not in COUNTRIES and s not in ORGANISATIONS) for s in sources):
            self.refuse("FGI names an unknown source")
        self._ordered(sources, country_order, "FGI sources")
        self.values["fgi"] = self.values.get("fgi", frozenset()) | frozenset(sources or (CONCEALED,))

    def _cui(self, categories: Sequence[str]) -> None:
        if not categories and "cui" in self.values:
            self.refuse("CUI is repeated")
        if len(set(categories)) != len(categories):
            self.refuse("CUI categories repeat")
        self.values["cui"] = self.values.get("cui", frozenset()) | {"CUI", *categories}

    @staticmethod
    def _dissem_key(value: str) -> str | None:
        if value in ("REL TO", "DISPLAY ONLY"):
            return None
        for listed in ("REL TO", "DISPLAY ONLY"):
            if value.startswith(listed + " "):
                return listed
        return _IC_KEYS.get(value)

    def _dissem(self, values: Sequence[str], order: Sequence[str]) -> None:
        keys: list[str] = []
        for value in values:
            key = self._dissem_key(value) if order is _IC_ORDER else _OTHER_KEYS.get(value)
            if key is None:
                self.refuse(f"{value!r} is not a dissemination control")
            keys.append(key)
            if key == "REL TO":
                self.release = self._countries(value.removeprefix("REL TO "), usa_first=True)
            elif key == "DISPLAY ONLY":
                self.display = self._countries(value.removeprefix("DISPLAY ONLY "), usa_first=False)
        self._ordered(keys, order.index, "dissemination controls")
        self.controls.update(keys)

    def _countries(self, listed: str, *, usa_first: bool) -> frozenset[str]:
        codes = listed.split(", ") if "," in listed else listed.split(" ")
        if usa_first and (codes[0] != "USA" or len(codes) < 2):
            self.refuse("REL TO starts with USA and names at least one more")
        self._ordered(codes, country_order, "countries")
        found: set[str] = set()
        for code in codes:
            members = expand(code)
            if members is None:
                self.refuse(f"{code!r} is not a country or organisation of the table")
            found |= members
        return frozenset(found)

    def _assemble(self, level: int) -> Axes:
        controls = self.controls
        if "NF" in controls and controls & {"REL TO", "RELIDO", "DISPLAY ONLY"}:
            self.refuse("NOFORN excludes REL TO, RELIDO and DISPLAY ONLY")
        if {"OC", "OC-USGOV"} <= controls:
            self.refuse("ORCON and ORCON-USGOV exclude each other")
        if self.joint and ("NF" in controls or "HCS" in self.values.get("sci", ())):
            self.refuse("JOINT excludes NOFORN and HCS")
        if "SI-G" in self.values.get("sci", ()) and "OC-USGOV" in controls:
            self.refuse("SI-G excludes ORCON-USGOV")
        if "FOUO" in controls:
            self._fold_fouo()
        rel = self.release
        if rel is None and (level > UNCLASSIFIED or controls & {"NF", "RELIDO", "DISPLAY ONLY"}):
            rel = USA_ONLY
        orcon = frozenset(("OC", "OC-USGOV")) if "OC" in controls else frozenset(controls & {"OC-USGOV"})
        return Axes(
            level=level,
            cui=self.values.get("cui", frozenset()),
            sci=self.values.get("sci", frozenset()),
            sar=self.values.get("sar", frozenset()),
            aea=self.values.get("aea", frozenset()),
            fgi=self.values.get("fgi", frozenset()),
            rel=rel,
            disp=None if rel is None else rel | self.display,
            relido=rel is None or "RELIDO" in controls,
            orcon=orcon,
            dissem=frozenset(controls - _OWN_AXES),
        )

    def _fold_fouo(self) -> None:
        """FOUO is the legacy name of what is now CUI (32 CFR 2002): read as CUI, which is never lower."""
        self.values["cui"] = self.values.get("cui", frozenset()) | {"CUI"}


_HIGH = (SECRET, TOP_SECRET)
_ANY_CLASSIFIED = (CONFIDENTIAL, SECRET, TOP_SECRET)


def inconsistency(axes: Axes) -> str:
    """The first companion constraint that the values break, in words; "" when they are consistent."""
    noforn = axes.rel == USA_ONLY and axes.disp == USA_ONLY and not axes.relido
    orcon = "OC" in axes.orcon

    def needs(what: str, levels: Sequence[int], *, nf: bool = False, oc: bool = False) -> str:
        if axes.level not in levels:
            return f"{what} needs {' or '.join(LEVEL_NAMES[i] for i in reversed(levels))}"
        if nf and not noforn:
            return f"{what} needs NOFORN"
        if oc and not orcon:
            return f"{what} needs ORCON"
        return ""

    problems: list[str] = []
    for path in sorted(axes.sci):
        root, _, rest = path.partition("-")
        compartment, _, sub = rest.partition(" ")
        if root == "HCS":
            problems.append(needs("HCS", _HIGH, nf=True))
            if compartment == "O" or (compartment == "P" and sub):
                problems.append(needs(path, (TOP_SECRET,) if sub else _HIGH, nf=True, oc=True))
        elif root == "SI":
            problems.append(needs(path, (TOP_SECRET,) if rest else _ANY_CLASSIFIED, oc=compartment == "G"))
        elif root == "TK":
            problems.append(needs(path, (TOP_SECRET,) if compartment == "BLFH" else _HIGH, nf=bool(rest)))
        else:
            problems.append(needs(path, _HIGH))
            if path == "RSV":
                problems.append("RSV needs a compartment")
    for path in sorted(axes.aea):
        if path.partition("-")[0] in ("RD", "FRD", "TFNI", "ATOMAL"):
            problems.append(needs(path, _HIGH if path == "RD-CNWDI" else _ANY_CLASSIFIED))
    if axes.sar:
        problems.append(needs("SAR", _ANY_CLASSIFIED))
    if axes.orcon:
        problems.append(needs("ORCON", _ANY_CLASSIFIED))
    if "IMC" in axes.dissem:
        problems.append(needs("IMCON", _HIGH))
    return next((p for p in problems if p), "")


def _render_paths(paths: frozenset[str], *, atomic_energy: bool = False) -> str:
    """Prefix-closed paths as written: `SI-G ABCD/TK`; the inverse of reading them."""
    roots = sorted({p.partition("-")[0] for p in paths}, key=_AEA_ROOTS.index if atomic_energy else _numeric_first)
    written: list[str] = []
    for root in roots:
        text = root
        parts = [p.partition("-")[2] for p in paths if p.startswith(root + "-")]
        for compartment in sorted((p for p in parts if " " not in p), key=_numeric_first):
            subs = sorted((p.partition(" ")[2] for p in parts if p.startswith(compartment + " ")), key=_numeric_first)
            text += "-" + " ".join((compartment, *subs))
        written.append(text)
    return "/".join(written)


def render(axes: Axes, *, banner: bool) -> str:
    """Axes → marking text, without the parentheses of a portion. See the module's invariants for what is lost."""
    names = _BANNER_OF if banner else _PORTION_OF
    unclassified_cui = axes.level == UNCLASSIFIED and bool(axes.cui)
    head = "CUI" if unclassified_cui else (LEVEL_NAMES if banner else LEVEL_LETTERS)[axes.level]
    segments = [head]
    if axes.sci:
        segments.append(_render_paths(axes.sci))
    if axes.sar:
        segments.append("SAR-" + _render_paths(axes.sar))
    if axes.aea:
        text = _render_paths(axes.aea, atomic_energy=True)
        segments.append("/".join(_AEA_BANNERS.get(v, v) if banner else v for v in text.split("/")))
    if axes.fgi:
        open_sources = [] if CONCEALED in axes.fgi else sorted(axes.fgi, key=country_order)
        segments.append(" ".join(("FGI", *open_sources)))
    if axes.cui and not (banner and not unclassified_cui):
        if not unclassified_cui:
            segments.append("CUI")
        categories = sorted(axes.cui - {"CUI"}, key=lambda c: (not c.startswith("SP-"), c))
        if categories:
            segments.append("/".join(categories))
    controls = [
        _control(axes, key, names)
        for key in _IC_ORDER
        if key in axes.dissem or (key in _OWN_AXES and _applies(axes, key))
    ]
    if controls:
        segments.append("/".join(controls))
    others = [names[key] for key in _OTHER_ORDER if key in axes.dissem]
    if others:
        segments.append("/".join(others))
    return "//".join(segments)


def _applies(axes: Axes, key: str) -> bool:
    rel, disp = axes.rel, axes.disp
    if key in ("OC", "OC-USGOV"):
        return key == ("OC" if "OC" in axes.orcon else "OC-USGOV") and bool(axes.orcon)
    if rel is None or disp is None or key == "FOUO":
        return False
    if key == "REL TO":
        return rel != USA_ONLY
    if key == "RELIDO":
        return axes.relido
    if key == "DISPLAY ONLY":
        return disp != rel
    return rel == USA_ONLY and disp == USA_ONLY and not axes.relido


def _control(axes: Axes, key: str, names: dict[str, str]) -> str:
    if key == "REL TO" and axes.rel is not None:
        return "REL TO " + ", ".join(abbreviate(axes.rel))
    if key == "DISPLAY ONLY" and axes.rel is not None and axes.disp is not None:
        return "DISPLAY ONLY " + ", ".join(sorted(axes.disp - axes.rel, key=country_order))
    return names[key]
