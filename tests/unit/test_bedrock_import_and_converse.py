"""Bedrock over a real guard, S3, supervisor and sandboxes: import a tiny model, ask it, refuse what must be refused."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import os
import pickle
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest

from honmaru.core.errors import (
    AccessDenied,
    Conflict,
    EngineFailed,
    NotFound,
    NotReady,
    RequestFault,
    Throttled,
    ValidationFault,
)
from honmaru.security.guard.records import Creation
from honmaru.testing.forge import Forge
from honmaru.testing.keep import session
from honmaru.testing.tiny_models import tiny_llama
from honmaru.testing.workshop import BUCKET, ROLE

# Model servers are found by their command line: two workers must not run this module at once.
USER = [{"role": "user", "content": [{"text": "who may read?"}]}]


@pytest.fixture(scope="module")
def model_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("tiny"), context=128)


def archived(directory: Path) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as archive:
        archive.add(directory, arcname=".")
    return stream.getvalue()


@pytest.fixture(scope="module")
def forge(tmp_path_factory: pytest.TempPathFactory, model_files: Path) -> Iterator[Forge]:
    made = Forge(tmp_path_factory.mktemp("forge"))
    made.make_bucket()
    made.put("out/model.tar.gz", archived(model_files))
    for path in model_files.iterdir():
        made.put(f"hf/{path.name}", path.read_bytes())
    made.imports.start()
    yield made
    made.close()


@pytest.fixture(scope="module")
def model(forge: Forge) -> str:
    """ARN of a model imported from a training output."""
    job = forge.job(forge.import_model("keeper", "out/model.tar.gz"))
    assert job["status"] == "Completed", job
    return str(job["importedModelArn"])


def test_an_import_ends_with_a_model_that_is_described_and_listed(forge: Forge, model: str) -> None:
    call = forge.call("bedrock")
    described = forge.bedrock.get_imported_model(call, {"modelIdentifier": model})
    assert described["modelName"] == "keeper"
    assert described["modelArchitecture"] == "LlamaForCausalLM"
    assert described["instructSupported"] is True
    assert forge.bedrock.get_imported_model(call, {"modelIdentifier": "keeper"}) == described
    listed = forge.bedrock.list_imported_models(call, {"nameContains": "KEEP"})["modelSummaries"]
    assert [summary["modelArn"] for summary in listed] == [model]
    jobs = forge.bedrock.list_model_import_jobs(call, {"statusEquals": "Completed", "nameContains": "job-keeper"})
    assert [job["importedModelArn"] for job in jobs["modelImportJobSummaries"]] == [model]
    deadline = time.monotonic() + 10
    while list((forge.directory / "scratch").iterdir()):  # deleted as soon as the job has ended
        assert time.monotonic() < deadline
    passed = [context for action, _, context in forge.identity.asked if action == "iam:PassRole"]
    assert passed[0] == {"iam:PassedToService": "bedrock.amazonaws.com"}


def test_converse_answers_with_true_counts_and_reasons(forge: Forge, model: str) -> None:
    call = forge.call("bedrock-runtime")
    inference = {"maxTokens": 9, "temperature": 0.0}
    answer = forge.ask("converse", call, modelId=model, messages=USER, inferenceConfig=inference)
    counted = forge.ask("count_tokens", modelId=model, input={"converse": {"messages": USER}})
    assert answer["usage"]["inputTokens"] == counted["inputTokens"]
    assert answer["usage"]["totalTokens"] == answer["usage"]["inputTokens"] + answer["usage"]["outputTokens"]
    assert answer["stopReason"] in ("max_tokens", "end_turn")
    assert answer["stopReason"] == "end_turn" or answer["usage"]["outputTokens"] == 9
    assert call.response_headers["x-amzn-bedrock-output-token-count"] == str(answer["usage"]["outputTokens"])
    text = answer["output"]["message"]["content"][0]["text"]
    stop = text[3:5]
    stopped = forge.ask(
        "converse",
        modelId="keeper",
        messages=USER,
        inferenceConfig=inference | {"stopSequences": [stop]},
        additionalModelResponseFieldPaths=["/stop_sequence"],
    )
    assert stopped["stopReason"] == "stop_sequence"
    assert stopped["additionalModelResponseFields"] == {"stop_sequence": stop}
    assert stopped["output"]["message"]["content"][0]["text"] == text[: text.index(stop)]


def test_converse_stream_is_converse_in_pieces(forge: Forge, model: str) -> None:
    request = {
        "modelId": model,
        "messages": USER,
        "inferenceConfig": {"maxTokens": 12},
        "additionalModelRequestFields": {"seed": 5},
    }
    whole = forge.ask("converse", **request)

    async def collect() -> list[dict[str, Any]]:
        reply = await forge.runtime.converse_stream(forge.call("bedrock-runtime"), request)
        return [event async for event in reply["stream"]]

    events = forge.on_loop(collect())
    kinds = [next(iter(event)) for event in events]
    assert kinds[0] == "messageStart"
    assert kinds[-3:] == ["contentBlockStop", "messageStop", "metadata"]
    text = "".join(e["contentBlockDelta"]["delta"]["text"] for e in events if "contentBlockDelta" in e)
    assert text == whole["output"]["message"]["content"][0]["text"]
    assert events[-1]["metadata"]["usage"] == whole["usage"]
    assert events[-2]["messageStop"]["stopReason"] == whole["stopReason"]


def test_invoke_model_speaks_llamas_body(forge: Forge, model: str) -> None:
    body = json.dumps({"prompt": "The inner keep", "temperature": 0.5, "max_gen_len": 6, "seed": 4}).encode()
    answer = json.loads(forge.ask("invoke_model", modelId=model, body=body)["body"])
    assert set(answer) == {"generation", "prompt_token_count", "generation_token_count", "stop_reason"}
    assert answer["stop_reason"] == ("length" if answer["generation_token_count"] == 6 else "stop")

    async def collect() -> list[Any]:
        request = {"modelId": model, "body": body}
        reply = await forge.runtime.invoke_model_with_response_stream(forge.call("bedrock-runtime"), request)
        return [json.loads(event["chunk"]["bytes"]) async for event in reply["body"]]

    chunks = forge.on_loop(collect())
    assert "".join(chunk["generation"] for chunk in chunks) == answer["generation"]
    assert chunks[-1]["amazon-bedrock-invocationMetrics"]["outputTokenCount"] == answer["generation_token_count"]


@pytest.mark.parametrize(
    "change",
    [
        {"messages": [{"role": "user", "content": [{"image": {"format": "png", "source": {"bytes": b"x"}}}]}]},
        {"messages": [{"role": "assistant", "content": [{"text": "a"}]}]},
        {"messages": [*USER, *USER]},
        {"messages": []},
        {"messages": [{"role": "user", "content": [{"text": " "}]}]},
        {"messages": [{"role": "user", "content": [{"text": "long " * 500}]}]},
        {"toolConfig": {"tools": [{"toolSpec": {"name": "x"}}]}},
        {"guardrailConfig": {"guardrailIdentifier": "g"}},
        {"outputConfig": {"textFormat": {"type": "json_schema"}}},
        {"additionalModelRequestFields": {"mirostat": 4}},
        {"performanceConfig": {"latency": "optimized"}},
        {"system": [{"cachePoint": {"type": "default"}}]},
    ],
)
def test_what_the_model_cannot_do_is_refused(forge: Forge, model: str, change: dict[str, Any]) -> None:
    with pytest.raises(ValidationFault):
        forge.ask("converse", **({"modelId": model, "messages": USER} | change))


@pytest.mark.parametrize(
    "body", [b"", b"[]", b"{", b'{"prompt": 1}', b'{"prompt":"x","foo":1}', b'{"prompt":"x","temperature":7}']
)
def test_malformed_native_bodies_are_refused(forge: Forge, model: str, body: bytes) -> None:
    with pytest.raises(ValidationFault):
        forge.ask("invoke_model", modelId=model, body=body)


def test_a_model_above_the_session_is_answered_like_a_missing_one(forge: Forge, model: str) -> None:
    def refusal(identifier: str) -> tuple[str, str | None]:
        low = forge.call("bedrock-runtime", marking="UNCLASSIFIED")
        with pytest.raises(NotFound) as caught:
            forge.ask("converse", low, modelId=identifier, messages=USER)
        return caught.value.message.replace(identifier, "X"), caught.value.code

    missing = model[:-4] + "zzzz"
    assert refusal(model) == refusal(missing) == refusal("keeper") == refusal("nothing")
    low = forge.call("bedrock", marking="UNCLASSIFIED")
    assert forge.bedrock.list_imported_models(low, {})["modelSummaries"] == []
    assert forge.bedrock.list_model_import_jobs(low, {})["modelImportJobSummaries"] == []


def test_a_higher_session_gets_a_server_of_its_own(forge: Forge, model: str) -> None:
    forge.ask("converse", modelId=model, messages=USER, inferenceConfig={"maxTokens": 2})
    high = forge.call("bedrock-runtime", marking="TOP SECRET")
    forge.ask("converse", high, modelId=model, messages=USER, inferenceConfig={"maxTokens": 2})
    labels = {label for _, arn, label in forge.servers.running() if arn == model}
    assert len(labels) == 2


def test_policies_on_arns_hold_for_names_too(forge: Forge, model: str) -> None:
    def deny(_who: object, action: str, resource: str, _context: object) -> None:
        if resource == model:
            raise AccessDenied(f"{action} on {resource}")

    call = forge.call("bedrock-runtime")
    call.authorizer = deny
    with pytest.raises(AccessDenied):
        forge.ask("converse", call, modelId="keeper", messages=USER)


# Imports that must fail, each with its reason


@pytest.mark.parametrize(
    ("key", "content", "reason"),
    [
        ("bad/pickle/pytorch_model.bin", pickle.dumps({"a": 1}), "pickle"),
        ("bad/archive/model.tar.gz", b"nothing", "not a readable"),
        ("bad/empty/readme.txt", b"x", "config.json"),
    ],
)
def test_bad_sources_end_as_a_failed_job(forge: Forge, key: str, content: bytes, reason: str) -> None:
    forge.put(key, content)
    name = key.split("/")[1]
    job = forge.job(forge.import_model(f"bad-{name}", key.rpartition("/")[0] + "/"))
    assert (job["status"], job["importedModelArn"]) == ("Failed", None)
    assert reason in job["failureMessage"]


def test_a_truncated_safetensors_file_ends_as_a_failed_job(forge: Forge, model_files: Path) -> None:
    for path in model_files.iterdir():
        content = path.read_bytes()
        forge.put(f"cut/{path.name}", content[:-8] if path.suffix == ".safetensors" else content)
    job = forge.job(forge.import_model("cut", "cut"))
    assert "truncated" in job["failureMessage"]


def test_nothing_at_the_source(forge: Forge) -> None:
    assert "nothing to import" in forge.job(forge.import_model("void", "no/such/"))["failureMessage"]


def test_names_are_taken_once_and_a_retried_request_makes_one_job(forge: Forge, model: str) -> None:
    with pytest.raises(Conflict):
        forge.import_model("keeper", "hf")
    first = forge.import_model("again", "no/", clientRequestToken="t" * 33)
    assert forge.import_model("again", "no/", clientRequestToken="t" * 33) == first
    with pytest.raises(Conflict):
        forge.import_model("again", "no/")
    forge.job(first)


def test_create_refuses_what_it_cannot_keep(forge: Forge) -> None:
    for members in (
        {"vpcConfig": {"subnetIds": ["a"], "securityGroupIds": ["b"]}},
        {"importedModelKmsKeyId": "k"},
        {"jobTags": [{"key": "honmaru:label", "value": "TOP SECRET"}]},
        {"importedModelTags": [{"key": "a", "value": "1"}, {"key": "a", "value": "2"}]},
    ):
        with pytest.raises(ValidationFault):
            forge.import_model("never", "hf", **members)
    forge.identity.denied.add("iam:PassRole")
    try:
        with pytest.raises(AccessDenied):
            forge.import_model("never", "hf")
    finally:
        forge.identity.denied.clear()
    with pytest.raises(RequestFault):
        forge.import_model("never", "hf", roleArn=next(iter(forge.identity.missing | {_missing(forge)})))


def _missing(forge: Forge) -> str:
    role = ROLE + "-missing"
    forge.identity.missing.add(role)
    return role


# A model that is in the registry may be imported only when it is approved there.


def register(forge: Forge, name: str, url: str, status: str | None, etag: str = "") -> None:
    body = {
        "request": {"InferenceSpecification": {"Containers": [{"ModelDataUrl": url}]}},
        "ModelApprovalStatus": status,
        "artifacts": {url: etag} if etag else {},
    }
    records = forge.guard.records(session("SECRET"), "sagemaker")
    present = records.get("model-package", name)
    if present is not None:
        records.update(present, body)
    else:
        records.apply([Creation("model-package", name, body)])


@pytest.mark.parametrize("source", ["reg/model.tar.gz", "reg/", "reg"])
def test_a_registered_model_needs_approval(forge: Forge, model_files: Path, source: str) -> None:
    forge.put("reg/model.tar.gz", archived(model_files))
    url = f"s3://{BUCKET}/reg/model.tar.gz"
    etag = next(o.etag for o in forge.buckets.list(session("SECRET"), BUCKET, "reg/")).strip('"')
    for status in ("PendingManualApproval", "Rejected"):
        register(forge, "group/1", url, status, etag)
        with pytest.raises(ValidationFault, match=status):
            forge.import_model("governed", source)
    register(forge, "group/1", url, "Approved", "0" * 32)
    job = forge.job(forge.import_model(f"swapped{len(source)}", source))
    assert "replaced after" in job["failureMessage"]
    register(forge, "group/1", url, "Approved", etag)
    assert forge.job(forge.import_model(f"approved{len(source)}", source))["status"] == "Completed"


# Model servers


def server_pids(forge: Forge) -> list[int]:
    """The keeper's servers of this forge and this kind: batches, other tests and earlier runs have theirs."""
    # The name is closed by what follows it: other models' names begin alike.
    pattern = f"^{sys.prefix}.*--name keeper --threads"
    found = subprocess.run(["pgrep", "-f", pattern], capture_output=True, text=True, check=False).stdout.split()
    ours = f"{forge.directory / 'models'}/"
    pids = []
    for pid in found:
        with contextlib.suppress(OSError):  # it ended meanwhile
            if ours in Path(f"/proc/{pid}/mountinfo").read_text():
                pids.append(int(pid))
    return pids


def test_a_crash_while_answering_is_a_modelled_fault_and_the_next_request_is_answered(forge: Forge, model: str) -> None:
    forge.on_loop(_retired(forge, model))
    forge.ask("converse", modelId=model, messages=USER, inferenceConfig={"maxTokens": 1})

    async def scenario() -> None:
        request = {"modelId": model, "messages": USER, "inferenceConfig": {"maxTokens": 100}}
        (pid,) = server_pids(forge)

        async def answer() -> None:
            reply = await forge.runtime.converse_stream(forge.call("bedrock-runtime"), request)
            async for _ in reply["stream"]:
                pass

        os.kill(pid, signal.SIGSTOP)  # so that the answer is surely unfinished when the server dies
        answering = asyncio.ensure_future(answer())
        await asyncio.sleep(0.3)
        os.kill(pid, signal.SIGKILL)
        with pytest.raises(EngineFailed):
            await answering

    forge.on_loop(scenario())
    time.sleep(0.2)
    forge.on_loop(_eventually(lambda: forge.runtime.converse(forge.call("bedrock-runtime"), _short(model))))


def _short(model: str) -> dict[str, Any]:
    return {"modelId": model, "messages": USER, "inferenceConfig": {"maxTokens": 1}}


async def _eventually(work: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
    for _ in range(50):
        try:
            return await work()
        except NotReady:
            await asyncio.sleep(0.2)
    raise TimeoutError


async def _retired(forge: Forge, model: str) -> None:
    forge.servers.retire(model)
    await asyncio.sleep(0.5)


def test_closing_a_stream_frees_its_place_and_one_too_many_is_throttled(forge: Forge, model: str) -> None:
    async def scenario() -> None:
        request = _short(model) | {"inferenceConfig": {"maxTokens": 100}}
        streams = [
            (await forge.runtime.converse_stream(forge.call("bedrock-runtime"), request))["stream"] for _ in range(4)
        ]
        with pytest.raises(Throttled):
            await forge.runtime.converse(forge.call("bedrock-runtime"), _short(model))
        for stream in streams:
            await stream.aclose()
        await forge.runtime.converse(forge.call("bedrock-runtime"), _short(model))

    forge.on_loop(scenario())


def test_servers_of_a_killed_enclave_are_ended_at_the_next_start(forge: Forge, model: str) -> None:
    forge.ask("converse", **_short(model))
    assert forge.servers.running()
    assert forge.servers.recover() >= 1
    assert list((forge.directory / "models").iterdir()) == []
    assert server_pids(forge) == []
    forge.on_loop(_eventually(lambda: forge.runtime.converse(forge.call("bedrock-runtime"), _short(model))))


def test_a_deleted_model_is_gone_with_its_files_and_servers(forge: Forge) -> None:
    arn = forge.job(forge.import_model("shortlived", "hf"))["importedModelArn"]
    forge.ask("converse", **_short(arn))
    call = forge.call("bedrock")
    record = forge.guard.records(session("SECRET"), "bedrock").get("imported-model", arn.rpartition("/")[2])
    assert record is not None
    blob_id = next(iter(record.body["files"].values()))
    with pytest.raises(AccessDenied):
        forge.bedrock.delete_imported_model(forge.call("bedrock", marking="TOP SECRET"), {"modelIdentifier": arn})
    forge.bedrock.delete_imported_model(call, {"modelIdentifier": "shortlived"})
    with pytest.raises(NotFound):
        forge.ask("converse", **_short(arn))
    with pytest.raises(NotFound):
        b"".join(call.blobs.read(blob_id))
    forge.on_loop(asyncio.sleep(0.3))
    assert not [key for key in forge.servers.running() if key[1] == arn]


def test_tags(forge: Forge, model: str) -> None:
    call = forge.call("bedrock")
    forge.bedrock.tag_resource(call, {"resourceARN": model, "tags": [{"key": "a", "value": "1"}]})
    forge.bedrock.tag_resource(call, {"resourceARN": model, "tags": [{"key": "a", "value": "2"}]})
    assert forge.bedrock.list_tags_for_resource(call, {"resourceARN": model})["tags"] == [{"key": "a", "value": "2"}]
    forge.bedrock.untag_resource(call, {"resourceARN": model, "tagKeys": ["a"]})
    assert forge.bedrock.list_tags_for_resource(call, {"resourceARN": model})["tags"] == []
    with pytest.raises(RequestFault):
        many = [{"key": f"k{number}", "value": ""} for number in range(51)]
        forge.bedrock.tag_resource(call, {"resourceARN": model, "tags": many})


def test_pages_show_everything_once(forge: Forge, model: str) -> None:
    call = forge.call("bedrock")
    whole = forge.bedrock.list_model_import_jobs(call, {})["modelImportJobSummaries"]
    paged: list[Any] = []
    token = None
    while True:
        request = {"maxResults": 2} | ({"nextToken": token} if token else {})
        answer = forge.bedrock.list_model_import_jobs(call, request)
        paged += answer["modelImportJobSummaries"]
        token = answer["nextToken"]
        if token is None:
            break
    assert [job["jobArn"] for job in paged] == [job["jobArn"] for job in whole]
    with pytest.raises(ValidationFault):
        forge.bedrock.list_model_import_jobs(call, {"nextToken": "bm90IG91cnM="})


def test_foundation_models_are_those_the_enclave_has(forge: Forge) -> None:
    assert forge.bedrock.list_foundation_models(forge.call("bedrock"), {}) == {"modelSummaries": []}
    with pytest.raises(NotFound):
        forge.bedrock.get_foundation_model(forge.call("bedrock"), {"modelIdentifier": "meta.llama3"})


def batch(forge: Forge, model: str, name: str, lines: list[bytes], **members: Any) -> dict[str, Any]:
    forge.put(f"batch/{name}.jsonl", b"\n".join(lines))
    request = {
        "jobName": name,
        "roleArn": ROLE,
        "modelId": model,
        "inputDataConfig": {"s3InputDataConfig": {"s3Uri": f"s3://{BUCKET}/batch/{name}.jsonl"}},
        "outputDataConfig": {"s3OutputDataConfig": {"s3Uri": f"s3://{BUCKET}/answers/"}},
    }
    arn = forge.bedrock.create_model_invocation_job(forge.call("bedrock"), request | members)["jobArn"]
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        job = forge.bedrock.get_model_invocation_job(forge.call("bedrock"), {"jobIdentifier": arn})
        if job["status"] not in ("Submitted", "InProgress", "Stopping"):
            return job
        time.sleep(0.05)
    raise TimeoutError(job)


def test_a_batch_answers_every_record_and_says_what_is_wrong_with_the_others(forge: Forge, model: str) -> None:
    good = [
        json.dumps({"recordId": f"r{n}", "modelInput": {"prompt": f"keep {n}", "max_gen_len": 2, "seed": n}}).encode()
        for n in range(70)
    ]
    broken = [b"{", b"[]", b'{"modelInput": {"prompt": 1}}', b'{"modelInput": {"prompt": "x", "temperature": 9}}']
    job = batch(forge, model, "mixed", [*good[:40], *broken, *good[40:]])
    assert (job["status"], job["totalRecordCount"], job["errorRecordCount"]) == ("PartiallyCompleted", 74, 4), job
    folder = f"answers/{job['jobArn'].rpartition('/')[2]}"
    lines = [json.loads(line) for line in forge.object(f"{folder}/mixed.jsonl.out").splitlines()]
    assert [line["recordId"] for line in lines if "modelOutput" in line] == [f"r{n}" for n in range(70)]
    assert [line["error"]["errorCode"] for line in lines[40:44]] == [400] * 4
    assert all(line["modelOutput"]["generation_token_count"] == 2 for line in lines if "modelOutput" in line)
    manifest = json.loads(forge.object(f"{folder}/manifest.json.out"))
    assert (manifest["successRecordCount"], manifest["outputTokenCount"]) == (70, 140)
    turn = {"messages": USER, "inferenceConfig": {"maxTokens": 2}}
    line = json.dumps({"recordId": "c", "modelInput": turn}).encode()
    job = batch(forge, model, "turns", [line], modelInvocationType="Converse")
    assert job["status"] == "Completed"
    none = batch(forge, model, "none", [b"{"])
    assert none["status"] == "Failed" and "each has its error" in none["message"]
    listed = forge.bedrock.list_model_invocation_jobs(forge.call("bedrock"), {"statusEquals": "Failed"})
    assert [one["jobName"] for one in listed["invocationJobSummaries"]] == ["none"]
    low = forge.bedrock.list_model_invocation_jobs(forge.call("bedrock", marking="UNCLASSIFIED"), {})
    assert low["invocationJobSummaries"] == []


def test_a_batch_needs_its_model_role_and_input(forge: Forge, model: str) -> None:
    with pytest.raises(NotFound):
        batch(forge, model[:-4] + "zzzz", "lost", [])
    forge.identity.denied.add("bedrock:InvokeModel")
    try:
        with pytest.raises(AccessDenied):
            batch(forge, model, "denied", [])
    finally:
        forge.identity.denied.clear()
