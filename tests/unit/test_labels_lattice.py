"""Lattice laws by property test, for each axis alone and for the product; renderings; clearances and ceilings.

Random labels are joins of random consistent markings, so the tests also show that what the platform derives stays
consistent and can be written and read again.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable

import pytest

from honmaru.core.clearances import Clearance, ceiling_permits, may_hold
from honmaru.core.errors import HonmaruError, ValidationFault
from honmaru.core.labels import BOTTOM, Label
from honmaru.core.markings import CUI_CATEGORIES, DISSEM_TOKENS, LEVEL_NAMES, Axes
from honmaru.core.partitions import partition_of

COUNT = 100_000 if os.environ.get("HONMARU_LONG") == "1" else 3000
BEFORE = {"RSEN", "IMC"}
AFTER_NOFORN = {"PR", "DSEN", "FISA", "FED ONLY", "FEDCON", "NOCON", "DL ONLY", "AC", "AWP", "DELIB"}
COUNTRIES = ("AUS", "CAN", "DEU", "FRA", "GBR", "NZL")
P = Label.parse


def _subset(r: random.Random, values: tuple[str, ...], chance: float = 0.4) -> list[str]:
    return [v for v in values if r.random() < chance]


def _release(r: random.Random) -> str:
    if r.random() < 0.3:
        return "NOFORN"
    countries = _subset(r, COUNTRIES)
    parts = ["REL TO " + ", ".join(["USA", *countries])] if countries else []
    if r.random() < 0.4:
        parts.append("RELIDO")
    shown = _subset(r, COUNTRIES, 0.2)
    if shown:
        parts.append("DISPLAY ONLY " + ", ".join(shown))
    return "/".join(parts)


def _joined(*parts: str) -> str:
    return "//".join(p for p in parts if p)


AXES: dict[str, Callable[[random.Random], Label]] = {
    "level": lambda r: P(r.choice(LEVEL_NAMES)),
    "cui": lambda r: P(_joined("CUI", "/".join(_subset(r, ("SP-EXPT", "PRVCY", "TAX"))))),
    "sci": lambda r: P(
        _joined(
            "TOP SECRET",
            r.choice(("", "SI", "SI-AB CD EF-GH", "SI-AB", "SI-AB CD/TK", "TK", "RSV-ABC", "RSV-ABD/SI")),
            "NOFORN",
        )
    ),
    "controlled sci": lambda r: P(
        _joined(
            "TOP SECRET",
            r.choice(("HCS-O", "HCS-P AB", "HCS-P", "SI-G", "SI-G AB/TK", "TK-BLFH", "HCS-O-P CD/SI")),
            "ORCON/NOFORN",
        )
    ),
    "sar": lambda r: P(
        _joined("SECRET", r.choice(("", "SAR-AB", "SAR-AB-X", "SAR-AB-X 1 2/CD", "SAR-CD", "SAR-7/RD")))
    ),
    "aea": lambda r: P(_joined("SECRET", r.choice(("", "RD", "FRD", "RD/FRD", "RD-CNWDI", "RD-SIGMA 14 18", "TFNI")))),
    "fgi": lambda r: P(_joined("SECRET", " ".join(["FGI", *_subset(r, COUNTRIES)]) if r.random() < 0.8 else "")),
    "releasability": lambda r: P(_joined(r.choice(LEVEL_NAMES), _release(r))),
    "orcon": lambda r: P(_joined("SECRET", r.choice(("", "ORCON", "ORCON-USGOV")))),
    "dissem": lambda r: P(
        _joined(
            "SECRET",
            "/".join(_subset(r, ("RSEN", "IMCON", "PROPIN", "FISA"))),
            "/".join(_subset(r, ("LIMDIS", "LES", "SSI"))),
        )
    ),
    "tenants": lambda r: BOTTOM.restricted(tenants=_subset(r, ("a", "b")), purposes=_subset(r, ("p", "q"))),
}


def product(r: random.Random) -> Label:
    label = BOTTOM
    for axis in r.sample(list(AXES), r.randint(1, 4)):
        label = label.join(AXES[axis](r))
    return label if r.random() < 0.7 else label.meet(AXES[r.choice(list(AXES))](r).join(AXES[r.choice(list(AXES))](r)))


@pytest.mark.parametrize("axis", [*AXES, "product"])
def test_lattice_laws(axis: str) -> None:
    r = random.Random(f"laws {axis}")
    make = AXES.get(axis, product)
    pool = [make(r) for _ in range(COUNT if axis == "product" else 300)] + [BOTTOM]
    for _ in range(COUNT):
        a, b, c = r.choice(pool), r.choice(pool), r.choice(pool)
        join, meet = a.join(b), a.meet(b)
        assert BOTTOM.dominates(a) is (a is BOTTOM) and a.dominates(BOTTOM) and a.dominates(a)
        assert not (a.dominates(b) and b.dominates(a)) or a is b
        assert not (a.dominates(b) and b.dominates(c)) or a.dominates(c)
        assert join is b.join(a) and meet is b.meet(a)
        assert join.join(c) is a.join(b.join(c)) and meet.meet(c) is a.meet(b.meet(c))
        assert a.join(a) is a and a.meet(a) is a
        assert a.join(meet) is a and a.meet(join) is a
        assert join.dominates(a) and join.dominates(b) and a.dominates(meet) and b.dominates(meet)
        assert (join is a) == a.dominates(b) == (meet is b)
        if c.dominates(a) and c.dominates(b):
            assert c.dominates(join)
        if a.dominates(c) and b.dominates(c):
            assert meet.dominates(c)
        assert a.meet(b.join(c)) is a.meet(b).join(a.meet(c))


def _open_beside_concealed(axes: Axes) -> bool:
    return "*" in axes.fgi and len(axes.fgi) > 1


def test_what_is_rendered_is_read_back() -> None:
    r = random.Random("render")
    seen = 0
    for _ in range(COUNT):
        x = product(r)
        assert Label.decode(x.canonical) is x
        lossless = not (x.axes.tenants or x.axes.purposes or _open_beside_concealed(x.axes))
        if lossless:
            assert P(x.portion) is x
            assert P(x.portion.strip("()")) is x
        if lossless and not (x.level and x.axes.cui):
            assert P(x.banner) is x
            seen += 1
        # What a rendering omits, it omits as documented: never level, compartments or countries.
        back = P(x.banner)
        assert (
            back.axes._replace(cui=x.axes.cui, tenants=x.axes.tenants, purposes=x.axes.purposes, fgi=x.axes.fgi)
            == x.axes
        )
    assert seen > COUNT / 4


def test_no_unparsed_marking_is_treated_as_lower() -> None:
    """A changed marking is refused, or it is one that the grammar knows: then every token of it counts."""
    r = random.Random("mutations")
    alphabet = "ABCDEFGHINORSTUX/-, ()0"
    refused = 0
    for _ in range(COUNT):
        x = product(r)
        text = list(r.choice((x.banner, x.portion)))
        for _ in range(r.randint(1, 2)):
            i = r.randrange(len(text))
            text[i : i + r.randint(0, 1)] = [r.choice(alphabet)] if r.random() < 0.8 else []
        try:
            y = P("".join(text))
        except ValidationFault:
            refused += 1
            continue
        # Understood in full: rendering it again gives a text that means the same.
        assert P(y.portion) is y
    assert refused > COUNT / 4


@pytest.mark.parametrize("token", ["XX", "NOFORN2", "ORCON-", "REL", "EYES ONLY", "SIG", "HCSX", "TKX", "WNINTEL"])
def test_an_unknown_token_is_refused_wherever_it_stands(token: str) -> None:
    for text in (
        f"{token}//NF",
        f"SECRET//{token}",
        f"SECRET//{token}//NF",
        f"SECRET//NF/{token}",
        f"SECRET//SI/{token}",
        f"SECRET//FGI {token}",
        f"SECRET//REL TO USA, {token}",
        f"CUI//{token}",
        f"SECRET//NF//{token}",
    ):
        with pytest.raises(HonmaruError):
            P(text)


def test_every_token_counts() -> None:
    """Adding a token to a marking raises the label; none is read and then forgotten."""
    plain = P("SECRET//NF")
    for key in DISSEM_TOKENS:
        label = P(
            f"SECRET//NF/{key}"
            if key in AFTER_NOFORN
            else f"SECRET//{key}/NF"
            if key in BEFORE
            else f"SECRET//NF//{key}"
        )
        assert label.dominates(plain) and label is not plain
    for category in CUI_CATEGORIES:
        assert P(f"CUI//{category}").dominates(P("CUI")) and P(f"CUI//{category}") is not P("CUI")
        assert P(f"CUI//SP-{category}") is not P(f"CUI//{category}")
    for segment in ("SI", "TK", "SAR-AB", "RD", "FRD", "FGI", "FGI GBR", "CUI", "RSV-ABC", "KDK"):
        assert P(f"SECRET//{segment}//NF").dominates(plain) and P(f"SECRET//{segment}//NF") is not plain


def test_cui_categories_and_dissemination_controls_do_not_collide() -> None:
    assert not CUI_CATEGORIES & DISSEM_TOKENS


def test_may_hold_is_downward_closed_and_covers_is_sound() -> None:
    r = random.Random("clearances")
    texts = (
        "UNCLASSIFIED",
        "CUI",
        "CUI//TAX",
        "SECRET",
        "SECRET nationality=GBR",
        "TOP SECRET//SI-G/TK",
        "SECRET//SAR-AB",
        "TOP SECRET//SI-AB CD/TK tenants=a+b purposes=p",
        "SECRET//RD employer=contractor",
        "TOP SECRET",
    )
    clearances = [Clearance.parse(t) for t in texts]
    held = 0
    for _ in range(COUNT):
        a, b = product(r), product(r)
        c, d = r.choice(clearances), r.choice(clearances)
        if may_hold(c, a) and a.dominates(b):
            assert may_hold(c, b)
        if c.covers(d) and may_hold(d, a):
            assert may_hold(c, a)
        held += may_hold(c, a)
    assert held > 100


@pytest.mark.parametrize(
    ("clearance", "label", "expected"),
    [
        ("UNCLASSIFIED", "UNCLASSIFIED", True),
        ("UNCLASSIFIED", "CUI", False),
        ("CUI", "CUI//SP-PRVCY", True),
        ("CUI//TAX", "CUI//SP-PRVCY", False),
        ("CUI", "SECRET", False),
        ("SECRET", "(S//CUI//TAX//NF)", True),
        ("SECRET", "SECRET//SI", False),
        ("SECRET nationality=GBR", "SECRET", False),
        ("SECRET nationality=GBR", "SECRET//REL TO USA, FVEY", True),
        ("SECRET nationality=FRA", "SECRET//REL TO USA, FVEY", False),
        ("TOP SECRET//SI-G", "TOP SECRET//SI-G//ORCON/NOFORN", True),
        ("TOP SECRET//SI", "TOP SECRET//SI-G//ORCON/NOFORN", False),
        ("SECRET", "//NATO SECRET", False),
        ("SECRET//FGI NATO", "//NATO SECRET", True),
        ("SECRET employer=contractor", "SECRET//NOFORN/PROPIN", False),
        ("SECRET", "SECRET//NODIS", False),
        ("SECRET//NODIS", "SECRET//NODIS", True),
    ],
)
def test_who_may_hold_what(clearance: str, label: str, expected: bool) -> None:
    assert may_hold(Clearance.parse(clearance), P(label)) is expected


@pytest.mark.parametrize(
    "text",
    [
        "",
        "SECRET nationality=XX",
        "SECRET employer=spy",
        "SECRET nationality=USA nationality=GBR",
        "SECRET colour=red",
    ],
)
def test_malformed_clearances_are_refused(text: str) -> None:
    with pytest.raises(ValidationFault):
        Clearance.parse(text)


@pytest.mark.parametrize(
    ("region", "label", "expected"),
    [
        ("us-gov-west-1", "CUI//SP-PRVCY//NOFORN", True),
        ("us-gov-west-1", "CONFIDENTIAL", False),
        ("us-isob-east-1", "UNCLASSIFIED", True),
        ("us-isob-east-1", "SECRET//SAR-AB//REL TO USA, GBR", True),
        ("us-isob-east-1", "TOP SECRET", False),
        ("us-iso-east-1", "TOP SECRET//SI-G//ORCON/NOFORN", True),
    ],
)
def test_ceilings(region: str, label: str, expected: bool) -> None:
    assert ceiling_permits(partition_of(region), P(label)) is expected
