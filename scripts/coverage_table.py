"""Writes docs/operations.md, or with --check exits 1 when the committed file is not up to date."""

from __future__ import annotations

import importlib
import sys
import tempfile
from pathlib import Path

from honmaru.api.models import SERVICES, ServiceModels
from honmaru.gateway.coverage import table
from honmaru.security.calls import Provider

DOCUMENT = Path(__file__).resolve().parent.parent / "docs" / "operations.md"


def providers() -> list[type[Provider]]:
    """The provider class of every service that has one."""
    found: list[type[Provider]] = []
    for service in SERVICES:
        module = importlib.import_module(f"honmaru.services.{service.replace('-', '_')}.provider")
        found += [
            value
            for value in vars(module).values()
            if isinstance(value, type) and issubclass(value, Provider) and value.__module__ == module.__name__
        ]
    return found


def generate() -> str:
    with tempfile.TemporaryDirectory() as cache:
        return table(ServiceModels(Path(cache)), providers())


def main() -> int:
    text = generate()
    if "--check" in sys.argv[1:]:
        if not DOCUMENT.exists() or DOCUMENT.read_text() != text:
            print("docs/operations.md is not up to date: run `make docs`", file=sys.stderr)
            return 1
        return 0
    DOCUMENT.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
