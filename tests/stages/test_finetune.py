"""stage=finetune: where it starts, what it changes, what it keeps, how it goes on, and what others make of its runs."""

import csv
import json
import logging
import shutil

import hydra
import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import load_file
from sampling_runs import SMALL, ask, write_run

from data.precompute import main as precompute
from vdm import checkpoint, config, lineage, restore, training
from vdm.backbones.stable_diffusion import temporal_keys
from vdm.errors import ConfigError, DataError, RunError
from vdm.evaluating.command import evaluate
from vdm.export.request import run_can_be_held
from vdm.launch import CONF
from vdm.merge import merge
from vdm.runs import Run

CLIP = ["data.clip.frames=4", "data.clip.height=16", "data.clip.width=16"]
GRAPHS = ["condition=[text,scene_graph]", "condition.scene_graph.encoder.width=16", "scene_encoder.width=16",
          "scene_encoder.heads=2", "scene_encoder.depth=1"]  # fmt: skip
STEPS = ["data=shapes", "trainer=cpu", "trainer.max_steps=4", "trainer.log_every_n_steps=1", "data.num_workers=0",
         "data.batch_size=4", "data.val_clips=4", "stage.scheduler=null", "stage.noise_levels=2",
         "stage.optimizer.lr=1e-2", *CLIP,
         "sampler.num_steps=2", "callbacks.samples.every=0", "callbacks.validation.every=2",
         "callbacks.checkpoint.every=2"]  # fmt: skip
TUNINGS = {
    "full": ["stage/tuning=full"],
    "temporal": ["stage/tuning=temporal"],
    "lora": ["stage/tuning=lora", "stage.tuning.rank=2"],
}


def composed(*overrides):
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        return hydra.compose("train", overrides=list(overrides))


def parent(root, name, *overrides, stage="vdm", finished=0.0):
    small = [given for given in SMALL if not (overrides and given.startswith("condition="))]
    whole = OmegaConf.to_container(composed("stage=vdm", *small, *CLIP, *overrides), resolve=True)
    groups = ("autoencoder", "backbone", "objective", "condition", "scene_encoder", "data")
    settings = {group: whole.get(group) for group in groups}
    run = write_run(root / name, settings | {"stage": {"name": stage}, "seed": 0}, finished=finished)
    run.update(stage=stage)
    return run


@pytest.fixture(scope="module")
def world(shapes_root, tmp_path_factory):
    """Two parents: one that hears captions, and an older one of stage=dysen that hears scene graphs as well."""
    root = tmp_path_factory.mktemp("finetune")
    parent(root, "text", finished=5.0)
    parent(root, "graphs", *GRAPHS, stage="dysen", finished=1.0)
    return root, [f"paths.data_root={shapes_root}", f"paths.output_root={root}"]


def tune(world, name, *overrides, parent="text"):
    cfg = composed("stage=finetune", *STEPS, *world[1], f"run.id={name}", f"init.vdm={parent}", *overrides)
    training.train(cfg)
    return Run(world[0] / name)


@pytest.fixture(scope="module")
def tuned(world):
    return {name: tune(world, name, *given) for name, given in TUNINGS.items()}


def weights(run, network="backbone", **how):
    return checkpoint.network_weights(run.last_checkpoint(), network, **how)


def changed(run, parent, network="backbone", **how):
    before, after = weights(parent, network), weights(run, network, **how)
    assert before.keys() == after.keys()
    return {name for name, tensor in after.items() if not torch.equal(tensor, before[name])}


# ---- what it changes and what it keeps


def test_full_tuning_changes_everything(world, tuned):
    run, text = tuned["full"], Run(world[0] / "text")
    assert (run.state, run.info["stage"], run.info["step"]) == ("complete", "finetune", 4)
    assert len(changed(run, text)) > 0.9 * len(weights(text))
    assert changed(run, text, "conditions")
    assert not changed(run, text, "autoencoder")


@pytest.mark.parametrize("averaged", [False, True])
def test_temporal_tuning_changes_no_spatial_weight(world, tuned, averaged):
    run, text = tuned["temporal"], Run(world[0] / "text")
    along_time = set(temporal_keys(instantiated(text)))
    moved = changed(run, text, averaged=averaged)
    assert moved <= along_time
    assert len(moved) > 0.9 * len(along_time)
    assert not changed(run, text, "conditions", averaged=averaged)
    ema = load_file(run.last_checkpoint() / "ema" / "backbone.safetensors")
    assert set(ema) == along_time


def instantiated(run):
    network = hydra.utils.instantiate(restore.settings_of(run)["backbone"], _convert_="all")
    network.open_doors(streams={"text": 16})
    return network


def test_an_adapter_is_all_that_is_kept(world, tuned):
    run, text = tuned["lora"], Run(world[0] / "text")
    folder = run.last_checkpoint()
    files = sorted(path.name for path in (folder / "weights").iterdir())
    assert files == ["adapter.json", "backbone.safetensors"]
    for kind in ("weights", "ema"):
        kept = load_file(folder / kind / "backbone.safetensors")
        assert kept
        assert all(".lora_" in name for name in kept)
    said = json.loads((folder / "weights" / "adapter.json").read_text())
    assert said["parent"] == {"run": "text", "checkpoint": text.last_checkpoint().name}
    moved = changed(run, text)
    assert moved
    assert all(name.endswith((".to_qkv.weight", ".to_q.weight", ".to_kv.weight", ".to_out.weight")) for name in moved)
    assert not changed(run, text, "conditions")
    assert not changed(run, text, "autoencoder")
    averaged, last = weights(run), weights(run, averaged=False)
    assert any(not torch.equal(averaged[name], last[name]) for name in moved)
    assert [(entry["network"], entry["run"]) for entry in run.info["lineage"]] == [
        ("autoencoder", "text"), ("backbone", "text"), ("conditions", "text")
    ]  # fmt: skip


def test_validation_sees_what_the_files_say(world, tuned):
    """The loss that the live network had, matrices beside its layers, is that of the weights that are read back merged."""
    run = tuned["lora"]
    cfg = composed("stage=finetune", *STEPS, *world[1], "init.vdm=lora", "run.id=none")
    lineage.adopt(cfg)
    stage = hydra.utils.instantiate(cfg.stage, _convert_="all")
    training._load_parents(stage, config.resolve(cfg))
    data = hydra.utils.instantiate(cfg.data, _convert_="all")
    data.run_folder = world[0]
    data.setup("fit")
    stage.eval()
    batch = data.on_after_batch_transfer(next(iter(data.val_dataloader())), 0)
    with torch.no_grad():
        merged = stage.validation_losses(batch)["loss"].mean().item()
    assert merged == pytest.approx(run.info["metrics"]["val/loss"], rel=1e-5)


# ---- how it goes on


@pytest.mark.parametrize("tuning", ["temporal", "lora"])
def test_a_resumed_run_is_the_same_run(world, tuned, tuning):
    tune(world, f"cut-{tuning}", *TUNINGS[tuning], "trainer.max_steps=2")
    run = tune(world, f"cut-{tuning}", *TUNINGS[tuning])
    for kind in ("weights", "ema"):
        for path in (tuned[tuning].last_checkpoint() / kind).glob("*.safetensors"):
            other = load_file(run.last_checkpoint() / kind / path.name)
            for name, tensor in load_file(path).items():
                assert torch.equal(tensor, other[name]), name
    one, other = (held_out(each) for each in (tuned[tuning], run))
    assert len([loss for loss in one if loss]) == 2
    assert one == other


def held_out(run):
    with open(run.folder / "metrics.csv", newline="") as file:
        return [row["val/loss"] for row in csv.DictReader(file)]


def test_it_goes_on_from_an_adapter(world, tuned):
    """Again by an adapter, whose parent is one, and as a whole."""
    again = tune(world, "again", *TUNINGS["lora"], parent="lora")
    assert json.loads((again.last_checkpoint() / "weights" / "adapter.json").read_text())["parent"]["run"] == "lora"
    assert changed(again, tuned["lora"])
    assert not changed(again, tuned["lora"], "conditions")
    whole = tune(
        world, "whole", *TUNINGS["full"], "stage.optimizer.lr=1e-12", "stage.optimizer.weight_decay=0", parent="lora"
    )
    before, after = weights(tuned["lora"]), weights(whole)
    assert all(torch.allclose(after[name], tensor, atol=1e-6) for name, tensor in before.items())


def test_another_parent_is_noticed(world, tuned, tmp_path):
    root = tmp_path / "runs"
    shutil.copytree(world[0] / "text", root / "text")
    shutil.copytree(world[0] / "lora", root / "lora")
    assert weights(Run(root / "lora")).keys() == weights(tuned["lora"]).keys()  # neighbours that moved together
    folder = Run(root / "text").last_checkpoint()
    state = {
        f"{n}.{k}": t
        for n in ("autoencoder", "backbone", "conditions")
        for k, t in weights(Run(root / "text"), n).items()
    }
    state["backbone.conv_in.bias"] = state["backbone.conv_in.bias"] + 1
    checkpoint.save(folder, {"state_dict": state}, step=10)
    with pytest.raises(RunError, match="has other weights now"):
        weights(Run(root / "lora"))
    moved = [world[1][0], f"paths.output_root={root}"]
    with pytest.raises(RunError, match="has other weights now"):
        tune((root, moved), "lora", *TUNINGS["lora"], "trainer.max_steps=5")
    shutil.rmtree(root / "text")
    with pytest.raises(RunError, match="the parent of this adapter is not there"):
        weights(Run(root / "lora"))


def test_a_parent_that_trained_on_is_taken_as_it_was(world, tuned, tmp_path):
    for name in ("text", "lora"):
        shutil.copytree(world[0] / name, tmp_path / name)
    root, parent = (tmp_path, [world[1][0], f"paths.output_root={tmp_path}"]), Run(tmp_path / "text")
    state = {f"{n}.{k}": t + 1 for n in ("autoencoder", "backbone") for k, t in weights(parent, n).items()}
    state |= {f"conditions.{k}": t for k, t in weights(parent, "conditions").items()}
    checkpoint.save(parent.last_checkpoint().with_name("step-00000020"), {"state_dict": state}, step=20)
    before = weights(Run(tmp_path / "lora"))
    assert all(torch.equal(before[name], tensor) for name, tensor in weights(tuned["lora"]).items())
    run = tune(root, "lora", *TUNINGS["lora"], "trainer.max_steps=6")
    assert {entry["checkpoint"] for entry in run.info["lineage"]} == {"step-00000010"}
    assert (
        json.loads((run.last_checkpoint() / "weights" / "adapter.json").read_text())["parent"]["checkpoint"]
        == "step-00000010"
    )


def test_other_layers_than_before_are_noticed(world, tuned):
    with pytest.raises(RunError, match="adapter of other layers"):
        tune(world, "lora", *TUNINGS["lora"], "stage.tuning.layers=[backbone.*.to_qkv]", "trainer.max_steps=5")
    with pytest.raises(ConfigError, match="beside the weights of one run"):
        tune(world, "none", *TUNINGS["lora"], "init.conditions=null", "init.backbone=null", "init.autoencoder=text",
             *SMALL[2:6], "condition=[]", parent="null")  # fmt: skip


# ---- where it starts


def test_the_newest_dysen_run_comes_first(world, caplog):
    root, places = world
    cfg = composed("stage=finetune", *STEPS, *places)
    with caplog.at_level(logging.INFO):
        lineage.adopt(cfg)
    assert cfg.init.vdm == cfg.init.backbone == "graphs"
    assert "the newest complete run of stage=dysen is graphs, trained on shapes" in caplog.text
    record = restore.settings_of(Run(root / "graphs"))
    for group in ("autoencoder", "backbone", "objective", "condition", "scene_encoder"):
        assert OmegaConf.to_container(cfg[group], resolve=True) == record[group], group
    assert cfg.data.extras == []
    assert cfg.data.extras_if_there == ["scene_graphs", "frame_ticks"]
    before = OmegaConf.to_container(cfg)
    lineage.adopt(cfg)
    assert OmegaConf.to_container(cfg) == before, "adopting twice is adopting once"


def test_else_the_newest_text_to_video_model(world, tmp_path):
    shutil.copytree(world[0] / "text", tmp_path / "text")
    cfg = composed("stage=finetune", *STEPS, world[1][0], f"paths.output_root={tmp_path}")
    lineage.adopt(cfg)
    assert cfg.init.vdm == "text"
    shutil.rmtree(tmp_path / "text")
    with pytest.raises(RunError, match="stage=dysen or stage=vdm, and there is none"):
        lineage.adopt(composed("stage=finetune", *STEPS, world[1][0], f"paths.output_root={tmp_path}"))


def test_a_run_that_is_no_video_model_is_refused(world, tmp_path):
    parent(tmp_path, "other", stage="autoencoder")
    with pytest.raises(RunError, match="another stage"):
        lineage.adopt(
            composed("stage=finetune", *STEPS, world[1][0], f"paths.output_root={tmp_path}", "init.vdm=other")
        )


def test_a_clip_that_the_parents_networks_cannot_reduce(world):
    cfg = composed("stage=finetune", *STEPS, *world[1], "init.vdm=text", "data.clip.height=20")
    lineage.adopt(cfg)
    with pytest.raises(ConfigError) as caught:
        config.check(cfg, set(cfg))
    assert caught.value.key == "data.clip.height"


def test_settings_of_the_parents_conditions_may_change(world):
    change = ["+condition.scene_graph.reads=plan", "+condition.text.drop_prob=0.5"]
    cfg = composed("stage=finetune", *STEPS, *world[1], *change, "data.clip.frames=8")
    for _ in range(2):
        lineage.adopt(cfg)
        assert cfg.condition.scene_graph.reads == "plan"
        assert cfg.condition.scene_graph.clip_frames == 8
        assert cfg.condition.text.drop_prob == 0.5
        assert cfg.condition.text.encoder.width == 16
        assert "plan" in cfg.data.extras_if_there


def test_what_the_parent_hears_is_not_named_again(world, monkeypatch):
    class Choices:
        initialized = staticmethod(lambda: True)
        get = staticmethod(lambda: OmegaConf.create(
            {"runtime": {"choices": {"condition": "['text', 'class_label']"}}, "overrides": {"task": []}}))  # fmt: skip

    monkeypatch.setattr(lineage, "HydraConfig", Choices)
    with pytest.raises(ConfigError, match="the parent graphs hears this already"):
        lineage.adopt(composed("stage=finetune", *STEPS, *world[1]))


def test_without_a_parent_it_begins_anew(world):
    run = tune(world, "anew", "init.backbone=null", "init.conditions=null", "init.autoencoder=text", "condition=[text]",
               *SMALL[2:6], *SMALL[7:10], "trainer.max_steps=1", parent="null")  # fmt: skip
    assert [entry["network"] for entry in run.info["lineage"]] == ["autoencoder"]


# ---- scene graphs


def test_graphs_are_heard_where_there_are_some(world):
    runs = [
        tune(world, name, "trainer.max_steps=1", *given, parent="graphs")
        for name, given in {"heard": [], "deaf": ["+condition.scene_graph.reads=no_such_truth"]}.items()
    ]
    losses = [run.info["metrics"]["val/loss"] for run in runs]
    assert losses[0] != losses[1]
    assert all(loss == loss for loss in losses)
    assert restore.settings_of(runs[1])["data"]["extras_if_there"][-1] == "no_such_truth"


class Rows:
    folder = "here"

    def __init__(self, rows):
        self.rows = rows

    def get(self, key, caption):
        return self.rows.get((key, caption))


def test_plans_need_a_model_that_hears_them_and_are_of_these_clips(world):
    deaf, hears = (composed("stage=finetune", *STEPS, *world[1], f"init.vdm={name}") for name in ("text", "graphs"))
    lineage.adopt(deaf)
    with pytest.raises(hydra.errors.InstantiationException) as caught:
        hydra.utils.instantiate(deaf.stage, planned=Rows({}), _convert_="all")
    assert "hears no scene graphs" in str(caught.value.__cause__)
    lineage.adopt(hears)
    stage = hydra.utils.instantiate(hears.stage, planned=Rows({}), _convert_="all")
    batch = {"key": [str(i) for i in range(64)], "caption": ["a red circle"] * 64, "video": torch.zeros(64, 3, 4, 16, 16),
             "fps": torch.ones(64)}  # fmt: skip
    with pytest.raises(DataError, match="none of the first 64 clips has a plan"):
        stage.losses(batch)


# ---- what others make of it


def merged(world, *overrides):
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = hydra.compose("merge", overrides=[f"paths.output_root={world[0]}", *overrides])
    config.check(cfg, set(cfg))
    return Run(merge(cfg))


def sampled(world, run):
    (made,) = ask(world[0], "prompt=A red circle.", f"run={run}", "seed=3", "format=npz")
    facts = json.loads(made.with_suffix(".json").read_text())["weights"]
    return np.load(made)["arr_0"].astype(int), facts


def test_a_merged_run_is_the_run(world, tuned):
    run = merged(world, "run=lora", "to=merged")
    for network in ("autoencoder", "backbone", "conditions"):
        for averaged in (False, True):
            one, other = (weights(r, network, averaged=averaged) for r in (tuned["lora"], run))
            assert one.keys() == other.keys()
            assert all(torch.equal(one[name], tensor) for name, tensor in other.items())
    assert not (run.last_checkpoint() / "weights" / "adapter.json").exists()
    assert (run.state, run.info["stage"], run.info["made_from"]["run"]) == ("complete", "finetune", "lora")
    video, facts = sampled(world, "lora")
    assert {"weights/adapter.json", "ema/backbone.safetensors"} <= facts.keys()
    assert (video == sampled(world, "merged")[0]).all()
    assert (video != sampled(world, "text")[0]).any()
    again = tune(world, "on-merged", "trainer.max_steps=1", parent="merged")
    assert again.state == "complete"
    with pytest.raises(RunError, match="only weights are here"):
        tune(world, "merged", "trainer.max_steps=9")


def test_and_back(world, tuned):
    """What a LoRA of rank 2 changed is of rank 2; whole training is not."""
    merged(world, "run=lora", "to=merged-2")
    run = merged(world, "run=merged-2", "to=extracted", "extract=2")
    assert json.loads((run.last_checkpoint() / "weights" / "adapter.json").read_text())["parent"]["run"] == "text"
    kept = load_file(run.last_checkpoint() / "weights" / "backbone.safetensors")
    assert all(".lora_" in name for name in kept)
    for name, tensor in weights(tuned["lora"]).items():
        torch.testing.assert_close(weights(run)[name], tensor, atol=1e-6, rtol=1e-5)
    rough = merged(world, "run=full", "to=rough", "extract=2")
    assert len(changed(rough, tuned["full"])) > 10


def test_what_cannot_be_merged(world, tuned, tmp_path):
    for wrong, said in (
        (["run=full", "to=other"], "holds whole weights already"),
        (["run=lora", "to=text"], "this is there already"),
        (["run=lora"], "needs a place"),
        (["run=lora", "to=other", "extract=0"], "rank of an adapter"),
        (["run=text", "to=other", "extract=2"], "no parent, or several"),
    ):
        with pytest.raises((ConfigError, RunError), match=said):
            merged(world, *wrong)
    assert not (world[0] / "other").exists()
    elsewhere = merged(world, "run=lora", f"to={tmp_path / 'a' / 'whole'}")
    assert elsewhere.folder == tmp_path / "a" / "whole"


def test_evaluation_and_export_take_an_adapter(world, tuned):
    merged(world, "run=lora", "to=merged-3")
    numbers = []
    for run in ("lora", "merged-3"):
        asked = [
            f"run={run}",
            "protocol=shapes",
            "protocol.clips=2",
            "protocol.sampler.num_steps=1",
            "protocol.shown=0",
        ]
        with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
            cfg = hydra.compose("evaluate", overrides=[*world[1], *asked, "num_workers=0"])
        config.check(cfg, set(cfg))
        numbers.append(evaluate(cfg))
    assert numbers[0] == numbers[1]
    assert numbers[0]["clips"] == 2
    with pytest.raises(ConfigError, match="text-to-video pipeline cannot hold this run: it decodes frame by frame"):
        run_can_be_held(output_root=str(world[0]), run="lora")  # what is wrong is the model, not the stage


def test_from_latents_it_is_the_same_training(world, caplog):
    """An autoencoder that looks across frames is cached for clips as long as they are stored."""
    whole = ["data.clip.frames=8", "data.clip.height=32", "data.clip.width=32"]
    places = [world[1][0], f"run={world[0] / 'text'}", f"output={world[0] / 'caches'}", "num_workers=0", *whole]
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        precompute(hydra.compose("precompute", overrides=["data=shapes", "latent_dtype=float32", *places]))
    (folder,) = (world[0] / "caches").iterdir()
    given = [*TUNINGS["lora"], *whole, "trainer.max_steps=2"]
    plain = tune(world, "uncached", *given, "stage.cached=null")
    with caplog.at_level(logging.INFO):
        cached = tune(world, "cached", *given, f"stage.cached={folder}")
    assert "reading latent" in caplog.text
    one, other = (load_file(run.last_checkpoint() / "weights" / "backbone.safetensors") for run in (plain, cached))
    for name, tensor in one.items():
        torch.testing.assert_close(other[name], tensor)
