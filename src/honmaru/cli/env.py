"""`honmaru env`: the shell lines that point unmodified clients at the enclave, as one user at one label."""

from __future__ import annotations

import argparse
import json
import shlex

NAME = "env"
HELP = 'print shell lines for clients: eval "$(honmaru env --user NAME --label SECRET)"'


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--user", default="admin", help="whose credentials (default admin)")
    parser.add_argument(
        "--label", default="", help="the label to sign in at, within the clearance (default the lowest)"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object instead")


def run(args: argparse.Namespace) -> int:
    from honmaru.app.operator import ask

    status = ask(args.data, "Status")
    credentials = ask(args.data, "GetCredentials", user=args.user, label=args.label)
    endpoint = status["endpoint"]
    variables = {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_REGION": status["region"],
        "AWS_DEFAULT_REGION": status["region"],
        "AWS_ACCESS_KEY_ID": credentials["access_key_id"],
        "AWS_SECRET_ACCESS_KEY": credentials["secret_access_key"],
        "AWS_EC2_METADATA_DISABLED": "true",
        "OPENAI_BASE_URL": f"{endpoint}/openai/v1",
        "OPENAI_API_KEY": credentials["bearer_token"],
        "ANTHROPIC_BASE_URL": endpoint,
        "ANTHROPIC_BEDROCK_MANTLE_BASE_URL": f"{endpoint}/anthropic",
        "ANTHROPIC_API_KEY": credentials["bearer_token"],
        "HONMARU_LABEL": credentials["label"],
    }
    if status["hosts"]:  # AWS's own names lead here: the clients must find them by themselves
        del variables["AWS_ENDPOINT_URL"]
    if status["ca"]:
        variables |= dict.fromkeys(("AWS_CA_BUNDLE", "SSL_CERT_FILE"), status["ca"])
    if args.json:
        print(json.dumps(variables))
        return 0
    print("unset AWS_ENDPOINT_URL AWS_SESSION_TOKEN AWS_PROFILE AWS_BEARER_TOKEN_BEDROCK")
    for name, value in variables.items():
        print(f"export {name}={shlex.quote(value)}")
    return 0
