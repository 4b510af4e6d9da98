"""Training from a cache is training, to the last bit: the commands a user types, on small networks."""

import io
import json
import logging
import subprocess
import sys
from pathlib import Path

import hydra
import numpy as np
import pytest
import test_resume
import test_resume_diffusion
import torch
from safetensors.torch import save_file

from data.precompute import main
from data.reader import ShardReader
from data.shards import read_index
from vdm import checkpoint, config, training
from vdm.errors import DataError, UserError
from vdm.launch import CONF
from vdm.runs import Run

ROOT = Path(__file__).resolve().parents[1]
STEPS = 10
VAE = ["autoencoder=kl2d", "autoencoder.channels=8", "autoencoder.multipliers=[1,2]", "autoencoder.blocks=1",
       "autoencoder.norm_groups=4"]  # fmt: skip


@pytest.fixture(scope="module")
def t5_folder(tmp_path_factory):
    transformers = pytest.importorskip("transformers")
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    folder = tmp_path_factory.mktemp("t5")
    words = ["<pad>", "</s>", "<unk>", "▁", *map(chr, range(97, 123))]
    tokenizer = Tokenizer(models.Unigram([(word, -2.0) for word in words], unk_id=2))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    ends = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **ends).save_pretrained(folder)
    torch.manual_seed(0)
    sizes = {"vocab_size": len(words), "d_model": 16, "d_kv": 4, "d_ff": 32, "num_layers": 1, "num_heads": 2}
    transformers.T5EncoderModel(transformers.T5Config(**sizes)).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def data_root(shapes_root, tmp_path_factory):
    """The shards of all tests, with room for caches of one's own."""
    root = tmp_path_factory.mktemp("own")
    for path in sorted(shapes_root.rglob("*")):
        if path.is_file():
            (root / path.relative_to(shapes_root)).parent.mkdir(parents=True, exist_ok=True)
            (root / path.relative_to(shapes_root)).hardlink_to(path)
    return root


@pytest.fixture(scope="module")
def parent(data_root, tmp_path_factory):
    output = tmp_path_factory.mktemp("parent")
    compose_and_train(test_resume_diffusion.parent_settings(data_root, output, 0))
    return output / "it"


def text(t5_folder):
    encoder = "condition.text.encoder"
    return ["condition=[text_t5]", f"{encoder}.folder={t5_folder}", f"{encoder}.dtype=float32", f"{encoder}.length=24"]


def settings(data_root, output, parent, t5_folder, *more):
    small = test_resume_diffusion.settings(parent)(data_root, output, 0)
    kept = [entry for entry in small if not entry.startswith(("condition.text.encoder", "trainer.max_steps"))]
    return [*kept, *text(t5_folder), f"trainer.max_steps={STEPS}", "callbacks.samples.every=5",
            "callbacks.samples.count=2", "sampler.num_steps=2", *more]  # fmt: skip


def compose_and_train(overrides):
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        training.train(hydra.compose("train", overrides=overrides))


def weights(run):
    files = checkpoint.read_manifest(run.last_checkpoint())["files"]
    assert any(name.startswith("ema/") for name in files)
    return {name: fact["sha256"] for name, fact in files.items() if name.endswith(".safetensors")}


def precompute(data_root, parent, *more):
    """As the command line does: composed, checked, run."""
    overrides = ["data=shapes", f"paths.data_root={data_root}", f"paths.output_root={parent.parent}", "num_workers=0"]
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = hydra.compose("precompute", overrides=[*overrides, *more])
    config.check(cfg, set(cfg))
    main(cfg)


@pytest.fixture(scope="module")
def caches(data_root, parent, t5_folder):
    precompute(data_root, parent, f"run={parent}", *text(t5_folder))
    (folder,) = (data_root / "shapes" / "cached").iterdir()
    return folder


def test_losses_with_a_cache_are_those_without(data_root, parent, t5_folder, caches, tmp_path, caplog):
    """Dropping, moving average, validation: the same weights in the end, and samples from latents and embeddings."""
    caplog.set_level(logging.INFO)
    runs = {}
    for name, cached in (("videos", "null"), ("cache", "auto")):
        compose_and_train(settings(data_root, tmp_path / name, parent, t5_folder, f"stage.cached={cached}"))
        assert ("reading latent (float32), text (float32), text_mask (bool) from the cache" in caplog.text) == (
            name == "cache"
        )
        runs[name] = Run(tmp_path / name / "it")
    ours, theirs = (test_resume.losses_of(runs[name]) for name in ("cache", "videos"))
    assert len({row["train/loss"] for row in theirs}) > STEPS // 2
    assert ours == theirs
    assert weights(runs["cache"]) == weights(runs["videos"])
    names = [{p.name for p in (run.folder / "samples" / "step-00000005").iterdir()} for run in runs.values()]
    assert names[0] == names[1]
    assert len(names[0]) == 3


def test_the_latents_of_other_weights_are_refused_with_the_reason(
    data_root, parent, t5_folder, caches, tmp_path, caplog
):
    other = [e for e in test_resume_diffusion.parent_settings(data_root, tmp_path, 0) if "run.id" not in e]
    compose_and_train([*other, "run.id=other", "seed=1"])
    given = settings(data_root, tmp_path, tmp_path / "other", t5_folder, "trainer.max_steps=1")
    with pytest.raises(DataError, match="not what this run would make") as error:
        compose_and_train([*given, f"stage.cached={caches}"])
    assert "autoencoder: weights is" in str(error.value)
    caplog.set_level(logging.INFO)
    compose_and_train([*given, "stage.cached=auto"])  # from the videos, and says so
    assert f"{caches} is not used: autoencoder: weights is" in caplog.text
    assert Run(tmp_path / "it").state == "complete"


@pytest.fixture(scope="module")
def vae_folder(tmp_path_factory):
    """A public autoencoder of single frames, as diffusers writes it."""
    folder = tmp_path_factory.mktemp("vae")
    torch.manual_seed(0)
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        node = hydra.compose("train", overrides=[entry for entry in VAE if "pretrained" not in entry]).autoencoder
    tensors = hydra.utils.instantiate(node, _convert_="all").state_dict()
    kept = {name: value for name, value in tensors.items() if not name.startswith("latent_")}
    save_file(kept, folder / "diffusion_pytorch_model.safetensors")
    said = {"_class_name": "AutoencoderKL", "block_out_channels": [8, 16], "layers_per_block": 1, "norm_num_groups": 4}
    (folder / "config.json").write_text(json.dumps(said | {"latent_channels": 4, "scaling_factor": 2.0}))
    return folder


def test_one_cache_of_a_public_autoencoder_serves_clips_of_any_length(
    data_root, parent, t5_folder, vae_folder, tmp_path
):
    public = [*VAE, f"autoencoder.pretrained={vae_folder}"]
    precompute(data_root, parent, *public, f"output={tmp_path / 'caches'}")
    (cache,) = (tmp_path / "caches").iterdir()
    for frames in (8, 4):
        losses = []
        for cached in ("null", cache):
            given = settings(data_root, tmp_path, parent, t5_folder, *public, "init.autoencoder=null")
            place = [f"stage.cached={cached}", f"run.id=of-{frames}-{Path(cached).name}", "trainer.max_steps=3"]
            compose_and_train([*given, *place, f"data.clip.frames={frames}", "callbacks.samples.every=0"])
            run = Run(tmp_path / f"of-{frames}-{Path(cached).name}")
            losses.append([float(row["train/loss"]) for row in test_resume.losses_of(run)])
        # Cut out of the latent of more frames; convolutions see another batch.
        assert losses[1] == (losses[0] if frames == 8 else pytest.approx(losses[0], rel=1e-5))


def test_a_run_may_go_on_with_a_cache_and_without(data_root, parent, t5_folder, caches, tmp_path):
    """Nor does it matter which part of it came from where; what it verifies is the autoencoder in its own checkpoint."""
    constant = "stage.scheduler=null"  # a schedule that ends earlier is another one
    for steps, cached in ((4, "null"), (STEPS, caches)):
        compose_and_train(
            settings(
                data_root, tmp_path, parent, t5_folder, f"stage.cached={cached}", f"trainer.max_steps={steps}", constant
            )
        )
    whole = tmp_path / "whole"
    compose_and_train(settings(data_root, whole, parent, t5_folder, "stage.cached=null", constant))
    assert weights(Run(tmp_path / "it")) == weights(Run(whole / "it"))
    assert test_resume.losses_of(Run(tmp_path / "it")) == test_resume.losses_of(Run(whole / "it"))


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("condition=[text]", "what is trained with the model cannot be precomputed"),
        ("latent_dtype=int8", "latent_dtype"),
        ("autoencoder=kl2d", "autoencoder.pretrained"),
        ("run=nothing", "there is no such run"),
        ("split=[]", "no split to precompute"),
        ("split=dev", "there is no shard folder"),
        ("output=s3://bucket/cached", "a cache is written to a local folder"),
        ("data.clip.height=30", "does not divide by the autoencoder's stride"),
        ("device=gpu", "unknown device"),
    ],
)
def test_wrong_settings_are_named(data_root, parent, tmp_path, override, said):
    with pytest.raises(UserError) as error:
        precompute(data_root, parent, *([] if override.startswith("output") else [f"output={tmp_path}"]), override)
    assert said in str(error.value)
    assert not list(tmp_path.iterdir())


def test_the_command_answers_a_misspelt_key(data_root):
    """From the shell, once: everything else is asked in this process."""
    command = [sys.executable, "-m", "data.precompute", "data=shapes", "data.clip.frame=8"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 2
    assert "there is no setting 'frame'" in done.stderr
    assert "Traceback" not in done.stderr


def test_half_precision_takes_half_the_room(data_root, parent, caches, tmp_path, capsys):
    precompute(data_root, parent, f"output={tmp_path}", "latent_dtype=float16", "split=val", f"run={parent}")
    assert "12 clips in 1 shards" in capsys.readouterr().out
    precompute(data_root, parent, f"output={tmp_path}", "latent_dtype=float16", "split=val", f"run={parent}")
    assert "were there already" in capsys.readouterr().out
    (half,) = tmp_path.rglob("*.tar")
    both = [ShardReader(index=read_index(path), cache=None, max_open=1, max_tables=1) for path in
            (half.parent, caches / "val")]  # fmt: skip
    for nth in range(12):
        ours, theirs = (np.load(io.BytesIO(r.read(0, nth, ("npz",))[1]["npz"]))["latent"] for r in both)
        assert ours.dtype == np.float16
        assert theirs.dtype == np.float32
        assert np.array_equal(ours, theirs.astype(np.float16))
        assert ours.std() > 0.1


def test_index_says_what_made_it(caches, data_root):
    settings = json.loads((caches / "train" / "index.json").read_text())["settings"]
    source = json.loads((data_root / "shapes" / "train" / "index.json").read_text())
    assert settings["source"] == source["fingerprint"]
    assert settings["clip"] == {"frames": 8, "frame_stride": 1, "height": 32, "width": 32}
    assert settings["made_by"]["autoencoder"]["network"] == "Conv3dAutoencoder"
    assert settings["made_by"]["conditions"]["text"]["encoder"] == "T5Encoder"
    assert settings["arrays"] == {"latent": "float32", "text": "float32", "text_mask": "bool"}
