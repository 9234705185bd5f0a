"""Readers of JSON members for bodies that no service model describes.

A reader takes (where, value) and gives the value, or raises: a ValidationFault that names the member, or Unsupported
for what is well-formed and cannot be done. Tables of readers describe structures.

Invariants:
- Types are exact; nothing is converted. null means absent.
- A member that a table does not have is refused; a member that asks for what cannot be done is refused by name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from honmaru.core.errors import ValidationFault

Reader = Callable[[str, Any], Any]


class Unsupported(Exception):
    """Well-formed, and not to be had of the model."""

    def __init__(self, where: str, feature: str = "") -> None:
        super().__init__(where)
        self.where, self.feature = where, feature

    def fault(self, model: object) -> ValidationFault:
        """The refusal, naming member and model."""
        of = f"Model {model[:128]!r}" if isinstance(model, str) else "The model"
        wish = f" ({self.feature})" if self.feature else " with this value"
        return refusal(
            self.where,
            f"{of} does not support {self.where}{wish}. Leave it out and try again.",
            "unsupported_parameter",
        )


def refusal(where: str, message: str, reason: str | None = None) -> ValidationFault:
    """A ValidationFault that carries the member's name and the dialect's reason."""
    return ValidationFault(message, members={"param": where, "reason": reason})


def structure(where: str, value: Any, table: Mapping[str, Reader], required: Sequence[str] = ()) -> dict[str, Any]:
    """An object whose members are those of `table`. Raises ValidationFault, Unsupported."""
    if type(value) is not dict:
        raise refusal(where, f"{where or 'The body'} must be an object", "invalid_type")
    out: dict[str, Any] = {}
    for name, item in value.items():
        if item is None:
            continue
        path = f"{where}.{name[:64]}" if where else name[:64]
        reader = table.get(name)
        if reader is None:
            raise refusal(path, f"{path} is not a known parameter: leave it out", "unknown_parameter")
        out[name] = reader(path, item)
    for name in required:
        if name not in out:
            path = f"{where}.{name}" if where else name
            raise refusal(path, f"{path} is required", "missing_required_parameter")
    return out


def text(where: str, value: Any) -> str:
    if type(value) is not str:
        raise refusal(where, f"{where} must be a string", "invalid_type")
    return value


def filled(where: str, value: Any) -> str:
    """A string that is not empty."""
    if not text(where, value):
        raise refusal(where, f"{where} must not be empty", "invalid_value")
    return str(value)


def flag(where: str, value: Any) -> bool:
    if type(value) is not bool:
        raise refusal(where, f"{where} must be true or false", "invalid_type")
    return value


def mapping(where: str, value: Any) -> dict[str, Any]:
    if type(value) is not dict:
        raise refusal(where, f"{where} must be an object", "invalid_type")
    return value


def items(where: str, value: Any, reader: Reader, most: int) -> list[Any]:
    """A list of at most `most`, each read by `reader`."""
    if type(value) is not list:
        raise refusal(where, f"{where} must be a list", "invalid_type")
    if len(value) > most:
        raise refusal(where, f"{where} must have at most {most} items, not {len(value)}", "invalid_value")
    return [reader(f"{where}[{at}]", item) for at, item in enumerate(value)]


def integer(low: int, high: int = 2**31 - 1) -> Reader:
    def read(where: str, value: Any) -> int:
        if type(value) is not int:
            raise refusal(where, f"{where} must be an integer", "invalid_type")
        if not low <= value <= high:
            raise refusal(where, f"{where} must be between {low} and {high}, not {value}", "invalid_value")
        return value

    return read


def number(low: float, high: float) -> Reader:
    def read(where: str, value: Any) -> float:
        if type(value) not in (int, float):
            raise refusal(where, f"{where} must be a number", "invalid_type")
        if not low <= value <= high:
            raise refusal(where, f"{where} must be between {low} and {high}, not {value}", "invalid_value")
        return float(value)

    return read


def table(readers: Mapping[str, Reader], required: Sequence[str] = ()) -> Reader:
    return lambda where, value: structure(where, value, readers, required)


def neutral(*values: Any) -> Reader:
    """Accepts only values that ask for nothing; any other is unsupported."""

    def read(where: str, value: Any) -> Any:
        if not any(type(value) is type(one) and value == one for one in values):
            raise Unsupported(where)
        return value

    return read
