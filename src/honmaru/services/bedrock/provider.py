"""The operations of Bedrock's control plane that honmaru carries.

Foundation models are those of declared engines: none are shipped, so without a declaration the list is empty.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from honmaru.jobs.batch_inference import KIND as BATCH_KIND
from honmaru.jobs.model_import import KIND as JOB_KIND
from honmaru.ports.models import MODEL_KIND, FoundationModels, ModelServers
from honmaru.ports.runtime import Ids
from honmaru.security.calls import Call, Provider, Target
from honmaru.security.guard import Record
from honmaru.services.bedrock import foundation_model, imported_model, model_import_job, model_invocation_job, tags
from honmaru.services.bedrock.paging import page

Request = Mapping[str, Any]


class Bedrock(Provider):
    """Args:
    wake: Called after a job was made, so that the supervisor looks at once.
    """

    service = "bedrock"
    targets = {  # noqa: RUF012 - declared as a ClassVar by Provider
        "CreateModelImportJob": Target("bedrock:CreateModelImportJob"),
        "GetModelImportJob": Target("bedrock:GetModelImportJob", "{jobIdentifier}"),
        "GetImportedModel": Target("bedrock:GetImportedModel", "{modelIdentifier}"),
        "DeleteImportedModel": Target("bedrock:DeleteImportedModel", "{modelIdentifier}"),
        "CreateModelInvocationJob": Target("bedrock:CreateModelInvocationJob", "{modelId}"),
        "GetModelInvocationJob": Target("bedrock:GetModelInvocationJob", "{jobIdentifier}"),
        "StopModelInvocationJob": Target("bedrock:StopModelInvocationJob", "{jobIdentifier}"),
        "GetFoundationModel": Target("bedrock:GetFoundationModel", "{modelIdentifier}"),
        "ListTagsForResource": Target("bedrock:ListTagsForResource", "{resourceARN}"),
        "TagResource": Target("bedrock:TagResource", "{resourceARN}"),
        "UntagResource": Target("bedrock:UntagResource", "{resourceARN}"),
    }

    def __init__(
        self,
        roles: model_import_job.Roles,
        wake: Callable[[], None],
        servers: ModelServers,
        ids: Ids,
        foundation: FoundationModels,
    ) -> None:
        self._roles, self._wake, self._servers, self._ids = roles, wake, servers, ids
        self._foundation = foundation

    def create_model_import_job(self, call: Call, request: Request) -> dict[str, Any]:
        arn = model_import_job.create(call, request, self._roles, self._ids)
        call.resources.append((arn, "AWS::Bedrock::ModelImportJob"))
        self._wake()
        return {"jobArn": arn}

    def get_model_import_job(self, call: Call, request: Request) -> dict[str, Any]:
        record = model_import_job.find(call, request["jobIdentifier"])
        self._ask(call, "GetModelImportJob", request["jobIdentifier"], model_import_job.arn(call, record.name))
        return model_import_job.describe(call, record)

    def list_model_import_jobs(self, call: Call, request: Request) -> dict[str, Any]:
        found, token = page(call.records.iterate(JOB_KIND), request, "job_name")
        summaries = [model_import_job.summarise(call, record) for record in found]
        return {"modelImportJobSummaries": summaries, "nextToken": token}

    def get_imported_model(self, call: Call, request: Request) -> dict[str, Any]:
        record = self._model(call, "GetImportedModel", request["modelIdentifier"])
        return imported_model.describe(call, record)

    def list_imported_models(self, call: Call, request: Request) -> dict[str, Any]:
        found, token = page(call.records.iterate(MODEL_KIND), request, "name")
        call.beside["foundation"] = foundation_model.beside(call, self._foundation)
        return {"modelSummaries": [imported_model.summarise(call, record) for record in found], "nextToken": token}

    def delete_imported_model(self, call: Call, request: Request) -> dict[str, Any]:
        record = self._model(call, "DeleteImportedModel", request["modelIdentifier"])
        imported_model.delete(call, record, self._servers)
        return {}

    # Batch inference

    def create_model_invocation_job(self, call: Call, request: Request) -> dict[str, Any]:
        arn = model_invocation_job.create(call, request, self._roles, self._ids, self._foundation)
        call.resources.append((arn, "AWS::Bedrock::ModelInvocationJob"))
        self._wake()
        return {"jobArn": arn}

    def get_model_invocation_job(self, call: Call, request: Request) -> dict[str, Any]:
        record = self._batch(call, "GetModelInvocationJob", request["jobIdentifier"])
        return model_invocation_job.describe(call, record)

    def list_model_invocation_jobs(self, call: Call, request: Request) -> dict[str, Any]:
        wanted = {
            **request,
            "creationTimeAfter": request.get("submitTimeAfter"),
            "creationTimeBefore": request.get("submitTimeBefore"),
        }
        found, token = page(call.records.iterate(BATCH_KIND), wanted, "job_name")
        summaries = [model_invocation_job.describe(call, record) for record in found]
        return {"invocationJobSummaries": summaries, "nextToken": token}

    def stop_model_invocation_job(self, call: Call, request: Request) -> dict[str, Any]:
        record = self._batch(call, "StopModelInvocationJob", request["jobIdentifier"])
        model_invocation_job.stop(call, record)
        self._wake()
        return {}

    def _batch(self, call: Call, operation: str, identifier: str) -> Record:
        record = model_invocation_job.find(call, identifier)
        self._ask(call, operation, identifier, model_invocation_job.arn(call, record.name))
        return record

    def list_foundation_models(self, call: Call, request: Request) -> dict[str, Any]:
        return {"modelSummaries": foundation_model.listed(call, request, self._foundation)}

    def get_foundation_model(self, call: Call, request: Request) -> dict[str, Any]:
        return {"modelDetails": foundation_model.described(call, request["modelIdentifier"], self._foundation)}

    def get_foundation_model_availability(self, call: Call, request: Request) -> dict[str, Any]:
        return foundation_model.availability(call, request["modelId"], self._foundation)

    def list_tags_for_resource(self, call: Call, request: Request) -> dict[str, Any]:
        return {"tags": list(self._tagged(call, request["resourceARN"]).body["tags"])}

    def tag_resource(self, call: Call, request: Request) -> dict[str, Any]:
        record = self._tagged(call, request["resourceARN"])
        new = tags.merged(call.session, record.body["tags"], request["tags"])
        call.records.update(record, {**record.body, "tags": new})
        return {}

    def untag_resource(self, call: Call, request: Request) -> dict[str, Any]:
        record = self._tagged(call, request["resourceARN"])
        kept = [tag for tag in record.body["tags"] if tag["key"] not in request["tagKeys"]]
        call.records.update(record, {**record.body, "tags": kept})
        return {}

    def _model(self, call: Call, operation: str, identifier: str) -> Record:
        record = imported_model.find(call, identifier)
        arn = call.arn("bedrock", f"imported-model/{record.name}")
        self._ask(call, operation, identifier, arn)
        call.resources.append((arn, "AWS::Bedrock::ImportedModel"))
        return record

    def _ask(self, call: Call, operation: str, identifier: str, arn: str) -> None:
        # The door asked about what the caller wrote; policies speak of ARNs, so a name or id is asked about again.
        if identifier != arn:
            call.authorize(f"bedrock:{operation}", arn)

    def _tagged(self, call: Call, arn: str) -> Record:
        if ":model-import-job/" in arn:
            return model_import_job.find(call, arn)
        if ":model-invocation-job/" in arn:
            return model_invocation_job.find(call, arn)
        return imported_model.find(call, arn)
