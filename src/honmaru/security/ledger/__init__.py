"""The audit ledger: see `ledger.py` for its face, `log.py` for one log, `verify.py` for the offline verifier."""

from honmaru.security.ledger.ledger import Ledger
from honmaru.security.ledger.log import Receipt

__all__ = ["Ledger", "Receipt"]
