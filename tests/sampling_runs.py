"""Runs with small random networks, as training leaves them, and the sampling command as a user calls it."""

import hydra
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf

from vdm import checkpoint, config
from vdm.conditions.base import ConditionSet
from vdm.launch import CONF
from vdm.runs import Run
from vdm.sampling.command import sample
from vdm.sampling.request import verbatim

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


def ask(root, *overrides):
    """As the command line does: composed, checked, run."""
    arguments = verbatim(overrides, keys=("prompt", "negative_prompt", "prompts", "output", "run"))
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = hydra.compose("sample", overrides=[f"paths.output_root={root}", "sampler.num_steps=3", *arguments])
    config.check(cfg, set(cfg))
    return sample(cfg)
