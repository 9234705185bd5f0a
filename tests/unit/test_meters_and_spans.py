"""Numbers for Prometheus and spans for OpenTelemetry: kept apart by label, bounded, read by their own parsers."""

from __future__ import annotations

import http.server
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from honmaru.app import traces
from honmaru.app.background import Background, Step
from honmaru.app.traces import SpanFiles
from honmaru.app.usage import Usage
from honmaru.core.errors import ConfigurationFault
from honmaru.core.labels import BOTTOM, Label
from honmaru.gateway.meters import Measurement, Reader, RequestMeter
from honmaru.gateway.spans import Tracer
from honmaru.ports.traces import Span
from honmaru.testing.gateways import ACCOUNT, GatewayUnderTest
from honmaru.testing.keep import quick_directory

HIGH = Label.parse("SECRET")
PEER = Path(sys.prefix).with_name(".venv-peers") / "observability" / "bin" / "python"
needs_peer = pytest.mark.skipif(
    not PEER.exists(), reason="the parsers are not installed: run `scripts/install-peers observability`"
)
_FORM = {"Content-Type": "application/x-www-form-urlencoded"}


@pytest.fixture
def gateway() -> Iterator[GatewayUnderTest]:
    with quick_directory() as directory:
        made = GatewayUnderTest(directory)
        yield made
        made.close()


def identity(gateway: GatewayUnderTest, *, low: bool = False, **headers: str) -> Any:
    body = b"Action=GetCallerIdentity&Version=2011-06-15"
    request = gateway.signed(
        "sts", "POST", "/", body=body, headers=list(_FORM.items()), key=gateway.low if low else gateway.high
    )
    for name, value in headers.items():
        request = request.with_header(name, value)
    return request


# Numbers


def test_a_reader_sees_series_that_it_dominates_and_of_its_account(gateway: GatewayUnderTest) -> None:
    gateway.send(identity(gateway))
    gateway.send(identity(gateway, low=True))
    gateway.send(identity(gateway).with_header("Authorization", None))
    meter = gateway.gateway.meter
    low, high = (meter.text(Reader(ACCOUNT, label)) for label in (BOTTOM, HIGH))
    assert "SECRET" not in low
    assert 'label="UNCLASSIFIED",account="123456789012",service="sts",operation="GetCallerIdentity",code="ok"} 1' in low
    assert (
        'label="SECRET//NOFORN",account="123456789012",service="sts",operation="GetCallerIdentity",code="ok"} 1' in high
    )
    assert "MissingAuthenticationToken" in low
    assert "GetCallerIdentity" not in meter.text(Reader("999999999999", HIGH))


def test_names_that_a_caller_makes_up_make_no_series(gateway: GatewayUnderTest) -> None:
    for number in range(50):
        body = f"Action=Made{number}&Version=2011-06-15".encode()
        gateway.send(gateway.signed("sts", "POST", "/", body=body, headers=list(_FORM.items())))
    assert len(gateway.gateway.meter.counts()) <= 2
    assert "Made" not in gateway.gateway.meter.text(Reader("", HIGH))


def test_measurements_of_higher_labels_are_left_out() -> None:
    found = [Measurement("m", "help", label, 1.0, {"kind": 'a"b\\\n'}) for label in (BOTTOM, HIGH)]
    meter = RequestMeter(ACCOUNT, lambda: found)
    assert meter.text(Reader(ACCOUNT, BOTTOM)).count("\nm{") == 1
    assert 'm{label="SECRET//NOFORN",kind="a\\"b\\\\\\n"} 1' in meter.text(Reader(ACCOUNT, HIGH))


@needs_peer
def test_prometheus_parses_every_line(gateway: GatewayUnderTest) -> None:
    for _ in range(3):
        gateway.send(identity(gateway))
    text = gateway.gateway.meter.text(Reader("", HIGH))
    program = (
        "import sys, json; from prometheus_client.parser import text_string_to_metric_families as parse\n"
        "families = {f.name: f for f in parse(sys.stdin.read())}\n"
        "h = families['honmaru_request_duration_seconds']\n"
        "most = max(s.value for s in h.samples if s.labels.get('le') == '+Inf')\n"
        "print(json.dumps([h.type, families['honmaru_requests'].type, most]))"
    )
    done = subprocess.run([PEER, "-c", program], input=text, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == ["histogram", "counter", 3.0]


def _model(datum: Any) -> str:
    return f"{datum.dimensions['ModelId']} {datum.name}"


class Sink:
    def __init__(self) -> None:
        self.put_data: list[tuple[str, str, str, float]] = []

    def put(self, session: Any, namespace: str, data: Any) -> None:
        self.put_data += [
            (session.label.canonical, namespace, each.dimensions.get("Resource") or _model(each), each.value)
            for each in data
        ]


def test_calls_become_usage_once_at_their_label(gateway: GatewayUnderTest) -> None:
    sink = Sink()
    usage = Usage(gateway.gateway.meter, sink, gateway.clock, partition="aws-iso-b", region="us-isob-east-1")
    for _ in range(2):
        gateway.send(identity(gateway))
    assert usage.write() == 1
    assert usage.write() == 0
    gateway.send(identity(gateway))
    usage.write()
    assert sink.put_data == [
        (HIGH.canonical, "AWS/Usage", "GetCallerIdentity", 2.0),
        (HIGH.canonical, "AWS/Usage", "GetCallerIdentity", 1.0),
    ]


def test_calls_of_models_are_counted_once_and_made_up_names_are_not(gateway: GatewayUnderTest) -> None:
    from types import SimpleNamespace

    from honmaru.core.errors import EngineFailed, NotFound
    from honmaru.testing.keep import session

    meter = gateway.gateway.meter

    def called(model: str, error: Exception | None = None, **details: int) -> Any:
        return SimpleNamespace(
            session=session("SECRET", account=ACCOUNT),
            service=SimpleNamespace(name="bedrock-runtime"),
            operation_name="Converse",
            error=error,
            members={"modelId": model},
            call=SimpleNamespace(details=details),
        )

    meter.models.observe(called("m", inputTokens=5, outputTokens=7), 0.0204)
    meter.models.observe(called("m", inputTokens=1, outputTokens=2), 0.0201)
    meter.models.observe(called("m", EngineFailed("gone")), 0.5)
    meter.models.observe(called("made-up", NotFound("no such model")), 0.5)
    sink = Sink()
    usage = Usage(meter, sink, gateway.clock, partition="aws-iso-b", region="us-isob-east-1")
    usage.write()
    usage.write()
    kept = {(namespace, name): value for _, namespace, name, value in sink.put_data}
    assert kept == {
        ("AWS/Bedrock", "m Invocations"): 2.0,
        ("AWS/Bedrock", "m InvocationServerErrors"): 1.0,
        ("AWS/Bedrock", "m InputTokenCount"): 6.0,
        ("AWS/Bedrock", "m OutputTokenCount"): 9.0,
        ("AWS/Bedrock", "m InvocationLatency"): 20.0,
    }


# Spans


class Kept:
    def __init__(self) -> None:
        self.spans: list[tuple[Label, list[Span]]] = []

    def add(self, label: Label, spans: Any) -> None:
        self.spans.append((label, list(spans)))


def traced(gateway: GatewayUnderTest, sink: Any) -> None:
    gateway.gateway._tracer = Tracer(sink, gateway.clock, gateway.ids)


def test_a_request_is_a_span_with_one_for_each_handler(gateway: GatewayUnderTest) -> None:
    kept = Kept()
    traced(gateway, kept)
    parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    assert gateway.send(identity(gateway, traceparent=parent)).status == 200
    ((label, (root, *steps)),) = kept.spans
    assert label == HIGH
    assert (root.name, root.kind, root.error) == ("sts.GetCallerIdentity", 2, "")
    assert (root.trace_id, root.parent_id) == ("0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331")
    names = [step.name for step in steps]
    assert names[:2] == ["identify", "admit"]
    assert {"authorize", "dispatch", "serialise", "record", "send"} <= set(names)
    assert all(step.parent_id == root.span_id and step.trace_id == root.trace_id for step in steps)
    assert all(root.start_ns <= step.start_ns <= step.end_ns <= root.end_ns for step in steps)


def test_a_refused_request_says_where_it_ended(gateway: GatewayUnderTest) -> None:
    kept = Kept()
    traced(gateway, kept)
    bad = identity(gateway, traceparent="00-zz-yy-01").with_header("Authorization", None)
    assert gateway.send(bad).status == 403
    ((label, (root, *steps)),) = kept.spans
    assert label == BOTTOM
    assert len(root.trace_id) == 32 and root.parent_id == ""
    assert root.error == "MissingAuthenticationToken"
    assert [step.error for step in steps][-1] == root.error
    assert "dispatch" not in [step.name for step in steps]


def span(number: int = 1) -> Span:
    attributes: dict[str, str | int | bool] = {"a": "text", "b": 7, "c": True}
    return Span(f"{number:032x}", f"{number:016x}", "", "name", 1_000, 2_000, 2, attributes, "AccessDenied")


def test_each_label_has_a_file_of_its_own(tmp_path: Path) -> None:
    files = SpanFiles(tmp_path / "traces", {"service.name": "honmaru"})
    files.add(HIGH, [span(1)])
    files.add(BOTTOM, [span(2), span(3)])
    assert files.flush() == 3
    lines = {
        label.canonical: [
            json.loads(line)
            for file in (tmp_path / "traces" / label.token).glob("*.jsonl")
            for line in file.read_text().splitlines()
        ]
        for label in (BOTTOM, HIGH)
    }
    ids = {
        name: [s["spanId"] for line in found for s in line["resourceSpans"][0]["scopeSpans"][0]["spans"]]
        for name, found in lines.items()
    }
    assert ids == {HIGH.canonical: [f"{1:016x}"], BOTTOM.canonical: [f"{2:016x}", f"{3:016x}"]}
    for file in (tmp_path / "traces").glob("*/*.jsonl"):
        assert file.stat().st_mode & 0o777 == 0o600


def test_files_and_the_queue_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(traces, "FILE_BYTES", 2000)
    monkeypatch.setattr(traces, "FILES", 3)
    monkeypatch.setattr(traces, "QUEUED", 10)
    files = SpanFiles(tmp_path, {})
    for number in range(1, 40):
        files.add(BOTTOM, [span(number)])
        files.flush()
    found = sorted((tmp_path / BOTTOM.token).iterdir())
    assert len(found) <= 3
    assert found[0].name > "traces-000001.jsonl"
    files.add(BOTTOM, [span(number) for number in range(1, 9)])
    files.add(BOTTOM, [span(number) for number in range(1, 9)])
    assert (files.flush(), files.dropped) == (8, 8)


def test_a_collector_is_on_loopback_and_told_what_it_is_cleared_for(tmp_path: Path) -> None:
    for bad in ("http://10.0.0.1:4318/v1/traces", "https://127.0.0.1/v1/traces", "http://example.test:1/", "file:///x"):
        with pytest.raises(ConfigurationFault):
            SpanFiles(tmp_path, {}, collector=bad)
    posted: list[Any] = []

    class Collector(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            posted.append((self.path, json.loads(self.rfile.read(int(self.headers["Content-Length"])))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            return

    server = http.server.HTTPServer(("127.0.0.1", 0), Collector)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}/v1/traces"
    files = SpanFiles(tmp_path, {}, collector=url, collector_label=BOTTOM)
    files.start()
    files.add(HIGH, [span(1)])
    files.add(BOTTOM, [span(2)])
    files.close()
    server.shutdown()
    server.server_close()
    assert [path for path, _ in posted] == ["/v1/traces"]
    assert f"{2:016x}" in json.dumps(posted) and f"{1:016x}" not in json.dumps(posted)


@needs_peer
def test_opentelemetrys_own_messages_hold_what_we_write() -> None:
    request = traces.export_request(HIGH, [span(5)], {"service.name": "honmaru"})
    program = (
        "import sys, json, base64\n"
        "from google.protobuf.json_format import ParseDict\n"
        "from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest as R\n"
        "d = json.load(sys.stdin)\n"
        "for s in d['resourceSpans'][0]['scopeSpans'][0]['spans']:\n"
        "    for k in ('traceId', 'spanId', 'parentSpanId'):\n"
        "        if k in s: s[k] = base64.b64encode(bytes.fromhex(s[k])).decode()  # OTLP's JSON has hex\n"
        "r = ParseDict(d, R())  # raises for a field that the messages do not have\n"
        "s = r.resource_spans[0].scope_spans[0].spans[0]\n"
        "print(json.dumps([s.trace_id.hex(), s.span_id.hex(), s.name, s.kind, s.start_time_unix_nano, s.status.code,\n"
        "  {a.key: a.value.WhichOneof('value') for a in s.attributes}]))"
    )
    done = subprocess.run([PEER, "-c", program], input=json.dumps(request), capture_output=True, text=True, check=True)
    kinds = {"a": "string_value", "b": "int_value", "c": "bool_value"}
    assert json.loads(done.stdout) == [f"{5:032x}", f"{5:016x}", "name", 2, 1000, 2, kinds]


# Background steps


def test_a_step_that_fails_is_repeated_and_holds_no_other_up() -> None:
    ran: list[str] = []
    twice = threading.Event()

    def failing() -> None:
        ran.append("failing")
        if ran.count("failing") >= 2 and ran.count("fine") >= 2:
            twice.set()
        raise ValueError("secret text")

    background = Background((Step("failing", 0.01, failing), Step("fine", 0.01, lambda: ran.append("fine"))))
    background.start()
    assert twice.wait(5)
    background.stop()
    count = len(ran)
    threading.Event().wait(0.05)
    assert len(ran) == count
