"""The steps of the quickstart. Everything that a client does is done with plain boto3 over https.

Invariants:
- Each step looks first whether its result is there: an interrupted run goes on where it stopped.
- A step that was to be refused and is not ends the run as a failure.
"""

from __future__ import annotations

import hashlib
import json
import re
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from honmaru.app.operator import ask
from honmaru.app.run_files import published
from honmaru.cli._corpus import read_corpus
from honmaru.core.errors import ConfigurationFault, EngineFailed, IntegrityFault
from honmaru.core.partitions import partition_of

USERS = {
    "scientist": ("{ceiling}", ["AmazonS3FullAccess", "AmazonSageMakerFullAccess", "AmazonBedrockFullAccess",
                                "CloudWatchLogsReadOnlyAccess", "AWSCloudTrail_ReadOnlyAccess"]),
    "approver": ("{ceiling}", ["AmazonSageMakerFullAccess"]),
    "visitor": ("UNCLASSIFIED", ["AmazonS3FullAccess", "AmazonSageMakerFullAccess", "AmazonBedrockFullAccess"]),
}  # fmt: skip
ROLE = "HonmaruQuickstartRole"
GROUP = "quickstart-language-model"
PROMPT = "Return a new list containing all items from the iterable"
METRICS = (
    ("train:loss", r"train_loss=([0-9.]+)"),
    ("train:tokens_per_second", r"tokens_per_second=([0-9.]+)"),
    ("validation:bits_per_byte", r"validation:bits_per_byte=([0-9.]+)"),
)
_WAIT_S = 900.0


class MainJob:
    """One run of the quickstart against the enclave of a data directory, which is started when it is not running."""

    def __init__(self, data: Path, region: str, port: int, corpus: Path | None, seconds: int) -> None:
        self.data, self.region, self.port = data, region, port
        self.corpus_path, self.seconds = corpus, seconds
        self.console = Console(highlight=False, soft_wrap=True)
        self.label = partition_of(region).ceiling
        self.steps = 0
        self._clients: dict[tuple[str, str], Any] = {}

    def run(self) -> None:
        started = time.monotonic()
        self.start_enclave()
        self.make_people()
        bucket, digest = self.upload_corpus()
        job = self.train(bucket, digest)
        package, artifact = self.register(job)
        self.approve(package)
        model = self.import_model(job, artifact)
        request_id = self.converse(model)
        self.show_what_the_uncleared_see(bucket, job, model)
        self.verify_ledger(request_id)
        self.tamper()
        self.what_next(model, bucket, time.monotonic() - started)

    # --- steps -------------------------------------------------------------------------------------------------

    def start_enclave(self) -> None:
        self.step(f"Start an enclave of {self.region}: nothing above {self.label} may enter it")
        facts = published(self.data)
        if facts is None:
            command = [sys.executable, "-m", "honmaru", "up", "--detach", "--json", "--data", str(self.data)]
            command += ["--region", self.region, "--port", str(_free_port(self.port))]
            started = subprocess.run(command, capture_output=True, text=True, check=False)
            if started.returncode:
                raise ConfigurationFault([started.stderr.strip().removeprefix("honmaru: ")])
            facts = json.loads(started.stdout)
        if facts.get("sealed"):
            raise ConfigurationFault([f"the enclave in {self.data} is sealed: run `honmaru unseal` first"])
        if facts["region"] != self.region:
            raise ConfigurationFault(
                [
                    (
                        f"the enclave in {self.data} is one of {facts['region']}: "
                        f"give --region {facts['region']}, or another --data"
                    )
                ]
            )
        self.facts = facts
        self.say(f"{facts['endpoint']} (TLS under its own CA), account {facts['account']}, data in {facts['data']}")

    def make_people(self) -> None:
        self.step("Make users with different clearances, and the role that jobs act as")
        existing = {user["name"] for user in ask(self.data, "ListUsers")["users"]}
        for name, (clearance, policies) in USERS.items():
            cleared = clearance.format(ceiling=self.label)
            if name not in existing:
                ask(self.data, "CreateUser", name=name, clearance=cleared, policies=policies)
            self.say(f"{name:<10} cleared to {cleared}")
        iam = self.client("iam", "admin", "")
        trust = {
            "Version": "2012-10-17",
            "Statement": [
                {
                    "Effect": "Allow",
                    "Principal": {"Service": ["sagemaker.amazonaws.com", "bedrock.amazonaws.com"]},
                    "Action": "sts:AssumeRole",
                }
            ],
        }
        try:
            role = iam.create_role(RoleName=ROLE, AssumeRolePolicyDocument=json.dumps(trust))["Role"]
        except iam.exceptions.EntityAlreadyExistsException:
            role = iam.get_role(RoleName=ROLE)["Role"]
        iam.attach_role_policy(RoleName=ROLE, PolicyArn=_managed(self.facts, "AmazonS3FullAccess"))
        self.role = role["Arn"]
        self.say(self.role)

    def upload_corpus(self) -> tuple[str, str]:
        self.step(f"Upload real text, as a scientist signed in at {self.label}")
        text = read_corpus(self.corpus_path)
        digest = hashlib.sha256(text).hexdigest()[:12]
        s3 = self.client("s3", "scientist", self.label)
        bucket = f"quickstart-{self.facts['account']}"
        if not any(b["Name"] == bucket for b in s3.list_buckets()["Buckets"]):
            s3.create_bucket(Bucket=bucket, CreateBucketConfiguration={"LocationConstraint": self.region})
        key = f"corpus-{digest}/text.txt"
        s3.put_object(Bucket=bucket, Key=key, Body=text, Tagging=f"honmaru:label={self.label.replace(' ', '%20')}")
        self.say(
            f"s3://{bucket}/{key}: {len(text) / 1e6:.1f} MB, labelled {self.label}, encrypted with a key of its own"
        )
        return bucket, digest

    def train(self, bucket: str, digest: str) -> str:
        self.step(f"Train a language model on it for about {self.seconds} s (SageMaker API, sandbox without network)")
        sagemaker = self.client("sagemaker", "scientist", self.label)
        name = f"language-model-{digest}-{self.seconds}s"
        attempts = sagemaker.list_training_jobs(NameContains=name, SortBy="CreationTime", SortOrder="Descending")
        for earlier in attempts["TrainingJobSummaries"]:
            if earlier["TrainingJobStatus"] in ("InProgress", "Completed"):
                name = earlier["TrainingJobName"]
                break
        else:
            count = len(attempts["TrainingJobSummaries"])
            name = f"{name}-{count + 1}" if count else name
            sagemaker.create_training_job(
                TrainingJobName=name,
                RoleArn=self.role,
                AlgorithmSpecification={
                    "TrainingImage": f"{self.facts['account']}.dkr.ecr.{self.region}.amazonaws.com/honmaru-lm:latest",
                    "TrainingInputMode": "File",
                    "MetricDefinitions": [{"Name": n, "Regex": r} for n, r in METRICS],
                },
                HyperParameters={"max_seconds": str(self.seconds)},
                InputDataConfig=[
                    {
                        "ChannelName": "training",
                        "DataSource": {
                            "S3DataSource": {"S3DataType": "S3Prefix", "S3Uri": f"s3://{bucket}/corpus-{digest}/"}
                        },
                    }
                ],
                OutputDataConfig={"S3OutputPath": f"s3://{bucket}/models"},
                ResourceConfig={"InstanceType": "ml.m5.large", "InstanceCount": 1, "VolumeSizeInGB": 5},
                StoppingCondition={"MaxRuntimeInSeconds": self.seconds * 3 + 600},
                Tags=[{"Key": "honmaru:label", "Value": self.label}],
            )
        job = self._follow_training(name)
        if job["TrainingJobStatus"] != "Completed":
            raise EngineFailed(f"training job {name} ended {job['TrainingJobStatus']}: {job.get('FailureReason')}")
        metrics = {m["MetricName"]: m["Value"] for m in job.get("FinalMetricDataList", [])}
        self.say(
            f"{name} completed: loss {metrics.get('train:loss', float('nan')):.2f}, held-out "
            f"{metrics.get('validation:bits_per_byte', float('nan')):.3f} bits per byte"
        )
        return name

    def _follow_training(self, name: str) -> Any:
        sagemaker = self.client("sagemaker", "scientist", self.label)
        logs = self.client("logs", "scientist", self.label)
        latest: dict[str, str] = {}
        token: dict[str, str] = {}
        columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
        with Progress(*columns, console=self.console, transient=True) as progress:
            task = progress.add_task("waiting", total=100)
            shown = 0.0
            while True:
                job = sagemaker.describe_training_job(TrainingJobName=name)
                for line in _new_lines(logs, name, token):
                    latest.update(re.findall(r"([a-z_:]+)=([0-9.]+)", line))
                text = f"{job['SecondaryStatus']:<12}"
                if "train_loss" in latest:
                    rate = float(latest.get("tokens_per_second", 0))
                    text += f" step {latest.get('step', '?')}  loss {latest['train_loss']}  {rate:,.0f} tokens/s"
                done = 100 * float(latest.get("elapsed_seconds", 0)) / self.seconds
                progress.update(task, description=text, completed=min(100, done))
                if not self.console.is_terminal and time.monotonic() - shown > 10:
                    shown = time.monotonic()
                    self.say(text)
                if job["TrainingJobStatus"] in ("Completed", "Failed", "Stopped"):
                    return job
                time.sleep(1)

    def register(self, job: str) -> tuple[str, str]:
        self.step("Register the model; it may not be used before somebody else approves it")
        sagemaker = self.client("sagemaker", "scientist", self.label)
        description = sagemaker.describe_training_job(TrainingJobName=job)
        artifact = description["ModelArtifacts"]["S3ModelArtifacts"]
        try:
            sagemaker.describe_model_package_group(ModelPackageGroupName=GROUP)
        except sagemaker.exceptions.ClientError:
            sagemaker.create_model_package_group(
                ModelPackageGroupName=GROUP, ModelPackageGroupDescription="Models of the quickstart"
            )
        for summary in sagemaker.list_model_packages(ModelPackageGroupName=GROUP)["ModelPackageSummaryList"]:
            package = sagemaker.describe_model_package(ModelPackageName=summary["ModelPackageArn"])
            if package["InferenceSpecification"]["Containers"][0].get("ModelDataUrl") == artifact:
                self.say(f"{package['ModelPackageArn']} is there already")
                return package["ModelPackageArn"], artifact
        arn = sagemaker.create_model_package(
            ModelPackageGroupName=GROUP,
            ModelPackageDescription=f"Output of training job {job}",
            InferenceSpecification={
                "Containers": [{"Image": "serve", "ModelDataUrl": artifact}],
                "SupportedContentTypes": ["application/json"],
                "SupportedResponseMIMETypes": ["application/json"],
            },
            ModelApprovalStatus="PendingManualApproval",
        )["ModelPackageArn"]
        self.say(f"{arn}: PendingManualApproval")
        return arn, artifact

    def approve(self, package: str) -> None:
        scientist = self.client("sagemaker", "scientist", self.label)
        if scientist.describe_model_package(ModelPackageName=package)["ModelApprovalStatus"] == "Approved":
            self.say("approved already")
            return
        self.expect_refusal(
            "its author approves it",
            lambda: scientist.update_model_package(ModelPackageArn=package, ModelApprovalStatus="Approved"),
        )
        self.client("sagemaker", "approver", self.label).update_model_package(
            ModelPackageArn=package, ModelApprovalStatus="Approved", ApprovalDescription="Held-out loss reviewed."
        )
        self.say("the approver approves it: recorded with who, when and why")

    def import_model(self, job: str, artifact: str) -> str:
        self.step("Import it into Bedrock (safetensors only, converted in the sandbox)")
        bedrock = self.client("bedrock", "scientist", self.label)
        name = f"quickstart-{job.removeprefix('language-model-')}"
        for summary in bedrock.list_imported_models(nameContains=name)["modelSummaries"]:
            self.say(f"{summary['modelArn']} is there already")
            return str(summary["modelArn"])
        arn = bedrock.create_model_import_job(
            jobName=f"{name}-{int(time.time())}",
            importedModelName=name,
            roleArn=self.role,
            modelDataSource={"s3DataSource": {"s3Uri": artifact}},
        )["jobArn"]
        status = self.wait(lambda: bedrock.get_model_import_job(jobIdentifier=arn), "status", ("Completed", "Failed"))
        if status["status"] != "Completed":
            raise EngineFailed(f"import job {arn} failed: {status.get('failureMessage')}")
        self.say(str(status["importedModelArn"]))
        return str(status["importedModelArn"])

    def converse(self, model: str) -> str:
        self.step("Ask it (ConverseStream). It continues text in the register of its corpus; it does not know facts")
        runtime = self.client("bedrock-runtime", "scientist", self.label)
        answer = runtime.converse_stream(
            modelId=model,
            messages=[{"role": "user", "content": [{"text": PROMPT}]}],
            inferenceConfig={"maxTokens": 96, "temperature": 0.7, "topP": 0.95},
        )
        headers = answer["ResponseMetadata"]["HTTPHeaders"]
        self.console.print(f"   [dim]{PROMPT}[/dim]", end="")
        usage: dict[str, int] = {}
        for event in answer["stream"]:
            if "contentBlockDelta" in event:
                self.console.print(event["contentBlockDelta"]["delta"]["text"], end="", style="bold", markup=False)
            if "metadata" in event:
                usage = event["metadata"]["usage"]
        self.console.print()
        self.say(f"label {headers['x-honmaru-label']}, {usage['inputTokens']} tokens in, {usage['outputTokens']} out")
        return str(answer["ResponseMetadata"]["RequestId"])

    def show_what_the_uncleared_see(self, bucket: str, job: str, model: str) -> None:
        self.step("What a user without the clearance sees: nothing is there")

        def visitor(service: str) -> Any:
            return self.client(service, "visitor", "")

        self.expect_refusal("the bucket", lambda: visitor("s3").list_objects_v2(Bucket=bucket))
        self.expect_refusal("the job", lambda: visitor("sagemaker").describe_training_job(TrainingJobName=job))
        self.expect_refusal(
            "the model",
            lambda: visitor("bedrock-runtime").converse(
                modelId=model, messages=[{"role": "user", "content": [{"text": PROMPT}]}]
            ),
        )

    def verify_ledger(self, request_id: str) -> None:
        self.step("Verify the audit ledger offline, and prove that the call above is in it")
        self.honmaru("ledger", "verify", "--data", str(self.data))
        trail = self.client("cloudtrail", "scientist", self.label)
        events = trail.lookup_events(
            LookupAttributes=[{"AttributeKey": "EventName", "AttributeValue": "ConverseStream"}]
        )
        for event in events["Events"]:
            if json.loads(event["CloudTrailEvent"]).get("requestID") == request_id:
                self.honmaru("ledger", "prove", "--event-id", event["EventId"], "--data", str(self.data), "--summary")
                return
        raise IntegrityFault(f"request {request_id} is not in the ledger")

    def tamper(self) -> None:
        self.step("Flip one byte in a copy of the ledger")
        with tempfile.TemporaryDirectory() as scratch:
            copy = Path(scratch) / "ledger"
            _copy_ledger(self.data / "ledger", copy)
            victim = max(
                (p for p in copy.rglob("*") if p.is_file() and "entries" in str(p)), key=lambda p: p.stat().st_size
            )
            content = bytearray(victim.read_bytes())
            content[len(content) // 2] ^= 1
            victim.write_bytes(content)
            self.say(f"byte {len(content) // 2} of {victim.relative_to(copy)}")
            self.honmaru("ledger", "verify", str(copy), expect=1)

    def what_next(self, model: str, bucket: str, seconds: float) -> None:
        self.console.print(
            f"\n[bold]Done in {seconds:.0f} s.[/bold] The enclave goes on at {self.facts['endpoint']}. Try:\n"
        )
        program = Path(sys.argv[0])
        honmaru = f"{program}" if program.name == "honmaru" else "honmaru"
        for line in (
            f'eval "$({honmaru} env --user scientist --label {shlex.quote(self.label)})"',
            f"aws s3 ls s3://{bucket}",
            "aws sagemaker list-training-jobs",
            (
                f"aws bedrock-runtime converse --model-id {model} \\\n       "
                ' --messages \'[{"role":"user","content":[{"text":"Return the"}]}]\''
            ),
            f"{honmaru} ledger verify",
            "make stop",
        ):
            self.console.print(f"   {line}", markup=False)

    # --- how they talk -----------------------------------------------------------------------------------------

    def step(self, text: str) -> None:
        self.steps += 1
        self.console.print(f"\n[bold]{self.steps}. {text}[/bold]")

    def say(self, text: str) -> None:
        self.console.print(f"   {text}", markup=False)

    def expect_refusal(self, subject: str, attempt: Callable[[], object]) -> None:
        from botocore.exceptions import ClientError

        try:
            attempt()
        except ClientError as refused:
            error = refused.response["Error"]
            self.say(f"{subject}: refused, {error['Code']}: {error['Message']}")
            return
        raise IntegrityFault(f"{subject}: this had to be refused and was not")

    def wait(self, poll: Callable[[], Any], member: str, ends: tuple[str, ...]) -> Any:
        deadline = time.monotonic() + _WAIT_S
        with self.console.status("working") if self.console.is_terminal else _quiet():
            while (answer := poll())[member] not in ends:
                if time.monotonic() > deadline:
                    raise EngineFailed(f"still {answer[member]} after {_WAIT_S:.0f} s")
                time.sleep(0.5)
        return answer

    def client(self, service: str, user: str, label: str) -> Any:
        import boto3

        if (user, label) not in self._clients:
            credentials = ask(self.data, "GetCredentials", user=user, label=label)
            self._clients[user, label] = boto3.Session(
                aws_access_key_id=credentials["access_key_id"],
                aws_secret_access_key=credentials["secret_access_key"],
                region_name=self.region,
            )
        session = self._clients[user, label]
        return session.client(service, endpoint_url=self.facts["endpoint"], verify=self.facts["ca"] or None)

    def honmaru(self, *arguments: str, expect: int = 0) -> None:
        done = subprocess.run(
            [sys.executable, "-m", "honmaru", *arguments], capture_output=True, text=True, check=False
        )
        for line in (done.stdout + done.stderr).strip().splitlines():
            self.say(line)
        if done.returncode != expect:
            raise IntegrityFault(f"honmaru {' '.join(arguments)} ended with {done.returncode}, expected {expect}")


def _copy_ledger(ledger: Path, copy: Path) -> None:
    """Copy a ledger that is being written: a new checkpoint replaces partial tiles, then the copy starts again."""
    for attempt in range(10):
        try:
            shutil.copytree(ledger, copy)
            return
        except (shutil.Error, FileNotFoundError):
            shutil.rmtree(copy, ignore_errors=True)
            time.sleep(0.3 * (attempt + 1))
    raise IntegrityFault(f"{ledger} changes faster than it can be copied")


def _managed(facts: dict[str, Any], name: str) -> str:
    return f"arn:{facts['partition']}:iam::aws:policy/{name}"


def _free_port(wanted: int) -> int:
    """The wanted port, or 0 (any) where something else listens on it."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", wanted))
        except OSError:
            return 0
    return wanted


def _new_lines(logs: Any, job: str, token: dict[str, str]) -> Iterator[str]:
    """Log lines of a job that were not yet seen; `token` remembers the place between calls."""
    group = "/aws/sagemaker/TrainingJobs"
    if "stream" not in token:
        try:
            streams = logs.describe_log_streams(logGroupName=group, logStreamNamePrefix=f"{job}/")["logStreams"]
        except logs.exceptions.ResourceNotFoundException:
            return
        if not streams:
            return
        token["stream"] = streams[0]["logStreamName"]
    arguments = {"nextToken": token["next"]} if "next" in token else {}
    page = logs.get_log_events(logGroupName=group, logStreamName=token["stream"], startFromHead=True, **arguments)
    token["next"] = page["nextForwardToken"]
    for event in page["events"]:
        yield event["message"]


@contextmanager
def _quiet() -> Iterator[None]:
    yield
