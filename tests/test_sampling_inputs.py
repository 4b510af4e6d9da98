"""sample.py with runs that are hostile or broken, and requests that are wrong: one message, and nothing runs."""

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from omegaconf import OmegaConf
from sampling_runs import ask, run_settings, write_run

from vdm import restore
from vdm.errors import RunError, UserError
from vdm.runs import Run

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("outputs")
    write_run(root / "model", run_settings("v"), finished=2.0)
    return root


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
