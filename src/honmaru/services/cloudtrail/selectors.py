"""Which events a trail delivers: event selectors, basic and advanced. Pure.

Management events are all but those on the data of a resource: objects of S3. A trail without selectors delivers
management events, read and write, and no data events, as with AWS.

Source: AWS CloudTrail user guide, "Logging data events", "Advanced event selectors".
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from honmaru.core.errors import ValidationFault

Entry = Mapping[str, Any]
OBJECTS = "AWS::S3::Object"
DEFAULT: Sequence[Mapping[str, Any]] = (
    {"ReadWriteType": "All", "IncludeManagementEvents": True, "DataResources": [], "ExcludeManagementEventSources": []},
)
_MAX_BASIC, _MAX_ADVANCED, _MAX_VALUES = 5, 500, 500
_EXCLUDABLE = ("kms.amazonaws.com", "rdsdata.amazonaws.com")


def is_data(entry: Entry) -> bool:
    """Whether an event is on the data of a resource."""
    return any(resource.get("type") == OBJECTS for resource in entry.get("resources") or ())


def selected(entry: Entry, settings: Mapping[str, Any]) -> bool:
    """Whether a trail with these selectors delivers an event."""
    advanced = settings.get("advanced")
    if advanced:
        return any(all(_fits(entry, field) for field in each["FieldSelectors"]) for each in advanced)
    return any(_basic(entry, each) for each in settings.get("selectors") or DEFAULT)


def _basic(entry: Entry, selector: Mapping[str, Any]) -> bool:
    wanted = selector.get("ReadWriteType") or "All"
    if wanted != "All" and (wanted == "ReadOnly") is not bool(entry.get("readOnly")):
        return False
    if not is_data(entry):
        excluded = selector.get("ExcludeManagementEventSources") or ()
        return selector.get("IncludeManagementEvents") is not False and entry.get("eventSource") not in excluded
    for resource in selector.get("DataResources") or ():
        if resource.get("Type") != OBJECTS:
            continue
        for arn in _arns(entry, OBJECTS):
            values = resource.get("Values") or ()
            if any(value.endswith((":s3", ":s3:::")) or arn.startswith(value) for value in values):
                return True
    return False


def _arns(entry: Entry, kind: str) -> list[str]:
    return [str(item["ARN"]) for item in entry.get("resources") or () if item.get("type") == kind]


_FIELDS: Mapping[str, Callable[[Entry], list[str]]] = {
    "eventCategory": lambda entry: ["Data" if is_data(entry) else "Management"],
    "readOnly": lambda entry: ["true" if entry.get("readOnly") else "false"],
    "eventSource": lambda entry: [str(entry.get("eventSource"))],
    "eventName": lambda entry: [str(entry.get("eventName"))],
    "eventType": lambda entry: [str(entry.get("eventType"))],
    "resources.type": lambda entry: [OBJECTS] if is_data(entry) else [],
    "resources.ARN": lambda entry: _arns(entry, OBJECTS),
    "userIdentity.arn": lambda entry: [str((entry.get("userIdentity") or {}).get("arn"))],
    "errorCode": lambda entry: [str(entry["errorCode"])] if entry.get("errorCode") else [],
}
_OPERATORS: Mapping[str, tuple[Callable[[str, str], bool], bool]] = {
    # name: (test, whether one value that fits is enough)
    "Equals": (str.__eq__, True),
    "StartsWith": (str.startswith, True),
    "EndsWith": (str.endswith, True),
    "NotEquals": (str.__eq__, False),
    "NotStartsWith": (str.startswith, False),
    "NotEndsWith": (str.endswith, False),
}


def _fits(entry: Entry, field: Mapping[str, Any]) -> bool:
    values = _FIELDS[field["Field"]](entry)
    for name, (test, positive) in _OPERATORS.items():
        wanted = field.get(name)
        if wanted and any(test(value, each) for value in values for each in wanted) is not positive:
            return False
    return True


def check_basic(given: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Basic selectors as they are kept. Raises ValidationFault (InvalidEventSelectorsException)."""
    if not 1 <= len(given) <= _MAX_BASIC:
        raise _invalid(f"a trail has 1 to {_MAX_BASIC} event selectors")
    kept = []
    for selector in given:
        for resource in selector.get("DataResources") or ():
            if resource.get("Type") != OBJECTS:
                raise _invalid(f"data events are recorded for {OBJECTS}, not for {resource.get('Type')}")
            if len(resource.get("Values") or ()) > 250:
                raise _invalid("a data resource has at most 250 values")
        excluded = list(selector.get("ExcludeManagementEventSources") or ())
        if any(source not in _EXCLUDABLE for source in excluded):
            raise _invalid(f"ExcludeManagementEventSources may name {' and '.join(_EXCLUDABLE)}")
        kept.append(
            {
                "ReadWriteType": selector.get("ReadWriteType") or "All",
                "IncludeManagementEvents": selector.get("IncludeManagementEvents") is not False,
                "DataResources": [dict(each) for each in selector.get("DataResources") or ()],
                "ExcludeManagementEventSources": excluded,
            }
        )
    return kept


def check_advanced(given: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Advanced selectors as they are kept. Raises ValidationFault (InvalidEventSelectorsException)."""
    if not 1 <= len(given) <= _MAX_ADVANCED:
        raise _invalid(f"a trail has 1 to {_MAX_ADVANCED} advanced event selectors")
    count = 0
    for selector in given:
        fields = [field["Field"] for field in selector["FieldSelectors"]]
        if "eventCategory" not in fields or len(set(fields)) != len(fields):
            raise _invalid("an advanced event selector names eventCategory, and each field once")
        for field in selector["FieldSelectors"]:
            stated = [name for name in _OPERATORS if field.get(name)]
            if field["Field"] not in _FIELDS or not stated:
                raise _invalid(f"{field['Field']!r} with {stated} is no field selector that this enclave carries")
            count += sum(len(field[name]) for name in stated)
            if field["Field"] == "eventCategory" and field.get("Equals") not in (["Management"], ["Data"]):
                raise _invalid("eventCategory Equals Management or Data")
    if count > _MAX_VALUES:
        raise _invalid(f"advanced event selectors hold at most {_MAX_VALUES} values")
    return [dict(selector) for selector in given]


def _invalid(message: str) -> ValidationFault:
    return ValidationFault(message, code="InvalidEventSelectorsException")
