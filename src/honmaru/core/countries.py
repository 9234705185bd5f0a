"""Country trigraphs and the organisations (tetragraphs) that stand for sets of countries in markings.

Invariants:
- An organisation is expanded when a marking is parsed, by this table; `TABLE_VERSION` names its state. A later change
  of membership therefore never changes what an existing label permits.
- A code that is in neither table is unknown, and unknown codes are refused by the parser.

Source: ISO 3166-1 alpha-3 (GENC profile), NATO member list of 2024-03-07, CAPCO Register annex of tetragraphs.
"""

from __future__ import annotations

TABLE_VERSION = "2024-03"


def _codes(text: str) -> frozenset[str]:
    return frozenset(text.split())


COUNTRIES = _codes(
    """
    ABW AFG AGO AIA ALA ALB AND ARE ARG ARM ASM ATA ATF ATG AUS AUT AZE BDI BEL BEN BES BFA BGD BGR BHR BHS BIH BLM BLR
    BLZ BMU BOL BRA BRB BRN BTN BVT BWA CAF CAN CCK CHE CHL CHN CIV CMR COD COG COK COL COM CPV CRI CUB CUW CXR CYM CYP
    CZE DEU DJI DMA DNK DOM DZA ECU EGY ERI ESH ESP EST ETH FIN FJI FLK FRA FRO FSM GAB GBR GEO GGY GHA GIB GIN GLP GMB
    GNB GNQ GRC GRD GRL GTM GUF GUM GUY HKG HMD HND HRV HTI HUN IDN IMN IND IOT IRL IRN IRQ ISL ISR ITA JAM JEY JOR JPN
    KAZ KEN KGZ KHM KIR KNA KOR KWT LAO LBN LBR LBY LCA LIE LKA LSO LTU LUX LVA MAC MAF MAR MCO MDA MDG MDV MEX MHL MKD
    MLI MLT MMR MNE MNG MNP MOZ MRT MSR MTQ MUS MWI MYS MYT NAM NCL NER NFK NGA NIC NIU NLD NOR NPL NRU NZL OMN PAK PAN
    PCN PER PHL PLW PNG POL PRI PRK PRT PRY PSE PYF QAT REU ROU RUS RWA SAU SDN SEN SGP SGS SHN SJM SLB SLE SLV SMR SOM
    SPM SRB SSD STP SUR SVK SVN SWE SWZ SXM SYC SYR TCA TCD TGO THA TJK TKL TKM TLS TON TTO TUN TUR TUV TWN TZA UGA UKR
    UMI URY USA UZB VAT VCT VEN VGB VIR VNM VUT WLF WSM XKS YEM ZAF ZMB ZWE
    """
)

ORGANISATIONS: dict[str, frozenset[str]] = {
    "ACGU": _codes("AUS CAN GBR USA"),
    "FVEY": _codes("AUS CAN GBR NZL USA"),
    "NATO": _codes(
        """
        ALB BEL BGR CAN CZE DEU DNK ESP EST FIN FRA GBR GRC HRV HUN ISL ITA LTU LUX LVA MKD MNE NLD NOR POL PRT ROU SVK
        SVN SWE TUR USA
        """
    ),
    "TEYE": _codes("AUS GBR USA"),
}


def country_order(code: str) -> tuple[int, str]:
    """USA first, then trigraphs ascending, then tetragraphs ascending (CAPCO Manual A.6)."""
    if code == "USA":
        return 0, code
    return (1 if code in COUNTRIES else 2), code


def expand(code: str) -> frozenset[str] | None:
    """The countries that a trigraph or tetragraph stands for; None when the code is unknown."""
    if code in COUNTRIES:
        return frozenset((code,))
    return ORGANISATIONS.get(code)


def abbreviate(countries: frozenset[str]) -> list[str]:
    """A releasability set as it is written: USA first, an organisation where exactly its members (with USA) remain."""
    for name, members in sorted(ORGANISATIONS.items()):
        if members == countries:
            return ["USA", name]
    return sorted(countries, key=country_order)
