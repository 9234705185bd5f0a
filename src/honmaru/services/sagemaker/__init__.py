"""Amazon SageMaker."""

from honmaru.services.sagemaker.provider import SageMaker

__all__ = ["SageMaker"]
