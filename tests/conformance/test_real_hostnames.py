"""Real-hostname mode: AWS's own names of the region lead to the enclave, for clients that hard-code them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import boto3
import pytest

from honmaru.api.models import SERVICES
from honmaru.app.hostnames import certificate_names, default_buckets, dns_lines, hosts_lines, service_hosts
from honmaru.app.settings import Settings
from honmaru.core.errors import ConfigurationFault
from honmaru.testing.namespaces import in_private_network

HERE = Path(__file__).parent
ROOT = HERE.parent.parent


def run_inside(tmp_path: Path, python: str, scenario: str, region: str = "us-gov-west-1", seconds: int = 100) -> dict:
    if shutil.which("bwrap") is None:
        pytest.skip("bubblewrap is not installed")
    hosts = tmp_path / "hosts"
    hosts.write_text("127.0.0.1 localhost\n")
    command = [sys.executable, str(HERE / "real_names.py"), str(tmp_path / "data"), region, str(hosts), python]
    done = in_private_network([*command, str(HERE / scenario), str(seconds)], hosts, timeout_s=seconds + 60)
    if "setting up uid map" in done.stderr or "No permissions to create new namespace" in done.stderr:
        pytest.skip("this machine lets nobody make a network namespace")
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout.strip().splitlines()[-1])


def peer(name: str) -> str:
    python = ROOT / ".venv-peers" / name / "bin" / "python"
    if not python.exists() or not os.environ.get("HONMARU_SAGEMAKER_SDK"):
        pytest.skip("`make test-sagemaker-sdk` installs both versions of the SDK and runs this")
    return str(python)


@pytest.mark.skipif(
    not (os.environ.get("HONMARU_SAGEMAKER_SDK") or os.environ.get("HONMARU_LONG")),
    reason="an enclave of its own: make test-sagemaker-sdk",
)
def test_boto3_needs_no_endpoint_setting(tmp_path):
    facts = run_inside(tmp_path, sys.executable, "real_names_boto3.py")
    bucket = f"sagemaker-us-gov-west-1-{facts['account']}"
    assert facts["sts"] == "https://sts.us-gov-west-1.amazonaws.com"
    assert facts["body"] == facts["presigned"] == "hello"
    assert facts["url"].startswith(f"https://{bucket}.s3.")
    assert facts["unsigned"][0] == 403
    assert "<Code>AccessDenied</Code>" in facts["unsigned"][1]
    assert facts["buckets"] == ["made-by-hand", bucket]
    assert facts["users"] == ["admin"]
    assert facts["jobs"] == facts["models"] == facts["groups"] == []


@pytest.mark.parametrize("version", [2, 3])
def test_the_sagemaker_sdk_works_unmodified(tmp_path, version):
    """Session, account, default bucket, upload, list, download, read: nothing of the SDK is patched."""
    facts = run_inside(tmp_path, peer(f"sagemaker{version}"), f"real_names_sagemaker{version}.py")
    bucket = f"sagemaker-us-gov-west-1-{facts['account']}"
    assert facts["version"].startswith(f"{version}.")
    assert facts["bucket"] == bucket
    assert facts["uri"] == f"s3://{bucket}/data/train/a.csv"
    assert facts["files"] == ["data/train/a.csv", "data/train/b.csv"]
    assert facts["read"] == "1,2\n"
    assert facts["downloaded"] == "3,4\n"
    assert facts["caller"].endswith(":user/admin")


@pytest.mark.timeout(660)
def test_bedrock_model_builder_trains_imports_and_deploys(tmp_path):
    """Nothing of the SDK is patched; most of the time it sleeps a minute between two looks at a job."""
    facts = run_inside(tmp_path, peer("sagemaker3"), "real_names_bedrock_builder.py", seconds=600)
    assert facts.pop("reused") is True
    assert all(facts.pop(name) > 0 for name in ("imported", "provisioned", "deployed"))
    assert facts == {"trained": "Completed", "import": "Completed", "status": "Active"}


@pytest.mark.parametrize("region", ["us-gov-west-1", "us-isob-east-1", "us-iso-east-1"])
def test_the_names_are_those_that_boto3_asks(region):
    names = service_hosts(region, SERVICES)
    for service in ("sts", "iam", "s3", "sagemaker", "bedrock", "bedrock-runtime", "logs"):
        client = boto3.client(service, region_name=region, aws_access_key_id="a", aws_secret_access_key="b")
        host = client.meta.endpoint_url.partition("://")[2]
        assert host in names
    s3 = next(name for name in names if name.startswith("s3."))
    assert f"*.{s3}" in certificate_names(names)
    lines = hosts_lines("127.0.0.1", names, default_buckets(region, "123456789012"))
    assert f"127.0.0.1 sagemaker-{region}-123456789012.{s3}" in lines
    assert f"address=/{s3}/127.0.0.1" in dns_lines("127.0.0.1", names)


def test_names_of_no_other_region_are_claimed():
    names = service_hosts("us-isob-east-1", SERVICES)
    assert not any("us-iso-" in name or "us-gov" in name or name.endswith("amazonaws.com") for name in names), names


def test_plain_http_and_real_names_exclude_each_other(tmp_path):
    with pytest.raises(ConfigurationFault, match="needs TLS"):
        Settings(data=tmp_path, http=True, real_hostnames=True).check()


def test_a_port_that_is_not_allowed_says_what_to_do(tmp_path):
    """As a user who may not bind 443."""
    if shutil.which("bwrap") is None:
        pytest.skip("bubblewrap is not installed")
    code = (
        "from honmaru.gateway.server import _listen\n"
        "from honmaru.core.errors import ConfigurationFault\n"
        "try: _listen('127.0.0.1', 443)\n"
        "except ConfigurationFault as fault: print(fault.problems[0])\n"
    )
    plain = ["bwrap", "--dev-bind", "/", "/", "--unshare-net", "--unshare-user", "--uid", "1000", "--cap-drop", "ALL"]
    done = subprocess.run([*plain, sys.executable, "-c", code], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip("this machine lets nobody make a network namespace")
    assert "ip_unprivileged_port_start=443" in done.stdout
    assert "--port 8443" in done.stdout
