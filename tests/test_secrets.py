"""Keys, tokens and passwords are in no file and no line that a program leaves, however they were given to it."""

import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from test_training import SMALL

from vdm import runs, secrets

ROOT = Path(__file__).resolve().parents[1]
IN_ENVIRONMENT = {
    "WANDB_API_KEY": "a1b2" * 10, "OPENAI_API_KEY": "sk-marker-openai-0123456789", "HF_TOKEN": "hf_markerHuggingFace01",
    "AWS_ACCESS_KEY_ID": "AKIAMARKER0123456789", "AWS_SECRET_ACCESS_KEY": "marker/aws+secret0123456789",
    "AWS_SESSION_TOKEN": "marker-aws-session-token==",
}  # fmt: skip
URL = "s3://user:pw-marker-typed@host/weights"
MARKERS = [*IN_ENVIRONMENT.values(), "pw-marker-typed", "sk-marker-typed-key"]


def environment():
    return {**os.environ, **IN_ENVIRONMENT, "WANDB_MODE": "offline", "OMP_NUM_THREADS": "1"}


def leaks(folder):
    """Files below a folder with a marker in their bytes, or in their names."""
    found = []
    for path in folder.rglob("*"):
        content = path.read_bytes() if path.is_file() and not path.is_symlink() else b""
        found += [f"{path}: {marker}" for marker in MARKERS if marker.encode() in content or marker in path.name]
    return found


def assert_silent(done, folder):
    said = done.stdout + done.stderr
    assert not [marker for marker in MARKERS if marker in said], said
    assert not leaks(folder)


@pytest.mark.parametrize(
    ("text", "hidden"),
    [
        ("+llm.api_key=sk-1234", "+llm.api_key=***"),
        ('"api_key": "sk-1234", "seed": 1', '"api_key": "***", "seed": 1'),
        ("password: hunter2\nlr: 1", "password: ***\nlr: 1"),
        ("s3://me:hunter2@host/bucket/x", "s3://***@host/bucket/x"),
        ("api_key_env: OPENAI_API_KEY", "api_key_env: OPENAI_API_KEY"),
        ("max_tokens: 512 token_budget=3", "max_tokens: 512 token_budget=3"),
        ("token: null", "token: null"),
        ("WANDB_API_KEY=abcd1234 python x", "WANDB_API_KEY=*** python x"),
        ("monotoken=5 tokens=7 key=video", "monotoken=5 tokens=7 key=video"),
        ("https://host:8000/v1?x=a@b", "https://host:8000/v1?x=a@b"),
        ("12:30:00 I step 5 loss 0.3", "12:30:00 I step 5 loss 0.3"),
    ],
)
def test_what_is_hidden(text, hidden):
    assert secrets.redact(text) == hidden


def test_values_of_the_environment_are_hidden_anywhere(monkeypatch):
    monkeypatch.setenv("SOME_SERVICE_TOKEN", "xyzzy-12345678")
    assert secrets.redact("GET /?auth=xyzzy-12345678 failed") == "GET /?auth=*** failed"


def test_typed_secrets_become_references(monkeypatch):
    words = ["stage=vdm", "+llm.api_key=sk-1234", "data.root=s3://me:hunter2@host/x", "seed=1"]
    kept = secrets.put_away(words)
    assert kept[0] == "stage=vdm"
    assert kept[3] == "seed=1"
    assert not any("1234" in word or "hunter2" in word for word in kept)
    for word, value in ((kept[1], "sk-1234"), (kept[2], "s3://me:hunter2@host/x")):
        name = word.partition("=${oc.env:")[2].rstrip("}")
        assert os.environ.pop(name) == value
    monkeypatch.setattr("sys.orig_argv", ["python", "train.py", *words])
    assert runs.typed("train.py") == "python train.py stage=vdm '+llm.api_key=***' 'data.root=s3://***@host/x' seed=1"


def test_a_run_with_wandb_tells_nothing(shapes_root, tmp_path):
    """Its folder holds a configuration with a password in a URL, and the service of wandb has seen its environment."""
    words = [*SMALL, f"paths.data_root={shapes_root}", f"paths.output_root={tmp_path}", "run.id=it", "logger=wandb",
             "trainer.max_steps=2", "callbacks.samples.every=2", f"paths.weights={URL}"]  # fmt: skip
    done = subprocess.run(
        [sys.executable, "train.py", *words], cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=280
    )
    assert done.returncode == 0, done.stderr
    assert_silent(done, tmp_path)
    info = json.loads((tmp_path / "it" / "run.json").read_text())
    assert "paths.weights=s3://***@host/weights" in info["command"]
    assert "weights: s3://***@host/weights" in (tmp_path / "it" / "config.yaml").read_text()
    assert list(tmp_path.rglob("*.wandb"))
    assert list((tmp_path / "it" / "checkpoints").iterdir())


def test_a_wrong_setting_is_not_repeated(tmp_path):
    words = ["stage=autoencoder", f"paths.output_root={tmp_path}", "+llm.api_key=sk-marker-typed-key"]
    done = subprocess.run(
        [sys.executable, "train.py", *words], cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 2
    assert_silent(done, tmp_path)


def test_a_sweep_keeps_references(tmp_path):
    """Hydra writes down the whole command of a sweep; a job that fails writes down why."""
    words = ["-m", "stage=autoencoder", f"paths.output_root={tmp_path}", f"paths.weights={URL}", "trainer.max_steps=0"]
    done = subprocess.run(
        [sys.executable, "train.py", *words], cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 2, done.stderr
    (kept,) = tmp_path.rglob("multirun.yaml")
    assert "paths.weights=${oc.env:VDM_GIVEN_" in kept.read_text()
    assert_silent(done, tmp_path)


class Refusing(BaseHTTPRequestHandler):
    """Says what it was sent, as a careless server may."""

    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        body = json.dumps({"error": {"message": f"wrong key: {self.headers['Authorization']}"}}).encode()
        self.send_response(401)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


def test_plans_of_a_server_tell_nothing(tmp_path):
    """The answers of a server are kept, and one that repeats the key in its error is quoted."""
    pytest.importorskip("httpx")
    server = ThreadingHTTPServer(("127.0.0.1", 0), Refusing)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    url = f"http://user:pw-marker-typed@127.0.0.1:{server.server_address[1]}/v1"
    words = ["prompt=A lady sits down.", "llm=openai", f"llm.base_url={url}", "llm.model=any", "llm.retries=0",
             f"out={tmp_path / 'plan.json'}", f"paths.output_root={tmp_path}"]  # fmt: skip
    try:
        done = subprocess.run(
            [sys.executable, "-m", "dysen.plan", *words], cwd=ROOT, env=environment(), capture_output=True, text=True,
            timeout=100,
        )  # fmt: skip
    finally:
        server.shutdown()
        server.server_close()
    assert "401" in done.stderr or "key" in done.stderr, done.stderr
    assert_silent(done, tmp_path)
