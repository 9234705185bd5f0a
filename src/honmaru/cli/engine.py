"""`honmaru engine`: the model servers of others that this enclave may use, in DATA/engines.json.

A running enclave takes a change at its next request. What is written was checked as a start would check it.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any

from honmaru.cli import after_the_verb

NAME = "engine"
HELP = "declare model servers (vLLM, llama.cpp, Ollama, NIM ...) as commands or URLs"


def configure(parser: argparse.ArgumentParser) -> None:
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="list|add|remove")
    verbs.add_parser("list", help="list what is declared", parents=[after_the_verb()])
    add = verbs.add_parser("add", help="declare an engine, or declare it anew", parents=[after_the_verb()])
    add.add_argument("id", help="what callers ask for, provider.model, for example meta.llama-guard")
    add.add_argument("--url", action="append", default=[], help="http(s)://host:port of a server that you run")
    add.add_argument("--label", default="UNCLASSIFIED", help="the one label that the URLs serve")
    add.add_argument("--from-file", type=Path, metavar="JSON", help="the whole declaration (see docs: engines.json)")
    add.add_argument("--model", help="the model's name on that server (default: the id)")
    add.add_argument("--dialect", choices=("openai", "anthropic", "bedrock"), default="openai", help="what it speaks")
    add.add_argument("--secret-file", type=Path, help="a file with the key that the server wants")
    add.add_argument("--provider", default="Declared")
    add.add_argument("--feature", action="append", default=[], help="tools, json_schema, logprobs, embeddings ...")
    add.add_argument("--context-length", type=int, default=4096)
    remove = verbs.add_parser("remove", help="forget an engine", parents=[after_the_verb()])
    remove.add_argument("id")


def run(args: argparse.Namespace) -> int:
    from honmaru.core.errors import ConfigurationFault, NotFound
    from honmaru.deployments.engines import read_engine

    file = args.data / "engines.json"
    declared = _read(file)
    if args.verb == "list":
        for name, entry in sorted(declared.items()):
            where = "command" if entry.get("command") else ", ".join(one["url"] for one in entry["replicas"])
            print(f"{name:<32} {where:<40} {', '.join(entry.get('features', []))}")
        return 0
    if args.verb == "remove":
        if args.id not in declared:
            raise NotFound(f"no engine {args.id!r} is declared")
        del declared[args.id]
    else:
        entry = json.loads(args.from_file.read_text("utf-8")) if args.from_file else _entry(args)
        try:
            read_engine(args.id, entry, "")
        except ConfigurationFault as fault:
            raise ConfigurationFault([f"engine {args.id!r}: {problem}" for problem in fault.problems]) from fault
        declared[args.id] = entry
    _write(file, declared)
    print(f"{file}: {len(declared)} engines")
    return 0


def _entry(args: argparse.Namespace) -> dict[str, Any]:
    secret = {"authorization_file": str(args.secret_file.resolve())} if args.secret_file else {}
    return {
        "dialect": args.dialect,
        "model": args.model or args.id,
        "provider": args.provider,
        "features": args.feature,
        "context_length": args.context_length,
        "replicas": [{"url": url, "label": args.label, **secret} for url in args.url],
    }


def _read(file: Path) -> dict[str, Any]:
    declared: dict[str, Any] = json.loads(file.read_text("utf-8")) if file.exists() else {}
    return declared


def _write(file: Path, declared: dict[str, Any]) -> None:
    """Whole or not at all."""
    beside = file.with_suffix(".partial")
    with beside.open("w", encoding="utf-8") as stream:
        json.dump(declared, stream, indent=2)
        stream.write("\n")
        stream.flush()
        os.fsync(stream.fileno())
    beside.replace(file)
