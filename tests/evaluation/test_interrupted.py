"""An evaluation that was killed goes on and ends with the same bytes; one process and two write the same bytes."""

import json
import multiprocessing
import os
import socket

import pytest
import torch
from moving_clips import ClipNetwork, script
from test_generation import ask, root  # noqa: F401  # a run with random weights

from vdm.evaluation.networks import TorchScript
from vdm.sampling.model import TextToVideo

WRITTEN = ("metrics.json", "cases.jsonl")


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    """Two metrics that share a network, one that looks at each clip, in batches of which the last is smaller."""
    folder = tmp_path_factory.mktemp("network")
    network = script(ClipNetwork(), folder / "i3d.pt").file
    fvd = [
        f"metric.fvd.network.file={network}",
        "metric.fvd.network.sha256=null",
        "metric.fvd.frames=8",
        "metric.fvd.draws=4",
    ]
    counts = ["protocol.clips=7", "batch_size=2", "protocol.reference_split=train", "protocol.reference_clips=9"]
    return ["metric=[fvd,flicker,shapes_oracle]", *fvd, *counts, "protocol.shown=4", "report=false"]


def files(folder):
    return {name: (folder / name).read_bytes() for name in WRITTEN}


def place(outputs, name):
    return outputs / "evaluations" / name


@pytest.fixture(scope="module")
def whole(root, shapes_root, given):  # noqa: F811
    folder = place(root, "whole")
    ask(root, shapes_root, *given, f"output={folder}", f"features={folder}/features")
    return files(folder)


def stopped_at(owner, name, call):
    """The process ends without a word at a call of a method."""
    original, calls = getattr(owner, name), []

    def method(self, *positional, **named):
        calls.append(1)
        if len(calls) > call:
            os._exit(9)
        return original(self, *positional, **named)

    setattr(owner, name, method)


def in_a_process(work, *arguments):
    process = multiprocessing.get_context("fork").Process(target=work, args=arguments)
    process.start()
    process.join(200)
    if process.is_alive():
        process.terminate()
    return process.exitcode


def killed(owner, name, call, arguments):
    torch.set_num_threads(1)
    stopped_at(owner, name, call)
    ask(*arguments)
    os._exit(1)  # it should not have come here


@pytest.mark.parametrize(
    ("owner", "name", "call", "samples"), [(TextToVideo, "frames", 3, 3), (TorchScript, "__call__", 7, 4)]
)
def test_a_killed_evaluation_goes_on(root, shapes_root, given, whole, owner, name, call, samples):  # noqa: F811
    """In the middle of sampling, and in the middle of features: 5 calls for the reference, and 4 of the made clips."""
    folder = place(root, f"killed-{name}")
    arguments = (root, shapes_root, *given, f"output={folder}", f"features={folder}/features")
    assert in_a_process(killed, owner, name, call, arguments) == 9
    assert not (folder / "metrics.json").exists()
    assert not list(folder.rglob("*.partial*"))
    assert len(list(folder.glob("samples/*/*.npz"))) >= samples
    before = {path: path.stat().st_mtime_ns for path in [*folder.rglob("*.npz"), *folder.rglob("*.npy")]}
    ask(*arguments)
    assert files(folder) == whole
    assert {path: path.stat().st_mtime_ns for path in before} == before, "what was done is not done again"
    assert len(list(folder.glob("samples/*/*.npz"))) == 7


def test_features_are_computed_once(root, shapes_root, given, whole, monkeypatch):  # noqa: F811
    calls, call = [], TorchScript.__call__
    monkeypatch.setattr(TorchScript, "__call__", lambda self, x: calls.append(len(x)) or call(self, x))
    folder, features = place(root, "again"), f"features={place(root, 'whole')}/features"
    ask(root, shapes_root, *given, f"output={folder}", features)
    assert files(folder) == whole
    assert not calls
    ask(root, shapes_root, *given, f"output={folder}", features, "metric.fvd.kernel_label=null", "metric.fvd.draws=0")
    assert not calls, "another metric with the same network"
    ask(root, shapes_root, *given, f"output={folder}", features, "protocol.seed=3")
    assert calls == [2, 2, 2, 1], "other samples, the same reference"


def one_of_several(rank, ranks, port, arguments):
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    ask(*arguments)


@pytest.mark.parametrize("ranks", [2, pytest.param(5, marks=pytest.mark.slow)])
def test_processes_write_the_same_bytes(root, shapes_root, given, whole, ranks):  # noqa: F811
    """Also where one of them has nothing to make: there are 4 batches."""
    folder = place(root, f"processes-{ranks}")
    arguments = (root, shapes_root, *given, f"output={folder}", f"features={folder}/features")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    forked = multiprocessing.get_context("fork")
    running = [forked.Process(target=one_of_several, args=(rank, ranks, port, arguments)) for rank in range(ranks)]
    for one in running:
        one.start()
    for one in running:
        one.join(200)
        if one.is_alive():
            one.terminate()
    assert [one.exitcode for one in running] == [0] * ranks
    assert files(folder) == whole
    assert json.loads((folder / "evaluated.json").read_text())["processes"] == ranks
