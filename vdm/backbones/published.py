"""What published weights of a U-Net say about themselves, as settings of `UNet3D`. Light: read before anything is built.

A source is a diffusers folder (of a video U-Net, or of Stable Diffusion's), or one file of LVDM or VideoCrafter.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vdm.errors import ConfigError, RunError

VIDEO, IMAGE = "UNet3DConditionModel", "UNet2DConditionModel"
FILES = (".ckpt", ".safetensors", ".pt", ".pth", ".bin")
RUNTIME = ("dropout", "temporal_dropout", "checkpoint_levels", "compile")  # of training: no folder decides them
TEXT = "text"  # the stream of the caption

# What the video U-Net of diffusers cannot change, by our names.
FIXED = {
    "heads": None,
    "depth": 1,
    "feed_forward_ratio": 4,
    "time_conditioning": "add",
    "temporal_conv": 4,
    "temporal_attention": "separate",
    "temporal_position": "none",
    "temporal_in_heads": 8,
    "coordinates": 0,
    "moments": 0,
}


def is_published(source: Any) -> bool:
    """Whether `init.backbone` is published weights, and not a run: a file of weights, or a path without run.json."""
    text = str(source)
    if text.endswith(FILES):
        return True
    if Path(text).is_dir():
        return not (Path(text) / "run.json").exists() and not (Path(text) / "checkpoints").is_dir()
    return os.sep in text


def read_config(folder: str | Path, *, key: str = "") -> dict[str, Any]:
    """`config.json` of a part of a diffusers folder."""
    try:
        config = json.loads((Path(folder) / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        remedy = "name the unet folder of a downloaded model, or check that the download is complete"
        reason = error.strerror if isinstance(error, OSError) else error
        got = f"{folder}: config.json: {reason}"
        raise RunError("not a diffusers folder", key=key, got=got, remedy=remedy) from None
    if not isinstance(config, dict):
        raise RunError("not a diffusers folder", key=key, got=f"{folder}: config.json holds no settings")
    return config


def settings_from_diffusers(config: Mapping[str, Any], *, key: str = "") -> dict[str, Any]:
    """Arguments of the `UNet3D` that a diffusers configuration describes, the text stream included."""
    widths = list(config.get("block_out_channels", (320, 640, 1280, 1280)))
    head_width = config.get("attention_head_dim", 64)
    kinds = config.get("down_block_types", ["CrossAttnDownBlock3D"] * 3 + ["DownBlock3D"])
    ups = config.get("up_block_types", ["UpBlock3D"] + ["CrossAttnUpBlock3D"] * 3)
    attends = [kind == "CrossAttnDownBlock3D" for kind in kinds]
    mirrored = [kind == "CrossAttnUpBlock3D" for kind in reversed(ups)]
    fixed = {"act_fn": "silu", "mid_block_scale_factor": 1, "downsample_padding": 1, "norm_eps": 1e-5}
    fixed |= {"time_cond_proj_dim": None, "num_attention_heads": None}
    odd = {name: config[name] for name, value in fixed.items() if config.get(name, value) != value}
    odd |= {"_class_name": config["_class_name"]} if config.get("_class_name", VIDEO) != VIDEO else {}
    odd |= {"attention_head_dim": head_width} if not isinstance(head_width, int) else {}
    odd |= {"block_out_channels": widths} if any(width % widths[0] for width in widths) else {}
    odd |= {"up_block_types": ups} if attends != mirrored else {}
    if config.get("in_channels", 4) != config.get("out_channels", 4):
        odd["out_channels"] = config["out_channels"]
    if odd:
        got = ", ".join(f"{name}={value}" for name, value in odd.items())
        what = f"this folder's network has parts that UNet3D has not; expected a {VIDEO}"
        raise ConfigError(what, key=key, got=got)
    return {
        "latent_channels": config.get("in_channels", 4),
        "channels": widths[0],
        "multipliers": [width // widths[0] for width in widths],
        "blocks": config.get("layers_per_block", 2),
        "attention_levels": [level for level, attending in enumerate(attends) if attending],
        "head_width": head_width,
        "norm_groups": config.get("norm_num_groups", 32),
        "dropout": 0.0,
        "temporal_dropout": 0.1,
        "temporal_max_distance": 1,
        "temporal_in_head_width": head_width,
        "streams": {TEXT: config.get("cross_attention_dim", 1024)},
        **FIXED,
    }


def settings_from_stable_diffusion(config: Mapping[str, Any], *, key: str = "") -> dict[str, Any]:
    """What a 2D U-Net of Stable Diffusion decides about a `UNet3D`: everything within a frame."""
    widths = list(config.get("block_out_channels", (320, 640, 1280, 1280)))
    downs = config.get("down_block_types", ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"])
    fixed = {"act_fn": "silu", "class_embed_type": None, "addition_embed_type": None, "encoder_hid_dim": None}
    fixed |= {"transformer_layers_per_block": 1, "resnet_time_scale_shift": "default", "num_class_embeds": None}
    odd = {name: config[name] for name, value in fixed.items() if config.get(name, value) != value}
    odd |= {"down_block_types": downs} if set(downs) - {"CrossAttnDownBlock2D", "DownBlock2D"} else {}
    odd |= {"block_out_channels": widths} if any(width % widths[0] for width in widths) else {}
    # What diffusers calls the width of a head in these networks is the number of heads.
    heads = config.get("num_attention_heads") or config.get("attention_head_dim", 8)
    per_level = list(heads) if isinstance(heads, Sequence) else [heads] * len(widths)
    head_widths = {width / count for width, count in zip(widths, per_level, strict=True)}
    if len(set(per_level)) > 1 and len(head_widths) > 1:
        odd["attention_head_dim"] = heads
    if odd:
        got = ", ".join(f"{name}={value}" for name, value in odd.items())
        raise ConfigError("this folder's network has parts that UNet3D has not", key=key, got=got)
    same_number = len(set(per_level)) == 1
    return {
        "latent_channels": config.get("in_channels", 4),
        "channels": widths[0],
        "multipliers": [width // widths[0] for width in widths],
        "blocks": config.get("layers_per_block", 2),
        "attention_levels": [level for level, kind in enumerate(downs) if kind == "CrossAttnDownBlock2D"],
        "heads": per_level[0] if same_number else None,
        "head_width": None if same_number else int(head_widths.pop()),
        "depth": 1,
        "feed_forward_ratio": 4,
        "norm_groups": config.get("norm_num_groups", 32),
        "time_conditioning": "add",
        "streams": {TEXT: config.get("cross_attention_dim", 768)},
    }


def described_by(folder: str | Path, *, key: str = "") -> dict[str, Any]:
    """The settings of a U-Net folder, whichever of the two kinds it holds."""
    config = read_config(folder, key=key)
    kind = config.get("_class_name")
    if kind not in (VIDEO, IMAGE):
        inside = (Path(folder) / "unet" / "config.json").is_file()
        remedy = f"name its unet: {key}={Path(folder) / 'unet'}" if inside else "name the unet folder of a model"
        raise ConfigError("this folder holds another network", key=key, got=f"{folder}: {kind}",
                          allowed=[VIDEO, f"{IMAGE}: its layers within a frame"], remedy=remedy)  # fmt: skip
    settings = settings_from_diffusers if kind == VIDEO else settings_from_stable_diffusion
    return settings(config, key=key)


def trained_to_predict(source: str | Path) -> str | None:
    """By our names, where the model's scheduler beside the folder says so. LVDM and VideoCrafter predict the noise."""
    if not Path(source).is_dir():
        return "epsilon"
    try:
        text = (Path(source).parent / "scheduler" / "scheduler_config.json").read_text(encoding="utf-8")
        kind = json.loads(text).get("prediction_type", "epsilon")
    except (OSError, ValueError, AttributeError):
        return None
    return {"v_prediction": "v", "sample": "x0"}.get(kind, kind)


def what_diffusers_lacks(backbone: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Settings of a backbone that the video U-Net of diffusers cannot express: what they are, and what it has."""
    expected = FIXED | {"temporal_in_head_width": backbone.get("head_width")}
    return {name: (backbone.get(name), fits) for name, fits in expected.items() if backbone.get(name) != fits}


# Named by `checks` in conf/: said before anything is built.


def backbone_fits(*, init: Mapping[str, Any], backbone: Mapping[str, Any], condition: Mapping[str, Any]) -> None:
    """The weights named in `init.backbone` are there, and of the network that this command builds."""
    source = init.get("backbone")
    if source is None or not is_published(source):
        return
    key, path = "init.backbone", Path(str(source))
    if not path.exists():
        what = "this file is not there" if str(source).endswith(FILES) else "this folder is not there"
        raise RunError(what, key=key, got=source, remedy="download the weights, or name a run of stage=vdm")
    if not path.is_dir():
        return  # the shapes of its tensors are compared when it is read
    if not (path / "config.json").is_file() and (path / "unet" / "config.json").is_file():
        raise ConfigError("this is a whole model", key=key, got=source, allowed="its U-Net",
                          remedy=f"set {key}={path / 'unet'}, or init.diffusers={path} for all of its parts")  # fmt: skip
    described = described_by(path, key=key)
    if TEXT not in (condition or {}):
        remedy = "leave out condition=[], or begin without these weights"
        raise ConfigError("these weights hear a caption", key="condition", got="no caption", remedy=remedy)
    width = described.pop("streams")[TEXT]
    ignored = (*RUNTIME, *(("temporal_max_distance",) if described.get("temporal_position") == "none" else ()))
    _compare({name: value for name, value in described.items() if name not in ignored}, backbone, source)
    own = token_width(condition)
    if own not in (None, width):
        raise ConfigError("these weights read the caption in tokens of another width", key="condition",
                          got=f"{own}, of condition.{TEXT}", allowed=width,
                          remedy="take the text encoder that they were trained with: condition=[text_clip_l]")  # fmt: skip


def _compare(described: Mapping[str, Any], backbone: Mapping[str, Any], source: Any) -> None:
    own = dict(backbone)
    if _head_counts(described) == _head_counts(own):  # the same heads, said by their number or by their width
        described = {name: value for name, value in described.items() if name not in ("heads", "head_width")}
    other = {name: value for name, value in described.items() if own.get(name) != value}
    if not other:
        return
    name = next(iter(other))
    words = " ".join(f"backbone.{key}={_for_hydra(value)}" for key, value in other.items())
    remedy = f"set {words}" + ("" if len(other) < 4 else "; backbone=modelscope has most of it")
    raise ConfigError(f"these weights are of another network: {source}", key=f"backbone.{name}", got=own.get(name),
                      allowed=other[name], remedy=remedy)  # fmt: skip


def _head_counts(settings: Mapping[str, Any]) -> list[int | None]:
    widths = [settings["channels"] * multiplier for multiplier in settings["multipliers"]]
    return [settings.get("heads") or width // (settings.get("head_width") or width) for width in widths]


def _for_hydra(value: Any) -> str:
    return "null" if value is None else str(value).replace(" ", "")


def token_width(condition: Mapping[str, Any]) -> int | None:
    """Width of the caption's tokens, where settings or a folder tell."""
    encoder = ((condition.get(TEXT) or {}) if condition else {}).get("encoder") or {}
    if "width" in encoder:
        return encoder["width"]
    folder = Path(str(encoder.get("folder", "")))
    folder = folder / "text_encoder" if (folder / "text_encoder").is_dir() else folder
    if not str(encoder.get("_target_", "")).endswith("ClipEncoder") or not (folder / "config.json").is_file():
        return None
    config = read_config(folder, key=f"condition.{TEXT}.encoder.folder")
    return (config.get("text_config") or config).get("hidden_size")
