"""What providers answer, on loopback: the SDKs and gateways of the tests in here talk to it in place of the real ones.

The answers are those of the providers' documentation; all that is read later was written by the real producer.
"""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

OPENAI = {
    "prompt_tokens": 2006,
    "completion_tokens": 300,
    "total_tokens": 2306,
    "prompt_tokens_details": {"cached_tokens": 1920, "audio_tokens": 0},
    "completion_tokens_details": {"reasoning_tokens": 64, "audio_tokens": 0},
}
CLAUDE = {
    "input_tokens": 9,
    "cache_read_input_tokens": 3962,
    "cache_creation_input_tokens": 100,
    "cache_creation": {"ephemeral_5m_input_tokens": 60, "ephemeral_1h_input_tokens": 40},
    "output_tokens": 50,
    "service_tier": "standard",
}


class _Provider(BaseHTTPRequestHandler):
    """Models named flaky fail at their first call."""

    protocol_version = "HTTP/1.1"
    calls = 0
    failed: set[str] = set()

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
        type(self).calls += 1
        if asked["model"].startswith("flaky") and asked["model"] not in self.failed:
            self.failed.add(asked["model"])
            return self._answer(500, {"error": {"message": "boom", "type": "server_error", "code": None}})
        if self.path.endswith("/messages"):
            return self._messages(asked)
        if self.path.endswith("/embeddings"):
            data = [{"object": "embedding", "index": 0, "embedding": [0.5]}]
            usage = {"prompt_tokens": 8, "total_tokens": 8}
            return self._answer(200, {"object": "list", "model": asked["model"], "data": data, "usage": usage})
        return self._chat(asked)

    def _chat(self, asked: dict[str, Any]) -> None:
        head = {"id": f"chatcmpl-{self.calls}", "created": 1795922600, "model": asked["model"]}
        if not asked.get("stream"):
            message = {"role": "assistant", "content": "hello"}
            choices = [{"index": 0, "message": message, "finish_reason": "stop"}]
            return self._answer(200, head | {"object": "chat.completion", "choices": choices, "usage": OPENAI})
        head["object"] = "chat.completion.chunk"
        deltas: list[tuple[dict[str, Any], str | None]] = [
            ({"role": "assistant", "content": "hello"}, None),
            ({}, "stop"),
        ]
        events = [head | {"choices": [{"index": 0, "delta": delta, "finish_reason": end}]} for delta, end in deltas]
        if asked.get("stream_options", {}).get("include_usage"):
            events.append(head | {"choices": [], "usage": OPENAI})
        return self._stream([f"data: {json.dumps(event)}\n\n" for event in events] + ["data: [DONE]\n\n"])

    def _messages(self, asked: dict[str, Any]) -> None:
        message = {"id": f"msg_{self.calls}", "type": "message", "role": "assistant", "model": asked["model"]}
        if not asked.get("stream"):
            content = [{"type": "text", "text": "hello"}]
            return self._answer(200, message | {"content": content, "stop_reason": "end_turn", "usage": CLAUDE})
        start = message | {"content": [], "stop_reason": None, "usage": CLAUDE | {"output_tokens": 1}}
        events = [
            {"type": "message_start", "message": start},
            {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
            {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "hello"}},
            {"type": "content_block_stop", "index": 0},
            {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": CLAUDE},
            {"type": "message_stop"},
        ]
        return self._stream([f"event: {event['type']}\ndata: {json.dumps(event)}\n\n" for event in events])

    def _answer(self, status: int, body: dict[str, Any]) -> None:
        self._send(status, "application/json", json.dumps(body))

    def _stream(self, events: list[str]) -> None:
        self._send(200, "text/event-stream", "".join(events))

    def _send(self, status: int, kind: str, text: str) -> None:
        self.send_response(status)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(text.encode())))
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *_: Any) -> None:
        pass


@contextmanager
def provider() -> Iterator[str]:
    """The address of a fresh one."""
    handler = type("Provider", (_Provider,), {"failed": set()})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()
