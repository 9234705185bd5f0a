"""Worker processes: they answer requests beside each other; the enclave's first process keeps what must be once."""
