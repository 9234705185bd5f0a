"""Amazon Braket: quantum tasks on simulators of this machine, hybrid jobs, spending limits."""

from honmaru.services.braket.provider import Braket, interpreted_programs

__all__ = ["Braket", "interpreted_programs"]
