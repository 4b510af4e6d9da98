"""`python -m dysen.parsing`: a dataset into files, what it measures there, one video, and what is wrong said plainly."""

import json
import os
import subprocess
import sys
from pathlib import Path

import hydra
import pytest
import torch

from data.annotating import ClipCorpus
from dysen.condition import scenes_of
from dysen.drawing import read
from dysen.parsing.__main__ import main
from dysen.planning_corpus import PlannedGraphs
from vdm import config
from vdm.errors import ConfigError, DataError, RunError
from vdm.launch import CONF, plain_errors
from vdm.video import save_mp4

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def compose(*overrides):
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        return hydra.compose("parsing", overrides=list(overrides))


def rows(folder):
    return {path.name: path.read_bytes() for path in sorted(Path(folder).glob("*.jsonl"))}


def test_the_truth_of_a_dataset_is_read_by_key_as_training_reads_it(shapes_root, tmp_path, capsys):
    main(compose(f"paths.data_root={shapes_root}", "split=val", f"output={tmp_path}/graphs", "merging.max_gap=0"))
    assert "12 clips in" in capsys.readouterr().out
    found = PlannedGraphs(f"{tmp_path}/graphs")
    corpus = ClipCorpus(name="shapes", root=f"{shapes_root}/shapes", split="val", cache=None, backend="pyav")
    clips = list(corpus.clips(0, with_video=True))
    assert set(found) == {clip["key"] for clip in clips}
    for clip in clips:
        row, extras = found[clip["key"]], clip["extras"]
        assert clip["video"].shape == (extras["frames"], extras["height"], extras["width"], 3)
        graphs, true = scenes_of(row), scenes_of(extras)
        assert len(graphs) == len(true) == 8
        for tick, (graph, wanted) in enumerate(zip(graphs, true, strict=True)):
            assert set(graph.actions) == set(wanted.actions)
            seen = {name for name, boxes in row["boxes"].items() if boxes[tick] is not None}
            assert set(graph.relations) == {t for t in wanted.relations if {t.subject, t.object} <= seen}
            for entry in graph.objects:
                assert entry.name not in wanted.names or entry in wanted.objects
        things = [thing["name"] for thing in extras["script"]["things"]]
        assert all(row["boxes"][name] == extras["boxes"][things.index(name)] for name in row["boxes"])
    assert json.loads((tmp_path / "graphs" / "report.json").read_text())["parsed"] == 12


def test_blobs_against_the_truth(shapes_root, tmp_path, capsys):
    """Detection, tracking, relations and merging together, measured where the truth is known."""
    main(compose(f"paths.data_root={shapes_root}", "split=val", "parser=detector", "parser@truth=shapes",
                 f"output={tmp_path}/graphs"))  # fmt: skip
    said = capsys.readouterr().out
    assert "identity switches" in said
    quality = json.loads((tmp_path / "graphs" / "report.json").read_text())["quality"]
    assert quality["clips"] == 12
    assert quality["objects"]["recall"] > 0.97
    assert quality["objects"]["precision"] > 0.97
    assert quality["objects"]["overlap"] > 0.9
    assert quality["identity_switches"] <= 1
    assert quality["attributes_right"] > 0.97
    assert quality["relations"]["each"]["left of"]["f1"] > 0.95
    assert quality["relations"]["each"]["above"]["f1"] > 0.95
    moves = [row for name, row in quality["actions"]["each"].items() if name.startswith("moving")]
    assert sum(row["recall"] * row["true"] for row in moves) > 0.9 * sum(row["true"] for row in moves)


def test_stopped_in_the_middle_and_continued_equals_undisturbed(shapes_root, tmp_path, monkeypatch):
    """Killed in its second shard, a run keeps the first one and makes the second anew."""
    from dysen.parsing.corpus import CorpusParser

    settings = [f"paths.data_root={shapes_root}", "split=train", "limit=40"]
    main(compose(*settings, f"output={tmp_path}/calm"))
    parse, count = CorpusParser.parse, []

    def dies(self, clip, tally):
        count.append(clip.key)
        if len(count) == 36:
            raise KeyboardInterrupt
        return parse(self, clip, tally)

    monkeypatch.setattr(CorpusParser, "parse", dies)
    with pytest.raises(SystemExit), plain_errors():
        main(compose(*settings, f"output={tmp_path}/stormy"))
    assert not list((tmp_path / "stormy").glob("*.partial"))
    assert not (tmp_path / "stormy" / "report.json").exists()
    assert len(rows(tmp_path / "stormy")) == 1
    main(compose(*settings, f"output={tmp_path}/stormy"))
    assert rows(tmp_path / "stormy") == rows(tmp_path / "calm")
    assert len(count) == 36 + 8, "the 32 clips of a finished shard are not parsed again"
    reports = [json.loads((tmp_path / name / "report.json").read_text()) for name in ("calm", "stormy")]
    assert [{**content, "this_run": None} for content in reports][0] == {**reports[1], "this_run": None}
    with pytest.raises(RunError, match="another parser"), plain_errors():
        main(compose(*settings, f"output={tmp_path}/stormy", "merging.max_gap=2"))


def film(path, frames=12):
    """A red thing that goes right on grey, a blue one that stands."""
    video = torch.full((3, frames, 48, 96), 0.0)
    for frame in range(frames):
        for colour, left in (((0.9, -0.9, -0.9), 4 + 5 * frame), ((-0.9, -0.7, 0.9), 76)):
            video[:, frame, 16:28, left : left + 12] = torch.tensor(colour)[:, None, None]
    save_mp4(path, video, 8.0)


def test_one_video_becomes_json_and_a_drawing(tmp_path):
    film(tmp_path / "film.mp4")
    command = [sys.executable, "-m", "dysen.parsing", "video=film.mp4", "fps=8", "frames=12", "parser=detector",
               "caption=One thing, another thing.", "out=deep/film.json", "drawing=png", "merging.ticks=3"]  # fmt: skip
    done = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False, env=ENVIRONMENT
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "deep" / "film.png").read_bytes()[:4] == b"\x89PNG"
    plan, dsg, caption = read(tmp_path / "deep" / "film.json")
    assert caption == "One thing, another thing."
    assert len(dsg) == 3
    assert ["red thing", "moving right", None, [0, 2]] in plan.to_json()
    assert ["red thing", "approaching", "blue thing", [0, 2]] in plan.to_json()
    assert ("red thing", "left of", "blue thing") in {(t.subject, t.predicate, t.object) for t in dsg[0].relations}


@pytest.mark.parametrize(
    ("overrides", "error", "said"),
    [
        (["video=none.mp4"], DataError, "no such video"),
        (["limit=0"], ConfigError, "limit"),
        (["drawing=gif"], ConfigError, "drawing"),
        (["fps=0"], ConfigError, "fps"),
        (["split=[train,val]"], ConfigError, "split"),
        (["split=nope", "paths.data_root=nowhere"], DataError, "data.prepare"),
    ],
    ids=str,
)
def test_wrong_settings(tmp_path, monkeypatch, overrides, error, said):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error, match=said), plain_errors():
        main(compose(*overrides))
    assert not list(tmp_path.iterdir()), "no half file"


def test_a_video_in_which_nothing_is_found(tmp_path):
    save_mp4(tmp_path / "grey.mp4", torch.zeros(3, 4, 32, 32), 8.0)
    with pytest.raises(DataError, match="nothing was found"), plain_errors():
        main(compose(f"video={tmp_path}/grey.mp4", "frames=4", "parser=detector", f"out={tmp_path}/grey.json"))
    assert not (tmp_path / "grey.json").exists()


FILLED = {
    "vlm": ["llm.base_url=http://localhost/v1", "llm.model=x"],
    "actiongenome": ["folder=."],
    "activitynet_entities": ["file=x.json"],
}


@pytest.mark.parametrize("detector", ["blobs", "opencv", "torchvision"])
@pytest.mark.parametrize("parser", sorted(path.stem for path in (CONF / "parser").glob("[a-z]*.yaml")))
def test_every_parser_composes(parser, detector):
    filled = [f"parser.{setting}" for setting in FILLED.get(parser, [])]
    config.check_resolved(config.resolve(compose(f"parser={parser}", f"detector={detector}", *filled)))
