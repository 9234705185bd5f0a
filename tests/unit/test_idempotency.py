"""Client tokens: one answer for one request, whatever crashes or races; nothing shared between labels."""

from __future__ import annotations

import json
from datetime import timedelta

import boto3
import pytest
from botocore.config import Config
from botocore.exceptions import ClientError

from honmaru.core.errors import Conflict, IntegrityFault, StoreUnavailable
from honmaru.core.labels import Label
from honmaru.security import idempotency
from honmaru.security.calls import Provider
from honmaru.security.guard.records import Creation
from honmaru.testing.gateways import REGION, GatewayUnderTest
from honmaru.testing.keep import Keep, quick_directory, session

REQUEST = {"clientToken": "t", "name": "n", "blob": b"\x00\xff", "list": [1, {"a": None}]}


@pytest.fixture
def keep():
    with quick_directory() as directory:
        yield Keep(directory)


def call(keep, marking="SECRET", **more):
    return keep.call(session(marking, **more), "CreateThing", service="braket")


def make(keep, call, request, made):
    def work():
        made.append(len(made))
        name = f"thing-{len(made)}-{call.session.label.canonical}"
        return [Creation("thing", name, {})], {"thingArn": name}

    return idempotency.once(call, request, work)


def test_the_same_request_does_its_work_once(keep):
    made = []
    first = make(keep, call(keep), REQUEST, made)
    assert make(keep, call(keep), dict(REQUEST), made) == first
    assert made == [0]
    assert len(list(call(keep).records.iterate("thing"))) == 1


def test_another_request_with_the_same_token_is_refused(keep):
    made = []
    make(keep, call(keep), REQUEST, made)
    for other in ({"name": "other"}, {"blob": b""}, {"list": []}, {"extra": 1}):
        with pytest.raises(Conflict, match="clientToken was used before"):
            make(keep, call(keep), {**REQUEST, **other}, made)
    assert made == [0]


def test_tokens_of_other_labels_accounts_and_operations_are_their_own(keep):
    made = []
    low = make(keep, call(keep, "UNCLASSIFIED"), REQUEST, made)
    high = make(keep, call(keep, "SECRET"), {**REQUEST, "name": "x"}, made)
    make(keep, call(keep, "SECRET", account="999999999999"), {**REQUEST, "name": "y"}, made)
    elsewhere = keep.call(session("SECRET"), "CreateOther", service="braket")
    make(keep, elsewhere, {**REQUEST, "name": "z"}, made)
    assert made == [0, 1, 2, 3]
    assert low != high
    assert make(keep, call(keep, "UNCLASSIFIED"), REQUEST, made) == low


def test_work_and_note_are_one_transaction(keep):
    """What fails leaves no note: the request may be sent again."""
    made = []
    taken = call(keep)
    taken.records.create("thing", f"thing-1-{taken.session.label.canonical}", {})
    with pytest.raises(Conflict):
        make(keep, call(keep), REQUEST, made)
    assert idempotency.earlier(call(keep), REQUEST) is None
    assert make(keep, call(keep), REQUEST, made)["thingArn"].startswith("thing-2")


def test_of_two_at_once_one_does_the_work(keep):
    made = []

    def raced():
        winner = make(keep, call(keep), REQUEST, made)
        assert winner["thingArn"].startswith("thing-1")
        return [Creation("thing", "loser", {})], {"thingArn": "loser"}

    assert idempotency.once(call(keep), REQUEST, raced)["thingArn"].startswith("thing-1")
    assert call(keep).records.get("thing", "loser") is None


def test_a_request_without_a_token_is_carried_out_each_time(keep):
    made = []
    for _ in range(2):
        make(keep, call(keep), {"name": "n"}, made)
    assert made == [0, 1]


def test_old_notes_are_forgotten(keep):
    made = []
    make(keep, call(keep, "SECRET"), REQUEST, made)
    make(keep, call(keep, "UNCLASSIFIED"), REQUEST, made)
    now = keep.clock.now()
    assert idempotency.forget_old(keep.guard, ["braket"], now + idempotency.KEPT_FOR) == 0
    assert idempotency.forget_old(keep.guard, ["braket"], now + idempotency.KEPT_FOR + timedelta(seconds=1)) == 2
    assert idempotency.earlier(call(keep), REQUEST) is None


def test_a_token_is_not_kept_in_the_clear(keep):
    make(keep, call(keep), {**REQUEST, "clientToken": "sensitive-name"}, [])
    assert all("sensitive" not in row.name for row in keep.store.scan())


def test_sabotage_a_note_that_was_swapped_does_not_open(keep):
    make(keep, call(keep), REQUEST, [])
    import sqlite3

    base = sqlite3.connect(keep.directory / "records.db")
    base.execute("update records set name = replace(name, 'CreateThing', 'CreateOther') where kind = 'client-token'")
    base.commit()
    base.close()
    with pytest.raises(IntegrityFault):
        idempotency.earlier(keep.call(session("SECRET"), "CreateOther", service="braket"), REQUEST)


class Definitions(Provider):
    """An operation with a client token whose method knows nothing of tokens."""

    service = "logs"

    def __init__(self):
        self.made = 0

    def put_query_definition(self, call, request):
        self.made += 1
        return {"queryDefinitionId": f"id-{self.made}"}


class Jobs(Provider):
    service = "bedrock"

    def __init__(self):
        self.made = 0

    def create_guardrail(self, call, request):
        self.made += 1
        return {"guardrailId": f"g{self.made}", "guardrailArn": "arn", "version": "DRAFT", "createdAt": call.now}


@pytest.fixture
def served(tmp_path):
    gateway = GatewayUnderTest(tmp_path, [Definitions(), Jobs()])
    with gateway.served() as port:

        def client(service, key):
            return boto3.client(
                service,
                endpoint_url=f"http://127.0.0.1:{port}",
                region_name=REGION,
                aws_access_key_id=key[0],
                aws_secret_access_key=key[1],
                config=Config(retries={"total_max_attempts": 1}),
            )

        yield gateway, client
    gateway.close()


def test_the_gateway_repeats_every_operation_whose_model_has_a_token(served):
    gateway, client = served
    logs = client("logs", gateway.high)
    ask = {"name": "n", "queryString": "fields @message", "clientToken": "t" * 36}
    first = logs.put_query_definition(**ask)["queryDefinitionId"]
    assert logs.put_query_definition(**ask)["queryDefinitionId"] == first
    assert logs.put_query_definition(name="n", queryString="fields @message")["queryDefinitionId"] != first
    with pytest.raises(ClientError) as caught:
        logs.put_query_definition(**{**ask, "name": "other"})
    assert caught.value.response["Error"]["Code"] == "InvalidParameterException"
    low = client("logs", gateway.low)
    assert low.put_query_definition(**ask)["queryDefinitionId"] != first
    told = [
        entry["honmaru"]["details"].get("repeated", False)
        for log in gateway.ledger.entries.values()
        for entry in log
        if entry.get("eventName") == "PutQueryDefinition"
    ]
    assert sorted(told) == [False, False, False, False, True]


def test_times_of_an_answer_come_back_and_a_mismatch_is_the_modelled_error(served):
    gateway, client = served
    bedrock = client("bedrock", gateway.high)
    ask = {"name": "n", "blockedInputMessaging": "i", "blockedOutputsMessaging": "o", "clientRequestToken": "t"}
    first = bedrock.create_guardrail(**ask)
    again = bedrock.create_guardrail(**ask)
    assert again["guardrailId"] == first["guardrailId"] == "g1"
    assert abs((again["createdAt"] - first["createdAt"]).total_seconds()) < 0.01
    with pytest.raises(ClientError) as caught:
        bedrock.create_guardrail(**{**ask, "name": "m"})
    assert caught.value.response["Error"]["Code"] == "ConflictException"
    assert caught.value.response["ResponseMetadata"]["HTTPStatusCode"] in (400, 409)


def test_a_request_that_failed_may_be_sent_again(keep):
    calls = []

    def sometimes(call, request):
        calls.append(1)
        if len(calls) == 1:
            raise StoreUnavailable("not now")
        return {"arn": "a"}

    method = idempotency.repeatable(sometimes)
    with pytest.raises(StoreUnavailable):
        method(call(keep), REQUEST)
    assert method(call(keep), REQUEST) == {"arn": "a"}
    assert method(call(keep), REQUEST) == {"arn": "a"}
    assert len(calls) == 2


def test_a_crash_behind_the_commit_loses_neither_work_nor_answer(keep, monkeypatch):
    """The enclave dies after the transaction and before the answer leaves: the request, sent again to the next one,
    is answered as it would have been, and nothing is made twice."""
    made = []

    class Killed(BaseException):
        pass

    def die(*_args):
        raise Killed

    monkeypatch.setattr(keep.guard, "_append", die)  # the first thing that happens behind the commit
    with pytest.raises(Killed):
        make(keep, call(keep), REQUEST, made)
    keep.close()
    after = Keep(keep.directory)
    answer = make(after, call(after), REQUEST, made)
    assert answer["thingArn"].startswith("thing-1")
    assert made == [0]
    assert len(list(call(after).records.iterate("thing"))) == 1
    after.close()


class Asking(Provider):
    """Asks IAM by itself."""

    service = "logs"
    unauthorized = frozenset({"PutQueryDefinition"})

    def __init__(self):
        self.asked = 0

    def put_query_definition(self, call, request):
        self.asked += 1
        call.authorize("logs:PutQueryDefinition", "*")
        return {"queryDefinitionId": "id"}


def test_nothing_is_repeated_before_iam_was_asked_again(tmp_path):
    """At the door for the one, by the operation itself for the other: who may not is told nothing."""
    asking = Asking()
    members = {"name": "n", "queryString": "q", "clientToken": "t" * 36}
    body = json.dumps(members).encode()
    headers = [("Content-Type", "application/x-amz-json-1.1"), ("X-Amz-Target", "Logs_20140328.PutQueryDefinition")]
    for provider in (asking, Definitions()):
        gateway = GatewayUnderTest(tmp_path / type(provider).__name__, [provider])
        gateway.identity.create_user("ann", "SECRET", [])
        ann = gateway.identity.access_key("ann", Label.parse("SECRET"))
        replies = [
            gateway.send(gateway.signed("logs", "POST", "/", headers=headers, body=body, key=key))
            for key in (gateway.high, gateway.high, ann)
        ]
        assert [reply.status for reply in replies] == [200, 200, 400], replies
        assert b"AccessDenied" in replies[2].body
        assert replies[0].body == replies[1].body
        gateway.close()
    assert asking.asked == 3
