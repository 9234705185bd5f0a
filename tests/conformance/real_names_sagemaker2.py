"""The SageMaker SDK v2, unmodified, under AWS's real host names. Prints one JSON object."""

from __future__ import annotations

import importlib.metadata
import json
import os
import tempfile
from pathlib import Path

import boto3
import sagemaker

assert "AWS_ENDPOINT_URL" not in os.environ
session = sagemaker.Session(boto_session=boto3.Session(region_name=os.environ["AWS_REGION"]))
facts = {"version": importlib.metadata.version("sagemaker"), "account": session.account_id()}
facts["bucket"] = bucket = session.default_bucket()
with tempfile.TemporaryDirectory() as place:
    folder = Path(place, "train")
    folder.mkdir()
    (folder / "a.csv").write_text("1,2\n")
    (folder / "b.csv").write_text("3,4\n")
    facts["uri"] = session.upload_data(str(folder / "a.csv"), key_prefix="data/train")
    session.upload_data(str(folder), bucket=bucket, key_prefix="data/train")
    facts["files"] = sorted(session.list_s3_files(bucket, "data"))
    facts["read"] = session.read_s3_file(bucket, "data/train/a.csv")
    session.download_data(place, bucket, key_prefix="data/train/b.csv")
    facts["downloaded"] = Path(place, "b.csv").read_text()
facts["caller"] = session.get_caller_identity_arn()
print(json.dumps(facts))
