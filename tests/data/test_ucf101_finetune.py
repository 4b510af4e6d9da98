"""UCF-101 as it is downloaded, in miniature, by the commands of the documentation: shards, 20 steps of tuning, a sample."""

import json
import os
import subprocess
import sys
from pathlib import Path

import hydra
import pytest
from official_sets import prepare, put, video
from omegaconf import OmegaConf
from sampling_runs import SMALL, ask, write_run

from vdm import training
from vdm.launch import CONF
from vdm.runs import Run

ROOT = Path(__file__).parents[2]
CLASSES = ["ApplyEyeMakeup", "HandstandPushups", "YoYo"]
CLIP = ["data.clip.frames=4", "data.clip.height=16", "data.clip.width=16"]
HELD_OUT = ["data.source.val_groups=[25]", "data.val_split=val"]
STEPS = ["data=ucf101", "trainer=cpu", "trainer.max_steps=20", "trainer.log_every_n_steps=5", "data.num_workers=0",
         "data.batch_size=2", "callbacks.samples.every=0", "callbacks.validation.every=10",
         "callbacks.checkpoint.every=10", "sampler.num_steps=2", *CLIP, *HELD_OUT]  # fmt: skip


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """The archive and its lists, prepared; and a parent that hears captions."""
    root = tmp_path_factory.mktemp("ucf")
    lists, videos = root / "ucf101" / "ucfTrainTestlist", root / "ucf101" / "UCF-101"
    put(lists / "classInd.txt", "".join(f"{i} {name}\r\n" for i, name in enumerate(CLASSES, start=1)))
    spelt = [name.replace("Handstand", "HandStand") for name in CLASSES]
    train = [f"{c}/v_{s}_g{g:02d}_c01.avi {i + 1}" for i, (c, s) in enumerate(zip(CLASSES, spelt, strict=True))
             for g in (8, 9, 25)]  # fmt: skip
    test = [f"{c}/v_{s}_g01_c01.avi" for c, s in zip(CLASSES, spelt, strict=True)]
    put(lists / "trainlist01.txt", "\r\n".join(train) + "\r\n")
    put(lists / "testlist01.txt", "\n".join(test) + "\n")
    for line in (*train, *test):
        name = line.split()[0]
        put(videos / name, video("avi", seconds=1.2, seed=CLASSES.index(name.split("/")[0])))
    done = prepare(f"paths.data_root={root}", "data=ucf101", "data.clip.frames=4", *HELD_OUT)
    assert done.returncode == 0, done.stderr
    outputs = root / "outputs"
    settings = OmegaConf.to_container(composed("stage=vdm", *SMALL), resolve=True)
    groups = ("autoencoder", "backbone", "objective", "condition", "data")
    write_run(outputs / "webvid-text", {g: settings[g] for g in groups} | {"stage": {"name": "vdm"}, "seed": 0})
    return outputs, [f"paths.data_root={root}", f"paths.output_root={outputs}"]


def composed(*overrides):
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        return hydra.compose("train", overrides=list(overrides))


def tune(world, name, *overrides):
    training.train(composed("stage=finetune", *STEPS, *world[1], f"run.id={name}", *overrides))
    return Run(world[0] / name)


@pytest.mark.slow
def test_by_the_commands_a_user_types(world):
    outputs, places = world
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "train.py", "stage=finetune", "stage/tuning=lora", *STEPS, *places, "run.id=lora"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stderr
    assert "the newest complete run of stage=vdm is webvid-text" in done.stderr
    run = Run(outputs / "lora")
    assert (run.state, run.info["data"], run.info["step"]) == ("complete", "ucf101", 20)
    made = ["prompt=A woman puts on eye makeup.", "run=lora", "sampler.num_steps=2", "seed=1"]
    done = subprocess.run([sys.executable, "sample.py", *made, *places[1:]], cwd=ROOT, capture_output=True, text=True,
                          timeout=300, env=environment)  # fmt: skip
    assert done.returncode == 0, done.stderr
    (clip,) = (run.folder / "generated").rglob("*.mp4")
    assert clip.stat().st_size > 500


@pytest.mark.parametrize("tuning", ["full", "temporal", "lora"])
def test_twenty_steps(world, tuning):
    run = tune(world, tuning, f"stage/tuning={tuning}")
    assert (run.state, run.info["step"]) == ("complete", 20)
    (clip,) = ask(world[0], "prompt=A person plays.", f"run={tuning}", "seed=1")
    assert clip.stat().st_size > 500


def test_classes_on_top_of_captions(world):
    """Their vectors and their door are new, and trained whatever else is."""
    given = ["condition=[class_label]", "condition.class_label.classes=3", "condition.class_label.width=8",
             "stage.optimizer.lr=1e-2"]  # fmt: skip
    run = tune(world, "classes", "stage/tuning=lora", *given)
    folder = run.last_checkpoint()
    files = {path.name for path in (folder / "weights").iterdir()}
    assert files == {"adapter.json", "backbone.safetensors", "conditions.safetensors"}
    clips = [
        ask(world[0], "prompt=A person plays.", "run=classes", "seed=1", "format=npz", *label)[0]
        for label in (["class_label=0"], ["class_label=2"], [])
    ]
    assert len({clip.read_bytes() for clip in clips}) == 3
    assert json.loads(clips[1].with_suffix(".json").read_text())["class_label"] == 2
    again = tune(world, "classes-again", "stage/tuning=temporal", "init.vdm=classes", "trainer.max_steps=1")
    assert again.state == "complete"


def test_a_parent_that_hears_graphs_hears_none_here(world, tmp_path, caplog):
    small = [given for given in SMALL if not given.startswith("condition=")]
    graphs = ["condition=[text,scene_graph]", "condition.scene_graph.encoder.width=16", "scene_encoder.width=16"]
    settings = OmegaConf.to_container(composed("stage=vdm", *small, *graphs), resolve=True)
    groups = ("autoencoder", "backbone", "objective", "condition", "scene_encoder", "data")
    write_run(tmp_path / "graphs", {g: settings[g] for g in groups} | {"stage": {"name": "vdm"}, "seed": 0})
    caplog.set_level("INFO")
    run = tune((tmp_path, [world[1][0], f"paths.output_root={tmp_path}"]), "tuned", "trainer.max_steps=2")
    assert run.state == "complete"
    assert "clips of ucf101 have no scene_graphs, frame_ticks" in caplog.text
