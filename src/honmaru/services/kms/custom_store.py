"""Custom key stores: an enclave has none. Its root key may lie in a PKCS#11 token instead (`honmaru seal`)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NoReturn

from honmaru.core.errors import NotFound
from honmaru.services.kms.keys import lists, unsupported

Request = Mapping[str, Any]


def refuse() -> NoReturn:
    raise unsupported(
        "custom key stores do not exist in honmaru; "
        "`honmaru seal --token` puts the enclave's root key into a PKCS#11 token"
    )


def describe(request: Request) -> dict[str, Any]:
    if request.get("CustomKeyStoreId") or request.get("CustomKeyStoreName"):
        missing(request)
    return lists("CustomKeyStores", [], None)


def missing(request: Request) -> NoReturn:
    name = request.get("CustomKeyStoreId") or request.get("CustomKeyStoreName")
    raise NotFound(f"There is no custom key store {name}", code="CustomKeyStoreNotFoundException")
