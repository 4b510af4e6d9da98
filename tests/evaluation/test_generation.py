"""protocol=shapes: captions of a split become samples, each made once; a judge that sees the real clips is right."""

import json

import hydra
import numpy as np
import pytest
from omegaconf import OmegaConf
from sampling_runs import run_settings, write_run

from data.shapes.judge import NAMES, judge
from data.shapes.script import Background, Event, Placement, Script, Thing
from vdm import config
from vdm.evaluating.command import evaluate
from vdm.launch import CONF
from vdm.sampling.model import TextToVideo


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("outputs")
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = hydra.compose("train", overrides=["stage=vdm", "data=shapes", "autoencoder=tiny"])
    data = OmegaConf.to_container(cfg.data, resolve=True)
    write_run(root / "model", run_settings("v") | {"data": data})
    return root


def ask(root, shapes_root, *overrides):
    given = [f"paths.output_root={root}", f"paths.data_root={shapes_root}", "protocol=shapes", "protocol.clips=6"]
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        settings = ["protocol.sampler.num_steps=2", "num_workers=0", *overrides]
        cfg = hydra.compose("evaluate", overrides=[*given, *settings])
    config.check(cfg, set(cfg))
    return evaluate(cfg)


def test_every_caption_is_sampled_once_and_judged(root, shapes_root, monkeypatch):
    numbers = ask(root, shapes_root)
    assert numbers["clips"] == 6
    folder = root / "model" / "evaluation" / "shapes"
    assert (folder / "sheet.png").is_file()
    assert len((folder / "captions.txt").read_text().splitlines()) == 6
    samples = sorted(folder.glob("samples/*/*.npz"))
    assert len(samples) == 6
    assert {np.load(path)["arr_0"].shape for path in samples} == {(8, 32, 32, 3)}
    result = json.loads((folder / "metrics.json").read_text())
    test_index = json.loads((shapes_root / "shapes" / "test" / "index.json").read_text())
    assert result["data"] == {"name": "shapes", "split": "test", "fingerprint": test_index["fingerprint"]}
    # The clips themselves show what their captions say; noise does not.
    assert numbers["original/colour"] == numbers["original/shape"] == 1.0
    assert numbers["original/action"] > 0.9
    assert numbers["colour"] < 0.5

    made = []
    latents = TextToVideo.latents
    monkeypatch.setattr(TextToVideo, "latents", lambda self, *a, **k: made.append(a[1]) or latents(self, *a, **k))
    samples[2].unlink()
    others = {path: path.stat().st_mtime_ns for path in samples if path != samples[2]}
    before = (folder / "metrics.json").read_bytes()
    assert ask(root, shapes_root) == numbers
    assert [len(keys) for keys in made] == [6], "a batch is made as a whole, so that its arithmetic is the same"
    assert {path: path.stat().st_mtime_ns for path in others} == others, "what is there stays"
    assert (folder / "metrics.json").read_bytes() == before
    assert ask(root, shapes_root) == numbers
    assert len(made) == 1, "nothing is missing"
    ask(root, shapes_root, "protocol.seed=1")
    assert sum(map(len, made)) == 12, "another seed is another set of samples"


def test_single_action_is_of_clips_with_one_event():
    video = np.zeros((8, 32, 32, 3), np.uint8)
    thing = {"name": "red circle", "colour": "red", "shape": "circle", "size": "small"}

    def scores(*events):
        script = Script(
            things=(Thing(**thing),),
            placements=(Placement(x=0.5, y=0.5, angle=0.0, depth=0),),
            events=tuple(events),
            background=Background("plain", "grey", 0.0, 0.0),
            ticks=7,
            seed=0,
        )
        return judge(video, script.to_json())

    one = scores(Event(0, "grow", None, 0, 3))
    two = scores(Event(0, "grow", None, 0, 3), Event(0, "shrink", None, 4, 7))
    assert set(one) == {*NAMES, "single_action"}
    assert one["single_action"] == one["action"] == 0.0
    assert two["single_action"] is None
