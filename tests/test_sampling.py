"""sample.py: the same sample whatever its batch; files whole or absent; what is wrong is said in one message."""

import errno
import json
import os
import shlex
from pathlib import Path

import hydra
import numpy as np
import pytest
import torch
from sampling_runs import ask, run_settings, write_run

from vdm import config
from vdm.errors import RunError
from vdm.launch import CONF
from vdm.runs import Run
from vdm.sampling import files
from vdm.sampling.model import TextToVideo
from vdm.sampling.request import orders, read_prompts, vbench_name, verbatim
from vdm.video import decode


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("outputs")
    write_run(root / "model", run_settings("v"), finished=2.0)
    return root


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
