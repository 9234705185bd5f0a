"""The operations of Bedrock's control plane that honmaru carries.

Foundation models are those of declared engines: none are shipped, so without a declaration the list is empty.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from honmaru.core.errors import NotFound
from honmaru.deployments import tags
from honmaru.deployments.catalog import alias_arn, custom_model_arn
from honmaru.deployments.paging import page
from honmaru.deployments.routers import ROUTER_KIND
from honmaru.jobs.async_invocation import KIND as ASYNC_KIND
from honmaru.jobs.batch_inference import KIND as BATCH_KIND
from honmaru.jobs.model_copy import KIND as COPY_KIND
from honmaru.jobs.model_customization import KIND as CUSTOMIZATION_KIND
from honmaru.jobs.model_import import KIND as JOB_KIND
from honmaru.ports.models import MODEL_KIND, FoundationModels, ModelServers
from honmaru.ports.runtime import Ids
from honmaru.security.calls import Call, Provider, Target
from honmaru.security.guard import Record
from honmaru.services.bedrock import (
    custom_model,
    foundation_model,
    imported_model,
    invocation_logging,
    model_alias,
    model_copy_job,
    model_customization_job,
    model_import_job,
    model_invocation_job,
    prompt_router,
)
from honmaru.services.bedrock.model_alias import DEPLOYMENT, PROFILE, PROVISIONED, Alias

Request = Mapping[str, Any]


class Bedrock(Provider):
    """Args:
    wake: Called after a job was made, so that the supervisor looks at once.
    """

    service = "bedrock"
    targets = {  # noqa: RUF012 - declared as a ClassVar by Provider
        "CreateModelImportJob": Target("bedrock:CreateModelImportJob"),
        "CreateInferenceProfile": Target("bedrock:CreateInferenceProfile"),
        "GetModelImportJob": Target("bedrock:GetModelImportJob", "{jobIdentifier}"),
        "GetImportedModel": Target("bedrock:GetImportedModel", "{modelIdentifier}"),
        "DeleteImportedModel": Target("bedrock:DeleteImportedModel", "{modelIdentifier}"),
        "CreateModelInvocationJob": Target("bedrock:CreateModelInvocationJob", "{modelId}"),
        "GetModelInvocationJob": Target("bedrock:GetModelInvocationJob", "{jobIdentifier}"),
        "StopModelInvocationJob": Target("bedrock:StopModelInvocationJob", "{jobIdentifier}"),
        "CreateModelCustomizationJob": Target("bedrock:CreateModelCustomizationJob", "{baseModelIdentifier}"),
        "GetModelCustomizationJob": Target("bedrock:GetModelCustomizationJob", "{jobIdentifier}"),
        "StopModelCustomizationJob": Target("bedrock:StopModelCustomizationJob", "{jobIdentifier}"),
        "CreateModelCopyJob": Target("bedrock:CreateModelCopyJob", "{sourceModelArn}"),
        "GetModelCopyJob": Target("bedrock:GetModelCopyJob", "{jobArn}"),
        "GetCustomModel": Target("bedrock:GetCustomModel", "{modelIdentifier}"),
        "DeleteCustomModel": Target("bedrock:DeleteCustomModel", "{modelIdentifier}"),
        "CreateProvisionedModelThroughput": Target("bedrock:CreateProvisionedModelThroughput", "{modelId}"),
        "GetProvisionedModelThroughput": Target("bedrock:GetProvisionedModelThroughput", "{provisionedModelId}"),
        "DeleteProvisionedModelThroughput": Target("bedrock:DeleteProvisionedModelThroughput", "{provisionedModelId}"),
        "CreateCustomModelDeployment": Target("bedrock:CreateCustomModelDeployment", "{modelArn}"),
        "GetCustomModelDeployment": Target("bedrock:GetCustomModelDeployment", "{customModelDeploymentIdentifier}"),
        "DeleteCustomModelDeployment": Target(
            "bedrock:DeleteCustomModelDeployment", "{customModelDeploymentIdentifier}"
        ),
        "GetInferenceProfile": Target("bedrock:GetInferenceProfile", "{inferenceProfileIdentifier}"),
        "DeleteInferenceProfile": Target("bedrock:DeleteInferenceProfile", "{inferenceProfileIdentifier}"),
        "CreateCustomModel": Target("bedrock:CreateCustomModel"),
        "CreatePromptRouter": Target("bedrock:CreatePromptRouter"),
        "GetPromptRouter": Target("bedrock:GetPromptRouter", "{promptRouterArn}"),
        "DeletePromptRouter": Target("bedrock:DeletePromptRouter", "{promptRouterArn}"),
        "UpdateProvisionedModelThroughput": Target("bedrock:UpdateProvisionedModelThroughput", "{provisionedModelId}"),
        "UpdateCustomModelDeployment": Target(
            "bedrock:UpdateCustomModelDeployment", "{customModelDeploymentIdentifier}"
        ),
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
        cores: int = 2,
    ) -> None:
        self._cores = cores
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

    # Customisation

    def create_model_customization_job(self, call: Call, request: Request) -> dict[str, Any]:
        arn = model_customization_job.create(call, request, self._roles, self._ids, self._foundation)
        call.resources.append((arn, "AWS::Bedrock::ModelCustomizationJob"))
        self._wake()
        return {"jobArn": arn}

    def get_model_customization_job(self, call: Call, request: Request) -> dict[str, Any]:
        record = self._customization(call, "GetModelCustomizationJob", request["jobIdentifier"])
        return model_customization_job.describe(call, record)

    def list_model_customization_jobs(self, call: Call, request: Request) -> dict[str, Any]:
        found, token = page(call.records.iterate(CUSTOMIZATION_KIND), request, "job_name")
        summaries = [model_customization_job.summarise(call, record) for record in found]
        return {"modelCustomizationJobSummaries": summaries, "nextToken": token}

    def stop_model_customization_job(self, call: Call, request: Request) -> dict[str, Any]:
        record = self._customization(call, "StopModelCustomizationJob", request["jobIdentifier"])
        model_customization_job.stop(call, record)
        self._wake()
        return {}

    def _customization(self, call: Call, operation: str, identifier: str) -> Record:
        record = model_customization_job.find(call, identifier)
        self._ask(call, operation, identifier, model_customization_job.arn(call, record.name))
        return record

    # Copies

    def create_model_copy_job(self, call: Call, request: Request) -> dict[str, Any]:
        made = model_copy_job.create(call, request, self._ids)
        self._wake()
        return made

    def get_model_copy_job(self, call: Call, request: Request) -> dict[str, Any]:
        return model_copy_job.describe(call, model_copy_job.find(call, request["jobArn"]))

    def list_model_copy_jobs(self, call: Call, request: Request) -> dict[str, Any]:
        wanted = {**request, "nameContains": request.get("targetModelNameContains", "")}
        jobs = [one for one in call.records.iterate(COPY_KIND) if model_copy_job.matches(call, one, request)]
        found, token = page(jobs, wanted, "model_name")
        return {"modelCopyJobSummaries": [model_copy_job.describe(call, one) for one in found], "nextToken": token}

    def create_custom_model(self, call: Call, request: Request) -> dict[str, Any]:
        made = custom_model.create(call, request, self._roles, self._ids)
        self._wake()
        return made

    def get_custom_model(self, call: Call, request: Request) -> dict[str, Any]:
        return custom_model.describe(call, self._custom(call, "GetCustomModel", request["modelIdentifier"]))

    def list_custom_models(self, call: Call, request: Request) -> dict[str, Any]:
        found, token = page(custom_model.listed(call, request), request, "name")
        return {"modelSummaries": [custom_model.summarise(call, record) for record in found], "nextToken": token}

    def delete_custom_model(self, call: Call, request: Request) -> dict[str, Any]:
        record = self._custom(call, "DeleteCustomModel", request["modelIdentifier"])
        custom_model.delete(call, record, self._servers)
        return {}

    def _custom(self, call: Call, operation: str, identifier: str) -> Record:
        record = custom_model.find(call, identifier)
        self._ask(call, operation, identifier, custom_model_arn(call.session, record.name))
        return record

    # Names for models

    def create_provisioned_model_throughput(self, call: Call, request: Request) -> dict[str, Any]:
        units = int(request["modelUnits"])
        model_alias.reserve(call, units, self._cores)
        more = {"units": units, "commitment": request.get("commitmentDuration")}
        arn = self._alias(call, PROVISIONED, request["provisionedModelName"], request["modelId"], request, more)
        return {"provisionedModelArn": arn}

    def get_provisioned_model_throughput(self, call: Call, request: Request) -> dict[str, Any]:
        return model_alias.provisioned(call, model_alias.find(call, PROVISIONED, request["provisionedModelId"]))

    def list_provisioned_model_throughputs(self, call: Call, request: Request) -> dict[str, Any]:
        found, token = page(model_alias.listed(call, PROVISIONED, request), request, "name")
        summaries = [model_alias.provisioned(call, record) for record in found]
        return {"provisionedModelSummaries": summaries, "nextToken": token}

    def delete_provisioned_model_throughput(self, call: Call, request: Request) -> dict[str, Any]:
        model_alias.delete(call, PROVISIONED, request["provisionedModelId"])
        return {}

    def create_custom_model_deployment(self, call: Call, request: Request) -> dict[str, Any]:
        more = {"description": request.get("description")}
        arn = self._alias(call, DEPLOYMENT, request["modelDeploymentName"], request["modelArn"], request, more)
        return {"customModelDeploymentArn": arn}

    def get_custom_model_deployment(self, call: Call, request: Request) -> dict[str, Any]:
        record = model_alias.find(call, DEPLOYMENT, request["customModelDeploymentIdentifier"])
        return {"modelDeploymentName": record.body["name"], **model_alias.deployment(call, record)}

    def list_custom_model_deployments(self, call: Call, request: Request) -> dict[str, Any]:
        found, token = page(model_alias.listed(call, DEPLOYMENT, request), request, "name")
        summaries = [
            {"customModelDeploymentName": record.body["name"], **model_alias.deployment(call, record)}
            for record in found
        ]
        return {"modelDeploymentSummaries": summaries, "nextToken": token}

    def delete_custom_model_deployment(self, call: Call, request: Request) -> dict[str, Any]:
        model_alias.delete(call, DEPLOYMENT, request["customModelDeploymentIdentifier"])
        return {}

    def create_inference_profile(self, call: Call, request: Request) -> dict[str, Any]:
        more = {"description": request.get("description")}
        source = request["modelSource"].get("copyFrom") or ""
        arn = self._alias(call, PROFILE, request["inferenceProfileName"], source, request, more)
        return {"inferenceProfileArn": arn, "status": "ACTIVE"}

    def get_inference_profile(self, call: Call, request: Request) -> dict[str, Any]:
        return model_alias.profile(call, model_alias.find(call, PROFILE, request["inferenceProfileIdentifier"]))

    def list_inference_profiles(self, call: Call, request: Request) -> dict[str, Any]:
        found, token = page(model_alias.listed(call, PROFILE, request), request, "name")
        shown = [model_alias.profile(call, record) for record in found]
        return {"inferenceProfileSummaries": shown, "nextToken": token}

    def delete_inference_profile(self, call: Call, request: Request) -> dict[str, Any]:
        model_alias.delete(call, PROFILE, request["inferenceProfileIdentifier"])
        return {}

    def update_provisioned_model_throughput(self, call: Call, request: Request) -> dict[str, Any]:
        record = model_alias.find(call, PROVISIONED, request["provisionedModelId"])
        self._change(
            call, PROVISIONED, record, request.get("desiredProvisionedModelName"), request.get("desiredModelId")
        )
        return {}

    def update_custom_model_deployment(self, call: Call, request: Request) -> dict[str, Any]:
        record = model_alias.find(call, DEPLOYMENT, request["customModelDeploymentIdentifier"])
        self._change(call, DEPLOYMENT, record, None, request["modelArn"])
        return {"customModelDeploymentArn": alias_arn(call.session, DEPLOYMENT.kind, record.name)}

    def _change(self, call: Call, alias: Alias, record: Record, name: str | None, model: str | None) -> None:
        model_alias.change(call, alias, record, name, model, self._foundation)

    # Prompt routers

    def create_prompt_router(self, call: Call, request: Request) -> dict[str, Any]:
        return prompt_router.create(call, request, self._ids, self._foundation)

    def get_prompt_router(self, call: Call, request: Request) -> dict[str, Any]:
        return prompt_router.describe(call, prompt_router.find(call, request["promptRouterArn"]))

    def list_prompt_routers(self, call: Call, request: Request) -> dict[str, Any]:
        there = () if request.get("type") == "default" else call.records.iterate(ROUTER_KIND)
        found, token = page(there, request, "name")
        return {"promptRouterSummaries": [prompt_router.describe(call, one) for one in found], "nextToken": token}

    def delete_prompt_router(self, call: Call, request: Request) -> dict[str, Any]:
        prompt_router.delete(call, prompt_router.find(call, request["promptRouterArn"]))
        return {}

    def _alias(self, call: Call, alias: Alias, name: str, model: str, request: Request, more: Mapping[str, Any]) -> str:
        return model_alias.create(
            call, alias, name, model, self._foundation, self._ids, more=more, given=request.get("tags")
        )

    def put_model_invocation_logging_configuration(self, call: Call, request: Request) -> dict[str, Any]:
        invocation_logging.put(call, request["loggingConfig"], self._roles)
        return {}

    def get_model_invocation_logging_configuration(self, call: Call, _request: Request) -> dict[str, Any]:
        return invocation_logging.described(call)

    def delete_model_invocation_logging_configuration(self, call: Call, _request: Request) -> dict[str, Any]:
        invocation_logging.delete(call)
        return {}

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
        if ":model-copy-job/" in arn:
            return model_copy_job.find(call, arn)
        if ":default-prompt-router/" in arn:
            return prompt_router.find(call, arn)
        if ":async-invoke/" in arn:
            return _async_invocation(call, arn)
        if ":model-customization-job/" in arn:
            return model_customization_job.find(call, arn)
        if ":custom-model/" in arn:
            return custom_model.find(call, arn)
        for alias in (PROVISIONED, DEPLOYMENT, PROFILE):
            if f":{alias.kind}/" in arn:
                return model_alias.find(call, alias, arn)
        return imported_model.find(call, arn)


def _async_invocation(call: Call, arn: str) -> Record:
    record = call.records.get(ASYNC_KIND, arn.removeprefix(call.arn("bedrock", "async-invoke/")))
    if record is None:
        raise NotFound(f"Could not find async invocation {arn}", code="ResourceNotFoundException")
    return record
