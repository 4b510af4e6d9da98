"""A command as a user types it, in a process of its own that has imported everything before."""

import importlib
import multiprocessing
import os
import runpy
import shlex
import sys
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]
HEAVY = ("data.prepare", "vdm.training", "vdm.sampling.command", "vdm.evaluating.command", "vdm.evaluation.report")

for module in HEAVY:  # once: importing takes longer than all else that small commands do
    importlib.import_module(module)


def typed(line, *more, said):
    """Exit code and output of `python <script> ...` or `python -m <module> ...`, with further words at its end."""
    program, *words = [*shlex.split(line), *map(str, more)]
    assert program == "python", line
    process = multiprocessing.get_context("fork").Process(target=_run, args=(words, said))
    process.start()
    process.join(280)
    if process.is_alive():
        process.terminate()
    return process.exitcode, said.read_text()


def _run(words, said):
    os.chdir(ROOT)
    file = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(file, 1)
    os.dup2(file, 2)
    sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w", buffering=1)
    torch.set_num_threads(1)
    if words[0] == "-m":
        sys.argv = words[1:]
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = words
        runpy.run_path(words[0], run_name="__main__")
    sys.stdout.flush()
