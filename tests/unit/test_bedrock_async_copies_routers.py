"""Bedrock's async invocations, custom models of files, copies and prompt routers, over a real guard and sandboxes."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar

import pytest

from honmaru.core.errors import AccessDenied, Conflict, NotFound, PlatformFault, ValidationFault
from honmaru.deployments.routers import chosen
from honmaru.ports.models import ModelArtifact
from honmaru.services.bedrock_agent import BedrockAgent
from honmaru.testing.forge import Forge
from honmaru.testing.tiny_models import tiny_llama
from honmaru.testing.workshop import BUCKET, ROLE

# Model servers are found by their command line: two workers must not run this module at once.
USER = [{"role": "user", "content": [{"text": "who may read?"}]}]
NATIVE = {"anthropic_version": "x", "max_tokens": 4, "messages": [{"role": "user", "content": "who may read?"}]}
TOOLS = {"tools": [{"toolSpec": {"name": "look", "inputSchema": {"json": {"type": "object"}}}}]}


class Engine(BaseHTTPRequestHandler):
    """An OpenAI server that answers with the name of the model that was asked, and counts."""

    asked: ClassVar[list[str]] = []

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.asked.append(body["model"])
        usage = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
        answer = {"choices": [{"message": {"content": body["model"]}, "finish_reason": "stop"}], "usage": usage}
        data = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *args: Any) -> None:
        return


def declared(port: int, label: str = "SECRET", **more: Any) -> dict[str, Any]:
    return {"replicas": [{"url": f"http://127.0.0.1:{port}", "label": label}], **more}


@pytest.fixture(scope="module")
def forge(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Forge]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Engine)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    port = server.server_address[1]
    folder = tmp_path_factory.mktemp("forge")
    engines = {
        "acme.large": declared(port, model="large", quality=90, price=10, features=["tools"]),
        "acme.middle": declared(port, model="middle", quality=85, price=4, features=["tools"]),
        "acme.small": declared(port, model="small", quality=80, price=1),
        "acme.plain": declared(port, model="plain"),
        "acme.high": declared(port, "TOP SECRET", model="high", quality=90, price=1),
    }
    (folder / "engines.json").write_text(json.dumps(engines))
    made = Forge(folder)
    made.make_bucket()
    for path in tiny_llama(tmp_path_factory.mktemp("tiny"), context=128).iterdir():
        made.put(f"hf/{path.name}", path.read_bytes())
    made.imports.start()
    yield made
    made.close()
    server.shutdown()
    server.server_close()


def ended(look: Callable[[], dict[str, Any]], member: str = "status") -> dict[str, Any]:
    deadline = time.monotonic() + 60
    while (found := look())[member] in ("InProgress", "Creating"):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return found


# Async invocations


def start(forge: Forge, call: Any = None, **more: Any) -> str:
    request = {
        "modelId": arn_of("acme.plain"),
        "modelInput": NATIVE,
        "outputDataConfig": {"s3OutputDataConfig": {"s3Uri": f"s3://{BUCKET}/answers/"}},
    }
    call = call or forge.call("bedrock-runtime")
    call.operation = "StartAsyncInvoke"
    return str(forge.on_loop(forge.runtime.start_async_invoke(call, request | more))["invocationArn"])


def arn_of(engine: str) -> str:
    return f"arn:aws-iso:bedrock:us-iso-east-1::foundation-model/{engine}"


def invocation(forge: Forge, arn: str, marking: str = "SECRET") -> dict[str, Any]:
    return forge.runtime.get_async_invoke(forge.call("bedrock-runtime", marking=marking), {"invocationArn": arn})


def test_an_async_invocation_writes_its_answer_to_s3_and_ends_once(forge: Forge) -> None:
    tags = [{"key": "team", "value": "keep"}]
    arn = start(forge, clientRequestToken="one", tags=tags)
    done = ended(lambda: invocation(forge, arn))
    assert (done["status"], done["modelArn"]) == ("Completed", arn_of("acme.plain")), done
    answer = json.loads(forge.object(f"answers/{arn.rpartition('/')[2]}/output.json"))
    assert [block["text"] for block in answer["content"]] == ["plain"]
    assert start(forge, clientRequestToken="one", tags=tags) == arn
    with pytest.raises(Conflict):
        start(forge, clientRequestToken="one")
    listed = forge.runtime.list_async_invokes(forge.call("bedrock-runtime"), {"statusEquals": "Completed"})
    assert [one["invocationArn"] for one in listed["asyncInvokeSummaries"]] == [arn]
    assert forge.bedrock.list_tags_for_resource(forge.call("bedrock"), {"resourceARN": arn})["tags"] == tags
    record = forge.guard.trusted("bedrock", {"async-invoke"}).list("async-invoke")[0]
    assert not {"input", "result"} & set(record.body)  # nothing of question and answer stays behind


def test_an_async_invocation_is_not_there_below_its_label(forge: Forge) -> None:
    arn = start(forge)
    low = forge.call("bedrock-runtime", marking="UNCLASSIFIED")
    assert forge.runtime.list_async_invokes(low, {})["asyncInvokeSummaries"] == []
    with pytest.raises(NotFound) as hidden:
        invocation(forge, arn, "UNCLASSIFIED")
    missing = arn[:-3] + "zzz"
    with pytest.raises(NotFound) as absent:
        invocation(forge, missing)
    assert hidden.value.message.replace(arn, "X") == absent.value.message.replace(missing, "X")


def test_what_cannot_work_is_refused_at_the_start(forge: Forge) -> None:
    with pytest.raises(ValidationFault, match=r"acme\.plain.*"):
        start(forge, modelInput=NATIVE | {"tools": [{"name": "look", "input_schema": {"type": "object"}}]})
    with pytest.raises(ValidationFault):
        start(forge, modelInput={"nothing": "known"})
    with pytest.raises(NotFound):
        start(forge, modelId="acme.absent")
    forge.identity.denied.add("s3:PutObject")
    try:
        with pytest.raises(AccessDenied):
            start(forge)
    finally:
        forge.identity.denied.clear()


def test_a_place_that_is_not_there_fails_the_invocation_and_says_so(forge: Forge) -> None:
    target = {"s3OutputDataConfig": {"s3Uri": "s3://nowhere-at-all/x"}}
    arn = start(forge, outputDataConfig=target)
    done = ended(lambda: invocation(forge, arn))
    assert done["status"] == "Failed"
    assert "bucket does not exist" in done["failureMessage"]


def test_an_answer_that_was_given_is_not_asked_for_again(forge: Forge, monkeypatch: pytest.MonkeyPatch) -> None:
    """The store fails after the model answered: the next run writes what was answered then."""
    write, failures = type(forge.buckets).write, [PlatformFault("the store is away")]

    def away(self: Any, *args: Any, **more: Any) -> Any:
        if failures:
            raise failures.pop()
        return write(self, *args, **more)

    monkeypatch.setattr(type(forge.buckets), "write", away)
    before = len(Engine.asked)
    arn = start(forge)
    done = ended(lambda: invocation(forge, arn))
    assert done["status"] == "Completed"
    assert not failures
    assert len(Engine.asked) == before + 1


# Custom models of files, and copies


@pytest.fixture(scope="module")
def custom(forge: Forge) -> str:
    """ARN of a custom model made of files."""
    call = forge.call("bedrock")
    call.operation = "CreateCustomModel"
    request = {
        "modelName": "made",
        "roleArn": ROLE,
        "modelSourceConfig": {"s3DataSource": {"s3Uri": f"s3://{BUCKET}/hf/"}},
        "clientRequestToken": "t",
    }
    arn = forge.bedrock.create_custom_model(call, request)["modelArn"]
    assert forge.bedrock.create_custom_model(call, request)["modelArn"] == arn
    done = ended(lambda: described(forge, arn), "modelStatus")
    assert (done["modelStatus"], done["customizationType"]) == ("Active", "IMPORTED"), done
    return str(arn)


def described(forge: Forge, arn: str, marking: str = "SECRET") -> dict[str, Any]:
    return forge.bedrock.get_custom_model(forge.call("bedrock", marking=marking), {"modelIdentifier": arn})


def copy(forge: Forge, source: str, name: str, marking: str = "SECRET", **more: Any) -> str:
    call = forge.call("bedrock", marking=marking)
    call.operation = "CreateModelCopyJob"
    request = {"sourceModelArn": source, "targetModelName": name, **more}
    return str(forge.bedrock.create_model_copy_job(call, request)["jobArn"])


def job(forge: Forge, arn: str, marking: str = "SECRET") -> dict[str, Any]:
    return forge.bedrock.get_model_copy_job(forge.call("bedrock", marking=marking), {"jobArn": arn})


def test_files_in_s3_become_a_custom_model_that_is_listed(forge: Forge, custom: str) -> None:
    listed = forge.bedrock.list_custom_models(forge.call("bedrock"), {"modelStatus": "Active"})["modelSummaries"]
    assert custom in [one["modelArn"] for one in listed]
    assert forge.bedrock.list_custom_models(forge.call("bedrock"), {"isOwned": False})["modelSummaries"] == []


def test_files_that_are_no_model_leave_a_failed_one_that_can_be_deleted(forge: Forge) -> None:
    forge.put("empty/readme.txt", b"x")
    call = forge.call("bedrock")
    call.operation = "CreateCustomModel"
    source = {"s3DataSource": {"s3Uri": f"s3://{BUCKET}/empty/"}}
    request = {"modelName": "none", "roleArn": ROLE, "modelSourceConfig": source}
    arn = forge.bedrock.create_custom_model(call, request)["modelArn"]
    done = ended(lambda: described(forge, arn), "modelStatus")
    assert done["modelStatus"] == "Failed"
    assert "config.json" in done["failureMessage"]
    forge.bedrock.delete_custom_model(forge.call("bedrock"), {"modelIdentifier": arn})
    with pytest.raises(NotFound):
        described(forge, arn)


def test_a_higher_copy_of_a_lower_model_lives_on_without_it(forge: Forge, custom: str) -> None:
    first = copy(forge, custom, "lower")
    lower = ended(lambda: job(forge, first))
    assert (lower["status"], lower["sourceModelName"]) == ("Completed", "made"), lower
    arn = copy(forge, lower["targetModelArn"], "higher", "TOP SECRET", clientRequestToken="c")
    assert copy(forge, lower["targetModelArn"], "higher", "TOP SECRET", clientRequestToken="c") == arn
    higher = ended(lambda: job(forge, arn, "TOP SECRET"))
    assert higher["status"] == "Completed", higher
    forge.bedrock.delete_custom_model(forge.call("bedrock"), {"modelIdentifier": lower["targetModelArn"]})
    call = forge.call("bedrock-runtime", marking="TOP SECRET")
    model = higher["targetModelArn"]
    answer = forge.ask("converse", call, modelId=model, messages=USER, inferenceConfig={"maxTokens": 2})
    assert answer["usage"]["outputTokens"] > 0
    for look in (lambda: described(forge, higher["targetModelArn"]), lambda: job(forge, arn)):
        with pytest.raises(NotFound):
            look()
    shown = forge.bedrock.list_model_copy_jobs(forge.call("bedrock"), {"targetModelNameContains": "er"})
    assert [one["targetModelName"] for one in shown["modelCopyJobSummaries"]] == ["lower"]


def test_a_copy_needs_its_source_here_and_a_free_name(forge: Forge, custom: str) -> None:
    with pytest.raises(Conflict):
        copy(forge, custom, "made")
    with pytest.raises(NotFound):
        copy(forge, custom[:-3] + "zzz", "other")
    with pytest.raises(NotFound):
        copy(forge, custom, "other", "UNCLASSIFIED")
    with pytest.raises(ValidationFault, match="us-isob-east-1"):
        copy(forge, custom.replace("us-iso-east-1", "us-isob-east-1"), "other")
    with pytest.raises(ValidationFault, match="modelKmsKeyId"):
        copy(forge, custom, "other", modelKmsKeyId="alias/x")


# Prompt routers


def router(forge: Forge, name: str, *engines: str, difference: float = 10, marking: str = "SECRET") -> str:
    call = forge.call("bedrock", marking=marking)
    call.operation = "CreatePromptRouter"
    request = {
        "promptRouterName": name,
        "models": [{"modelArn": arn_of(one)} for one in engines],
        "fallbackModel": {"modelArn": arn_of("acme.large")},
        "routingCriteria": {"responseQualityDifference": difference},
    }
    return str(forge.bedrock.create_prompt_router(call, request)["promptRouterArn"])


def said(forge: Forge, arn: str, **more: Any) -> str:
    answer = forge.ask("converse", modelId=arn, messages=USER, **more)
    text = answer["output"]["message"]["content"][0]["text"]
    assert answer["trace"]["promptRouter"]["invokedModelId"] == arn_of(f"acme.{text}")
    return str(text)


def test_a_router_asks_the_cheapest_model_that_is_good_enough_and_able(forge: Forge) -> None:
    middle = router(forge, "middle", "acme.large", "acme.middle", "acme.small", difference=10)
    small = router(forge, "small", "acme.middle", "acme.small", difference=15)
    none = router(forge, "none", "acme.middle", "acme.plain", difference=5)
    assert [said(forge, one) for one in (middle, small, none)] == ["middle", "small", "large"]
    assert said(forge, small, toolConfig=TOOLS) == "middle"  # the small one uses no tools
    body = json.dumps(NATIVE).encode()
    answer = json.loads(forge.ask("invoke_model", modelId=small, body=body)["body"])
    assert [block["text"] for block in answer["content"]] == ["small"]
    with pytest.raises(ValidationFault, match=r"images.*acme\.large"):
        image = {"image": {"format": "png", "source": {"bytes": b"x"}}}
        forge.ask("converse", modelId=small, messages=[{"role": "user", "content": [image]}])
    listed = forge.bedrock.list_prompt_routers(forge.call("bedrock"), {})["promptRouterSummaries"]
    assert {one["promptRouterArn"] for one in listed} == {middle, small, none}
    forge.bedrock.delete_prompt_router(forge.call("bedrock"), {"promptRouterArn": none})
    with pytest.raises(NotFound):
        said(forge, none)


def test_a_router_is_refused_without_its_models_or_with_another_step(forge: Forge) -> None:
    with pytest.raises(NotFound):
        router(forge, "absent", "acme.absent")
    with pytest.raises(NotFound):
        router(forge, "above", "acme.high")  # serves TOP SECRET only
    with pytest.raises(ValidationFault, match="multiple of 5"):
        router(forge, "odd", "acme.small", difference=7)


def test_the_model_behind_a_router_or_a_prompt_is_asked_about_too(forge: Forge) -> None:
    """Whoever may ask the router, or render the prompt, may not by that ask the models behind."""
    arn = router(forge, "guarded", "acme.small", difference=20)
    agent = BedrockAgent(forge.ids)
    variant = {
        "name": "v",
        "templateType": "TEXT",
        "templateConfiguration": {
            "text": {"text": "Say {{what}}", "inputVariables": [{"name": "what"}]},
        },
    }

    def prompt(name: str, model: str) -> str:
        made = agent.create_prompt(
            forge.call("bedrock-agent"), {"name": name, "variants": [variant | {"modelId": model}]}
        )
        return str(made["arn"])

    plain, through = prompt("plain", arn_of("acme.small")), prompt("through", arn)
    variables = {"promptVariables": {"what": {"text": "x"}}}
    assert forge.ask("converse", modelId=plain, **variables)["output"]["message"]["content"][0]["text"] == "small"
    answer = forge.ask("converse", modelId=through, **variables)
    assert answer["trace"]["promptRouter"]["invokedModelId"] == arn_of("acme.small")

    def only(allowed: set[str]) -> Any:
        call = forge.call("bedrock-runtime")

        def ask(_who: object, action: str, resource: str, _context: object) -> None:
            if action == "bedrock:InvokeModel" and resource not in allowed:
                raise AccessDenied(f"{action} on {resource}")

        call.authorizer = ask
        return call

    for identifier, allowed in ((arn, {arn}), (plain, {plain}), (through, {through}), (through, {through, arn})):
        members = {"messages": USER} if identifier == arn else variables
        with pytest.raises(AccessDenied):
            forge.ask("converse", only(allowed), modelId=identifier, **members)
        forge.ask("converse", only(allowed | {arn, arn_of("acme.small")}), modelId=identifier, **members)


def test_a_router_above_the_session_is_answered_like_a_missing_model(forge: Forge) -> None:
    arn = router(forge, "hidden", "acme.small")
    low = forge.call("bedrock-runtime", marking="UNCLASSIFIED")
    with pytest.raises(NotFound) as hidden:
        forge.ask("converse", low, modelId=arn, messages=USER)
    with pytest.raises(NotFound) as absent:
        forge.ask("converse", modelId=(missing := arn[:-3] + "zzz"), messages=USER)
    assert hidden.value.message.replace(arn, "X") == absent.value.message.replace(missing, "X")
    assert forge.bedrock.list_prompt_routers(forge.call("bedrock", marking="UNCLASSIFIED"), {}) == {
        "promptRouterSummaries": [],
        "nextToken": None,
    }


def test_without_declared_numbers_the_fallback_is_asked() -> None:
    def model(name: str, **details: Any) -> ModelArtifact:
        return ModelArtifact(name, name, "U", {}, "", 1, True, details=details)

    cheap = model("cheap", quality=90, price=1)
    assert chosen([cheap], model("f"), 100, lambda _: None).name == "f"
    assert chosen([cheap], model("f", quality=90), 100, lambda _: None).name == "f"
    assert chosen([cheap], model("f", quality=90, price=1), 100, lambda _: None).name == "f"
    assert chosen([cheap], model("f", quality=90, price=2), 0, lambda _: None).name == "cheap"


def test_bidirectional_streams_are_refused_naming_the_model(forge: Forge) -> None:
    with pytest.raises(ValidationFault, match=r"bidirectional streaming.*acme\.plain"):
        forge.ask("invoke_model_with_bidirectional_stream", modelId="acme.plain", body=iter(()))
    with pytest.raises(NotFound):
        forge.ask("invoke_model_with_bidirectional_stream", modelId="acme.absent", body=iter(()))


def test_tier_and_metadata_of_an_invocation_are_recorded_and_checked(forge: Forge) -> None:
    call = forge.call("bedrock-runtime")
    body = json.dumps(NATIVE).encode()
    request = {"modelId": "acme.plain", "body": body, "serviceTier": "flex", "requestMetadata": '{"team": "keep"}'}
    answer = forge.ask("invoke_model", call, **request)
    assert answer["serviceTier"] == "default"  # there is one, whatever was asked for
    assert call.details["serviceTier"] == "flex"
    assert call.details["requestMetadata"] == {"team": "keep"}
    for wrong in ("[]", "{", "{}", '{"a": 1}', '{"": "x"}', json.dumps({"a": "x" * 257}), '{"a": "\\u0000"}'):
        with pytest.raises(ValidationFault, match="requestMetadata"):
            forge.ask("invoke_model", **(request | {"requestMetadata": wrong}))
