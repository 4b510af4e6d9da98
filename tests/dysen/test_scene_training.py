"""Training with gold scene graphs, from videos and from cached latents, and videos that are made with a graph afterwards."""

import json
import logging

import hydra
import numpy as np
import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from test_condition import CHOSEN, DSG, batch_of, composed

from data.building import SplitBuilder
from data.precompute import main as precompute
from data.records import StoreSettings
from data.shapes.source import ShapesSource
from dysen.condition import SceneGraphCondition
from vdm import checkpoint, config, restore, training
from vdm.diffusion.guidance import instruct_pix2pix
from vdm.errors import ConfigError, DataError, RunError
from vdm.launch import CONF
from vdm.runs import Run
from vdm.sampling.command import sample
from vdm.sampling.model import TextToVideo
from vdm.types import LatentShape

SMALL = [
    "autoencoder=tiny", "autoencoder.channels=16", "autoencoder.encoder_blocks=1", "autoencoder.decoder_blocks=1",
    "data=shapes", "trainer=cpu", "data.num_workers=0", "data.batch_size=4", "data.val_clips=4", "trainer.max_steps=4",
    "callbacks.checkpoint.finish_batches=1", "callbacks.samples.count=2", "callbacks.samples.every=4",
]  # fmt: skip
MODEL = [
    *CHOSEN, "backbone.channels=16", "backbone.norm_groups=4", "backbone.head_width=8", "sampler.num_steps=2",
    "condition.text.encoder.width=16", "condition.text.encoder.depth=1", "condition.text.encoder.heads=2",
    "condition.scene_graph.encoder.width=16", "scene_encoder.width=16", "stage.accumulate=1",
]  # fmt: skip


def build_shapes(root):
    counts = {"num_train": 16, "num_val": 4, "num_test": 0, "num_heldout": 0}
    size = {"height": 32, "width": 32, "frames": 8, "fps": 8.0, "ticks": 7, "num_captions": 2}
    script = {"min_things": 1, "max_things": 3, "min_events": 1, "max_events": 7, "textured": 0.5}
    script |= {"shades": ["dark", "grey", "light"], "scatter": 1.0, "tilted": True}
    script |= {"rests": True, "sizes": ["small", "medium", "large"], "reordered": 0.5, "new_verbs": 0}
    stored_as = {"gop": 8, "crf": 12, "pixel_format": "yuv444p", "samples_per_shard": 100}
    builder = SplitBuilder(
        name="shapes", source=ShapesSource(seed=3, **counts, **size, **script), root=str(root / "shapes"),
        store=StoreSettings(frames=8, height=32, width=32, fps=8.0, **stored_as), clips_per_video=1, min_frames=8,
        num_workers=0, timeout=60.0, max_rejected=0.0, limit=None,
    )  # fmt: skip
    for split in ("train", "val"):
        builder.build(split, overwrite=False, on_progress=lambda *_: None)


def write_autoencoder(folder, *overrides):
    """What stage=autoencoder leaves, with random weights."""
    settings = config.resolve(composed(*overrides))
    network = instantiate(settings["autoencoder"], _convert_="all")
    tensors = {f"autoencoder.{name}": tensor for name, tensor in network.state_dict().items()}
    folder.mkdir(parents=True)
    kept = {name: settings[name] for name in ("autoencoder", "data", "seed")} | {"stage": {"name": "autoencoder"}}
    (folder / "config.yaml").write_text(OmegaConf.to_yaml(OmegaConf.create(kept)))
    checkpoint.save(folder / "checkpoints" / "step-00000001", {"state_dict": tensors}, step=1)
    Run(folder).update(stage="autoencoder", data="shapes", state="complete", finished=1.0)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The run of `python train.py stage=vdm condition=[text,scene_graph] data=shapes`, four steps of it."""
    root = tmp_path_factory.mktemp("scenes")
    build_shapes(root / "datasets")
    places = [f"paths.data_root={root / 'datasets'}", f"paths.output_root={root / 'outputs'}"]
    write_autoencoder(root / "outputs" / "first", *SMALL, *places)
    training.train(composed(*SMALL, *MODEL, *places, "run.id=it"))
    run = Run(root / "outputs" / "it")
    for tensors in (run.last_checkpoint() / "weights", run.last_checkpoint() / "ema"):
        assert tensors.is_dir()
    return run


def test_training_with_gold_graphs(trained):
    assert trained.state == "complete"
    settings = restore.settings_of(trained)
    assert settings["data"]["extras"] == ["scene_graphs", "frame_ticks"]
    first = instantiate(settings["condition"], _convert_="all")["scene_graph"]
    weights = checkpoint.network_weights(trained.last_checkpoint(), "conditions", averaged=False)
    assert {f"members.scene_graph.{name}" for name in first.state_dict()} <= set(weights)
    assert list(trained.folder.rglob("*step*4*")), "samples and checkpoint of step 4"


def test_from_latents_on_disk_it_is_the_same_training(trained):
    root = trained.folder.parents[1]
    places = [f"paths.data_root={root / 'datasets'}", f"paths.output_root={root / 'outputs'}"]
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        precompute(hydra.compose("precompute", overrides=["data=shapes", *places, "run=first", "num_workers=0"]))
    batches = []
    read = SceneGraphCondition.encode
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SceneGraphCondition, "encode", lambda self, b, s: batches.append(sorted(b)) or read(self, b, s))
        training.train(composed(*SMALL, *MODEL, *places, "run.id=from_cache"))
    assert "latent" in batches[0]
    assert "video" not in batches[0]
    weights = [
        checkpoint.network_weights(run.last_checkpoint(), "conditions", averaged=False)
        for run in (trained, Run(root / "outputs" / "from_cache"))
    ]
    for name, tensor in weights[0].items():
        assert torch.equal(tensor, weights[1][name]), name


def test_a_model_of_captions_learns_to_hear_graphs_as_well(trained):
    root = trained.folder.parents[1]
    places = [f"paths.data_root={root / 'datasets'}", f"paths.output_root={root / 'outputs'}", "init.autoencoder=first"]
    graphs = ("condition=", "condition.scene_graph", "scene_encoder")
    captions_only = [one for one in MODEL if not one.startswith(graphs)]
    short = ["trainer.max_steps=1", "callbacks.samples.every=0"]
    training.train(composed(*SMALL, *captions_only, *places, *short, "condition=[text]", "run.id=captions"))
    begun = ["init.backbone=captions", "init.conditions=captions", "stage.optimizer.lr=1e-9"]
    training.train(composed(*SMALL, *MODEL, *places, *short, *begun, "run.id=both"))
    old, new = (
        {name: checkpoint.network_weights(Run(root / "outputs" / run).last_checkpoint(), name, averaged=averaged)
         for name in ("backbone", "conditions")}
        for run, averaged in (("captions", True), ("both", False))
    )  # fmt: skip
    for network, tensors in old.items():
        assert set(tensors) < set(new[network])
        for name, tensor in tensors.items():
            torch.testing.assert_close(new[network][name], tensor, rtol=0, atol=1e-6)
    assert {one["network"] for one in Run(root / "outputs" / "both").info["lineage"]} >= {"backbone", "conditions"}
    with pytest.raises(RunError, match="another network"):
        training.train(composed(*SMALL, *captions_only, *places, *short, "condition=[text]", "run.id=less",
                                "init.backbone=both", "init.conditions=both"))  # fmt: skip


def open_model(run):
    model = TextToVideo.of_run(run, run.last_checkpoint(), averaged=False, device=torch.device("cpu"), precision=None)
    for name, parameter in model.backbone.named_parameters():  # four steps leave them all but closed
        if name.endswith("scene.gate"):
            parameter.fill_(1.0)
        elif "proj_out" in name or name.startswith("conv_out"):
            torch.nn.init.normal_(parameter, std=0.1, generator=torch.Generator().manual_seed(0))
    return model


def test_samples_hear_a_graph_each_prompt_its_own(trained):
    model = open_model(trained)
    assert model.heard == ("text",)
    shape = model.latent_shape(8, 32, 32)
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        sampler = instantiate(hydra.compose("sample", overrides=["sampler.num_steps=2"]).sampler, _convert_="all")
    table = instruct_pix2pix(["text"], ["scene_graph"], 3.0, 2.0, rescale=0.0, interval=(0.0, 1.0))
    first, second = {"scene_graph": DSG.to_json()}, {"scene_graph": [["dog", "barking", None, [0, 3]]]}

    def latents(prompts, extras):
        keys = [str(i) for i in range(len(prompts))]
        how = {"seed": 0, "shape": shape, "fps": 8.0, "sampler": sampler, "guidance": table}
        return model.latents(prompts, keys, extras=extras, **how)

    together = latents(["a", "a", "b", "a"], [first, second, first, {"scene_graph": None}])
    assert sum(isinstance(said, dict) and "scene_graph" in said for said, _ in model._said.values()) == 4
    model._said.clear()
    again = latents(["a", "a", "b", "a"], [dict(first), dict(second), dict(first), {"scene_graph": None}])
    torch.testing.assert_close(together, again)
    swapped = latents(["a", "a", "b", "a"], [second, second, first, first])
    assert (swapped[0] - together[0]).abs().max() > 1e-3
    torch.testing.assert_close(swapped[1:3], together[1:3])
    assert (swapped[3] - together[3]).abs().max() > 1e-3


def ask(run, *overrides):
    places = [
        f"paths.output_root={run.folder.parent}",
        f"run={run.folder}",
        "sampler.num_steps=2",
        "device=cpu",
        "format=npz",
    ]
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = hydra.compose("sample", overrides=[*places, *overrides])
    config.check(cfg, set(cfg))
    return sample(cfg)


def test_the_sampling_command_takes_a_file(trained, tmp_path, caplog):
    file = tmp_path / "a plan.json"
    file.write_text(json.dumps([["red circle", "spinning", None, [0, 3]]]))
    with caplog.at_level(logging.WARNING):
        (plain,) = ask(trained, "prompt=a red circle")
    assert "nothing is said to these conditions of the model: scene_graph" in caplog.text
    caplog.clear()
    given = ("prompt=a red circle", f"scene_graph='{file}'", "guidance_scene_graph=2")
    (told,) = ask(trained, *given)
    assert "nothing is said" not in caplog.text
    record, before = (json.loads(path.with_suffix(".json").read_text()) for path in (told, plain))
    assert record["scene_graph"] == [["red circle", "spinning", None, [0, 3]]]
    assert record["guidance_scene_graph"] == 2
    assert not {"scene_graph", "guidance_scene_graph"} & set(before)
    assert told.parent != plain.parent
    assert f"scene_graph={told.with_suffix('.json')}" in record["command"]
    (again,) = ask(trained, "prompt=a red circle", f"scene_graph={told.with_suffix('.json')}",
                   "guidance_scene_graph=2", f"output={tmp_path / 'again'}")  # fmt: skip
    assert np.array_equal(np.load(told)["arr_0"], np.load(again)["arr_0"])
    with pytest.raises(Exception, match="another sample has this name"):
        ask(trained, "prompt=a red circle", f"output={tmp_path / 'again'}")


def test_mistakes_in_the_sampling_command(trained, tmp_path):
    for key, overrides in (
        ("scene_graph", ("scene_graph=absent.json",)),
        ("scene_graph", ("guidance_scene_graph=2",)),
        ("guidance_scene_graph", (f"scene_graph={trained.folder / 'run.json'}", "guidance_scene_graph=-1")),
    ):
        with pytest.raises((ConfigError, DataError)) as caught:
            ask(trained, "prompt=a", *overrides)
        assert caught.value.key.endswith(key)
    wrong = tmp_path / "wrong.json"
    wrong.write_text('{"something": 1}')
    with pytest.raises(DataError, match="these are no scene graphs"):
        ask(trained, "prompt=a", f"scene_graph={wrong}")


@pytest.mark.slow
@pytest.mark.parametrize("choice", ["rgtrm", "rgnn"])
def test_what_a_graph_says_is_learned(choice):
    """Eight clips with one caption, told apart by their graphs alone; half a minute."""
    torch.manual_seed(0)
    settings = ["condition.scene_graph.drop_prob=0.0", "condition.scene_graph.times=null", f"scene_encoder={choice}"]
    stage = instantiate(composed(*SMALL, *MODEL, *settings).stage, _convert_="all")
    told, latents = [], []
    for i in range(8):
        colour, first, second = i // 4, i // 2 % 2, i % 2
        ball = f"{('red', 'blue')[colour]} ball"
        verbs = ("spinning", "jumping")
        told.append([[ball, verbs[first], None, [0, 4]], ["cat", verbs[second], ball, [4, 7]]])
        halves = [
            torch.Generator().manual_seed(2 * colour + first),
            torch.Generator().manual_seed(10 + 2 * colour + second),
        ]
        latents.append(torch.cat([torch.randn(8, 1, 4, 4, generator=g).expand(-1, 4, -1, -1) for g in halves], dim=1))
    batch = batch_of(*[None] * 8) | {"latent": torch.stack(latents), "extras": {"scene_graphs": told}}
    optimizer = torch.optim.AdamW([p for group in stage.parameter_groups() for p in group["params"]], lr=2e-3)
    for step in range(200):
        draw = stage.objective.draw(batch["key"], 0, step, LatentShape(8, 8, 4, 4), "cpu")
        controls = stage.conditions.encode(batch, LatentShape(8, 8, 4, 4))
        loss = stage.objective(stage.backbone, batch["latent"], controls, noise=draw.noise, timestep=draw.timestep)
        optimizer.zero_grad()
        loss.mean().backward()
        optimizer.step()
    stage.eval()
    others = {"right": told, "another ball": told[4:] + told[:4], "nothing": [None] * 8}
    with torch.no_grad():
        losses = {
            name: stage.validation_losses(batch | {"extras": {"scene_graphs": said}})["loss"].mean().item()
            for name, said in others.items()
        }
    assert losses["right"] < 0.6 * min(losses["another ball"], losses["nothing"]), losses
