"""Lay down a new service: a package that runs, its tests, and the lines that register it. `make new-service NAME=sqs`

The package answers one list operation of the service for real, from guarded records at the caller's label; every
other operation of the model answers 501 by itself. What comes next is in CONTRIBUTING.md, "Add an operation".
"""

from __future__ import annotations

import argparse
import gzip
import json
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import botocore

from honmaru.api.models import PROTOCOLS, SERVICES
from honmaru.api.names import method_name

ROOT = Path(__file__).resolve().parent.parent
SIZES = ("MaxResults", "maxResults", "MaxItems", "maxItems", "Limit", "limit", "PageSize")
TOKENS = ("NextToken", "nextToken", "Marker", "NextMarker", "nextMarker")


class Refused(Exception):
    """Why nothing was laid down, and what to do."""


@dataclass(frozen=True)
class Plan:
    """What the templates are filled with."""

    service: str
    package: str
    name: str
    title: str
    operation: str
    method: str
    resource: str
    kind: str
    items: str
    item: object
    item_other: object
    token_in: str
    token_out: str
    size: str
    unwritten: str


def model_of(service: str) -> dict[str, Any]:
    """The service's model. Raises Refused."""
    files = sorted(Path(botocore.__file__).parent.glob(f"data/{service}/*/service-2.json.gz"))
    if not files:
        raise Refused(f"botocore knows no service {service!r}: name the folder of botocore/data, for example sqs")
    model: dict[str, Any] = json.loads(gzip.decompress(files[-1].read_bytes()))
    metadata = model["metadata"]
    if not set(metadata.get("protocols", [metadata["protocol"]])) & set(PROTOCOLS):
        raise Refused(f"{service} speaks {metadata['protocol']}, which honmaru does not: {', '.join(PROTOCOLS)}")
    return model


def plan(service: str, operation: str | None) -> Plan:
    """Which operation to begin with, and every name. Raises Refused."""
    if service in SERVICES:
        raise Refused(f"{service} is carried already: see src/honmaru/services/{service.replace('-', '_')}")
    model = model_of(service)
    shapes = model["shapes"]
    found = sorted(
        (len(name), name) for name in model["operations"] if _lists(model, name) and operation in (None, name)
    )
    if not found:
        raise Refused(
            f"{service} has no operation to begin with by itself: name one that lists, with OPERATION="
            if operation is None
            else f"{operation} is no operation of {service} that lists without required members"
        )
    chosen = found[0][1]
    output = shapes[model["operations"][chosen]["output"]["shape"]]["members"]
    reference = model["operations"][chosen].get("input")
    inputs = shapes[reference["shape"]]["members"] if reference else {}
    items = next(name for name, inner in output.items() if shapes[inner["shape"]]["type"] == "list")
    element = shapes[shapes[output[items]["shape"]]["member"]["shape"]]
    member = None
    if element["type"] == "structure":
        texts = [name for name, inner in element["members"].items() if shapes[inner["shape"]]["type"] == "string"]
        member = texts[0] if texts else None
        if member is None:
            raise Refused(f"the items of {chosen} have no text member: name another operation with OPERATION=")
    plural = method_name(re.sub(r"^(List|Describe)", "", chosen))
    words = re.split(r"[^A-Za-z0-9]+", model["metadata"].get("serviceId", service))
    title = " ".join(words)
    return Plan(
        service=service,
        package=re.sub(r"[^a-z0-9]", "_", service),
        name="".join(word.capitalize() if word.isupper() else word[:1].upper() + word[1:] for word in words),
        title=title,
        operation=chosen,
        method=method_name(chosen),
        resource=plural,
        kind=re.sub("s$", "", re.sub("ies$", "y", plural)).replace("_", "-"),
        items=items,
        item="first" if member is None else {member: "first"},
        item_other="second" if member is None else {member: "second"},
        token_in=next((name for name in TOKENS if name in inputs), ""),
        token_out=next((name for name in TOKENS if name in output), ""),
        size=next((name for name in SIZES if name in inputs and shapes[inputs[name]["shape"]].get("min", 0) < 2), ""),
        unwritten=next((name for name in model["operations"] if name != chosen and _is_free(model, name)), ""),
    )


def _is_free(model: dict[str, Any], name: str) -> bool:
    """True for an operation that may be called without members."""
    reference = model["operations"][name].get("input")
    return reference is None or not model["shapes"][reference["shape"]].get("required")


def _lists(model: dict[str, Any], name: str) -> bool:
    operation, shapes = model["operations"][name], model["shapes"]
    if not name.startswith(("List", "Describe")) or "output" not in operation or operation.get("deprecated"):
        return False
    if not _is_free(model, name):
        return False
    members = shapes[operation["output"]["shape"]]["members"]
    kinds = [shapes[inner["shape"]] for inner in members.values() if shapes[inner["shape"]]["type"] == "list"]
    return len(kinds) == 1 and shapes[kinds[0]["member"]["shape"]]["type"] in ("structure", "string")


INIT = '''"""{title}."""

from honmaru.services.{package}.provider import {name}

__all__ = ["{name}"]
'''

PROVIDER = '''"""{title}: its operations. What a resource is stands in its own file.

Not here: every operation without a method, which answers a modelled 501 by itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from honmaru.security.calls import Call, Provider, Target
from honmaru.services.{package} import {resource}


class {name}(Provider):
    """The {title} service of one enclave."""

    service: ClassVar[str] = "{service}"
    targets: ClassVar[Mapping[str, Target]] = {{
        "{operation}": Target("{action}"),
    }}

    def {method}(self, call: Call, request: Mapping[str, Any]) -> dict[str, Any]:
        return {resource}.list_all(call, request)
'''

RESOURCE = '''"""What {title} lists with {operation}.

Invariant: a session sees what its label dominates, and nothing else is listed or counted; the records see to it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from honmaru.security.calls import Call

KIND = "{kind}"
_PAGE = 100


def list_all(call: Call, request: Mapping[str, Any]) -> dict[str, Any]:
    """One page, by name. The gateway seals the token: here it is the name of the last item shown."""
{body}'''

BODY = """    size = {size}
    found = call.records.list(KIND, after={after}, limit=size + 1)
    shown = found[:size]
    return {{
        "{items}": [record.body["item"] for record in shown],{token}
    }}
"""

TEST = '''"""{title}: what the scaffold lays down works, through unmodified boto3, at two labels."""

from __future__ import annotations

import boto3
import pytest

from honmaru.services.{package} import {name}
from honmaru.services.{package}.{resource} import KIND
from honmaru.testing.gateways import REGION, GatewayUnderTest

FIRST, SECOND = {item!r}, {item_other!r}


class Served(GatewayUnderTest):
    def client(self, key, port):
        names = dict(zip(("aws_access_key_id", "aws_secret_access_key"), key, strict=True))
        return boto3.client("{service}", endpoint_url=f"http://127.0.0.1:{{port}}", region_name=REGION, **names)

    def keep(self, key, name, item):
        session = self.identity.credential(key[0], None).session
        self.guard.records(session, "{service}").create(KIND, name, {{"item": item}})


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    gateway = Served(tmp_path_factory.mktemp("gateway"), [{name}()])
    with gateway.served() as port:
        yield gateway, port
    gateway.close()


def test_{method}(served):
    """What is above a session is not listed."""
    gateway, port = served
    low, high = gateway.client(gateway.low, port), gateway.client(gateway.high, port)
    assert not low.{method}().get("{items}")
    gateway.keep(gateway.low, "a", FIRST)
    gateway.keep(gateway.high, "b", SECOND)
    assert low.{method}()["{items}"] == [FIRST]
    assert high.{method}()["{items}"] == [FIRST, SECOND]
{paged}{unwritten_test}'''

UNWRITTEN = """

def test_what_is_not_written_says_so(served):
    gateway, port = served
    client = gateway.client(gateway.low, port)
    with pytest.raises(client.exceptions.ClientError, match="NotImplemented"):
        client._make_api_call("{unwritten}", {{}})
"""

PAGED = """    page = high.{method}({size}=1)
    assert page["{items}"] == [FIRST]
    rest = high.{method}({size}=1, {token_in}=page["{token_out}"])
    assert rest["{items}"] == [SECOND]
"""


def files(to: Plan) -> dict[Path, str]:
    """Every new file with its text."""
    paged = bool(to.size and to.token_in and to.token_out)
    body = BODY.format(
        size=f'int(request.get("{to.size}") or _PAGE)' if to.size else "_PAGE",
        after=f'request.get("{to.token_in}") or ""' if to.token_in else '""',
        items=to.items,
        token=f'\n        "{to.token_out}": shown[-1].name if len(found) > size else None,' if to.token_out else "",
    )
    if not to.size and not to.token_in:
        body = f'    return {{"{to.items}": [record.body["item"] for record in call.records.iterate(KIND)]}}\n'
    package = ROOT / "src/honmaru/services" / to.package
    values = {**vars(to), "body": body, "paged": PAGED.format(**vars(to)) if paged else "", "action": action(to)}
    values["unwritten_test"] = UNWRITTEN.format(**values) if to.unwritten else ""
    resource = RESOURCE if to.token_in else RESOURCE.replace("One page, by name. The gateway seals", "All, by name.@")
    resource = re.sub(r"@.*?shown\.", "", resource, flags=re.DOTALL)
    if "_PAGE" not in body:
        resource = resource.replace("_PAGE = 100\n", "")
    if "request" not in body:
        resource = resource.replace("request: Mapping", "_request: Mapping")
    return {
        package / "__init__.py": INIT.format(**values),
        package / "provider.py": PROVIDER.format(**values),
        package / f"{to.resource}.py": resource.format(**values),
        ROOT / "tests/unit" / f"test_{to.package}_service.py": TEST.format(**values),
    }


def action(to: Plan) -> str:
    """The IAM action of the operation."""
    from honmaru.api.corrections import IAM_PREFIXES

    metadata = model_of(to.service)["metadata"]
    prefix = metadata.get("signingName", metadata["endpointPrefix"])
    return f"{IAM_PREFIXES.get(to.service, prefix)}:{to.operation}"


def register(to: Plan) -> None:
    """The lines in api, the composition root and the import contract."""
    _insert("src/honmaru/api/models.py", r'SERVICES = \(\n((?:    "[^"]+",\n)+)', f'    "{to.service}",\n')
    imported = f"from honmaru.services.{to.package} import {to.name}\n"
    _insert("src/honmaru/app/enclave.py", r"((?:from honmaru\.services\.[^\n]+\n)+)", imported)
    _behind("src/honmaru/app/enclave.py", r"        carried[^=\n]*= \(\n", f"            {to.name}(),\n")
    contract = r'name = "Services do not import each other"\ntype = "independence"\nmodules = \[\n'
    _behind("pyproject.toml", contract, f'  "honmaru.services.{to.package}",\n')


def _insert(path: str, block: str, line: str) -> None:
    """Adds a line to a sorted block of lines."""
    file = ROOT / path
    text = file.read_text()
    match = re.search(block, text)
    if match is None:
        raise Refused(f"{path} has no place for {line.strip()!r}: add it by hand")
    lines = sorted([*match[1].splitlines(keepends=True), line], key=str.lower)
    file.write_text(text[: match.start(1)] + "".join(lines) + text[match.end(1) :])


def _behind(path: str, before: str, line: str) -> None:
    """Adds a line behind the one place that the pattern finds."""
    file = ROOT / path
    text = file.read_text()
    places = list(re.finditer(before, text))
    if len(places) != 1:
        raise Refused(f"{path} has no place for {line.strip()!r}: add it by hand")
    end = places[0].end()
    file.write_text(text[:end] + line + text[end:])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("service", help="botocore's name of the service, for example sqs")
    parser.add_argument("--operation", help="the list operation to begin with (default: the plainest one)")
    args = parser.parse_args()
    try:
        to = plan(args.service, args.operation or None)
        new = files(to)
        taken = [path for path in new if path.exists()]
        if taken:
            raise Refused(f"{taken[0].relative_to(ROOT)} exists already")
        for path, text in new.items():
            path.parent.mkdir(exist_ok=True)
            path.write_text(text)
        register(to)
    except Refused as refused:
        print(f"new-service: {refused}", file=sys.stderr)
        return 1
    ruff = [sys.executable, "-m", "ruff"]
    touched = [*map(str, new), str(ROOT / "src/honmaru/app/enclave.py")]
    subprocess.run([*ruff, "check", "--fix", "-q", *touched], cwd=ROOT, check=True)
    subprocess.run([*ruff, "format", "-q", *touched], cwd=ROOT, check=True)
    for path in new:
        print(f"new      {path.relative_to(ROOT)}")
    print(f"one line in src/honmaru/api/models.py, app/enclave.py and pyproject.toml; {to.operation} answers already")
    print("next     make docs; then one method, its target and its test for each operation (CONTRIBUTING.md)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
