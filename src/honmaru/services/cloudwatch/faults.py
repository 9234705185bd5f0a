"""CloudWatch's own error codes."""

from __future__ import annotations

from honmaru.core.errors import NotFound, ValidationFault


def invalid(message: str) -> ValidationFault:
    return ValidationFault(message, code="InvalidParameterValue")


def contradictory(message: str) -> ValidationFault:
    return ValidationFault(message, code="InvalidParameterCombination")


def missing(message: str) -> ValidationFault:
    return ValidationFault(message, code="MissingParameter")


def malformed(message: str) -> ValidationFault:
    """What PutMetricAlarm and GetMetricData answer."""
    return ValidationFault(message, code="ValidationError")


def bad_token() -> ValidationFault:
    return ValidationFault("The NextToken is not of this request; leave it out to begin anew", code="InvalidNextToken")


def unknown_alarm() -> NotFound:
    return NotFound("Unknown alarm", code="ResourceNotFound")
