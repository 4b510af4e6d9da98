import pytest
import torch

from vdm.autoencoder.conv3d import Conv3dAutoencoder

SMALL = {
    "stride": (1, 4, 4),
    "latent_channels": 4,
    "channels": 8,
    "multipliers": (1, 2),
    "encoder_blocks": 1,
    "decoder_blocks": 1,
    "kernels": ((3, 3, 3), (3, 3, 3)),
    "edge_kernel": (3, 3, 3),
    "norm": "group",
    "norm_groups": 4,
    "padding": "replicate",
    "upsample": "transposed",
    "patch": (1, 1, 1),
    "shortcut": False,
    "channels_last": False,
    "tiling": None,
}


@pytest.fixture
def conv3d():
    """Makes a small 3D autoencoder; keywords change its settings."""

    def make(**settings):
        torch.manual_seed(0)
        return Conv3dAutoencoder(**SMALL | settings).eval()

    return make


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
