"""Amazon Braket: quantum tasks on simulators of this machine, hybrid jobs, spending limits."""

from honmaru.services.braket.provider import Braket

__all__ = ["Braket"]
