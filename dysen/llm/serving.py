"""Any language model behind an OpenAI-compatible address, so that several processes can share one: chat completions only.

Questions that arrive together are answered as one batch. A request says by the name of its json schema which reply it
wants; one that says nothing wants a plan.
"""

from __future__ import annotations

import json
import queue
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from dysen import replies
from dysen.imagination import Question
from dysen.llm.base import Answer, LanguageModel

GATHER_SECONDS = 0.02
MAX_REQUEST = 4_000_000  # bytes
KINDS = {kind.__name__: kind for kind in (replies.PlanReply, replies.SceneReply, replies.ScenesReply)}


@dataclass
class _Asked:
    question: Question
    is_answered: threading.Event = field(default_factory=threading.Event)
    answer: Answer = field(default_factory=lambda: Answer("", error="the server stopped"))


class Server:
    """Serves a model on this machine from threads of its own until it is closed. `base_url` is where."""

    def __init__(self, llm: LanguageModel, *, name: str, port: int = 0):
        self.llm, self.name = llm, name
        self._asked: queue.Queue[_Asked | None] = queue.Queue()
        self._server = ThreadingHTTPServer(("127.0.0.1", port), type("Handler", (_Handler,), {"owner": self}))
        self._server.daemon_threads = True
        self.base_url = f"http://127.0.0.1:{self._server.server_address[1]}/v1"
        self._threads = [threading.Thread(target=run, daemon=True) for run in (self._serve, self._answer)]
        for thread in self._threads:
            thread.start()

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._asked.put(None)
        self._server.shutdown()
        self._server.server_close()
        for thread in self._threads:
            thread.join(timeout=10)

    def ask(self, question: Question) -> Answer:
        """Called by the thread of a request; the answer comes with those of the others."""
        asked = _Asked(question)
        self._asked.put(asked)
        asked.is_answered.wait()
        return asked.answer

    def _serve(self) -> None:
        self._server.serve_forever(poll_interval=0.05)

    def _answer(self) -> None:
        while (first := self._asked.get()) is not None:
            batch = [first]
            is_last = False
            threading.Event().wait(GATHER_SECONDS)
            while not self._asked.empty():
                asked = self._asked.get()
                if asked is None:
                    is_last = True
                    break
                batch.append(asked)
            try:
                answers = self.llm.answer([asked.question for asked in batch])
            except Exception as error:  # the thread has to live on; the clients are told
                answers = [Answer("", error=f"{type(error).__name__}: {error}")] * len(batch)
            for asked, answer in zip(batch, answers, strict=True):
                asked.answer = answer
                asked.is_answered.set()
            if is_last:
                return


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    owner: Server

    def do_POST(self) -> None:
        if self.path != "/v1/chat/completions":
            return self._send(404, _error("there is only /v1/chat/completions"))
        try:
            size = int(self.headers.get("Content-Length", ""))
            assert 0 <= size <= MAX_REQUEST, "too long"
            request = json.loads(self.rfile.read(size))
            prompt = "\n".join(message["content"] for message in request["messages"])
            form = request.get("response_format") or {}
            kind = KINDS[form.get("json_schema", {}).get("name", "PlanReply")]
        except (ValueError, TypeError, KeyError, AttributeError, AssertionError) as error:
            self.close_connection = True
            return self._send(400, _error(f"this request cannot be read: {type(error).__name__} {error}"))
        answer = self.owner.ask(Question(prompt, kind))
        if answer.error is not None:
            return self._send(400, _error(answer.error))
        usage = {"prompt_tokens": answer.prompt_tokens, "completion_tokens": answer.answer_tokens}
        choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": answer.text}}
        return self._send(
            200, {"object": "chat.completion", "model": self.owner.name, "choices": [choice], "usage": usage}
        )

    def log_message(self, *_: Any) -> None:
        """Nothing: a line for each request would drown the rest."""

    def _send(self, status: int, content: dict[str, Any]) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def _error(message: str) -> dict[str, Any]:
    return {"error": {"message": message, "type": "invalid_request_error"}}
