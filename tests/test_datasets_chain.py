"""From the downloaded files to report.html: each dataset of the paper in miniature, by the commands of the documentation."""

import csv
import json
import math
import re

import official_layouts
import pytest
import torch
from torch import nn
from typed import ROOT, typed

from data.shards import read_index
from vdm.runs import all_runs
from vdm.video import decode

SECTION = re.compile(r"^## From the download to the report$(.*?)^## ", flags=re.S | re.M)
CLIP = ["data.clip.frames=4", "data.clip.height=16", "data.clip.width=16"]
SIZES = {
    "ucf101": ["data.store.height=16", "data.store.width=16", *CLIP],
    "msrvtt": ["data.store.height=16", "data.store.width=16", "data.store.frames=8", *CLIP],
    "activitynet": ["data.store.height=16", "data.store.width=16", "data.store.fps=2", "data.store.frames=16",
                    "data.clip.frame_stride=4", *CLIP],
}  # fmt: skip
MODEL = ["backbone.channels=16", "backbone.head_width=8", "backbone.norm_groups=4", "condition.text.encoder.width=16",
         "condition.text.encoder.depth=1", "condition.text.encoder.heads=2"]  # fmt: skip
TRAINING = ["trainer=cpu", "data.num_workers=0", "data.batch_size=2", "data.val_clips=2", "callbacks.samples.every=0"]
TUNING = [*TRAINING, "trainer.max_steps=20", "trainer.log_every_n_steps=5", "callbacks.validation.every=10",
          "callbacks.checkpoint.every=10"]  # fmt: skip
# Feature networks of others are absent here. This one is nobody's, so its number has a name of its own.
STAND_IN = ["metric.fvd.label=stand_in", "metric.fvd.kernel_label=null", "metric.fvd.network.sha256=null",
            "metric.fvd.network.arguments=null", "metric.fvd.frames=4", "metric.fvd.draws=4"]  # fmt: skip
MEASURING = ["num_workers=0", "protocol.sampler.num_steps=2", "protocol.shown=2", "protocol.reference_clips=null"]
CLIPS = {"ucf101": 6, "msrvtt": 4, "activitynet": 4}
METRICS = {
    "ucf101": "video_is,fvd,flicker,motion",
    "msrvtt": "fid,clipsim,fvd,flicker",
    "activitynet": "fvd,fvd_videomae,flicker",
}
SHORT = {
    "ucf101": ["metric.video_is.frames=4"],
    "msrvtt": [],
    "activitynet": ["metric.fvd_videomae.frames=4", "protocol.breakdowns.frames.counts=[2,4,8]"],
}
SPLITS = {
    "ucf101": {"split1/train": 6, "split1/test": 6},
    "msrvtt": {"full/train": 2, "full/val": 1, "full/test": 4},
    "activitynet": {"video/train": 2, "video/val": 4, "video/val_2": 4},
}
ABSENT = {"ucf101": {"video_is": "c3d_ucf101.pt"}, "msrvtt": {"fid": "inception-2015-12-05.pt", "clipsim": "open_clip_model"},
          "activitynet": {"fvd_videomae": "videomae-base"}}  # fmt: skip


class StandIn(nn.Module):
    """Light and change of clips, b 3 T H W."""

    def forward(self, x: torch.Tensor):
        x = x.float() / 255
        change = (x[:, :, 1:] - x[:, :, :-1]).abs().mean((2, 3, 4))
        return torch.cat([torch.nn.functional.adaptive_avg_pool3d(x, (2, 2, 1)).flatten(1), change], dim=1)


class World:
    def __init__(self, root):
        self.root, self.calls = root, 0
        self.data, self.outputs, self.network = root / "data sets", root / "outputs", root / "stand_in.pt"
        torch.jit.script(StandIn().eval()).save(str(self.network))

    def typed(self, line, *more, data=None):
        """What the command says; it ends well."""
        self.calls += 1
        places = [f"paths.data_root={data or self.data}"]
        if "data.prepare" not in line:
            places += [f"paths.output_root={self.outputs}"]
        if "evaluate.py" in line:
            places += [f"paths.weights={self.root / 'weights'}", f"metric.fvd.network.file={self.network}"]
        code, said = typed(line, *more, *places, said=self.root / f"{self.calls:03d}.txt")
        assert code == 0, f"{line}\n{said[-3000:]}"
        return said


@pytest.fixture(scope="module")
def world(shapes_root, tmp_path_factory):
    """A parent that knows the shapes world, by commands of the README with fewer and smaller steps."""
    world = World(tmp_path_factory.mktemp("chain"))
    readme = (ROOT / "README.md").read_text()
    first, second = (
        "python train.py stage=autoencoder data=shapes autoencoder=tiny",
        "python train.py stage=vdm data=shapes",
    )
    assert first in readme
    assert second in readme
    few = [*TRAINING, "trainer.max_steps=2", *CLIP]
    world.typed(first, *few, "autoencoder.channels=16", "stage.loss.perceptual=null", "stage.loss.adversarial=null",
                data=shapes_root)  # fmt: skip
    world.typed(second, *few, *MODEL, data=shapes_root)
    return world


def documented():
    """By dataset the four commands of the documentation."""
    (section,) = SECTION.findall((ROOT / "docs" / "datasets.md").read_text())
    blocks = [block.splitlines() for block in re.findall(r"```bash\n(.*?)```", section, flags=re.S)]
    return {
        re.search(r"data=(\w+)", block[0])[1]: [line.partition(" #")[0].strip() for line in block] for block in blocks
    }


def test_there_are_commands_for_each():
    assert set(documented()) == set(CLIPS)
    for commands in documented().values():
        assert [re.search(r"prepare|train|sample|evaluate", line)[0] for line in commands] == [
            "prepare", "train", "sample", "evaluate"
        ]  # fmt: skip


@pytest.mark.parametrize(
    "name",
    ["ucf101", pytest.param("msrvtt", marks=pytest.mark.slow), pytest.param("activitynet", marks=pytest.mark.slow)],
)
def test_from_the_download_to_the_report(world, name):
    prepare, tune, sample, evaluate = documented()[name]
    getattr(official_layouts, name)(world.data / name)
    world.typed(prepare, *SIZES[name], "num_workers=0")
    for split, count in SPLITS[name].items():
        assert read_index(world.data / name / split).num_samples == count, split
    said = world.typed(tune, *TUNING, *SIZES[name])
    assert "the newest complete run of stage=vdm is vdm-shapes" in said
    (run,) = [run for run in all_runs(world.outputs) if run.name.startswith(f"finetune-{name}")]
    check_run(run, is_adapter="lora" in tune)
    world.typed(sample, "sampler.num_steps=2")
    (made,) = (run.folder / "generated").rglob("*.mp4")
    assert decode(made).shape == (4, 16, 16, 3)
    measuring = [
        f"metric=[{METRICS[name]}]",
        *STAND_IN,
        *MEASURING,
        f"protocol.clips={CLIPS[name]}",
        *SIZES[name],
        *SHORT[name],
    ]
    world.typed(evaluate, *measuring)
    folder = run.folder / "evaluation" / name
    result = json.loads((folder / "metrics.json").read_text())
    check_result(result, name)
    check_report((folder / "report.html").read_text(), result, run)
    if name == "activitynet":
        check_parts(result["breakdowns"])
    check_again(world, [evaluate, *measuring], folder)


def check_run(run, *, is_adapter):
    assert (run.state, run.info["stage"], run.info["step"]) == ("complete", "finetune", 20)
    assert {entry["network"] for entry in run.info["lineage"]} == {"autoencoder", "backbone", "conditions"}
    kept = {path.name for path in (run.last_checkpoint() / "weights").iterdir()}
    if is_adapter:
        assert kept == {"adapter.json", "backbone.safetensors"}
    else:
        assert {"autoencoder.safetensors", "backbone.safetensors", "conditions.safetensors"} <= kept
    with open(run.folder / "metrics.csv", newline="") as file:
        losses = [float(row["val/loss"]) for row in csv.DictReader(file) if row.get("val/loss")]
    assert len(losses) == 2
    assert all(map(math.isfinite, losses))


def check_result(result, name):
    assert re.fullmatch(rf"{name}-[0-9a-f]{{8}}", result["id"])
    numbers = result["metrics"]
    assert numbers["clips"] == CLIPS[name]
    assert result["data"]["name"] == name
    distance = f"stand_in{CLIPS[name]}_4f"
    assert 0 < numbers[distance] < 100
    assert numbers[f"{distance}/low"] <= numbers[distance] <= numbers[f"{distance}/high"]
    assert 0 < numbers["flicker"] < 1
    assert ("flow_lk" in numbers) == ("motion" in METRICS[name])
    assert not [number for number in numbers if number.startswith(("fvd", "fid", "video_is", "clipsim"))]
    assert result["skipped"].keys() == ABSENT[name].keys()
    for metric, file in ABSENT[name].items():
        assert file in result["skipped"][metric]
        assert "nothing is downloaded" in result["skipped"][metric]
    assert result["measured"]["fvd"]["network"] == "stand_in.pt"
    splits = {"ucf101": "train+test"}
    assert (result["reference"] or {}).get("split") == splits.get(name)


def check_report(page, result, run):
    assert result["id"] in page
    assert run.name in page
    assert f"stand_in{result['metrics']['clips']}_4f" in page
    for metric in result["skipped"]:
        assert metric in page
    assert page.count("<video") >= 2
    assert "vdm-shapes" in page, "lineage"
    assert "evaluate.py" in page
    assert "stage=finetune" in page


def check_parts(parts):
    """Stories of one, three, four and five sentences, of which each is an event."""
    assert {row["bin"]: row["clips"] for row in parts["events"] if row["clips"]} == {"<3": 1, "3": 1, "4": 1, "5": 1}
    assert {row["bin"]: row["clips"] for row in parts["words"] if row["clips"]} == {"<=10": 1, "11-20": 1, "21-30": 2}
    assert all("flicker" in row["metrics"] for part in ("events", "words") for row in parts[part] if row["clips"])
    assert [(row["bin"], row["clips"], list(row["metrics"])) for row in parts["frames"]] == [
        ("2", 4, ["stand_in"]), ("4", 4, ["stand_in"]), ("8", 0, [])
    ]  # fmt: skip


def check_again(world, command, folder):
    written = {path: path.stat().st_mtime_ns for path in folder.glob("samples/*/*.npz")}
    before = (folder / "metrics.json").read_bytes()
    assert len(written) == json.loads(before)["metrics"]["clips"]
    assert json.loads((folder / "evaluated.json").read_text())["sampled"] == len(written)
    world.typed(*command)
    assert {path: path.stat().st_mtime_ns for path in folder.glob("samples/*/*.npz")} == written
    assert json.loads((folder / "evaluated.json").read_text())["sampled"] == 0
    assert (folder / "metrics.json").read_bytes() == before


@pytest.mark.slow
def test_classes_are_heard_and_the_two_runs_compared(world):
    """A run that hears the number of a class beside its prompt, beside one that does not, by one protocol."""
    line = "python train.py stage=finetune stage/tuning=lora data=ucf101 'condition=[class_label]'"
    assert line in (ROOT / "docs" / "finetuning.md").read_text()
    prepare, _, _, evaluate = documented()["ucf101"]
    official_layouts.ucf101(world.data / "ucf101")
    world.typed(prepare, *SIZES["ucf101"], "num_workers=0")
    ids, outputs = set(), []
    given = ["metric=[fvd,flicker]", *STAND_IN, *MEASURING, "protocol.clips=6", *SIZES["ucf101"]]
    for name, command in {"heard": line, "plain": line.replace(" 'condition=[class_label]'", "")}.items():
        world.typed(command, *TUNING, *SIZES["ucf101"], f"run.id={name}", "trainer.max_steps=2")
        outputs.append(world.outputs / name)
        world.typed(evaluate.replace("run=finetune-ucf101", f"run={name}"), *given)
        ids.add(json.loads((outputs[-1] / "evaluation" / "ucf101" / "metrics.json").read_text())["id"])
    assert len(ids) == 1
    code, said = typed("python evaluate.py compare", *outputs, said=world.root / "compared.txt")
    assert code == 0, said
    assert "stand_in6_4f" in said
