"""An image model inside the video network: every frame comes out as the image model makes it."""

import pytest
import torch

from tests.backbones.conftest import SMALL, randomise
from vdm.backbones.stable_diffusion import load_stable_diffusion, temporal_keys
from vdm.backbones.unet3d import UNet3D
from vdm.errors import ConfigError, RunError
from vdm.types import Controls, Tokens

diffusers = pytest.importorskip("diffusers")

FAMILIES = {  # how Stable Diffusion 1 and 2 say their heads and projections
    "sd1": ({"attention_head_dim": 4, "use_linear_projection": False}, {"heads": 4, "head_width": None}),
    "sd2": ({"attention_head_dim": [2, 4], "use_linear_projection": True}, {"heads": None, "head_width": 8}),
}


@pytest.fixture(params=FAMILIES)
def image_model(request):
    theirs, ours = FAMILIES[request.param]
    peer = diffusers.UNet2DConditionModel(
        in_channels=4,
        out_channels=4,
        block_out_channels=(16, 32),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        layers_per_block=1,
        cross_attention_dim=12,
        norm_num_groups=8,
        **theirs,
    )
    settings = {
        "latent_channels": 4,
        "channels": 16,
        "norm_groups": 8,
        "feed_forward_ratio": 4,
        "streams": {"text": 12},
    }
    return randomise(peer).eval(), SMALL | settings | ours


@pytest.mark.parametrize("arrangement", ["separate", "interleaved"])
def test_every_frame_is_what_the_image_model_makes(image_model, arrangement, tmp_path):
    peer, settings = image_model
    peer.save_pretrained(tmp_path)
    video = UNet3D(**(settings | {"temporal_attention": arrangement})).eval()
    report = load_stable_diffusion(video, tmp_path)
    assert set(report.missing) == set(temporal_keys(video))
    x, timestep, tokens = torch.randn(2, 4, 3, 8, 8), torch.tensor([20, 900]), torch.randn(2, 5, 12)
    with torch.no_grad():
        got = video(x, timestep, Controls(tokens={"text": Tokens(tokens)}))
        for t in range(3):
            expected = peer(x[:, :, t], timestep, tokens).sample
            assert (got[:, :, t] - expected).abs().max() < 1e-4


def test_doors_may_stay_and_other_gaps_are_errors(image_model, tmp_path):
    peer, settings = image_model
    peer.save_pretrained(tmp_path)
    video = UNet3D(**settings, concat_channels=8)
    with pytest.raises(RunError, match="concat_in"):
        load_stable_diffusion(video, tmp_path)
    assert "concat_in.weight" in load_stable_diffusion(video, tmp_path, doors=["concat"]).missing
    with pytest.raises(RunError):
        load_stable_diffusion(UNet3D(**(settings | {"blocks": 2})), tmp_path)
    peer3d = diffusers.UNet3DConditionModel(block_out_channels=(32, 32, 32, 32), layers_per_block=1)
    peer3d.save_config(tmp_path / "other")
    with pytest.raises(ConfigError, match="not the folder of a 2D"):
        load_stable_diffusion(video, tmp_path / "other")
