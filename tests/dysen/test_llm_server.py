"""Language models behind a server: a real one around a model with random weights, and one that does everything wrong."""

import http.client
import json
import socket
import sys
import threading
import time
from collections import Counter
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

pytest.importorskip("httpx")
pytest.importorskip("transformers")
pytest.importorskip("llguidance")

from dysen.imagination import Question
from dysen.llm.local import TransformersModel
from dysen.llm.server import OpenAIModel
from dysen.llm.serving import Server
from dysen.replies import PlanReply, SceneReply
from tests.dysen.random_language_model import save
from vdm.errors import ConfigError

KEY = "sk-do-not-tell"


@pytest.fixture(scope="module")
def local(tmp_path_factory):
    folder = save(tmp_path_factory.mktemp("language_model"))
    return TransformersModel(model=folder, device="cpu", dtype="float32", max_tokens=48, temperature=0.0, seed=0,
                             constrained=True, chat=None, batch_tokens=4096, share_prefix=True,
                             adapter=None, output_root="")  # fmt: skip


@pytest.fixture(scope="module")
def server(local):
    with Server(local, name="random") as running:
        yield running


class Proxy:
    """Stands before the server and does what `fault(request number, request)` says; None passes the request on."""

    def __init__(self, upstream, fault):
        self.fault, self.seen, self.headers, self.at = fault, [], [], []
        self.open = threading.Event()
        lock = threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self):
                body = self.rfile.read(int(self.headers["Content-Length"]))
                with lock:
                    number = len(outer.seen)
                    outer.seen.append(json.loads(body))
                    outer.headers.append(dict(self.headers))
                    outer.at.append(time.monotonic())
                fault = outer.fault(number, outer.seen[number])
                if fault == "hang":
                    outer.open.wait(20)
                    self.close_connection = True
                elif fault == "drip":
                    self.reply(200, b"{", length=1000)
                    while not outer.open.wait(0.05):
                        self.wfile.write(b" ")
                    self.close_connection = True
                elif fault == "cut":
                    self.reply(200, b'{"choices": [{"mess', length=1000)
                    self.close_connection = True
                elif fault == "drop":
                    self.connection.shutdown(socket.SHUT_RDWR)
                    self.close_connection = True
                elif fault is not None:
                    status, content, *headers = fault
                    self.reply(
                        status, content if isinstance(content, bytes) else json.dumps(content).encode(), *headers
                    )
                else:
                    connection = http.client.HTTPConnection(upstream.removeprefix("http://").removesuffix("/v1"))
                    connection.request("POST", self.path, body, {"Content-Type": "application/json"})
                    response = connection.getresponse()
                    self.reply(response.status, response.read())

            def reply(self, status, content, headers=(), length=None):
                self.send_response(status)
                self.send_header("Content-Length", str(len(content) if length is None else length))
                for name, value in dict(headers).items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_):
                pass

        class Quiet(ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 64

            def handle_error(self, *_):
                pass  # a client that went away

        self.server = Quiet(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()
        self.base_url = f"http://127.0.0.1:{self.server.server_address[1]}/v1"

    def close(self):
        self.open.set()
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def behind(server, monkeypatch):
    """Makes a client behind a proxy that does something wrong; and the proxy."""
    opened = []

    def make(fault, **settings):
        proxy = Proxy(server.base_url, fault)
        client = build(proxy.base_url, **settings)
        opened.extend([client, proxy])
        return client, proxy

    yield make
    for one in opened:
        one.close()


def build(base_url, **settings):
    defaults = {"model": "random", "api_key_env": None, "max_tokens": 48, "temperature": 0.0, "seed": None,
                "format": "json_schema", "concurrency": 4, "timeout": 10.0, "retries": 2, "max_wait": 1.0,
                "token_budget": None, "price_prompt": None, "price_answer": None}  # fmt: skip
    return OpenAIModel(base_url=base_url, **defaults | settings)


@pytest.fixture(autouse=True)
def short_waits(monkeypatch):
    monkeypatch.setattr("dysen.llm.server.FIRST_WAIT", 0.02)


def asked(count=3, reply=PlanReply):
    return [Question(f"Sentence: {i}\nPlan:", reply) for i in range(count)]


def answer_of(text, usage=None, **message):
    return {"choices": [{"message": {"role": "assistant", "content": text, **message}}], "usage": usage}


# ---- answers ----------------------------------------------------------------------------------------------------------


def test_answers_are_those_of_the_model_behind_the_server(server, local):
    client = build(server.base_url)
    questions = asked(5) + asked(2, SceneReply)
    answers = client.answer(questions)
    assert [a.text for a in answers] == [a.text for a in local.answer(questions)]
    for question, answer in zip(questions, answers, strict=True):
        question.reply.model_validate_json(answer.text)
        assert answer.error is None
        assert answer.prompt_tokens > 0
    assert client.answer([]) == []
    assert client.report()["requests"] == 7
    assert client.report()["answer_tokens"] == sum(a.answer_tokens for a in answers)
    client.close()
    assert client.answer(questions[:1])[0].text == answers[0].text, "a closed one opens again"
    client.close()


def test_the_request_is_what_servers_expect(behind):
    client, proxy = behind(lambda n, request: None, seed=3)
    client.answer(asked(1))
    request = proxy.seen[0]
    assert request["messages"] == [{"role": "user", "content": asked(1)[0].prompt}]
    assert (request["model"], request["max_tokens"], request["temperature"], request["seed"]) == ("random", 48, 0.0, 3)
    form = request["response_format"]
    assert form["type"] == "json_schema"
    assert form["json_schema"] == {"name": "PlanReply", "strict": True, "schema": PlanReply.model_json_schema()}
    assert "Authorization" not in proxy.headers[0]


def test_never_more_than_the_bound_at_a_time(behind):
    now, most, lock = 0, 0, threading.Lock()

    def fault(number, request):
        nonlocal now, most
        with lock:
            now += 1
            most = max(most, now)
        time.sleep(0.03)
        with lock:
            now -= 1
        return 200, answer_of("{}")

    client, _ = behind(fault, concurrency=3)
    client.answer(asked(20))
    assert most == 3


# ---- faults -----------------------------------------------------------------------------------------------------------

ONCE = {
    "500": (500, b"oops"),
    "503": (503, b""),
    "429": (429, b"slow down"),
    "html": (200, b"<html><body>Welcome to the proxy</body></html>"),
    "html error": (502, b"<html>Bad Gateway</html>"),
    "no choices": (200, {"choices": []}),
    "choices of another kind": (200, {"choices": "many"}),
    "null": (200, b"null"),
    "no content": (200, {"choices": [{"message": {"role": "assistant", "content": None}}]}),
    "blank": (200, {"choices": [{"message": {"content": "  \n"}}]}),
    "half a json": (200, b'{"choices": [{"message": {"content": "{'),
    "deep": (200, b"[" * 100_000),
    "not utf-8": (200, b"\xff\xfe\x00"),
    "cut": "cut",
    "drop": "drop",
}


@pytest.mark.parametrize("name", ONCE)
def test_a_fault_that_passes_costs_a_try(behind, server, name):
    failed = set()

    def fault(number, request):
        first = request["messages"][0]["content"] not in failed
        failed.add(request["messages"][0]["content"])
        return ONCE[name] if first else None

    client, proxy = behind(fault)
    answers = client.answer(asked())
    assert [a.error for a in answers] == [None] * 3
    assert len(proxy.seen) == 6
    assert sum(count for name, count in client.report().items() if name.startswith("failed")) == 3


@pytest.mark.parametrize("name", [*ONCE, "hang", "drip", "too long"])
def test_a_fault_that_stays_ends_in_an_error(behind, name, caplog):
    fault = {**ONCE, "hang": "hang", "drip": "drip", "too long": (200, b" " * 4_100_000)}[name]
    client, proxy = behind(lambda n, request: fault, timeout=0.3)
    began = time.monotonic()
    answers = client.answer(asked())
    assert time.monotonic() - began < 5
    assert all(a.text == "" and "tried 3 times" in a.error for a in answers)
    assert len(proxy.seen) == 9
    assert "Traceback" not in caplog.text


def test_a_server_that_is_not_there(caplog):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    client = build(f"http://127.0.0.1:{port}/v1", retries=1)
    answers = client.answer(asked(200))
    assert all("no connection" in a.error for a in answers)
    assert client.report()["requests"] < 30, "after a few failures in a row nobody is asked any more"
    assert "not asked" in answers[-1].error
    assert "given up" in caplog.text
    assert "no connection" in client.answer(asked(1))[0].error, "the next call tries again"


def test_a_name_that_nobody_knows():
    answers = build("http://no-such-host.invalid/v1", retries=0, timeout=5.0).answer(asked(1))
    assert "no connection" in answers[0].error


@pytest.mark.parametrize("form", ["seconds", "date"])
def test_retry_after_is_honoured_by_all(behind, form):
    def fault(number, request):
        if number:
            return 200, answer_of("{}")
        after = "1" if form == "seconds" else formatdate(time.time() + 1.9, usegmt=True)
        return 429, b"", {"Retry-After": after}

    client, proxy = behind(fault, concurrency=1, max_wait=5.0)
    assert [a.error for a in client.answer(asked())] == [None] * 3
    assert 0.7 < proxy.at[1] - proxy.at[0] < 3.5


def test_a_server_that_asks_for_too_much_patience(behind):
    client, proxy = behind(lambda n, request: (429, b"", {"Retry-After": "3600"}))
    assert "asks for 3600 s" in client.answer(asked(1))[0].error
    assert len(proxy.seen) == 1


def test_waits_differ_and_grow(behind):
    client, _ = behind(lambda n, request: None)
    waits = [[client._pause(attempt, None) for _ in range(50)] for attempt in range(4)]
    assert all(len(set(row)) == 50 for row in waits)
    assert max(waits[0]) < min(waits[2])
    assert max(max(row) for row in waits) <= 1.0


def test_a_wrong_request_is_not_repeated(behind):
    client, proxy = behind(lambda n, request: (404, {"error": {"message": "no such model"}}))
    answers = client.answer(asked(20))
    assert all("no such model" in a.error for a in answers)
    assert len(proxy.seen) <= 4


# ---- what a server refuses --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("accepts", "requests"), [("json_object", 2), ("none", 3)])
def test_formats_step_down_and_stay_down(behind, caplog, accepts, requests):
    def fault(number, request):
        form = request.get("response_format", {"type": "none"})["type"]
        return None if form in (accepts, "none") else (400, {"error": {"message": f"{form} is not supported"}})

    client, proxy = behind(fault)
    assert client.answer(asked(1))[0].error is None
    assert len(proxy.seen) == requests
    assert client.report()["format"] == accepts
    assert client.report()["format json_schema was refused"] == 1
    assert "json_schema is not supported" in caplog.text
    client.answer(asked(3))
    assert len(proxy.seen) == requests + 3


def test_another_refusal_is_told_as_it_was(behind):
    client, proxy = behind(lambda n, request: (400, {"error": {"message": "the prompt is too long"}}))
    assert "too long" in client.answer(asked(1))[0].error
    assert client.report()["format"] == "json_schema", "no format was accepted, so it was not the format"


def test_the_newer_name_of_the_limit(behind):
    def fault(number, request):
        text = "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead."
        return (400, {"error": {"message": text}}) if "max_tokens" in request else (200, answer_of("{}"))

    client, proxy = behind(fault, retries=0)
    assert [a.error for a in client.answer(asked(6))] == [None] * 6
    assert proxy.seen[-1]["max_completion_tokens"] == 48


def test_a_model_that_refuses(behind):
    client, proxy = behind(lambda n, request: (200, answer_of(None, refusal="I would rather not.")))
    assert "rather not" in client.answer(asked(1))[0].error
    assert len(proxy.seen) == 1


# ---- money and keys ---------------------------------------------------------------------------------------------------


def test_the_budget_ends_the_asking(behind):
    usage = {"prompt_tokens": 60, "completion_tokens": 40}
    client, proxy = behind(lambda n, request: (200, answer_of("{}", usage)), token_budget=1000, price_prompt=0.5)
    answers = client.answer(asked(30))
    spent = client.report()["prompt_tokens"] + client.report()["answer_tokens"]
    assert 900 <= spent <= 1000
    refused = [a.error for a in answers if a.error]
    assert len(refused) == 30 - len(proxy.seen)
    assert "llm.token_budget=1000" in refused[0]
    assert client.answer(asked(1))[0].error is not None, "the budget is of the object's life"


def test_cost():
    client = build("http://127.0.0.1:9/v1", price_prompt=0.5, price_answer=2.0)
    assert client.cost(2000, 500) == 2.0
    assert build("http://127.0.0.1:9/v1").cost(2000, 500) is None


def test_the_key_is_sent_and_told_to_nobody(behind, monkeypatch, caplog):
    monkeypatch.setenv("SOME_KEY", f" {KEY}\n")
    caplog.set_level("DEBUG")
    reasons = Counter()

    def fault(number, request):
        return 401, {"error": {"message": f"Incorrect API key provided: {KEY}"}}

    client, proxy = behind(fault, api_key_env="SOME_KEY")
    for answer in client.answer(asked(20)):
        reasons[answer.error] += 1
    assert proxy.headers[0]["Authorization"] == f"Bearer {KEY}"
    assert len(proxy.seen) <= 4, "a wrong key is wrong for all questions"
    assert "$SOME_KEY" in str(reasons)
    assert KEY not in str(reasons) + str(client.fingerprint()) + str(client.report()) + caplog.text


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        ({"api_key_env": "NOBODY_SET_THIS"}, "llm.api_key_env"),
        ({"base_url": "127.0.0.1:8000/v1"}, "llm.base_url"),
        ({"base_url": "http://"}, "llm.base_url"),
        ({"base_url": "http://host:99999/v1"}, "llm.base_url"),
        ({"base_url": f"http://user:{KEY}@host/v1"}, "llm.base_url"),
    ],
)
def test_wrong_settings(settings, key, monkeypatch):
    monkeypatch.delenv("NOBODY_SET_THIS", raising=False)
    with pytest.raises(ConfigError) as error:
        build(**{"base_url": "http://127.0.0.1:9/v1", **settings})
    assert error.value.key == key
    assert KEY not in str(error.value)


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "httpx", None)
    with pytest.raises(ConfigError, match=r"\.\[llm\]"):
        build("http://127.0.0.1:9/v1")


def test_any_text_can_be_asked(server):
    client = build(server.base_url)
    answers = client.answer([Question(text, PlanReply) for text in ("", "\ud83d", "\0", "x" * 100_000)])
    assert [a.error is None for a in answers] == [True, True, True, False]
    assert "100000 tokens" in answers[3].error
    client.close()
