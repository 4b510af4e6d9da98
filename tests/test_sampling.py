"""sample.py: the same sample whatever its batch; files whole or absent; what is wrong is said in one message."""

import errno
import json
import os
import shlex
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import hydra
import numpy as np
import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf

from vdm import checkpoint, config, restore
from vdm.conditions.base import ConditionSet
from vdm.errors import RunError, UserError
from vdm.launch import CONF
from vdm.runs import Run
from vdm.sampling import files
from vdm.sampling.command import sample
from vdm.sampling.model import TextToVideo
from vdm.sampling.request import orders, read_prompts, vbench_name, verbatim
from vdm.video import decode

ROOT = Path(__file__).resolve().parents[1]
SMALL = [
    "autoencoder=tiny", "autoencoder.channels=16", "backbone=tiny", "backbone.channels=16", "backbone.head_width=8",
    "backbone.norm_groups=4", "condition=[text]", "condition.text.encoder.width=16", "condition.text.encoder.depth=1",
    "condition.text.encoder.heads=2", "data.source.frames=4", "data.source.height=16",
]  # fmt: skip


def run_settings(objective):
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = hydra.compose("train", overrides=[*SMALL, f"objective={objective}"])
    groups = ("autoencoder", "backbone", "objective", "condition", "data")
    settings = {name: OmegaConf.to_container(cfg[name], resolve=True) for name in groups}
    return settings | {"stage": {"name": "vdm"}, "seed": 0}


def write_run(folder, settings, *, finished=0.0):
    """What training leaves: networks with random weights under the names of the stage."""
    torch.manual_seed(0)
    autoencoder = instantiate(settings["autoencoder"], _convert_="all")
    members = {name: instantiate(node, _convert_="all") for name, node in settings["condition"].items()}
    conditions = ConditionSet(members=members, joint_drop_prob=0.0, joint_keep_prob=0.0)
    backbone = instantiate(settings["backbone"], _convert_="all")
    backbone.open_doors(streams=conditions.streams)
    for parameter in (*backbone.parameters(), *autoencoder.parameters()):  # closed gates would hide the text
        torch.nn.init.normal_(parameter, std=0.1)
    networks = {"autoencoder": autoencoder, "backbone": backbone, "conditions": conditions}
    tensors = {f"{name}.{key}": t for name, network in networks.items() for key, t in network.state_dict().items()}
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(OmegaConf.to_yaml(OmegaConf.create(settings)))
    checkpoint.save(folder / "checkpoints" / "step-00000010", {"state_dict": tensors}, step=10)
    Run(folder).update(stage="vdm", data="shapes", state="complete", finished=finished)
    return Run(folder)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("outputs")
    write_run(root / "model", run_settings("v"), finished=2.0)
    return root


def ask(root, *overrides):
    """As the command line does: composed, checked, run."""
    arguments = verbatim(overrides, keys=("prompt", "negative_prompt", "prompts", "output", "run"))
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = hydra.compose("sample", overrides=[f"paths.output_root={root}", "sampler.num_steps=3", *arguments])
    config.check(cfg, set(cfg))
    return sample(cfg)


def contents(paths):
    return {path.name: path.read_bytes() for path in paths}


# ---- one sample -------------------------------------------------------------------------------------------------------


def test_command_leaves_a_video_and_its_record(root, tmp_path):
    (path,) = ask(root, "prompt=A red circle, moving: (left)", f"output={tmp_path}", "seed=7")
    assert decode(path).shape == (4, 16, 16, 3)
    record = json.loads(path.with_suffix(".json").read_text())
    assert record["prompt"] == "A red circle, moving: (left)"
    assert (record["seed"], record["guidance"], record["frames"], record["size"]) == (7, 7.5, 4, [16, 16])
    assert record["sampler"]["num_steps"] == 3
    assert (record["run"], record["checkpoint"]) == ("model", "step-00000010")
    assert set(record["weights"]) == {f"weights/{n}.safetensors" for n in ("autoencoder", "backbone", "conditions")}
    assert record["made_by"]["packages"]["torch"] == torch.__version__ or record["made_by"]["packages"]["torch"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["0000.json", "0000.mp4"]


def test_sample_depends_on_prompt_seed_guidance_and_copy(root, tmp_path):
    def frames(name, *overrides):
        return [np.load(p)["arr_0"] for p in ask(root, "format=npz", f"output={tmp_path / name}", *overrides)]

    base, copy = frames("a", "prompt=a red circle", "num=2")
    assert base.shape == (4, 16, 16, 3)
    assert base.dtype == np.uint8
    others = {
        "copy": copy,
        "seed": frames("b", "prompt=a red circle", "seed=1")[0],
        "guidance": frames("c", "prompt=a red circle", "guidance=1")[0],
        "negative": frames("d", "prompt=a red circle", "negative_prompt=a blue square")[0],
        "sampler": frames("e", "prompt=a red circle", "sampler=ddim")[0],
    }
    for what, other in others.items():
        assert not np.array_equal(base, other), what
    assert np.array_equal(base, frames("f", "prompt=a red circle")[0])


def test_text_is_heard(root):
    run = Run(root / "model")
    model = TextToVideo.of_run(run, run.last_checkpoint(), averaged=True, device=torch.device("cpu"), precision=None)
    shape = model.latent_shape(4, 16, 16)
    said, other, null = (model._controls(p, s, shape, 8.0) for p, s in (
        ("a red circle", frozenset({"text"})), ("a blue square", frozenset({"text"})), ("anything", frozenset()),
    ))  # fmt: skip
    x, timestep = torch.randn(1, *shape), torch.tensor([500.0])
    outputs = [model._predictor(controls)(x, timestep) for controls in (said, other, null)]
    assert (outputs[0] - outputs[1]).abs().max() > 1e-4
    assert (outputs[0] - outputs[2]).abs().max() > 1e-4


def test_batch_size_order_and_processes_change_nothing(root, tmp_path, monkeypatch):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a red circle\na blue square moves to the left and a green one follows it\n\na star\n")
    common = (f"prompts={prompts}", "num=2", "format=npz", "names=key", "sampler=ddim", "sampler.eta=0.5")

    def arrays(name, *overrides):
        paths = ask(root, *common, f"output={tmp_path / name}", *overrides)
        return {path.name: np.load(path)["arr_0"] for path in paths}

    alone, together = arrays("one", "batch_size=1"), arrays("three", "batch_size=3")
    assert len(alone) == 6
    assert alone.keys() == together.keys()
    assert all(np.array_equal(alone[name], together[name]) for name in alone)
    monkeypatch.setenv("WORLD_SIZE", "2")
    parts = []
    for rank in "01":
        monkeypatch.setenv("RANK", rank)
        parts.append(arrays("ranks", "batch_size=4"))
    assert [len(part) for part in parts] == [3, 3]
    joined = parts[0] | parts[1]
    assert all(np.array_equal(alone[name], joined[name]) for name in alone)


def test_latents_do_not_depend_on_the_batch(root):
    run = Run(root / "model")
    model = TextToVideo.of_run(run, run.last_checkpoint(), averaged=True, device=torch.device("cpu"), precision=None)
    from vdm.diffusion.guidance import classifier_free
    from vdm.samplers.euler import euler

    prompts, keys = ["a", "a much longer caption " * 6, "c"], ["k0", "k1", "k2"]
    settings = {
        "seed": 3,
        "shape": model.latent_shape(4, 16, 16),
        "fps": 8.0,
        "sampler": lambda *a, **k: euler(*a, num_steps=3, spacing="trailing", **k),
        "guidance": classifier_free(model.heard, 5.0, rescale=0.5, interval=(0.0, 1.0)),
    }
    together = model.latents(prompts, keys, **settings)
    alone = torch.cat([model.latents([p], [k], **settings) for p, k in zip(prompts, keys, strict=True)])
    apart = model.latents(prompts, keys, **settings, batched=False)
    assert torch.allclose(together, alone, atol=1e-5, rtol=1e-5)
    assert torch.allclose(together, apart, atol=1e-5, rtol=1e-5)


def test_text_is_encoded_once_a_prompt_and_projected_once_a_batch(root, tmp_path, monkeypatch):
    from vdm.backbones.unet3d import UNet3D
    from vdm.conditions.text import TextCondition

    said, projected = [], []
    encode, prepare = TextCondition.say, UNet3D.prepare
    monkeypatch.setattr(TextCondition, "say", lambda self, captions: said.append(captions) or encode(self, captions))
    monkeypatch.setattr(UNet3D, "prepare", lambda self, c: projected.append(len(c)) or prepare(self, c))
    ask(root, "prompt=a star", "num=5", "batch_size=2", f"output={tmp_path}")
    assert said == [["a star"]]
    assert projected == [4, 4, 2]  # both branches of guidance


def test_record_holds_the_command_that_makes_it_again(root, tmp_path):
    (tmp_path / "a, b").mkdir()
    settings = ["seed=5", "guidance=3", "sampler=ddim", "sampler.eta=0.5", "guidance_interval=[0.1,0.9]", "frames=2",
                "size=16x24", "negative_prompt=it's, bad", "fps=12", "crf=3", "ema=false", "names=vbench",
                "tiling={tile: [8, 16, 16], overlap: [4, 8, 8], exact_norm: false}"]  # fmt: skip
    first = ask(root, "prompt=a star, 🦉", "num=3", f"output={tmp_path / 'a, b'}", *settings)[2]
    record = json.loads(first.with_suffix(".json").read_text())
    assert record["prompt"] == "a star, 🦉"
    words = shlex.split(record["command"])
    assert words[:2] == ["python", "sample.py"]
    words = [f"output={tmp_path / 'c'}" if word.startswith("output=") else word for word in words[2:]]
    (again,) = ask(root, *words)
    assert again.read_bytes() == first.read_bytes()
    assert json.loads(again.with_suffix(".json").read_text())["key"] == record["key"]


@pytest.mark.parametrize("format", ["gif", "png", "npz"])
def test_formats(root, tmp_path, format):
    (path,) = ask(root, "prompt=a star", f"format={format}", f"output={tmp_path}")
    head = path.read_bytes()[:4]
    assert head == {"gif": b"GIF8", "png": b"\x89PNG", "npz": b"PK\x03\x04"}[format]
    if format == "gif":
        assert decode(path).shape == (4, 16, 16, 3)


def test_gif_keeps_colours():
    frames = np.zeros((8, 24, 40, 3), np.uint8)
    for i in range(8):
        frames[i, 4:12, 4 + i * 3 : 12 + i * 3] = (220, 30, 40)
    path_bytes = files.encode_gif(frames, 8.0)
    assert np.abs(decode(path_bytes).astype(int) - frames).max() <= 4


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_lower_precision_is_close(root, tmp_path, precision):
    exact = ask(root, "prompt=a star", "format=npz", f"output={tmp_path / 'a'}")[0]
    coarse = ask(root, "prompt=a star", "format=npz", f"output={tmp_path / 'b'}", f"precision={precision}")[0]
    frames = [np.load(path)["arr_0"].astype(int) for path in (exact, coarse)]
    assert 0 < np.abs(frames[0] - frames[1]).mean() < 8


def test_leading_on_a_model_that_begins_in_noise_is_warned_of(root, tmp_path, caplog):
    ask(root, "run=model", "prompt=a star", "sampler.spacing=leading", f"output={tmp_path}")
    assert "trailing suits it better" in caplog.text


def test_newest_run_is_taken_and_named(root, tmp_path, caplog):
    write_run(root / "older", run_settings("flow"), finished=1.0)
    with caplog.at_level("INFO"):
        ask(root, "prompt=a star", f"output={tmp_path}")
    assert "sampling from model, step-00000010" in caplog.text


@pytest.mark.parametrize("sampler", ["ddpm", "ddim", "dpm_solver", "unipc", "euler", "heun"])
def test_every_sampler_runs_on_a_flow(root, tmp_path, sampler):
    if not (root / "older").exists():
        write_run(root / "older", run_settings("flow"), finished=1.0)
    (path,) = ask(root, "run=older", "prompt=a star", f"sampler={sampler}", f"output={tmp_path}")
    assert path.exists()


# ---- restarting, memory, disk -----------------------------------------------------------------------------------------


def test_what_is_there_is_not_made_again(root, tmp_path, monkeypatch):
    paths = ask(root, "prompt=a star", "num=3", f"output={tmp_path}")
    before = contents(paths)
    paths[1].with_suffix(".json").unlink()  # as when stopped between the two files
    made = []
    latents = TextToVideo.latents
    monkeypatch.setattr(
        TextToVideo, "latents", lambda self, p, keys, **k: made.extend(keys) or latents(self, p, keys, **k)
    )
    again = ask(root, "prompt=a star", "num=4", f"output={tmp_path}")
    assert len(made) == 2
    assert len(again) == 4
    assert contents(paths) == before
    made.clear()
    ask(root, "prompt=a star", "num=4", f"output={tmp_path}")
    assert not made


def test_another_sample_is_not_overwritten(root, tmp_path):
    (path,) = ask(root, "prompt=a star", f"output={tmp_path}")
    before = path.read_bytes()
    with pytest.raises(RunError, match="another sample has this name"):
        ask(root, "prompt=a star", "guidance=2", f"output={tmp_path}")
    assert path.read_bytes() == before
    ask(root, "prompt=a star", "guidance=2", f"output={tmp_path}", "overwrite=true")
    assert path.read_bytes() != before


def test_batches_are_halved_when_memory_runs_out(root, tmp_path, monkeypatch, caplog):
    sizes, latents = [], TextToVideo.latents

    def small_memory(self, prompts, keys, **options):
        sizes.append((len(keys), options["batched"]))
        if len(keys) > 1 or options["batched"]:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return latents(self, prompts, keys, **options)

    expected = contents(ask(root, "prompt=a star", "num=5", f"output={tmp_path / 'a'}"))
    monkeypatch.setattr(TextToVideo, "latents", small_memory)
    paths = ask(root, "prompt=a star", "num=5", f"output={tmp_path / 'b'}", "batch_size=4")
    assert sizes == [(4, True), (2, True), (1, True), *[(1, False)] * 5]
    assert contents(paths) == expected
    assert "out of memory" in caplog.text


def test_stopped_by_hand_it_goes_on(root, tmp_path, monkeypatch, caplog):
    latents, calls = TextToVideo.latents, []

    def stopped(self, *args, **options):
        calls.append(args)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return latents(self, *args, **options)

    monkeypatch.setattr(TextToVideo, "latents", stopped)
    with pytest.raises(SystemExit) as ended:
        ask(root, "prompt=a star", "num=3", "batch_size=1", f"output={tmp_path}")
    assert ended.value.code == 130
    assert sorted(p.name for p in tmp_path.iterdir()) == ["0000.json", "0000.mp4"]
    monkeypatch.undo()
    with caplog.at_level("INFO"):
        assert len(ask(root, "prompt=a star", "num=3", f"output={tmp_path}")) == 3
    assert "1 of 3 are there already" in caplog.text


def test_one_clip_that_does_not_fit_is_said(root, tmp_path, monkeypatch):
    def no_memory(self, *args, **options):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(TextToVideo, "latents", no_memory)
    with pytest.raises(RunError, match="does not fit into memory"):
        ask(root, "prompt=a star", "num=5", f"output={tmp_path}")
    monkeypatch.undo()
    monkeypatch.setattr(TextToVideo, "frames", no_memory)
    with pytest.raises(RunError, match="decode in tiles"):
        ask(root, "prompt=a star", f"output={tmp_path}")


def test_long_clips_are_decoded_in_tiles(root, tmp_path, monkeypatch):
    from vdm.autoencoder.conv3d import Conv3dAutoencoder

    sizes, original = [], Conv3dAutoencoder._decode
    monkeypatch.setattr(
        Conv3dAutoencoder, "_decode", lambda self, raw: sizes.append(raw.shape[2:]) or original(self, raw)
    )
    tiling = "tiling={tile: [8, 16, 16], overlap: [4, 8, 8], exact_norm: false}"
    ask(root, "prompt=a star", "frames=24", "size=24x32", tiling, f"output={tmp_path}", "sampler.num_steps=1")
    assert len(sizes) > 4
    assert max(s[0] for s in sizes) == 8
    assert max(s[1] for s in sizes) == 4


@pytest.mark.parametrize("failing", ["write", "fsync", "rename"])
def test_full_disk_leaves_no_half_file(root, tmp_path, monkeypatch, failing):
    def full(*args, **options):
        raise OSError(errno.ENOSPC, "No space left on device")

    class Full:
        def __init__(self, file):
            self.file = file

        def __enter__(self):
            return self

        def __exit__(self, *error):
            self.file.close()

        def write(self, content):
            self.file.write(content[: len(content) // 2])
            full()

    ask(root, "prompt=a star", f"output={tmp_path}")
    before = sorted(tmp_path.iterdir())
    if failing == "write":
        opened = Path.open
        monkeypatch.setattr(
            Path,
            "open",
            lambda self, mode="r", **o: Full(opened(self, mode)) if mode == "wb" else opened(self, mode, **o),
        )
    elif failing == "fsync":
        monkeypatch.setattr(os, "fsync", full)
    else:
        monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(RunError, match="No space left"):
        ask(root, "prompt=a star", "num=3", f"output={tmp_path}")
    monkeypatch.undo()
    assert sorted(tmp_path.iterdir()) == before
    assert len(ask(root, "prompt=a star", "num=3", f"output={tmp_path}")) == 3


# ---- prompts, keys, names ---------------------------------------------------------------------------------------------

SENTENCES = [
    "A red circle, moving", "it's (here) [now] {then} = 3", 'she said "go", he said \'no\'', "${oc.env:HOME} costs $5",
    "back\\slash \\' end\\", "🦉🦉 深圳", "a: b; c", "  spaces  ", "42", "true", "~^!#@*%&|<>?", "\\${x} \\\\${y}",
    "tab\tnew\nline",
]  # fmt: skip


@pytest.mark.parametrize("sentence", SENTENCES)
def test_a_prompt_reaches_the_model_as_typed(sentence):
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = hydra.compose("sample", overrides=verbatim([f"prompt={sentence}"], keys=("prompt",)))
    assert str(config.resolve(cfg)["prompt"]) == sentence


def test_a_prompt_quoted_for_hydra_is_left_alone():
    assert verbatim(["prompt='a, b'", "num=3", "prompt=null", "prompt="], keys=("prompt",)) == [
        "prompt='a, b'", "num=3", "prompt=null", "prompt=",
    ]  # fmt: skip


def test_keys_are_stable_and_copies_of_a_prompt_differ(tmp_path):
    prompts = tmp_path / "p.jsonl"
    prompts.write_text('{"prompt": "a", "key": "mine"}\n\n{"prompt": "b"}\n"b"\n')
    made = orders(prompt=None, prompts=str(prompts), num=2, names="index")
    assert [o.name for o in made] == [f"{i:04d}" for i in range(6)]
    assert [o.key for o in made][:2] == ["mine-0", "mine-1"]
    assert [o.copy for o in made[2:]] == [0, 1, 2, 3]
    assert len({o.key for o in made}) == 6
    assert made[2].key == orders(prompt="b", prompts=None, num=1, names="key")[0].name == "3e23e8160039594a-0"


def test_vbench_names():
    assert vbench_name("A 3D model of a 1800s victorian house.", 4) == "A 3D model of a 1800s victorian house.-4"
    names = {
        vbench_name(p, 0)
        for p in ("../../etc/passwd", "a/b", "a_b", "", ".hidden", "x" * 10_000, "x" * 9_999, "🦉" * 99)
    }
    assert len(names) == 8
    assert all("/" not in n and not n.startswith(".") and len(n.encode()) < 200 for n in names)


def test_prompt_files_of_windows(tmp_path):
    path = tmp_path / "p.txt"
    path.write_bytes("\ufeffa star\r\n\r\n  a circle \r\n".encode())
    assert read_prompts(str(path)) == [("a star", None), ("a circle", None)]


# ---- prompts that are odd, and work -----------------------------------------------------------------------------------


@pytest.mark.parametrize("prompt", ["", "🦉🎈", "a red circle moves " * 600], ids=["empty", "emoji", "long"])
def test_odd_prompts_give_a_documented_result(root, tmp_path, prompt, caplog):
    (path,) = ask(root, f"prompt={prompt}", f"output={tmp_path}", "names=vbench", "format=npz")
    assert json.loads((path.parent / f"{path.name.removesuffix('.npz')}.json").read_text())["prompt"] == prompt
    assert ("longer than the 128 tokens" in caplog.text) == (len(prompt) > 1000)
    plain = ask(root, f"prompt={prompt}", f"output={tmp_path / 'plain'}", "format=npz", "guidance=1")[0]
    weight0 = ask(root, f"prompt={prompt}", f"output={tmp_path / 'zero'}", "format=npz", "guidance=0")[0]
    same = np.array_equal(np.load(plain)["arr_0"], np.load(weight0)["arr_0"])
    assert same == (prompt == "")  # the empty prompt is the unconditional sample


def test_unconditional_model(tmp_path, caplog):
    write_run(tmp_path / "plain", run_settings("v") | {"condition": {}})
    (path,) = ask(tmp_path, "prompt=a star")
    assert decode(path).shape == (4, 16, 16, 3)
    assert "hears no text" in caplog.text


# ---- foreign runs -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("group", "node"),
    {
        "os": ("backbone", {"_target_": "os.system", "command": "touch TRACE"}),
        "nested": ("condition", {"text": {"_target_": "vdm.conditions.text.TextCondition", "drop_prob": 0.1,
                                          "encoder": {"_target_": "subprocess.run", "args": "touch TRACE"}}}),
        "own writer": ("autoencoder", {"_target_": "vdm.runs.write_atomically", "path": "TRACE", "text": "x"}),
        "imported name": ("objective", {"_target_": "vdm.diffusion.noise.hashlib"}),
        "other group": ("objective", {"_target_": "vdm.sampling.files.write_whole", "path": "TRACE", "content": "x"}),
        "module": ("objective", {"_target_": "hostile_module_of_a_run.Thing"}),
        "no code": ("backbone", {"channels": 3}),
        "no group": ("condition", ["text"]),
        "reference": ("backbone", {"_target_": "vdm.backbones.unet3d.UNet3D", "channels": "${oc.env:HOME}"}),
    }.values(),
    ids=["os", "nested", "own_writer", "imported_name", "other_group", "module", "no_code", "no_group", "reference"],
)  # fmt: skip
def test_a_hostile_run_runs_nothing(root, tmp_path, monkeypatch, group, node):
    trace = tmp_path / "trace"
    (tmp_path / "hostile_module_of_a_run.py").write_text(f"open({str(trace)!r}, 'w')\nclass Thing: ...")
    monkeypatch.syspath_prepend(tmp_path)
    settings = run_settings("v")
    run = write_run(tmp_path / "runs" / "hostile", settings)
    settings[group] = json.loads(json.dumps(node).replace("TRACE", str(trace)))
    (run.folder / "config.yaml").write_text(json.dumps(settings))  # JSON is YAML; OmegaConf would complete references
    with pytest.raises(UserError, match=r"may not be named|without references|names no code"):
        ask(tmp_path / "runs", "prompt=a star")
    assert not trace.exists()
    assert "hostile_module_of_a_run" not in sys.modules


def test_a_run_holds_no_pickle_that_is_read(root, tmp_path):
    run = write_run(tmp_path / "model", run_settings("v"))
    (run.last_checkpoint() / "trainer.pt").write_bytes(b"cos\nsystem\n(S'touch trace'\ntR.")
    assert ask(tmp_path, "prompt=a star")[0].exists()
    with pytest.raises(RunError):
        restore.load_network(run, {"autoencoder": run_settings("v")["autoencoder"]}, "backbone")


# ---- what a user can get wrong ----------------------------------------------------------------------------------------

WRONG = {
    "prompt=a size=256": ["key:     size", "got:     256", "HEIGHTxWIDTH"],
    "prompt=a size=16x": ["key:     size", "HEIGHTxWIDTH"],
    "prompt=a size=0x16": ["key:     size", "HEIGHTxWIDTH"],
    "prompt=a size=16x20": ["key:     size", "16x20", "multiples of 8", "size=16x16"],
    "prompt=a size=20x16": ["key:     size", "multiples of 8", "size=16x16"],
    "prompt=a frames=0": ["key:     frames", "an integer >= 1"],
    "prompt=a guidance=-1": ["key:     guidance", "-1", "a number >= 0"],
    "prompt=a guidance=nan": ["key:     guidance"],
    "prompt=a guidance=strong": ["key:     guidance", "a number"],
    "prompt=a num=0": ["key:     num", "an integer >= 1"],
    "prompt=a batch_size=0": ["key:     batch_size", "an integer >= 1"],
    "prompt=a run=nothing": ["there is no such run", "key:     run", "nothing"],
    "prompt=a run=stopped": ["no complete checkpoint", "key:     run"],
    "prompt=a run=halfconfig": ["configuration of the run", "key:     run"],
    "prompt=a run=damaged": ["damaged", "backbone"],
    "prompt=a run=first-stage": ["another stage", "allowed: vdm"],
    "prompt=a run=misshapen": ["weights are of another network", "misshapen"],
    "prompt=a step=11": ["key:     step", "allowed: 10"],
    "prompt=a sampler=ddmi": ["key:     sampler", "ddim"],
    "prompt=a sampler.num_steps=0": ["sampler.num_steps", "an integer >= 1"],
    "prompt=a sampler.num_steps=5000": ["sampler.num_steps", "1 to 1000"],
    "prompt=a sampler.steps=5": ["sampler.steps", "did you mean"],
    "prompt=a format=avi": ["key:     format", "mp4"],
    "prompt=a names=title": ["key:     names", "vbench"],
    "prompt=a fps=0": ["key:     fps", "a number > 0"],
    "prompt=a fps=100000": ["key:     fps", "0.1 to 240"],
    "prompt=a tiling={tile:[8,8,8]}": ["key:     tiling", "exact_norm"],
    "prompt=a tiling={tile:[8,9,8],overlap:[0,0,0],exact_norm:false}": ["tiling", "multiples of 4"],
    "prompt=a crf=99": ["key:     crf", "51"],
    "prompt=a guidance_interval=[0.9,0.1]": ["guidance_interval", "low <= high"],
    "prompt=a seed=-1": ["key:     seed"],
    "prompt=a device=cuda": ["key:     device", "cpu"],
    "num=2": ["prompt, prompts", "neither"],
    "prompt=a prompts=x.txt": ["prompt, prompts", "both"],
    "prompts=nowhere.txt": ["key:     prompts", "nowhere.txt"],
    "prompts=BROKEN": ["this is not JSON", "broken.jsonl:2"],
    "prompts=EMPTY": ["no prompt in the file"],
    "prompts=BADKEY": ["no file name", "../x"],
    "prompts=TWICE": ["same key", "k"],
    "prompt=a output=A_FILE/x": ["key:     output", "could not be written"],
}  # fmt: skip


@pytest.fixture(scope="module")
def places(root, tmp_path_factory):
    place = tmp_path_factory.mktemp("wrong")
    runs = place / "runs"
    settings = run_settings("v")
    write_run(runs / "model", settings)
    for name in ("stopped", "halfconfig", "damaged", "first-stage", "misshapen"):
        write_run(runs / name, settings)
    (runs / "stopped" / "checkpoints" / "step-00000010").rename(
        runs / "stopped" / "checkpoints" / ".step-00000010.partial-1"
    )
    text = (runs / "halfconfig" / "config.yaml").read_text()
    (runs / "halfconfig" / "config.yaml").write_text(text[:37])
    weights = runs / "damaged" / "checkpoints" / "step-00000010" / "weights" / "backbone.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    Run(runs / "first-stage").update(stage="autoencoder")
    settings["backbone"]["channels"] = 32
    (runs / "misshapen" / "config.yaml").write_text(OmegaConf.to_yaml(OmegaConf.create(settings)))
    (place / "broken.jsonl").write_text('{"prompt": "a"}\n{"prompt": \n')
    (place / "empty.txt").write_text("\n \n")
    (place / "badkey.jsonl").write_text('{"prompt": "a", "key": "../x"}\n')
    (place / "twice.jsonl").write_text('{"prompt": "a", "key": "k"}\n{"prompt": "b", "key": "k"}\n')
    (place / "file").write_text("a file")
    return place


def filled(place, arguments):
    files = {
        "BROKEN": "broken.jsonl",
        "EMPTY": "empty.txt",
        "BADKEY": "badkey.jsonl",
        "TWICE": "twice.jsonl",
        "A_FILE": "file",
    }
    for word, name in files.items():
        arguments = arguments.replace(word, str(place / name))
    return arguments.split()


IN_HYDRA = ("sampler=ddmi", "sampler.steps")  # found while composing: only the whole command says them in our words


@pytest.mark.parametrize("arguments", [a for a in WRONG if not any(word in a for word in IN_HYDRA)])
def test_wrong_input_is_said(places, arguments):
    given = filled(places, arguments) + ([] if "run=" in arguments else ["run=model"])
    with pytest.raises(UserError) as raised:
        ask(places / "runs", *given)
    for word in WRONG[arguments]:
        assert word in str(raised.value), raised.value
    assert not list(places.rglob("*.partial*.mp4"))


COMMANDS = [
    "prompt=a size=16x20",
    "prompt=a run=damaged",
    "prompt=a guidance=-1",
    "prompt=a sampler=ddmi",
    "prompt=a sampler.steps=5",
]


@pytest.fixture(scope="module")
def outcomes(places):
    def run(arguments):
        command = [sys.executable, "sample.py", f"paths.output_root={places / 'runs'}", *filled(places, arguments)]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)

    with ThreadPoolExecutor(2) as pool:
        return dict(zip(COMMANDS, pool.map(run, COMMANDS), strict=True))


@pytest.mark.parametrize("arguments", COMMANDS)
def test_the_command_ends_with_one_message(outcomes, arguments):
    done = outcomes[arguments]
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    for word in WRONG[arguments]:
        assert word in done.stderr, done.stderr


def test_the_command_with_a_sentence(root, tmp_path):
    command = [sys.executable, "sample.py", f"paths.output_root={root}", "prompt=It's a (red) circle, 🦉", "num=2"]
    command += [f"output={tmp_path}", "sampler.num_steps=2", "run=model", "names=vbench"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert sorted(p.name for p in tmp_path.glob("*.mp4")) == [f"It's a (red) circle, 🦉-{i}.mp4" for i in (0, 1)]
