"""The AWS wire, driven by the service models of `honmaru.api`."""
