"""boto3 without any endpoint setting, under AWS's real host names. Prints one JSON object."""

from __future__ import annotations

import json
import os
import ssl
import urllib.error
import urllib.request

import boto3
from botocore.config import Config

region, account = os.environ["AWS_REGION"], os.environ["ACCOUNT"]
assert "AWS_ENDPOINT_URL" not in os.environ
sts, s3 = boto3.client("sts"), boto3.client("s3")
facts = {"sts": sts.meta.endpoint_url, "account": sts.get_caller_identity()["Account"]}
bucket = f"sagemaker-{region}-{account}"
s3.create_bucket(Bucket=bucket, CreateBucketConfiguration={"LocationConstraint": region})
s3.put_object(Bucket=bucket, Key="a/b c", Body=b"hello")
facts["body"] = s3.get_object(Bucket=bucket, Key="a/b c")["Body"].read().decode()
signer = boto3.client("s3", config=Config(signature_version="s3v4"))  # its default is SigV2, which is refused
url = signer.generate_presigned_url("get_object", {"Bucket": bucket, "Key": "a/b c"})
facts["url"] = url

context = ssl.create_default_context(cafile=os.environ["AWS_CA_BUNDLE"])
facts["presigned"] = urllib.request.urlopen(url, context=context).read().decode()
try:
    urllib.request.urlopen(f"https://{bucket}.s3.{region}.amazonaws.com/a", context=context)
except urllib.error.HTTPError as error:
    facts["unsigned"] = [error.code, error.read().decode()[:300]]
s3.create_bucket(Bucket="made-by-hand", CreateBucketConfiguration={"LocationConstraint": region})
facts["buckets"] = [found["Name"] for found in s3.list_buckets()["Buckets"]]
facts["jobs"] = boto3.client("sagemaker").list_training_jobs()["TrainingJobSummaries"]
facts["users"] = [user["UserName"] for user in boto3.client("iam").list_users()["Users"]]
facts["models"] = boto3.client("bedrock").list_imported_models()["modelSummaries"]
facts["groups"] = boto3.client("logs").describe_log_groups()["logGroups"]
print(json.dumps(facts))
