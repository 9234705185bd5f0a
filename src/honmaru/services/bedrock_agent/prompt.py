"""Managed prompts: a draft that can be changed, and versions that cannot.

Invariant: a version is made of the draft as it was and never changes after.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from honmaru.core.conversation.prompts import PROMPT_KIND, variables_of
from honmaru.core.errors import Conflict, NotFound, QuotaExceeded, ValidationFault
from honmaru.ports.runtime import Ids
from honmaru.security.calls import Call
from honmaru.security.guard import Record
from honmaru.security.guard.records import Creation, Removal, Revision

NAME_KIND = "prompt-name"
"""Keeps a prompt's name taken; body {"id"}. Made together with the draft."""
DRAFT = "DRAFT"
MAX_VERSIONS = 10


def arn(call: Call, identifier: str) -> str:
    return call.arn("bedrock", f"prompt/{identifier}")


def _wanted(request: Mapping[str, Any]) -> dict[str, Any]:
    if request.get("customerEncryptionKeyArn"):
        raise ValidationFault("customerEncryptionKeyArn is not supported: the enclave keeps the keys")
    variants = [dict(one) for one in request.get("variants") or ()]
    names = [one["name"] for one in variants]
    if len(set(names)) != len(names):
        raise ValidationFault("two variants have the same name")
    default = request.get("defaultVariant")
    if default is not None and default not in names:
        raise ValidationFault(f"defaultVariant {default!r} is none of the variants")
    for one in variants:
        if one.get("genAiResource"):
            raise ValidationFault(f"variant {one['name']!r}: agents are not supported by this enclave")
        template = one["templateConfiguration"]
        kind = "text" if one["templateType"] == "TEXT" else "chat"
        if template.get(kind) is None:
            raise ValidationFault(
                f"variant {one['name']!r} of templateType {one['templateType']} needs a {kind} template"
            )
        declared = {variable["name"] for variable in template[kind].get("inputVariables") or ()}
        unknown = sorted(variables_of(one) - declared)
        if unknown:
            raise ValidationFault(f"variant {one['name']!r} uses {unknown[0]!r}, which inputVariables does not declare")
    # What a record holds is JSON: documents of the wire are, but for numbers of other kinds.
    return {
        "name": request["name"],
        "description": request.get("description"),
        "default_variant": default,
        "variants": json.loads(json.dumps(variants, default=str)),
    }


def create(call: Call, request: Mapping[str, Any], ids: Ids) -> Record:
    """Raises ValidationFault or Conflict (name taken). Label: the prompt carries the session's label."""
    body = _wanted(request)
    present = call.records.get(NAME_KIND, body["name"])
    if present is not None and present.label == call.session.label:
        raise Conflict(f"a prompt named {body['name']!r} exists; choose another name")
    identifier = ids.token("", 10)
    body |= {"id": identifier, "version": DRAFT, "versions": 0, "tags": dict(request.get("tags") or {})}
    made = call.records.apply(
        [Creation(NAME_KIND, body["name"], {"id": identifier}), Creation(PROMPT_KIND, identifier, body)]
    )
    return made[-1]


def find(call: Call, identifier: str, version: str | None = None) -> Record:
    """A draft, or a version of it, by id or ARN (which may name the version too). Raises NotFound."""
    name = identifier.removeprefix(arn(call, ""))
    draft, _, named = name.partition(":")
    wanted = version or named or DRAFT
    record = call.records.get(PROMPT_KIND, draft if wanted == DRAFT else f"{draft}:{wanted}")
    if record is None:
        raise NotFound(f"Could not find prompt {identifier}", code="ResourceNotFoundException")
    return record


def update(call: Call, request: Mapping[str, Any]) -> Record:
    """Replace the draft. Raises ValidationFault, NotFound, Conflict."""
    record = find(call, request["promptIdentifier"].partition(":DRAFT")[0])
    body = _wanted(request)
    if body["name"] == record.body["name"]:
        return call.records.update(record, {**record.body, **body})
    pointer = call.records.get(NAME_KIND, record.body["name"])
    changes: list[Any] = [
        Revision(record, {**record.body, **body}),
        Creation(NAME_KIND, body["name"], {"id": record.name}),
    ]
    if pointer is not None:
        changes.append(Removal(pointer))
    return call.records.apply(changes)[0]


def make_version(call: Call, request: Mapping[str, Any]) -> Record:
    """The next version, of the draft as it is. Raises NotFound, QuotaExceeded."""
    record = find(call, request["promptIdentifier"])
    number = int(record.body["versions"]) + 1
    if number > MAX_VERSIONS:
        raise QuotaExceeded(f"a prompt has at most {MAX_VERSIONS} versions", code="ServiceQuotaExceededException")
    body = {**record.body, "version": str(number), "tags": dict(request.get("tags") or {})}
    if request.get("description"):
        body["description"] = request["description"]
    made = call.records.apply(
        [
            Revision(record, {**record.body, "versions": number}),
            Creation(PROMPT_KIND, f"{record.name}:{number}", body),
        ]
    )
    return made[-1]


def delete(call: Call, request: Mapping[str, Any]) -> dict[str, Any]:
    """One version, or the prompt with all of them. Raises NotFound."""
    record = find(call, request["promptIdentifier"], request.get("promptVersion"))
    if record.body["version"] != DRAFT:
        call.records.delete(record)
        return {"id": record.body["id"], "version": record.body["version"]}
    changes = [Removal(record)]
    pointer = call.records.get(NAME_KIND, record.body["name"])
    if pointer is not None and pointer.body["id"] == record.name:
        changes.append(Removal(pointer))
    changes += [Removal(one) for one in call.records.iterate(PROMPT_KIND, prefix=f"{record.name}:")]
    call.records.apply(changes)
    return {"id": record.name}


def describe(call: Call, record: Record) -> dict[str, Any]:
    body = record.body
    return {
        "name": body["name"],
        "description": body.get("description"),
        "defaultVariant": body.get("default_variant"),
        "variants": body["variants"],
        "id": body["id"],
        "arn": arn(call, record.name),
        "version": body["version"],
        "createdAt": record.created,
        "updatedAt": record.updated,
    }


def summarise(call: Call, record: Record) -> dict[str, Any]:
    described = describe(call, record)
    shown = ("name", "description", "id", "arn", "version", "createdAt", "updatedAt")
    return {name: described[name] for name in shown}
