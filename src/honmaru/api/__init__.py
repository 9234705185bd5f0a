"""AWS service models: loaded from the installed botocore, docs stripped, compiled to plans at first use."""
