"""The SageMaker SDK v3's BedrockModelBuilder, unmodified, under AWS's real host names: train, import, provision, and
deploy as a custom model. Prints one JSON object as its last line."""

from __future__ import annotations

import json
import os

import boto3
from sagemaker.core.helper.session_helper import Session
from sagemaker.serve.bedrock_model_builder import BedrockModelBuilder
from sagemaker.train.configs import Compute, InputData, OutputDataConfig
from sagemaker.train.model_trainer import ModelTrainer

assert "AWS_ENDPOINT_URL" not in os.environ
TEXT = "\n\n\n".join(
    f"Entry {number}. The keeper of gate {number % 9} keeps key {number * 7 % 31}." for number in range(300)
)
SMALL = {
    "max_steps": "30", "vocab_size": "300", "hidden_size": "32", "layers": "1", "heads": "2", "key_value_heads": "1",
    "context": "64", "learning_rate": "0.01", "warmup_steps": "5", "log_every_seconds": "0.2",
}  # fmt: skip
USER = [{"role": "user", "content": [{"text": "who keeps it?"}]}]

boto = boto3.Session(region_name=os.environ["AWS_REGION"])
session = Session(boto_session=boto)
iam, runtime, bedrock = boto.client("iam"), boto.client("bedrock-runtime"), boto.client("bedrock")
services = ["sagemaker.amazonaws.com", "bedrock.amazonaws.com"]
statement = {"Effect": "Allow", "Principal": {"Service": services}, "Action": "sts:AssumeRole"}
trust = json.dumps({"Version": "2012-10-17", "Statement": [statement]})
role = iam.create_role(RoleName="builder", AssumeRolePolicyDocument=trust)["Role"]["Arn"]
partition = role.split(":")[1]
iam.attach_role_policy(RoleName="builder", PolicyArn=f"arn:{partition}:iam::aws:policy/AdministratorAccess")
bucket = session.default_bucket()
boto.client("s3").put_object(Bucket=bucket, Key="corpus/text.txt", Body=TEXT.encode())

trainer = ModelTrainer(
    sagemaker_session=session,
    role=role,
    training_image="honmaru-lm",
    base_job_name="keeper-lm",
    hyperparameters=SMALL,
    compute=Compute(instance_type="ml.m5.large", instance_count=1, volume_size_in_gb=2),
    output_data_config=OutputDataConfig(s3_output_path=f"s3://{bucket}/out"),
)
trainer.train(input_data_config=[InputData(channel_name="training", data_source=f"s3://{bucket}/corpus/")], logs=False)
facts = {"trained": trainer._latest_training_job.training_job_status}


def ask(model: str) -> int:
    answer = runtime.converse(modelId=model, messages=USER, inferenceConfig={"maxTokens": 5})
    return int(answer["usage"]["outputTokens"])


builder = BedrockModelBuilder(model=trainer)
job = builder.deploy(job_name="import-keeper", imported_model_name="keeper", role_arn=role)
facts["import"] = job["status"]
facts["imported"] = ask(job["importedModelArn"])
again = BedrockModelBuilder(model=trainer).deploy(imported_model_name="keeper", role_arn=role, reuse_resources=True)
facts["reused"] = again.get("modelArn") == job["importedModelArn"]
made = builder.create_provisioned_throughput(provisioned_model_name="keeper-units", model_units=1)
facts["provisioned"] = ask(made["provisionedModelArn"])

source = bedrock.get_imported_model(modelIdentifier="keeper")["modelDataSource"]["s3DataSource"]["s3Uri"]
custom = BedrockModelBuilder(model=source).deploy(custom_model_name="keeper-custom", role_arn=role)
facts["status"] = bedrock.get_custom_model(modelIdentifier=custom["modelArn"])["modelStatus"]
facts["deployed"] = ask(custom["customModelDeploymentArn"])
print(json.dumps(facts))
