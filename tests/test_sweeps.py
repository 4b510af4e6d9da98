"""The table of a sweep, from what its jobs leave on disk and what the queue knows."""

import csv
import io
import json

import pytest

from vdm import sweeps
from vdm.slurm import queue
from vdm.slurm.queue import Standing


@pytest.fixture
def sweep(tmp_path):
    """Four jobs: complete, running, failed, and one that has not begun."""
    folder = tmp_path / "outputs" / "sweeps" / "day"
    for number, (seed, rate) in enumerate([(0, "1e-4"), (0, "3e-4"), (1, "1e-4"), (1, "3e-4")]):
        overrides = ["stage=vdm", f"seed={seed}", f"stage.optimizer.lr={rate}"]
        sweeps.ask(folder / str(number), name="train", overrides=overrides, run=None, after=[])
    sweeps.submitted(folder, program="train.py", jobs={number: f"5_{number}" for number in range(4)})
    for number, state, step in ((0, "complete", 10), (1, "running", 4)):
        run = tmp_path / "outputs" / f"run-{number}"
        run.mkdir()
        info = {"state": state, "step": step, "metrics": {"val/loss": 0.25} if number == 0 else {}}
        (run / "run.json").write_text(json.dumps(info))
        (run / "metrics.csv").write_text(
            "step,train/loss,perf/x,val/loss\n4,1.5,1,0.5\n6,1.25,1,\n7,1."
        )  # being written
        (folder / str(number) / sweeps.STARTED).write_text(json.dumps({"run": str(run)}))
    (folder / "0" / sweeps.EXIT_CODE).write_text("0\n")
    (folder / "2" / sweeps.EXIT_CODE).write_text("2\n")
    return folder


@pytest.fixture
def asked(monkeypatch):
    """What the queue says; None: there is no SLURM."""

    def say(standings):
        monkeypatch.setattr(queue, "standings", lambda jobs: standings)

    say({"5_1": Standing("RUNNING", "None"), "5_3": Standing("PENDING", "Resources")})
    return say


def test_rows(sweep, asked):
    rows = sweeps.table(sweep)
    assert [row["state"] for row in rows] == ["complete", "running", "failed (2)", "pending (Resources)"]
    assert [row["step"] for row in rows] == [10, 6, 0, 0]
    assert [(row["seed"], row["stage.optimizer.lr"]) for row in rows][2:] == [("1", "1e-4"), ("1", "3e-4")]
    assert all("stage" not in row for row in rows)  # the same for all
    assert rows[0]["val/loss"] == 0.25
    assert (rows[1]["val/loss"], rows[1]["train/loss"]) == (0.5, 1.25)
    assert not [name for row in rows for name in row if name.startswith("perf/")]


def test_a_job_that_the_queue_has_forgotten(sweep, asked):
    asked({})
    assert [row["state"] for row in sweeps.table(sweep)][1] == "ended from outside"
    asked(None)
    assert [row["state"] for row in sweeps.table(sweep)][1] == "running"


def test_runs_that_were_moved_are_found(sweep, asked, tmp_path):
    (tmp_path / "outputs").rename(tmp_path / "moved")
    assert sweeps.table(tmp_path / "moved" / "sweeps" / "day")[0]["state"] == "complete"


def test_csv_and_json_say_the_same(sweep, asked, capsys):
    assert sweeps.main([str(sweep), "--format", "csv"]) == 0
    table = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert sweeps.main([str(sweep), "--format", "json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [{name: str(value) for name, value in row.items()} for row in rows] == [
        {name: value for name, value in row.items() if value != "" or name in ("run",)} for row in table
    ]


def test_a_table_for_people(sweep, asked, capsys):
    assert sweeps.main([str(sweep), "--sort", "val/loss"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["job", "seed", "stage.optimizer.lr", "state", "step", "run", "train/loss", "val/loss"]
    assert [line.split()[0] for line in lines[1:5]] == ["0", "1", "2", "3"]
    assert lines[-1] == "2 of 4 have ended"


def test_wrong_questions(sweep, asked, capsys, tmp_path, monkeypatch):
    assert sweeps.main([str(sweep), "--sort", "val/los"]) == 2
    assert "val/loss" in capsys.readouterr().err
    assert sweeps.main([str(tmp_path)]) == 2
    monkeypatch.chdir(tmp_path)
    assert sweeps.main([]) == 0  # the newest
    assert "2 of 4" in capsys.readouterr().out
