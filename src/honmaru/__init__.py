"""honmaru: a self-hosted, air-gap-ready AI platform that speaks the AWS AI APIs."""

__version__ = "0.1.0"
