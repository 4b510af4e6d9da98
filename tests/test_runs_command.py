"""python -m vdm.runs: every folder is a row, whatever became of it."""

import fcntl
import json
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from vdm.runs import Run, is_held, lock
from vdm.runs.__main__ import main
from vdm.runs.listing import in_lineage, row_of, rows

ROOT = Path(__file__).resolve().parents[1]
DAY = 86400


def make(root, name, *, state="complete", created=0.0, parents=(), step=10, checkpoint=True, **more):
    run = Run(root / name)
    run.folder.mkdir(parents=True)
    if checkpoint:
        (run.folder / "checkpoints" / f"step-{step:08d}").mkdir(parents=True)
        (run.folder / "checkpoints" / f"step-{step:08d}" / "weights").write_bytes(b"0" * 1000)
    lineage = [{"network": "backbone", "run": parent, "checkpoint": "step"} for parent in parents]
    facts = {"stage": "vdm", "data": "shapes", "state": state, "step": step, "created": created, "lineage": lineage}
    run.update(**facts | more)
    return run


@pytest.fixture
def folder(tmp_path):
    now = time.time()
    make(tmp_path, "autoencoder-shapes-1", stage="autoencoder", created=now - 3 * DAY,
         best={"metric": "val/loss", "value": 0.12345, "step": 10})  # fmt: skip
    make(
        tmp_path,
        "autoencoder-webvid-2",
        stage="autoencoder",
        data="webvid",
        created=now - 2.5 * DAY,
        state="interrupted",
    )
    make(tmp_path, "vdm-shapes-3", created=now - 2 * DAY, parents=["autoencoder-shapes-1"])
    make(tmp_path, "dysen-shapes-4", stage="dysen", created=now - DAY, parents=["autoencoder-shapes-1", "vdm-shapes-3"])
    dead = make(tmp_path, "vdm-shapes-5", created=now - 0.1 * DAY, state="running", step=20, parents=["gone"])
    (dead.folder / "metrics.csv").write_text("step,train/loss\n" + "".join(f"{n},0.5\n" for n in range(1, 38)))
    (dead.folder / "config.yaml").write_text(
        "trainer:\n  precision: 32-true\n  max_steps: 500\ndata:\n  max_steps: 7\n"
    )
    broken = tmp_path / "vdm-shapes-6"
    broken.mkdir()
    (broken / "run.json").write_text('{"stage": "vdm", "st')
    (tmp_path / "vdm-shapes-7" / "checkpoints").mkdir(parents=True)  # killed before run.json
    (tmp_path / "sweeps").mkdir()
    (tmp_path / "a-file").write_text("")
    return tmp_path


def by_name(root):
    return {row.name: row for row in rows(root)}


def test_every_state(folder):
    found = by_name(folder)
    assert {name[-1]: row.state for name, row in found.items()} == {
        "1": "complete", "2": "interrupted", "3": "complete", "4": "complete", "5": "dead", "6": "unreadable", "7": "begun",
    }  # fmt: skip
    assert found["vdm-shapes-6"].problem
    assert found["vdm-shapes-5"].step == 37  # ahead of its last checkpoint
    assert found["vdm-shapes-5"].max_steps == 500
    assert found["vdm-shapes-5"].checkpoint == "step-00000020"
    assert found["autoencoder-shapes-1"].best["value"] == 0.12345
    assert found["autoencoder-shapes-1"].bytes > 1000


def test_a_run_that_is_trained_is_not_dead_and_looking_does_not_take_it(folder):
    run = Run(folder / "vdm-shapes-5")
    held = lock(run)
    try:
        row = row_of(run)
        assert row.state == "running"
        assert row.holder.startswith("process ")
        assert is_held(run) is True
    finally:
        held.close()
    assert row_of(run).state == "dead"
    with (run.folder / ".lock").open("r") as file:  # as somebody does who looks at this very moment
        fcntl.flock(file, fcntl.LOCK_SH)

        threading.Timer(0.3, lambda: fcntl.flock(file, fcntl.LOCK_UN)).start()
        lock(run).close()


def test_children_stand_below_the_newest_of_their_parents(folder):
    order = [(depth, row.name[-1]) for depth, row in in_lineage(rows(folder)) if row.state == "complete"]
    assert order == [(0, "1"), (1, "3"), (2, "4")]


def test_parents_that_point_at_each_other_are_all_listed(tmp_path):
    make(tmp_path, "a", parents=["b"], created=1.0)
    make(tmp_path, "b", parents=["a"], created=2.0)
    make(tmp_path, "c", parents=["c"], created=3.0)
    assert sorted(row.name for _, row in in_lineage(rows(tmp_path))) == ["a", "b", "c"]


def test_filters_and_json(folder, capsys):
    assert main([str(folder), "--stage", "autoencoder", "--state", "complete", "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert row["name"] == "autoencoder-shapes-1"
    assert main([str(folder), "--stage", "vdm", "--stage", "dysen", "--name", "-4"]) == 0
    assert "dysen-shapes-4" in capsys.readouterr().out
    assert main([str(folder), "--data", "nothing"]) == 0
    assert "no such runs" in capsys.readouterr().out
    assert main([str(folder / "nowhere")]) == 2
    assert "no such folder" in capsys.readouterr().err


def test_the_table(folder, capsys):
    main([str(folder)])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["run", "stage", "data", "state", "step", "best", "parents", "age", "size"]
    (dead,) = [line for line in lines if "vdm-shapes-5" in line]
    assert "37/500" in dead
    assert "dead" in dead
    assert "2 h" in dead
    (first,) = [line for line in lines if line.startswith("autoencoder-shapes-1")]
    assert "val/loss 0.1235" in first
    assert "3 d" in first
    assert any(line.startswith("    dysen-shapes-4") for line in lines)


def test_it_answers_at_once(folder):
    """It imports nothing heavy."""
    code = (
        "import sys, vdm.runs.__main__ as command; command.main(sys.argv[1:])\n"
        "heavy = {'torch', 'numpy', 'hydra', 'omegaconf', 'pytorch_lightning'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code, str(folder)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
