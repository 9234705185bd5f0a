"""For tests only: a real enclave in a process of its own, and deterministic time and identifiers."""
