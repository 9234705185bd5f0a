"""The limits of this enclave as Service Quotas shows them: each value is read from the code that enforces it."""

from __future__ import annotations

from collections.abc import Mapping

from honmaru.gateway.limits import Limits
from honmaru.jobs import model_import
from honmaru.services.cloudtrail import trails
from honmaru.services.cloudwatch import alarms, putting
from honmaru.services.logs import groups, live_tail, metric_filters
from honmaru.services.s3 import multipart
from honmaru.services.sagemaker import training_job
from honmaru.services.service_quotas import Quota

NAMES: Mapping[str, str] = {
    "apigateway": "Gateway of the enclave",
    "bedrock": "Amazon Bedrock",
    "cloudtrail": "AWS CloudTrail",
    "logs": "Amazon CloudWatch Logs",
    "monitoring": "Amazon CloudWatch",
    "s3": "Amazon Simple Storage Service (Amazon S3)",
    "sagemaker": "Amazon SageMaker",
}


def quotas(limits: Limits, *, training_jobs: int, cores: int) -> list[Quota]:
    """Args:
    training_jobs: Training jobs that run at once.
    cores: Of the machine that jobs share.
    """
    gateway = (
        ("L-HM000001", "Requests per second for each principal and label", limits.principal_requests_s, ""),
        ("L-HM000002", "Requests per second for each account and label", limits.account_requests_s, ""),
        ("L-HM000003", "Requests worked on at once", limits.workers, ""),
        ("L-HM000004", "Requests worked on at once for each principal and label", limits.workers_each, ""),
        ("L-HM000005", "Requests that wait for their turn", limits.queued, ""),
        ("L-HM000006", "Event streams at once", limits.streams, ""),
        ("L-HM000007", "Event streams at once for each principal and label", limits.streams_each, ""),
        ("L-HM000008", "Streamed uploads at once", limits.uploads, ""),
        ("L-HM000009", "Size of a request's body", limits.body_bytes / 1024, "Kilobytes"),
        ("L-HM00000A", "Connections", limits.connections, ""),
    )
    found = [
        Quota("apigateway", code, name, float(value), unit=unit or "None", adjustable=True)
        for code, name, value, unit in gateway
    ]
    found += [
        Quota("s3", "L-HM010001", "Size of an uploaded object or part", limits.upload_bytes / 2**30, unit="Gigabytes"),
        Quota("s3", "L-HM010002", "Parts of a multipart upload", multipart.MAX_PARTS),
        Quota("sagemaker", "L-HM020001", "Training jobs that run at once", training_jobs, adjustable=True),
        Quota("sagemaker", "L-HM020002", "Instances of a training job", training_job.MAX_INSTANCES),
        Quota("sagemaker", "L-HM020003", "Cores that all jobs share", cores, adjustable=True),
        Quota(
            "bedrock",
            "L-HM030001",
            "Size of an imported model",
            model_import.MAX_SOURCE_BYTES / 2**30,
            unit="Gigabytes",
        ),
        Quota("logs", "L-HM040001", "Live Tail sessions at once", live_tail.SESSIONS),
        Quota("logs", "L-HM040002", "Metric filters of a log group", metric_filters.MAX_FILTERS),
        Quota("logs", "L-HM040003", "Tags of a log group", groups.MAX_TAGS),
        Quota("monitoring", "L-HM050001", "Alarms", alarms.MAX_ALARMS),
        Quota("monitoring", "L-HM050002", "Metrics in a PutMetricData request", putting.MAX_METRICS),
        Quota("cloudtrail", "L-HM060001", "Trails", trails.MAX_TRAILS),
    ]
    return found
