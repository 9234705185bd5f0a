"""Composite alarms: alarms whose state follows from other alarms' states by a rule.

    ALARM("cpu") AND (ALARM("disk") OR NOT OK("net"))      INSUFFICIENT_DATA(name)      TRUE      FALSE

Invariants:
- A rule sees the alarms that its own label dominates; one that it does not see counts as none in that state.
- A rule is parsed when it is put, with bounded depth and length; what is not understood is refused.
- Rules are evaluated over the states that alarms have: two composites that name each other settle or alternate, and
  never loop within one evaluation.

Source: Amazon CloudWatch API reference, PutCompositeAlarm.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import orjson

from honmaru.core.errors import QuotaExceeded
from honmaru.security.calls import Call
from honmaru.security.guard import Creation, GuardedChange, GuardedRecords, Record, Revision
from honmaru.services.cloudwatch import alarms
from honmaru.services.cloudwatch.evaluation import ALARM, INSUFFICIENT, OK
from honmaru.services.cloudwatch.faults import malformed

MAX_CHILDREN = 100
_MAX_DEPTH = 50
_TOKEN = re.compile(r'\s*(?:(?P<mark>[(),])|"(?P<text>[^"]{1,1600})"|(?P<word>[^\s(),"]+))')
_STATES = (OK, ALARM, INSUFFICIENT)

States = Callable[[str], str | None]
"""The state of an alarm by name; None where there is none."""

Request = Mapping[str, Any]


class Rule:
    """A parsed rule. `children` are the names of the alarms in it."""

    def __init__(self, text: str) -> None:
        """Raises ValidationFault (ValidationError)."""
        self._tokens: list[tuple[str, str]] = []
        at, text = 0, text.rstrip()
        while at < len(text):
            match = _TOKEN.match(text, at)
            if match is None or match.lastgroup is None:
                raise malformed(f"AlarmRule must not contain {text[at : at + 20]!r}")
            self._tokens.append((match.lastgroup, match[match.lastgroup]))
            at = match.end()
        self._at = 0
        self._depth = 0
        self.children: dict[str, None] = {}
        self._test = self._either()
        if self._at < len(self._tokens):
            raise malformed(f"AlarmRule must not go on with {self._tokens[self._at][1]!r}")
        if len(self.children) > MAX_CHILDREN:
            raise malformed(f"AlarmRule names at most {MAX_CHILDREN} alarms")

    def holds(self, states: States) -> bool:
        return self._test(states)

    def _either(self) -> Callable[[States], bool]:
        self._depth += 1
        if self._depth > _MAX_DEPTH:
            raise malformed("AlarmRule is nested too deeply")
        tests = [self._both()]
        while self._word("OR"):
            tests.append(self._both())
        self._depth -= 1
        return tests[0] if len(tests) == 1 else lambda states: any(test(states) for test in tests)

    def _both(self) -> Callable[[States], bool]:
        tests = [self._one()]
        while self._word("AND"):
            tests.append(self._one())
        return tests[0] if len(tests) == 1 else lambda states: all(test(states) for test in tests)

    def _one(self) -> Callable[[States], bool]:
        negated = False
        while self._word("NOT"):
            negated = not negated
        test = self._plain()
        return (lambda states: not test(states)) if negated else test

    def _plain(self) -> Callable[[States], bool]:
        kind, text = self._next()
        if (kind, text) == ("mark", "("):
            inner = self._either()
            self._expect(")")
            return inner
        if kind == "word" and text in ("TRUE", "FALSE"):
            return lambda _states: text == "TRUE"
        if kind != "word" or text not in _STATES:
            raise malformed(f"AlarmRule must not contain {text!r}: use ALARM, OK, INSUFFICIENT_DATA, TRUE, FALSE")
        self._expect("(")
        kind, given = self._next()
        if kind == "mark":
            raise malformed(f"AlarmRule: {text}( ) names an alarm")
        name = given.rpartition(":alarm:")[2]
        self.children[name] = None
        self._expect(")")
        return lambda states: states(name) == text

    def _next(self) -> tuple[str, str]:
        if self._at == len(self._tokens):
            raise malformed("AlarmRule ends too soon")
        self._at += 1
        return self._tokens[self._at - 1]

    def _word(self, word: str) -> bool:
        if self._at < len(self._tokens) and self._tokens[self._at] == ("word", word):
            self._at += 1
            return True
        return False

    def _expect(self, mark: str) -> None:
        if self._at == len(self._tokens) or self._next() != ("mark", mark):
            raise malformed(f"AlarmRule: expected {mark!r}")


def put(call: Call, request: Request) -> dict[str, Any]:
    name, now = request["AlarmName"], call.now
    if request.get("ActionsSuppressor") or request.get("ActionConfiguration"):
        raise malformed("ActionsSuppressor and ActionConfiguration are not carried by this enclave: leave them out")
    rule = Rule(request["AlarmRule"])
    missing = [child for child in rule.children if call.records.get(alarms.ALARM, child) is None]
    if missing:
        raise malformed(f"Could not save the composite alarm as alarms {missing[:5]} in the alarm rule do not exist")
    if name in rule.children:
        raise malformed("A composite alarm must not name itself")
    settings = {
        member: request[member]
        for member in ("AlarmDescription", "AlarmRule", "OKActions", "AlarmActions", "InsufficientDataActions")
        if request.get(member) is not None
    }
    settings["ActionsEnabled"] = request.get("ActionsEnabled") is not False
    old = alarms.own(call.records, name)
    if old is not None and not alarms.is_composite(old):
        raise malformed(f"Could not save the composite alarm as a metric alarm has the name {name}")
    if old is None:
        if sum(1 for _ in call.records.iterate(alarms.ALARM)) >= alarms.MAX_ALARMS:
            raise QuotaExceeded(
                f"The account has {alarms.MAX_ALARMS} alarms, the most it may have.", code="LimitExceeded"
            )
        tags = {tag["Key"]: tag["Value"] for tag in request.get("Tags") or ()}
        alarms.check_tags(tags)
        body = {
            "settings": settings,
            "tags": tags,
            "configured": now.isoformat(),
            "state": alarms.initial_state(now),
        }
        change: GuardedChange = Creation(alarms.ALARM, name, body, INSUFFICIENT)
    else:
        change = Revision(old, {**old.body, "settings": settings, "configured": now.isoformat()})
    data = orjson.dumps({"version": "1.0", "type": "Update" if old else "Create"}).decode()
    summary = f'Alarm "{name}" {"updated" if old else "created"}'
    alarms.apply(
        call.records,
        [change, alarms.line(name, now, "ConfigurationUpdate", summary, data, call.request_id, composite=True)],
    )
    call.resources.append((alarms.arn(call, name), "AWS::CloudWatch::CompositeAlarm"))
    return {}


def judged(records: GuardedRecords, settings: Mapping[str, Any]) -> tuple[str, str, str]:
    """(state, reason, reason data) of a composite alarm, over the alarms that `records` shows."""
    rule = Rule(settings["AlarmRule"])
    found: dict[str, str | None] = {}
    for child in rule.children:
        record = records.get(alarms.ALARM, child)
        found[child] = None if record is None else record.state
    state = ALARM if rule.holds(found.get) else OK
    triggers = ", ".join(f"{name} is {known}" for name, known in found.items() if known is not None)
    told = {"triggeringAlarms": [{"name": n, "state": {"value": known}} for n, known in found.items() if known]}
    return (
        state,
        f"The alarm rule is {'met' if state == ALARM else 'not met'}: {triggers}"[:1023],
        orjson.dumps(told).decode()[:4000],
    )


def family(records: GuardedRecords, request: Request) -> list[Record] | None:
    """Alarms that ChildrenOfAlarmName or ParentsOfAlarmName asks for; None when neither is given."""
    of_parent, of_child = request.get("ChildrenOfAlarmName"), request.get("ParentsOfAlarmName")
    if of_parent:
        parent = records.get(alarms.ALARM, of_parent)
        names = Rule(parent.body["settings"]["AlarmRule"]).children if parent and alarms.is_composite(parent) else {}
        return [found for name in names if (found := records.get(alarms.ALARM, name)) is not None]
    if of_child:
        return [
            record
            for record in records.iterate(alarms.ALARM)
            if alarms.is_composite(record) and of_child in Rule(record.body["settings"]["AlarmRule"]).children
        ]
    return None
