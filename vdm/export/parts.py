"""The parts of a diffusers folder, made of ours: the autoencoder, the text encoder with its tokenizer, the scheduler.

The U-Net writes itself (`vdm.backbones.modelscope`).
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from vdm.autoencoder.kl2d import KL2dAutoencoder
from vdm.autoencoder.published import CLASS, WEIGHTS
from vdm.conditions.encoders.clip import ClipEncoder
from vdm.conditions.presence import text_folders
from vdm.export.request import PREDICTIONS

TOKENIZER_FILES = (
    "vocab.json",
    "merges.txt",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
)
SCHEDULERS = {"ddim": "DDIMScheduler", "dpm_solver": "DPMSolverMultistepScheduler"}


def write_autoencoder(autoencoder: KL2dAutoencoder, settings: Mapping[str, Any], folder: Path) -> None:
    """`settings` are those that it was built with."""
    state, scaling = in_their_scale(autoencoder)
    widths = [settings["channels"] * multiplier for multiplier in settings["multipliers"]]
    config = {
        "_class_name": CLASS,
        "in_channels": 3,
        "out_channels": 3,
        "block_out_channels": widths,
        "down_block_types": ["DownEncoderBlock2D"] * len(widths),
        "up_block_types": ["UpDecoderBlock2D"] * len(widths),
        "layers_per_block": settings["blocks"],
        "act_fn": "silu",
        "latent_channels": settings["latent_channels"],
        "norm_num_groups": settings["norm_groups"],
        "mid_block_add_attention": settings["attention"],
        "use_quant_conv": "quant_conv.weight" in state,
        "use_post_quant_conv": "post_quant_conv.weight" in state,
        "scaling_factor": scaling,
    }
    write_json(folder / "config.json", config)
    _write_tensors(state, folder / WEIGHTS)


def in_their_scale(autoencoder: KL2dAutoencoder) -> tuple[dict[str, Tensor], float]:
    """Tensors, and the one factor of latents that diffusers' pipeline knows.

    A shift, or a scale for each channel, goes into the 1 x 1 convolutions next to the latent, exactly.
    """
    state = {name: tensor for name, tensor in autoencoder.state_dict().items() if not name.startswith("latent_")}
    shift, scale = autoencoder.latent_shift.double(), autoencoder.latent_scale.double()
    if not shift.any() and (scale == scale[0]).all():
        return state, scale[0].item()
    c = len(scale)
    weight, bias = _pointwise(state, "quant_conv", 2 * c)  # to means and log variances
    both = torch.cat([scale, torch.ones_like(scale)])
    offset = torch.cat([-shift * scale, 2 * scale.log()])
    state |= {"quant_conv.weight": weight * both.view(-1, 1, 1, 1), "quant_conv.bias": bias * both + offset}
    weight, bias = _pointwise(state, "post_quant_conv", c)
    moved = bias + weight[..., 0, 0] @ shift
    state |= {"post_quant_conv.weight": weight / scale.view(1, -1, 1, 1), "post_quant_conv.bias": moved}
    return {name: tensor.float() for name, tensor in state.items()}, 1.0


def _pointwise(state: Mapping[str, Tensor], name: str, channels: int) -> tuple[Tensor, Tensor]:
    """A convolution of the latent in double precision; where there is none, one that changes nothing."""
    if f"{name}.weight" in state:
        return state[f"{name}.weight"].double(), state[f"{name}.bias"].double()
    weight = torch.eye(channels, dtype=torch.float64).view(channels, channels, 1, 1)
    return weight, torch.zeros(channels, dtype=torch.float64)


def write_text_encoder(encoder: ClipEncoder, source: str, folder: Path) -> None:
    """`text_encoder` and `tokenizer`. The tokenizer's files come from the folder that the encoder was read from."""
    network, weights, tokenizer = encoder.network, folder / "text_encoder", folder / "tokenizer"
    config = network.config.to_dict()
    body = getattr(network, "text_model", network)
    config |= {"architectures": ["CLIPTextModel"], "model_type": "clip_text_model"}
    config["num_hidden_layers"] = len(body.encoder.layers)  # one less where the last is not heard
    write_json(weights / "config.json", config)
    # Every version of transformers reads the names with their prefix; newer ones also without.
    state = {f"text_model.{name.removeprefix('text_model.')}": tensor for name, tensor in network.state_dict().items()}
    _write_tensors(state, weights / "model.safetensors")
    tokenizer.mkdir()
    _, origin = text_folders(Path(source), "condition.text.encoder")
    for name in TOKENIZER_FILES:
        if (origin / name).is_file():
            shutil.copyfile(origin / name, tokenizer / name)
    settings_file = tokenizer / "tokenizer_config.json"
    settings = json.loads(settings_file.read_text(encoding="utf-8")) if settings_file.is_file() else {}
    write_json(settings_file, settings | {"model_max_length": encoder.length})


def scheduler_config(objective: Mapping[str, Any], sampler: Mapping[str, Any]) -> dict[str, Any]:
    """What a scheduler of diffusers must be told to go the way of a sampler of ours on the schedule of training."""
    schedule = objective["schedule"]
    kind, name = schedule["_target_"].rpartition(".")[2], sampler["_target_"].rpartition(".")[2]
    config = {
        "_class_name": SCHEDULERS[name],
        "num_train_timesteps": schedule["num_timesteps"],
        "prediction_type": PREDICTIONS[objective["prediction"]],
        "rescale_betas_zero_snr": schedule["zero_terminal_snr"],
        "timestep_spacing": sampler["spacing"],
        "steps_offset": sampler["offset"],
        "thresholding": False,
    }
    if kind == "cosine":
        config["trained_betas"] = _betas(schedule)
    else:
        config |= {"beta_schedule": kind, "beta_start": schedule["beta_start"], "beta_end": schedule["beta_end"]}
    if name == "ddim":
        return config | {"clip_sample": False, "set_alpha_to_one": sampler["end"] == "clean"}
    return config | {
        "algorithm_type": "dpmsolver++",
        "solver_type": "midpoint",
        "solver_order": 2,
        "lower_order_final": sampler["lower_order_final"],
        "final_sigmas_type": "zero" if sampler["end"] == "clean" else "sigma_min",
    }


def _betas(schedule: Mapping[str, Any]) -> list[float]:
    from vdm.diffusion.schedule import cosine

    plain = {name: value for name, value in schedule.items() if name != "_target_"} | {"zero_terminal_snr": False}
    kept = cosine(**plain).alphas ** 2
    return [1 - kept[0].item(), *(1 - kept[1:] / kept[:-1]).tolist()]


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _write_tensors(state: Mapping[str, Tensor], path: Path) -> None:
    save_file({name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}, path, {"format": "pt"})
