"""What a user can get wrong on the command line ends in one message that helps: fast, exit code 2, no traceback."""

import os
import resource
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LIMIT = 10.0  # seconds

# arguments after `python train.py`: words the message must hold (key, what was got, what is allowed, what to do)
CASES = {
    "stage=autoencodr": ["key:     stage", "autoencodr", "allowed: autoencoder", "did you mean 'autoencoder'"],
    "data=shape": ["key:     data", "shapes", "did you mean"],
    "autoencoder=vqgan": ["key:     autoencoder", "conv3d", "tiny"],
    "trainer=tpu": ["key:     trainer", "cpu", "ddp"],
    "experiment=nothing": ["key:     experiment", "quickstart"],
    "stge=vdm": ["there is no setting 'stge'", "did you mean 'stage'"],
    "data.batch_siz=3": ["data.batch_siz", "did you mean 'batch_size'"],
    "stage.optimizer.lrr=1": ["stage.optimizer.lrr", "did you mean 'lr'"],
    "max_steps=3": ["there is no setting 'max_steps'", "remedy:  write trainer.max_steps=<value>"],
    "data=_base": ["key:     data", "part of other files", "allowed: activitynet"],
    "stage=vdm condition=text,scene_graph": [
        "key:     condition",
        "condition=[text,scene_graph]",
        "-m for one run of each",
    ],
    "stage.optimizer.lr=-1": ["stage.optimizer.lr", "numbers from 0"],
    "stage.optimizer.lr=fast": ["stage.optimizer.lr", "fast", "numbers from 0"],
    "trainer.strategy=zero9": ["trainer.strategy", "zero9", "choose trainer=ddp"],
    "stage.tuning=lora": ["key:     stage.tuning", "write stage/tuning=lora"],
    "condition=[text,scenegraph]": ["key:     condition", "did you mean 'scene_graph'"],
    "+stage.optimizer.lrr=1": ["Adam has no setting 'lrr'", "did you mean 'lr'"],
    "+data.batchsize=3": ["VideoData has no setting 'batchsize'", "did you mean 'batch_size'"],
    "+nonsense=1": ["nonsense", "not a setting"],
    "data.batch_size=many": ["data.batch_size", "'many' (str)", "an integer >= 1"],
    "data.batch_size=0": ["data.batch_size", "got:     0", "an integer >= 1"],
    "data.num_workers=-1": ["data.num_workers", "an integer >= 0"],
    "data.max_broken=2": ["data.max_broken", "between 0 and 1"],
    "seed=-1": ["key:     seed", "-1"],
    "seed=one": ["key:     seed", "'one'"],
    "trainer.max_steps=0": ["trainer.max_steps", ">= 1"],
    "trainer.max_epochs=3": ["trainer.max_epochs", "set trainer.max_steps instead"],
    "trainer.precision=16-tru": ["trainer.precision", "16-tru"],
    "autoencoder.stride=8": ["autoencoder.stride", "a list"],
    "stage.autoencoder.channels=x": ["set autoencoder.channels=<value>"],
    "stage.loss._target_=vdm.autoencoder.loss.Nothing": ["stage.loss._target_", "has no 'Nothing'"],
    "stage.loss._target_=os.system": ["stage.loss._target_", "may not be named", "vdm.*"],
    "stage.grad_clip=-1": ["stage.grad_clip", "a number > 0 or null"],
    "stage.accumulate=null": ["stage.accumulate", "an integer >= 1"],
    "data=[shapes": ["this override cannot be read", "quote values"],
    "data.clip.frames=7": ["data.clip.frames", "got:     7", "multiples of", "remedy"],
    "data.clip.height=20 autoencoder=kl2d": ["data.clip.height", "multiples of 8", "data.clip.height=16"],
    "trainer=gpu": ["trainer.accelerator", "use trainer=cpu"],
    "data.store.crf=${nothing.there}": ["refers to something that is not there"],
    "init.autoencoder=no-such-run": ["init.autoencoder", "no-such-run", "remedy"],
    "stage=vdm": ["init.autoencoder", "python train.py stage=autoencoder data=shapes"],
    "stage=vdm init.autoencoder=no-such-run": ["init.autoencoder", "no-such-run", "remedy"],
    "resume=no-such-run": ["key:     resume", "no-such-run", "auto"],
    "run.id=../outside": ["run.id", "letters, digits"],
    "callbacks.checkpoint.every=0": ["callbacks.checkpoint.every", "an integer >= 1"],
    "callbacks.checkpoint.mode=up": ["callbacks.checkpoint.mode", "min or max"],
    "callbacks.moving_average.decay=1.5": ["callbacks.moving_average.decay", "between 0 and 1"],
    "logger=mlflow": ["key:     logger", "wandb"],
    "stage=autoencoder data=webvid": ["python -m data.prepare data=webvid", "paths.data_root"],
    "data=shapes": ["python -m data.prepare data=shapes", "paths.data_root"],
    "data.root=FOREIGN": ["no index.json", "data.prepare data=shapes"],
    "data.root=UNREADABLE": ["index.json", "data.prepare data=shapes"],
    "paths.output_root=A_FILE/out": ["paths.output_root"],
}


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    root = tmp_path_factory.mktemp("wrong")
    (root / "foreign" / "train").mkdir(parents=True)
    (root / "foreign" / "train" / "holiday.jpg").write_bytes(b"not a shard")
    (root / "unreadable" / "train").mkdir(parents=True)
    (root / "unreadable" / "train" / "index.json").write_text('{"format": 1, "shards": [')
    (root / "file").write_text("a file")
    return root


@pytest.fixture(scope="module")
def outcomes(places):
    """All commands, two at a time: each is a process of its own, as it is for a user."""
    words = {"FOREIGN": "foreign", "UNREADABLE": "unreadable", "A_FILE": "file"}

    def run(arguments):
        filled = arguments
        for word, name in words.items():
            filled = filled.replace(word, str(places / name))
        extra = [] if "paths.output_root" in filled else [f"paths.output_root={places / 'out'}"]
        command = [sys.executable, "train.py", f"paths.data_root={places / 'nothing'}", *filled.split(), *extra]
        begun = time.monotonic()
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            command, capture_output=True, text=True, cwd=ROOT, timeout=120, check=False, env=environment
        )
        return done.returncode, done.stdout, done.stderr, time.monotonic() - begun

    with ThreadPoolExecutor(2) as pool:
        return dict(zip(CASES, pool.map(run, CASES), strict=True))


@pytest.mark.parametrize("arguments", CASES)
def test_one_message_that_helps(outcomes, arguments):
    code, out, message, seconds = outcomes[arguments]
    assert code == 2, message
    assert "Traceback" not in message + out
    assert out == ""
    heads = [line for line in message.splitlines() if line and not line.startswith("  ")]
    assert len(heads) == 1, message
    assert heads[0].split(":")[0] in ("ConfigError", "DataError", "RunError")
    for words in CASES[arguments]:
        assert words in message, message
    assert seconds < LIMIT, f"took {seconds:.1f} s"


def test_nothing_was_written(outcomes, places):
    assert not (places / "out").exists() or not list((places / "out").glob("*/checkpoints"))


def test_help_is_quick():
    """In processor time: other work on the machine does not count."""
    before = sum(resource.getrusage(resource.RUSAGE_CHILDREN)[:2])
    done = subprocess.run([sys.executable, "train.py", "--help"], capture_output=True, text=True, cwd=ROOT, check=True)
    assert "experiment" in done.stdout
    assert sum(resource.getrusage(resource.RUSAGE_CHILDREN)[:2]) - before < 3.0
