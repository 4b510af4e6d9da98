"""Every file of conf/backbone: it composes, fits the constructor, builds, and has the size it says."""

from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import OmegaConf

from vdm.config import check_resolved
from vdm.types import Controls, Tokens

CONF = Path(__file__).resolve().parents[2] / "conf"
PRESETS = sorted(path.stem for path in (CONF / "backbone").glob("*.yaml"))
MILLIONS = {"tiny": 1.42, "small": 236.7, "unet3d": 236.7, "lvdm": 965.3, "modelscope": 1411.2}  # with text


def build(name: str, *overrides: str, text: int):
    with initialize_config_dir(str(CONF), version_base=None):
        composed = compose(f"backbone/{name}", [f"backbone.{override}" for override in overrides])
    config = OmegaConf.merge({"autoencoder": {"latent_channels": 4}}, composed)
    plain = OmegaConf.to_container(config, resolve=True)
    check_resolved({"backbone": plain["backbone"]})
    return instantiate(plain["backbone"], streams={"text": text}, _convert_="all")


@pytest.mark.parametrize("name", PRESETS)
def test_presets_build(name):
    with torch.device("meta"):
        network = build(name, text=64 if name == "tiny" else 768 if name == "lvdm" else 1024)
    millions = sum(parameter.numel() for parameter in network.parameters()) / 1e6
    assert millions == pytest.approx(MILLIONS[name], rel=0.05)


def test_lvdm_has_the_attention_blocks_of_the_paper():
    with torch.device("meta"):
        network = build("lvdm", text=768)
    blocks = [cell.spatial is not None for cell in network.cells()]
    assert (sum(blocks[:8]), sum(blocks[8:10]), sum(blocks[10:])) == (6, 1, 9)


def test_tiny_overfits_one_clip():
    """A few steps on one batch: the loss must fall far below that of predicting nothing."""
    torch.manual_seed(0)
    network = build("tiny", text=16)
    clip, noise = torch.randn(2, 4, 2, 8, 8), torch.randn(2, 4, 2, 8, 8)
    said = Controls(tokens={"text": Tokens(torch.randn(2, 3, 16))})
    optimizer = torch.optim.AdamW(network.parameters(), lr=4e-3)
    for _ in range(25):
        optimizer.zero_grad()
        loss = (network(0.7 * clip + 0.7 * noise, torch.tensor([300.0, 600.0]), said) - noise).square().mean()
        loss.backward()
        optimizer.step()
    assert loss < 0.6
