"""Quantum: the parts that need neither a simulator nor an enclave."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from honmaru.core.errors import AccessDenied, Conflict, NotFound, NotReady, QuotaExceeded, ValidationFault
from honmaru.core.labels import BOTTOM, Label
from honmaru.core.sessions import Session
from honmaru.jobs import hybrid_job
from honmaru.jobs import quantum_task as quantum_task_jobs
from honmaru.jobs.instances import Capacity
from honmaru.jobs.kept_sessions import kept_session, session_of
from honmaru.jobs.quantum_devices import Device, devices_of, estimated_qubits, price_usd
from honmaru.jobs.quantum_spending import Limit, Spending
from honmaru.jobs.quantum_states import CLAIMABLE, FINAL, TABLE, after
from honmaru.jobs.quantum_task import stamp
from honmaru.security.guard import Record
from honmaru.services.braket import quantum_task, tags
from honmaru.services.braket.device import describe
from honmaru.services.braket.device import search as search_devices
from honmaru.services.braket.searching import search
from honmaru.services.logs.insights import parse
from honmaru.services.logs.insights.rows import Moment, Row

NOW = datetime(2026, 11, 24, 0, 0, 0, 123456, tzinfo=UTC)
SECRET = Label.parse("SECRET")
CAPACITY = Capacity(cores=2, memory_bytes=24 << 30)


def session(label: Label = BOTTOM, **more: Any) -> Session:
    arn = "arn:aws-iso-b:iam::123456789012:user/alice"
    return Session("123456789012", "aws-iso-b", "us-isob-east-1", arn, "AIDAX", "user", label, arn, **more)


def record(name: str = "a", label: Label = BOTTOM, created: datetime = NOW, **body: Any) -> Record:
    return Record(
        "123456789012", "braket", "quantum-task", name, label, {"tags": {}, **body}, "QUEUED", 1, created, created
    )


# Invariant: final statuses have no way out, so a task ends exactly once.
@pytest.mark.parametrize("table", [TABLE, hybrid_job.TABLE])
def test_final_statuses_have_no_way_out(table: dict[tuple[str, str], str]) -> None:
    finals = {"COMPLETED", "FAILED", "CANCELLED"}
    assert not [status for status, _ in table if status in finals]
    assert set(table.values()) - finals <= {status for status, _ in table}


def test_a_transition_that_is_not_there_is_a_conflict() -> None:
    for status in FINAL:
        with pytest.raises(Conflict):
            after(status, "complete")


def test_every_status_that_is_claimed_can_be_ended_as_cancelled() -> None:
    for status in CLAIMABLE - {"CANCELLING"}:
        assert after(after(status, "cancel"), "cancelled") == "CANCELLED"


# Devices


def test_a_device_has_two_names_and_no_others() -> None:
    devices = devices_of(CAPACITY, "aws-iso-b", None)
    for partition in ("aws", "aws-iso-b"):
        assert devices.named(f"arn:{partition}:braket:::device/quantum-simulator/amazon/sv1").name == "sv1"
    for arn in ("arn:aws-iso:braket:::device/quantum-simulator/amazon/sv1", "sv1", ""):
        with pytest.raises(NotFound):
            devices.named(arn)


def test_devices_come_in_pages(tmp_path: Path) -> None:
    devices = replace(devices_of(CAPACITY, "aws-iso-b", None), prefix=tmp_path)
    call: Any = SimpleNamespace(session=session())
    first = search_devices(call, {"filters": [], "maxResults": 1}, devices)
    second = search_devices(call, {"filters": [], "maxResults": 1, "nextToken": first["nextToken"]}, devices)
    assert [each["deviceName"] for page in (first, second) for each in page["devices"]] == ["DM1", "SV1"]
    assert second["nextToken"] is None


def test_without_the_environment_the_repair_is_named() -> None:
    with pytest.raises(NotReady, match="make install-quantum"):
        devices_of(CAPACITY, "aws-iso-b", None).require()


# Invariant: IAM is asked first, then whether the device is there, then whether its environment is installed.
@pytest.mark.parametrize("operation", ["GetDevice", "CreateQuantumTask"])
@pytest.mark.parametrize(
    ("arn", "allowed", "fault"),
    [
        ("arn:aws:braket:::device/quantum-simulator/amazon/sv1", False, AccessDenied),
        ("arn:aws:braket:::device/quantum-simulator/amazon/none", False, AccessDenied),
        ("arn:aws:braket:::device/quantum-simulator/amazon/none", True, NotFound),
        ("arn:aws:braket:::device/quantum-simulator/amazon/sv1", True, NotReady),
    ],
)
def test_the_order_of_the_questions_about_a_device(operation: str, arn: str, allowed: bool, fault: type) -> None:
    asked = []

    def authorize(action: str, resource: str) -> None:
        asked.append((action, resource))
        if not allowed:
            raise AccessDenied("no policy allows it")

    call: Any = SimpleNamespace(session=session(), authorize=authorize)
    devices, request = devices_of(CAPACITY, "aws-iso-b", None), {"deviceArn": arn}
    ask: dict[str, Any] = {
        "GetDevice": lambda: describe(call, request, devices, None),  # type: ignore[arg-type]
        "CreateQuantumTask": lambda: quantum_task.prepare(call, request, devices),
    }
    with pytest.raises(fault):
        ask[operation]()
    assert asked == [(f"braket:{operation}", arn.replace("arn:aws:", "arn:aws-iso-b:"))]


@given(st.integers(min_value=1, max_value=1 << 40))
def test_limits_fit_the_machine(memory: int) -> None:
    for device in devices_of(Capacity(2, memory), "aws-iso-b", None).all:
        assert 0 <= device.limits.qubits <= 26
        if device.limits.qubits > 1:
            assert device.memory_bytes(device.limits.qubits) <= max(memory // 2, 1 << 29)


def test_memory_of_a_density_matrix_is_that_of_twice_the_qubits() -> None:
    sv1, dm1 = devices_of(CAPACITY, "aws-iso-b", None).all
    assert dm1.memory_bytes(10) == sv1.memory_bytes(20)


@pytest.mark.parametrize(
    ("source", "most"),
    [
        ("qubit[5] q; h q[0];", 5),
        ("qubit q; qubit[3] r;", 4),
        ("h $7;", 8),
        ("const int n = 4; qubit[n] q;", 26),
        ("qubit[4+20] q;", 26),
        ("qubit[0x14] q;", 26),
        ("qubit // four\n [4] q;", 4),
        ("qubit /* four */ [24] q;", 26),
        ('include "x.inc"; qubit[2] q;', 26),
        ("", 26),
        ("qubit[999999999] q;", 26),
    ],
)
def test_estimated_qubits_is_an_upper_bound(source: str, most: int) -> None:
    device: Device = devices_of(CAPACITY, "aws-iso-b", None).all[0]
    assert estimated_qubits(device, {"source": source}) == most
    assert estimated_qubits(device, {"programs": [{"source": "qubit[2] q;"}, {"source": source}]}) == max(2, most)


# Spending


def limit(usd: str, **more: Any) -> Limit:
    return Limit("arn", "sv1", Decimal(usd), more.get("start"), more.get("end"))


def test_a_limit_holds_back_the_task_that_would_pass_it() -> None:
    spending = Spending()
    tight = limit("0.01")  # a task costs at least 0.00375
    for number in range(2):
        spending.reserve(session(), "sv1", f"t{number}", NOW, [tight])
    with pytest.raises(QuotaExceeded, match="spending limit"):
        spending.reserve(session(), "sv1", "t2", NOW, [tight])
    assert spending.sums("123456789012", BOTTOM, tight) == (Decimal("0.0075"), Decimal(0))
    spending.reserve(session(), "dm1", "other-device", NOW, [tight])
    spending.forget("123456789012", BOTTOM, "sv1", "t0")
    spending.reserve(session(), "sv1", "t3", NOW, [tight])


def test_spending_above_is_counted_above_only() -> None:
    spending, seen = Spending(), limit("1.00")
    spending.reserve(session(SECRET), "sv1", "high", NOW, [])
    spending.settle("123456789012", SECRET, "sv1", "high", NOW, 0.9)
    assert spending.sums("123456789012", BOTTOM, seen) == (0, 0)
    assert spending.sums("123456789012", SECRET, seen) == (0, Decimal("0.9"))
    assert spending.sums("210987654321", SECRET, seen) == (0, 0)


def test_a_limit_counts_its_period_only() -> None:
    spending = Spending()
    spending.settle("123456789012", BOTTOM, "sv1", "old", NOW - timedelta(days=2), 5.0)
    assert spending.sums("123456789012", BOTTOM, limit("1", start=NOW - timedelta(days=1), end=NOW)) == (0, 0)
    expired = limit("0.00", end=NOW - timedelta(seconds=1))
    assert spending.reserve(session(), "sv1", "new", NOW, [expired]) is None


def test_a_request_that_is_repeated_does_not_reset_what_its_task_cost() -> None:
    spending, seen = Spending(), limit("9.00")
    spending.reserve(session(), "sv1", "t", NOW, [])
    spending.settle("123456789012", BOTTOM, "sv1", "t", NOW, 4.5)
    spending.reserve(session(), "sv1", "t", NOW, [seen])
    assert spending.sums("123456789012", BOTTOM, seen) == (0, Decimal("4.5"))


@pytest.mark.parametrize("state", sorted(FINAL))
def test_what_ended_before_a_restart_counts_after_it(tmp_path: Path, state: str) -> None:
    """A cancelled task ran, too."""
    stored = replace(record(device="sv1", ended=NOW.isoformat(), usd=1.5), state=state)
    kept = SimpleNamespace(list=lambda kind, state: [stored] if state == stored.state else [])
    parts: Any = {
        "guard": SimpleNamespace(trusted=lambda service, kinds: kept),
        "workers": SimpleNamespace(recover=lambda: 0, close=lambda: None),
    }
    spending, devices = Spending(), replace(devices_of(CAPACITY, "aws-iso-b", None), prefix=tmp_path)
    more: Any = {"buckets": None, "clock": None, "devices": devices, "spending": spending, "cores": 1}
    tasks = quantum_task_jobs.QuantumTasks(**parts, **more)
    tasks.start()
    tasks.stop()
    assert spending.sums("123456789012", BOTTOM, limit("9")) == (0, Decimal("1.5"))


def test_time_is_accounted_from_three_seconds_on() -> None:
    assert price_usd(0.001) == price_usd(3) == 0.00375
    assert price_usd(60) == 0.075


# The worker


INTERPRETING = """
import time
from honmaru.workloads.quantum.server import _limited_cpu

with _limited_cpu(0.05, ValueError):
    time.sleep(0.2)
try:
    with _limited_cpu(0.05, ValueError):
        until = time.process_time() + 5
        while time.process_time() < until:
            pass
except ValueError as late:
    print(late)
"""


def test_interpreting_is_limited_in_processor_time_and_not_by_the_clock() -> None:
    """In a process of its own, as in the product: the timer counts all threads of a process."""
    done = subprocess.run([sys.executable, "-c", INTERPRETING], capture_output=True, text=True, timeout=60, check=True)
    assert "to interpret" in done.stdout


# Sessions and times


def test_a_session_survives_its_record() -> None:
    made = session(SECRET, tags={"a": "b"}, transitive_tags=frozenset({"a"}), chain=(("access-key", "AKIA", "1"),))
    stored = json.loads(json.dumps(kept_session(made)))
    assert session_of(record(label=SECRET, session=stored)) == made


def test_times_in_results_have_at_most_24_characters() -> None:
    assert stamp(NOW) == "2026-11-24T00:00:00.123Z"


# Searching and tags


def test_search_filters_pages_and_refuses_what_it_does_not_know() -> None:
    records = [
        record(f"t{n}", created=NOW + timedelta(seconds=n), tags={"k": str(n % 2)}, status="DONE" if n else "NEW")
        for n in range(5)
    ]

    def facts(each: Record) -> dict[str, Any]:
        return {"status": each.body["status"], "createdAt": each.created}

    def names(**request: Any) -> list[str]:
        return [each.name for each in search(records, request, facts, ("status", "createdAt"))[0]]

    assert names() == ["t4", "t3", "t2", "t1", "t0"]
    assert names(filters=[{"name": "status", "operator": "EQUAL", "values": ["NEW"]}]) == ["t0"]
    assert names(filters=[{"name": "tags:k", "operator": "EQUAL", "values": ["1"]}]) == ["t3", "t1"]
    third = (NOW + timedelta(seconds=3)).isoformat()
    assert names(filters=[{"name": "createdAt", "operator": "GTE", "values": [third]}]) == ["t4", "t3"]
    assert names(filters=[{"name": "createdAt", "operator": "BETWEEN", "values": [NOW.isoformat(), third]}])[0] == "t3"
    first, token = search(records, {"maxResults": 2}, facts, ())
    second, last = search(records, {"maxResults": 3, "nextToken": token}, facts, ())
    assert [each.name for each in (*first, *second)] == ["t4", "t3", "t2", "t1", "t0"] and last is None
    for bad in ({"filters": [{"name": "nope", "values": ["x"]}]}, {"nextToken": "?"}):
        with pytest.raises(ValidationFault):
            names(**bad)


def test_a_label_tag_says_the_label_or_is_refused() -> None:
    assert tags.checked(SECRET, {"honmaru:label": "SECRET"}) == {"honmaru:label": "SECRET"}
    with pytest.raises(ValidationFault):
        tags.checked(SECRET, {"honmaru:label": "UNCLASSIFIED"})
    with pytest.raises(ValidationFault):
        tags.checked(SECRET, {str(n): "" for n in range(51)})


# Logs Insights


@pytest.mark.parametrize(
    ("condition", "answer"),
    [
        ("@logStream like /^job\\/1\\//", True),
        ("@logStream like /^ob\\/1\\//", False),
        ("@message like /Metrics - /", True),
        ("@message not like /loss/", False),
        ("@message like /loss=1$/", True),
    ],
)
def test_the_query_that_brakets_sdk_asks_for_metrics(condition: str, answer: bool) -> None:
    row = Row({"@message": "Metrics - loss=1", "@logStream": "job/1/algo-1", "@timestamp": Moment(0), "@log": ""})
    query = parse(f"fields @timestamp, @message | filter {condition} | sort @timestamp asc | limit 5")
    assert bool(list(query.run([row], 5))) is answer
    assert query.columns == ["@timestamp", "@message"]


# Hybrid jobs


def test_a_job_reads_its_own_variables() -> None:
    request = {
        "jobName": "j",
        "outputDataConfig": {"s3Path": "s3://bucket/jobs/j"},
        "algorithmSpecification": {"scriptModeConfig": {"entryPoint": "a:b", "s3Uri": "s3://bucket/source.tar.gz"}},
        "instanceConfig": {"instanceType": "ml.m5.large", "volumeSizeInGb": 1},
        "hyperParameters": {"x": "1"},
        "inputDataConfig": [{"channelName": "in", "dataSource": {"s3DataSource": {"s3Uri": "s3://bucket/in"}}}],
    }
    made = record(request=request, arn="arn", device="device", token="token", region="us-isob-east-1")
    told = hybrid_job.variables(made)
    assert told["AMZN_BRAKET_OUT_S3_BUCKET"] == "bucket" and told["AMZN_BRAKET_JOB_TOKEN"] == "token"
    assert not any("SECRET" in name or "ACCESS_KEY" in name for name in told)
    staged = hybrid_job.as_training(request)
    assert staged["InputDataConfig"][0]["DataSource"]["S3DataSource"]["S3Uri"] == "s3://bucket/in"
    assert "CheckpointConfig" not in staged


def test_braket_names_its_environment_only_where_it_is(tmp_path: Path) -> None:
    from honmaru.jobs.environments import Environments

    without = Environments(tmp_path / "environments.json")
    assert "braket" not in [each.name for each in without.all()]
    prefix = tmp_path / "venv"
    (prefix / "bin").mkdir(parents=True)
    (prefix / "bin" / "python").touch()
    assert Environments(tmp_path / "environments.json", quantum=prefix).named("braket").prefix == str(prefix)
