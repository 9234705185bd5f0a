"""A model server that costs next to nothing: canned OpenAI answers, as fast as a loop can write them.

python benchmarks/fast_engine.py PORT CHUNKS
"""

from __future__ import annotations

import asyncio
import json
import sys

import uvloop

USAGE = {"prompt_tokens": 9, "completion_tokens": 20, "total_tokens": 29}
HEAD = {"id": "chatcmpl-1", "created": 1, "model": "fast"}


def whole() -> bytes:
    message = {"role": "assistant", "content": "word " * 20}
    choice = {"index": 0, "message": message, "finish_reason": "stop", "logprobs": None}
    body = json.dumps({**HEAD, "object": "chat.completion", "choices": [choice], "usage": USAGE}).encode()
    return b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(body) + body


def stream(chunks: int) -> bytes:
    events = []
    for number in range(chunks + 1):
        last = number == chunks
        delta = {} if last else {"content": "word "}
        choice = {"index": 0, "delta": delta, "finish_reason": "stop" if last else None}
        events.append({**HEAD, "object": "chat.completion.chunk", "choices": [choice]})
    events.append({**HEAD, "object": "chat.completion.chunk", "choices": [], "usage": USAGE})
    out = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
    for data in [*(json.dumps(event).encode() for event in events), b"[DONE]"]:
        piece = b"data: " + data + b"\n\n"
        out += b"%x\r\n" % len(piece) + piece + b"\r\n"
    return out + b"0\r\n\r\n"


class Engine(asyncio.Protocol):
    answers: tuple[bytes, bytes]

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        self.pending = b""

    def data_received(self, data: bytes) -> None:
        self.pending += data
        while b"\r\n\r\n" in self.pending:
            head, _, rest = self.pending.partition(b"\r\n\r\n")
            lower = head.lower()
            at = lower.find(b"content-length:")
            size = int(lower[at + 15 :].split(b"\r\n", 1)[0]) if at >= 0 else 0
            if len(rest) < size:
                return
            body, self.pending = rest[:size], rest[size:]
            streams = b'"stream":true' in body or b'"stream": true' in body
            self.transport.write(self.answers[streams])  # type: ignore[attr-defined]


async def serve(port: int, chunks: int) -> None:
    Engine.answers = (whole(), stream(chunks))
    server = await asyncio.get_running_loop().create_server(Engine, "127.0.0.1", port, backlog=4096)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(serve(int(sys.argv[1]), int(sys.argv[2])))
