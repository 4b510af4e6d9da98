"""What a diffusers `AutoencoderKL` folder says about itself, as settings of `KL2dAutoencoder`. Light: torch is not needed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from vdm.errors import ConfigError

WEIGHTS = "diffusion_pytorch_model.safetensors"
CLASS = "AutoencoderKL"
FIXED = {"act_fn": "silu", "in_channels": 3, "out_channels": 3, "latents_mean": None, "latents_std": None}


def read_config(folder: str | Path, *, key: str = "autoencoder.pretrained") -> dict[str, Any]:
    """`config.json`, or a ConfigError where the folder holds something else."""
    folder = Path(folder)
    for file in (folder / "config.json", folder / WEIGHTS):
        if not file.is_file():
            raise ConfigError(
                "not a diffusers AutoencoderKL folder",
                key=key,
                got=str(folder),
                allowed=f"a folder with config.json and {WEIGHTS}",
                remedy=f"point {key} at the vae folder of a downloaded model, or set it to null",
            )
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConfigError("config.json cannot be read", key=key, got=f"{folder}: {error}") from None
    kind = config.get("_class_name", CLASS)
    blocks = set(config.get("down_block_types", [])) | set(config.get("up_block_types", []))
    widths = config["block_out_channels"]
    odd = {name: config[name] for name, value in FIXED.items() if config.get(name, value) != value}
    odd |= {"block_out_channels": widths} if any(width % widths[0] for width in widths) else {}
    if kind != CLASS or blocks - {"DownEncoderBlock2D", "UpDecoderBlock2D"} or odd:
        raise ConfigError(
            "this folder's network has parts that the 2D KL autoencoder has not",
            key=key,
            got=", ".join([kind, *sorted(blocks), *(f"{name}={value}" for name, value in odd.items())]),
            allowed="AutoencoderKL of DownEncoderBlock2D and UpDecoderBlock2D, silu, 3 colours, "
            "widths that are multiples of the first",
            remedy="use the vae folder of another model",
        )
    return config


def settings_from_diffusers(folder: str | Path, *, key: str = "autoencoder.pretrained") -> dict[str, Any]:
    """Arguments of the `KL2dAutoencoder` that a folder describes."""
    config = read_config(folder, key=key)
    widths = config["block_out_channels"]
    return {
        "latent_channels": config["latent_channels"],
        "channels": widths[0],
        "multipliers": [width // widths[0] for width in widths],
        "blocks": config.get("layers_per_block", 1),
        "norm_groups": config.get("norm_num_groups", 32),
        "attention": config.get("mid_block_add_attention", True),
        "quant_conv": config.get("use_quant_conv", True),
        "post_quant_conv": config.get("use_post_quant_conv", True),
        "pretrained": str(folder),
    }
