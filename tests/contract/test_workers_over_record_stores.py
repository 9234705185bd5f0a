"""An enclave with two workers, on SQLite and on PostgreSQL: to its clients it is one enclave."""

from __future__ import annotations

import json
import re
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError

from honmaru.app.operator import ask
from honmaru.testing.enclaves import LiveEnclave
from honmaru.testing.lines import lines, workers

WHO = "Action=GetCallerIdentity&Version=2011-06-15"


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def two(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveEnclave]:
    extra: list[str] = []
    if request.param == "postgresql":
        extra = ["--database", request.getfixturevalue("postgresql").format(database="postgres")]
    live = LiveEnclave(tmp_path_factory.mktemp("two")).up("--workers", "2", *extra)
    live.user("alice", "SECRET")
    live.facts["database"] = extra
    yield live
    live.down()


def test_both_workers_answer_with_one_state(two: LiveEnclave) -> None:
    admin = two.credentials()
    first, second = lines(two)
    assert first.pid != second.pid
    location = f"<CreateBucketConfiguration><LocationConstraint>{two.region}</LocationConstraint>"
    body = f"{location}</CreateBucketConfiguration>".encode()
    assert first.call(admin, "s3", "PUT", "/seen-by-both", body)[0] == 200
    for number in range(6):
        writer, reader = (first, second) if number % 2 else (second, first)
        content = f"{number}".encode() * 1000
        assert writer.call(admin, "s3", "PUT", "/seen-by-both/key", content)[0] == 200
        assert reader.call(admin, "s3", "GET", "/seen-by-both/key") == (200, content)
    assert {line.form(admin, "sts", WHO)[0] for line in (first, second)} == {200}
    until = time.monotonic() + 10
    while True:  # the workers say each second what they counted
        text = ask(two.data, "GetMetrics", label="SECRET")["text"]
        counted = sum(int(found) for found in re.findall(r'_total{.*operation="GetObject".*code="ok".*} (\d+)', text))
        if counted == 6 or time.monotonic() > until:
            break
        time.sleep(0.1)
    assert counted == 6


def test_an_object_that_one_worker_deletes_goes_on_being_read_in_the_other(two: LiveEnclave) -> None:
    admin = two.credentials()
    s3 = two.client("s3")
    s3.create_bucket(Bucket="long-reads", CreateBucketConfiguration={"LocationConstraint": two.region})
    content = bytes(range(256)) * (96 << 10)  # 24 MiB: more than sockets hold
    s3.put_object(Bucket="long-reads", Key="long", Body=content)
    reading = s3.get_object(Bucket="long-reads", Key="long")["Body"]
    read = reading.read(1 << 20)
    blobs = {path for path in (two.data / "blobs").rglob("*") if path.is_file()}
    for line in lines(two):  # one of them is not the one that is read from
        assert line.call(admin, "s3", "DELETE", "/long-reads/long")[0] == 204
    time.sleep(0.3)
    assert read + reading.read() == content
    until = time.monotonic() + 10
    while len({path for path in (two.data / "blobs").rglob("*") if path.is_file()}) != len(blobs) - 1:
        assert time.monotonic() < until, "the space is not free after the last reader"
        time.sleep(0.05)


def test_what_is_handed_over_has_its_callers_address_and_every_gate(two: LiveEnclave) -> None:
    iam = two.client("iam")

    def policy(name: str, effect: str, condition: Any) -> None:
        statement = {"Effect": effect, "Action": "logs:*", "Resource": "*", "Condition": condition}
        document = json.dumps({"Version": "2012-10-17", "Statement": statement})
        iam.put_user_policy(UserName="alice", PolicyName=name, PolicyDocument=document)

    logs = two.client("logs", "alice", "UNCLASSIFIED")
    policy("from", "Deny", {"NotIpAddress": {"aws:SourceIp": "127.0.0.1/32"}})
    policy("tls", "Deny", {"Bool": {"aws:SecureTransport": "false"}})
    logs.create_log_group(logGroupName="g")
    logs.create_log_stream(logGroupName="g", logStreamName="s")
    event = {"timestamp": int(time.time() * 1000), "message": "x" * 200_000}
    logs.put_log_events(logGroupName="g", logStreamName="s", logEvents=[event])
    assert len(logs.get_log_events(logGroupName="g", logStreamName="s")["events"][0]["message"]) == 200_000
    policy("from", "Deny", {"IpAddress": {"aws:SourceIp": "127.0.0.1/32"}})
    with pytest.raises(ClientError, match="AccessDenied"):
        logs.describe_log_groups()
    for name in ("from", "tls"):
        iam.delete_user_policy(UserName="alice", PolicyName=name)
    # A modelled error, a pagination with its token, and a refusal for an operation that nobody wrote
    with pytest.raises(ClientError, match="ResourceNotFoundException"):
        logs.get_log_events(logGroupName="none", logStreamName="s")
    for number in range(3):
        iam.create_user(UserName=f"page-{number}")
    pages = list(iam.get_paginator("list_users").paginate(PaginationConfig={"PageSize": 2}))
    assert len(pages) > 1 and sum(len(page["Users"]) for page in pages) == 5
    with pytest.raises(ClientError, match="not implemented"):
        two.client("sagemaker").create_app(DomainId="d-x", AppType="JupyterServer", AppName="a")


def test_who_tells_a_false_key_is_refused_by_both(two: LiveEnclave) -> None:
    false = {**two.credentials(), "secret_access_key": "x" * 40}
    for line in lines(two):
        assert line.form(false, "sts", WHO)[0] == 403
        assert line.form(false, "iam", "Action=ListUsers&Version=2010-05-08")[0] == 403
        assert line.call(false, "s3", "GET")[0] == 403


def test_nobody_but_a_worker_may_hand_requests_over(two: LiveEnclave) -> None:
    path = two.data / "run" / "forward.sock"
    assert path.stat().st_mode & 0o777 == 0o600
    with socket.socket(socket.AF_UNIX) as stranger:
        stranger.settimeout(10)
        stranger.connect(str(path))
        try:
            stranger.sendall(b"\0\0\0\2\1{}")
            assert stranger.recv(1) == b"", "it is not listened to"
        except (BrokenPipeError, ConnectionResetError):
            pass


def test_a_second_enclave_on_the_same_database_is_refused(two: LiveEnclave, tmp_path: Path) -> None:
    if not two.facts["database"]:
        pytest.skip("a SQLite file belongs to its data directory")
    other = LiveEnclave(tmp_path / "other", http=True)
    with pytest.raises(RuntimeError, match="another enclave serves from this database"):
        other.up(*two.facts["database"])
    assert len(workers(two)) == 2


def test_a_port_is_not_shared_with_another_enclave(two: LiveEnclave, tmp_path: Path) -> None:
    other = LiveEnclave(tmp_path / "other", http=True)
    other.port = two.port
    with pytest.raises(RuntimeError, match="cannot be bound"):
        other.up("--workers", "2")
