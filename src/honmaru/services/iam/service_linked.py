"""Service-linked roles: roles under /aws-service-role/ that one service alone assumes, and nobody edits.

Invariant: their trust names one service, their policy is the platform's, and control policies of an organisation do not
bind them (`security.identity.decisions`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from honmaru.core.errors import Conflict, NotFound, ValidationFault
from honmaru.security.calls import Call
from honmaru.security.identity import entities
from honmaru.services.iam import roles
from honmaru.services.iam.entities import Part, create, find

Request = Mapping[str, Any]
_NAMES: Mapping[str, str] = {
    "autoscaling.amazonaws.com": "AutoScaling",
    "bedrock.amazonaws.com": "AmazonBedrock",
    "braket.amazonaws.com": "AmazonBraket",
    "ecr.amazonaws.com": "ECRTemplate",
    "guardduty.amazonaws.com": "AmazonGuardDuty",
    "organizations.amazonaws.com": "Organizations",
    "sagemaker.amazonaws.com": "AmazonSageMakerNotebooks",
    "sagemaker.application-autoscaling.amazonaws.com": "ApplicationAutoScaling_SageMakerEndpoint",
}
_SUFFIX = re.compile(r"[\w+=,.@-]{1,64}")


class ServiceLinkedRoles(Part):
    """Operations on service-linked roles."""

    def create_service_linked_role(self, call: Call, request: Request) -> dict[str, Any]:
        service = request["AWSServiceName"]
        stem = _NAMES.get(service)
        if stem is None:
            raise ValidationFault(
                f"{service} does not support service-linked roles in this enclave", code="InvalidInput"
            )
        suffix = request.get("CustomSuffix")
        if suffix is not None and not _SUFFIX.fullmatch(suffix):
            raise ValidationFault("The CustomSuffix holds other characters than a role's name", code="InvalidInput")
        name = f"AWSServiceRoleFor{stem}" + (f"_{suffix}" if suffix else "")
        if call.records.get(entities.ROLE, name) is not None:
            raise Conflict(
                f"Service role name {name} has been taken in this account, please try a different suffix.",
                code="InvalidInput",
            )
        body = entities.role_body(
            self.identity.ids,
            path=f"{entities.SERVICE_LINKED_PATH}{service}/",
            tags={},
            trust=json.dumps(
                {
                    "Version": "2012-10-17",
                    "Statement": [{"Effect": "Allow", "Principal": {"Service": service}, "Action": "sts:AssumeRole"}],
                }
            ),
            description=request.get("Description") or "",
            max_session_s=roles.SESSION_S,
            boundary="",
        )
        return {"Role": roles.describe(call, create(call, entities.ROLE, name, body))}

    def delete_service_linked_role(self, call: Call, request: Request) -> dict[str, Any]:
        record = find(call, entities.ROLE, request["RoleName"])
        path = record.body["path"]
        if not path.startswith(entities.SERVICE_LINKED_PATH):
            raise NotFound(f"The role {record.name} is no service-linked role.", code="NoSuchEntity")
        call.records.delete(record)
        return {"DeletionTaskId": f"task{path}{record.name}/{call.request_id}"}

    def get_service_linked_role_deletion_status(self, call: Call, request: Request) -> dict[str, Any]:
        parts = request["DeletionTaskId"].split("/")
        if len(parts) != 5 or parts[:2] != ["task", "aws-service-role"]:
            raise ValidationFault("The DeletionTaskId is none of this enclave's", code="InvalidInput")
        # A role is gone when DeleteServiceLinkedRole answers: there is no task that could be under way.
        remains = call.records.get(entities.ROLE, parts[3]) is not None
        return {"Status": "IN_PROGRESS" if remains else "SUCCEEDED"}
