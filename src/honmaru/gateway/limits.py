"""Every limit of the gateway, with its unit in its name. Defaults suit one machine."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Limits:
    """What one client may take. Beyond a limit the answer is a modelled error, or the connection is closed where
    nothing can be answered (headers too large or too slow)."""

    body_bytes: int = 10 << 20
    """Bodies of json, query, rest-json and XML requests."""
    invoke_bytes: int = 25 << 20
    """Bodies of bedrock-runtime."""
    unverified_bytes: int = 128 << 20
    """Bodies of callers whose signature needs the whole body, all together; half of it for one key id."""
    upload_bytes: int = 5 << 30
    """Streamed uploads (S3 objects and parts), decoded."""
    header_bytes: int = 64 << 10
    headers: int = 128
    url_bytes: int = 16 << 10
    header_s: float = 10.0
    """From the first byte of a request, or the opening of a connection, to the end of the headers."""
    body_s: float = 60.0
    """For the whole body of a request that is not a streamed upload."""
    idle_s: float = 30.0
    """Between two pieces of a streamed upload, and for the client to take a piece of an answer."""
    keep_alive_s: int = 75
    connections: int = 4096
    """Beyond it idle ones make place (`connections`). An idle TLS connection holds 22 KB."""
    workers: int = 12
    """Requests that are worked on at once, and threads that run operations; streamed uploads have their own."""
    workers_each: int = 4
    """Of these, for one person at one label while others ask too: so one more caller finds a turn, and a quick one."""
    queued: int = 1024
    """Requests that wait for their turn, half of them of one person, beyond which they are refused as throttled."""
    principal_requests_s: float = 5_000.0
    """Requests of one person at one label in a second; 0 for no limit."""
    account_requests_s: float = 20_000.0
    """Requests of one account at one label in a second; 0 for no limit."""
    burst_s: float = 2.0
    """Seconds of unused requests that may be made at once."""
    streams: int = 256
    """Event streams, answers in pieces and asynchronous operations at once."""
    streams_each: int = 128
    """Of these, for one person at one label."""
    uploads: int = 64
    """Streamed uploads at once, each with a thread; beyond it they are refused as throttled."""
    uploads_each: int = 32
    """Of these, for one person at one label."""
    upload_bytes_s: int = 1024
    """What a streamed upload must bring for each second that it lets us wait, once that is more than `idle_s`."""
