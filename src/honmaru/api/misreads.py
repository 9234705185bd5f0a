"""What a reader raises when bytes do not have the modelled form; plans turn it into a ValidationFault of the wire."""

from __future__ import annotations


class Misread(Exception):
    """A value of the wrong form. `path` is filled from the inside out while the exception passes the readers."""

    def __init__(self, expected: str, received: object, *path: str) -> None:
        super().__init__(expected)
        self.expected = expected
        self.received = received
        self.path = list(path)

    def inside(self, name: str) -> Misread:
        """The same misread, seen from the enclosing value."""
        self.path.append(name)
        return self

    @property
    def message(self) -> str:
        """What was received where, and what was expected. Content is named by its kind and never repeated."""
        where = ".".join(reversed(self.path))
        received = _kind(self.received)
        at = f" at '{where}'" if where else ""
        return f"{received}{at} can not be converted: expected {self.expected}"


class UnknownMember(Misread):
    """A member that the model does not have: refused, because ignoring it could drop a protection that it asks for."""

    def __init__(self, name: str, known: str) -> None:
        super().__init__("", None)
        self.name = name[:128]
        self.known = known

    @property
    def message(self) -> str:
        where = ".".join([*reversed(self.path), self.name])
        return f"Unknown member '{where}' for {self.known}: leave it out, or use a version of honmaru that knows it"


def _kind(value: object) -> str:
    if value is None:
        return "NULL_VALUE"
    if value is True or value is False:
        return f"{str(value).upper()}_VALUE"
    if isinstance(value, int | float):
        return "NUMBER_VALUE"
    if isinstance(value, str):
        return "STRING_VALUE"
    if isinstance(value, list):
        return "Start of list"
    if isinstance(value, dict):
        return "Start of structure or map"
    return "Value"
