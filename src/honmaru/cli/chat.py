"""`honmaru chat`: a conversation with a model in the terminal, as one user at one label.

It is a plain client: boto3's ConverseStream over the enclave's own port, through every gate. After each answer it says
the label it was given at, how fast it came, and which ledger entry proves it.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Mapping
from typing import Any

NAME = "chat"
HELP = "talk to a model; shows label, tokens/s and the ledger entry of each answer"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", nargs="?", help="id, name or ARN (default: the only model, or a list to choose from)")
    parser.add_argument("--user", default="admin", help="who asks (default admin)")
    parser.add_argument("--label", default="", help="the label to sign in at (default the lowest)")
    parser.add_argument("--system", default="", help="instructions for the model")
    parser.add_argument("--max-tokens", type=int, default=512, help="longest answer (default 512)")
    parser.add_argument("--temperature", type=float, default=None, help="0 to 1 (default the model's own)")
    parser.add_argument("--once", metavar="TEXT", help="ask this and end")


def run(args: argparse.Namespace) -> int:
    from honmaru.app.operator import ask
    from honmaru.core.errors import ValidationFault

    credentials = ask(args.data, "GetCredentials", user=args.user, label=args.label)
    clients = _clients(ask(args.data, "Status"), credentials)
    model = args.model or _only_model(clients["bedrock"])
    if model is None:
        raise ValidationFault("there is no model here: import one with CreateModelImportJob, or declare an engine")
    print(f"{model} at {credentials['label']}. An empty line or Ctrl-D ends.", file=sys.stderr)
    turns: list[dict[str, Any]] = []
    while True:
        text = args.once if args.once is not None else _line()
        if not text:
            return 0
        turns.append({"role": "user", "content": [{"text": text}]})
        answered = _answer(clients, model, turns, args)
        if answered is None:
            turns.pop()
        else:
            turns.append({"role": "assistant", "content": [{"text": answered}]})
        if args.once is not None:
            return 0 if answered is not None else 1


def _clients(status: Mapping[str, Any], credentials: Mapping[str, Any]) -> dict[str, Any]:
    import boto3

    session = boto3.Session(
        aws_access_key_id=credentials["access_key_id"],
        aws_secret_access_key=credentials["secret_access_key"],
        region_name=status["region"],
    )
    place = {"endpoint_url": status["endpoint"], "verify": status["ca"] or None}
    return {name: session.client(name, **place) for name in ("bedrock", "bedrock-runtime", "cloudtrail")}


def _only_model(bedrock: Any) -> str | None:
    """The one model there is; of several, the names are printed and the first is taken."""
    names = [one["modelId"] for one in bedrock.list_foundation_models()["modelSummaries"]]
    names += [one["modelName"] for one in bedrock.list_imported_models()["modelSummaries"]]
    names += [one["modelName"] for one in bedrock.list_custom_models()["modelSummaries"]]
    if len(names) > 1:
        print(f"models: {', '.join(names)}", file=sys.stderr)
    return names[0] if names else None


def _line() -> str:
    try:
        return input("> ").strip()
    except EOFError:
        return ""


def _answer(clients: Mapping[str, Any], model: str, turns: list[Any], args: argparse.Namespace) -> str | None:
    """Stream one answer to the screen; None when it was refused."""
    from botocore.exceptions import BotoCoreError, ClientError, EventStreamError

    inference = {"maxTokens": args.max_tokens}
    if args.temperature is not None:
        inference["temperature"] = args.temperature
    request = {"modelId": model, "messages": turns, "inferenceConfig": inference}
    if args.system:
        request["system"] = [{"text": args.system}]
    begun = time.monotonic()
    first, said, usage = 0.0, "", {"outputTokens": 0}
    try:
        reply = clients["bedrock-runtime"].converse_stream(**request)
        for event in reply["stream"]:
            piece = event.get("contentBlockDelta", {}).get("delta", {}).get("text", "")
            if piece and not first:
                first = time.monotonic()
            said += piece
            sys.stdout.write(piece)
            sys.stdout.flush()
            usage = event.get("metadata", {}).get("usage", usage)
    except (ClientError, EventStreamError, BotoCoreError) as error:
        print(f"\nhonmaru: {error}", file=sys.stderr)
        return None
    took = max(1e-6, time.monotonic() - (first or begun))
    told = reply["ResponseMetadata"]
    label = told["HTTPHeaders"].get("x-honmaru-label", "")
    entry = _entry(clients["cloudtrail"], told["RequestId"])
    print(
        f"\n[{label} · {usage['outputTokens']} tokens, {usage['outputTokens'] / took:.0f}/s · ledger entry {entry}]",
        file=sys.stderr,
    )
    return said or " "


def _entry(cloudtrail: Any, request_id: str) -> str:
    """The id of the request's last ledger entry; the request's own id for who may not look entries up."""
    import json

    from botocore.exceptions import ClientError

    try:
        found = cloudtrail.lookup_events(
            LookupAttributes=[{"AttributeKey": "EventName", "AttributeValue": "ConverseStream"}], MaxResults=20
        )["Events"]
    except ClientError:
        return f"of request {request_id}"
    for one in found:
        if json.loads(one["CloudTrailEvent"]).get("requestID") == request_id:
            return str(one["EventId"])
    return f"of request {request_id}"
