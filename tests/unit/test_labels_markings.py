"""The grammar: texts that are markings, texts that are not, and what they mean."""

from __future__ import annotations

import copy
import pickle
import timeit

import pytest

from honmaru.core.errors import IntegrityFault, ValidationFault
from honmaru.core.labels import BOTTOM, Label

P = Label.parse

ROUND = [
    ("UNCLASSIFIED", "UNCLASSIFIED", "(U)"),
    ("CUI", "CUI", "(CUI)"),
    ("SECRET", "SECRET//NOFORN", "(S//NF)"),
    ("(S//NF)", "SECRET//NOFORN", "(S//NF)"),
    ("ts//si-g//oc/nf", "TOP SECRET//SI-G//ORCON/NOFORN", "(TS//SI-G//OC/NF)"),
    ("SECRET//REL TO USA, FVEY", "SECRET//REL TO USA, FVEY", "(S//REL TO USA, FVEY)"),
    ("SECRET//REL TO USA, AUS, CAN, GBR, NZL", "SECRET//REL TO USA, FVEY", "(S//REL TO USA, FVEY)"),
    ("SECRET//REL TO USA GBR", "SECRET//REL TO USA, GBR", "(S//REL TO USA, GBR)"),
    ("SECRET//RELIDO", "SECRET//RELIDO", "(S//RELIDO)"),
    ("SECRET//DISPLAY ONLY IRQ", "SECRET//DISPLAY ONLY IRQ", "(S//DISPLAY ONLY IRQ)"),
    ("CUI//SP-PRVCY/TAX//FEDCON", "CUI//SP-PRVCY/TAX//FEDCON", "(CUI//SP-PRVCY/TAX//FEDCON)"),
    ("UNCLASSIFIED//FOUO", "CUI", "(CUI)"),
    (
        "TOP SECRET//SI-G ABCD EFGH-MMM/TK-IDIT//ORCON/NOFORN",
        "TOP SECRET//SI-G ABCD EFGH-MMM/TK-IDIT//ORCON/NOFORN",
        "(TS//SI-G ABCD EFGH-MMM/TK-IDIT//OC/NF)",
    ),
    ("SECRET//SAR-BP-A12 C13/CD//NOFORN", "SECRET//SAR-BP-A12 C13/CD//NOFORN", "(S//SAR-BP-A12 C13/CD//NF)"),
    ("SECRET//RD-CNWDI-SIGMA 14 18//NOFORN", "SECRET//RD-CNWDI-SIGMA 14 18//NOFORN", "(S//RD-CNWDI-SIGMA 14 18//NF)"),
    ("SECRET//FGI GBR//REL TO USA, GBR", "SECRET//FGI GBR//REL TO USA, GBR", "(S//FGI GBR//REL TO USA, GBR)"),
    ("//GBR S", "SECRET//FGI GBR//NOFORN", "(S//FGI GBR//NF)"),
    ("//JOINT SECRET CAN USA", "SECRET//FGI CAN//REL TO USA, CAN", "(S//FGI CAN//REL TO USA, CAN)"),
    ("//COSMIC TOP SECRET", "TOP SECRET//FGI NATO//NOFORN", "(TS//FGI NATO//NF)"),
    ("(S//CUI//SP-PRVCY//NF)", "SECRET//NOFORN", "(S//CUI//SP-PRVCY//NF)"),
    ("SECRET//NOFORN/PROPIN//LIMDIS/LES", "SECRET//NOFORN/PROPIN//LIMDIS/LES", "(S//NF/PR//DS/LES)"),
]


@pytest.mark.parametrize(("text", "banner", "portion"), ROUND)
def test_markings_read_and_written(text: str, banner: str, portion: str) -> None:
    label = P(text)
    assert (label.banner, label.portion) == (banner, portion)
    assert P(label.portion) is label
    assert Label.decode(label.canonical) is label


REFUSED = [
    "", " ", "()", "SECRETT", "SECRET//", "//", "SECRET////NF", "SECRET//XX", "SECRET//NF/OC", "SECRET//NF/NF",
    "SECRET//NOFORN//SI", "SECRET//REL TO GBR, USA", "SECRET//REL TO USA, XXX", "SECRET//REL TO USA", "SECRET//REL TO",
    "SECRET//NOFORN/REL TO USA, GBR", "SECRET//SI-G//ORCON/NOFORN", "TOP SECRET//SI-G//NOFORN",
    "TOP SECRET//SI-G//ORCON-USGOV/NOFORN", "SECRET//HCS-P", "SECRET//HCS-O//NOFORN", "SECRET//HCS-P//REL TO USA, GBR",
    "SECRET//HCS-P AB//ORCON/NOFORN", "SECRET//TK-BLFH//NOFORN", "TOP SECRET//TK-BLFH//REL TO USA, GBR",
    "CONFIDENTIAL//TK", "SECRET//RSV", "UNCLASSIFIED//SI", "UNCLASSIFIED//SAR-BP", "UNCLASSIFIED//RD", "CUI//XYZZY",
    "//JOINT SECRET CAN USA//NOFORN", "//JOINT SECRET GBR", "//XXX S", "//USA S", "SECRET//FGI USA", "SECRET//FGI XX",
    "SECRET//BUTTER", "SECRET//SAR-BUTTER POPCORN", "SECRET//SI/SI", "SECRET//TK/SI", "(S//NF", "SECRET\n//NF",
    "ſECRET", "SECRET //NF", "SECRET  //NF", "UNCLASSIFIED//ORCON", "SECRET//CUI//CUI", "A" * 5000,
    "SECRET//HCS-Q//NOFORN", "SECRET//RD-QQ", "CONFIDENTIAL//RD-CNWDI", "//JOINT SECRET USA CAN",
    "SECRET//HCS-P//RELIDO",
]  # fmt: skip


@pytest.mark.parametrize("text", REFUSED)
def test_whatever_is_not_understood_is_refused(text: str) -> None:
    with pytest.raises(ValidationFault):
        P(text)


def test_unmarked_classified_is_usa_only_and_dominates_public() -> None:
    assert P("SECRET") is P("SECRET//NOFORN")
    assert P("SECRET").dominates(BOTTOM)
    assert P("SECRET").dominates(P("CUI")) is False
    assert P("SECRET").join(P("CUI")).dominates(P("CUI"))
    assert P("SECRET").dominates(P("SECRET//REL TO USA, FVEY"))
    assert not P("SECRET//REL TO USA, FVEY").dominates(P("SECRET"))
    assert not P("TOP SECRET").dominates(P("SECRET//SI"))


def test_labels_are_interned_immutable_and_survive_copies() -> None:
    label = P("TOP SECRET//SI-G//ORCON/NOFORN")
    assert copy.copy(label) is label and copy.deepcopy(label) is label
    assert pickle.loads(pickle.dumps(label)) is label
    with pytest.raises(AttributeError):
        label.axes = BOTTOM.axes  # type: ignore[misc]


@pytest.mark.parametrize("text", ["", "SECRET", "S", "U;rel=", "U;x=1", "S;rel=GBR", "S;rel=USA;relido=2", "U;cui=TAX"])
def test_only_canonical_text_decodes(text: str) -> None:
    with pytest.raises(IntegrityFault):
        Label.decode(text)


def test_cached_dominance_is_fast() -> None:
    a, b = P("TOP SECRET//SI-G//ORCON/NOFORN"), P("SECRET//REL TO USA, FVEY")
    assert min(timeit.repeat(lambda: a.dominates(b), number=20000, repeat=5)) / 20000 < 2e-6
