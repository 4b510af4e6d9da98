"""What can be exported, said from the settings of a run before anything is built."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vdm import restore
from vdm.backbones.published import TEXT, what_diffusers_lacks
from vdm.bounds import NonNegativeInt
from vdm.errors import ConfigError, RunError

STAGES = ("vdm", "finetune")
INDEX = "model_index.json"
PREDICTIONS = {"epsilon": "epsilon", "v": "v_prediction", "x0": "sample"}
SCHEDULES = ("linear", "scaled_linear", "cosine")
# Where the steps of a sampler are those of the scheduler of the same name.
SPACINGS = {"ddim": ("trailing", "leading"), "dpm_solver": ("trailing", "leading", "linspace")}


def is_possible(
    *, to: str | None, step: NonNegativeInt | None, ema: bool, overwrite: bool, sampler: Mapping[str, Any]
) -> None:
    if to is None or not str(to).strip():
        raise ConfigError("the export needs a place", key="to", got=to, remedy="give it: to=<folder>")
    folder = Path(str(to))
    if folder.exists() and not overwrite:
        raise RunError("this folder is there already", key="to", got=folder,
                       remedy="name another one, or replace it with overwrite=true")  # fmt: skip
    if folder.exists() and not (folder / INDEX).is_file():
        raise RunError("only a model folder is replaced, and this is something else", key="to", got=folder,
                       allowed=f"a folder with {INDEX}", remedy="name another folder")  # fmt: skip
    name = str(sampler.get("_target_")).rpartition(".")[2]
    if name not in SPACINGS:
        raise ConfigError("no scheduler of diffusers makes the steps of this sampler", key="sampler", got=name,
                          allowed=list(SPACINGS), remedy="set sampler=dpm_solver")  # fmt: skip
    if sampler["spacing"] not in SPACINGS[name]:
        raise ConfigError("diffusers' scheduler goes another way with this spacing", key="sampler.spacing",
                          got=sampler["spacing"], allowed=SPACINGS[name])  # fmt: skip


def run_can_be_held(*, output_root: str, run: str | int | None) -> None:
    chosen = restore.chosen_run(output_root, run, stage=STAGES)
    settings = restore.settings_of(chosen, needs=restore.VIDEO_MODEL)
    for name in restore.VIDEO_MODEL:
        restore.checked(settings, name, chosen)
    fits_diffusers(settings)


def fits_diffusers(settings: Mapping[str, Any]) -> None:
    """A ConfigError that names the first part which diffusers' text-to-video pipeline has no place for."""
    instead = "or make the videos with sample.py"
    coder, backbone = settings["autoencoder"], settings["backbone"]
    if _name(coder) != "KL2dAutoencoder":
        raise _unfit("it decodes frame by frame", "autoencoder", _name(coder), "KL2dAutoencoder",
                     f"train with autoencoder=kl2d, {instead}")  # fmt: skip
    others = sorted(set(settings["condition"]) - {TEXT})
    encoder = (settings["condition"].get(TEXT) or {}).get("encoder") or {}
    if others or _name(encoder) != "ClipEncoder":
        got = ", ".join([*others, *([_name(encoder)] if encoder else ["no caption"])])
        raise _unfit("it hears a caption, read by CLIP of transformers, and nothing else", "condition", got,
                     "text with a ClipEncoder", f"train with condition=[text_clip_l], {instead}")  # fmt: skip
    lacks = what_diffusers_lacks(backbone)
    if _name(backbone) != "UNet3D" or lacks:
        name, (got, fits) = next(iter(lacks.items()), ("_target_", (_name(backbone), "UNet3D")))
        raise _unfit("its U-Net is ModelScope's", f"backbone.{name}", got, fits,
                     f"train with backbone=modelscope in any size, {instead}")  # fmt: skip
    if settings["condition"][TEXT].get("pooled"):
        raise _unfit("its timestep embedding hears no caption", "condition.text.pooled", True, [False],
                     f"train with condition.text.pooled=false, {instead}")  # fmt: skip
    objective = settings["objective"]
    if objective.get("shared_noise"):
        raise _unfit("it draws the noise of every frame by itself", "objective.shared_noise", objective["shared_noise"],
                     [0.0], f"train with objective.shared_noise=0, {instead}")  # fmt: skip
    schedule = _name(objective.get("schedule") or {})
    if schedule not in SCHEDULES:
        raise _unfit("it samples from schedules that keep the variance", "objective.schedule", schedule, SCHEDULES,
                     f"train with objective=v or objective=epsilon, {instead}")  # fmt: skip
    if objective["prediction"] not in PREDICTIONS:
        raise _unfit("its schedulers read other predictions", "objective.prediction", objective["prediction"],
                     list(PREDICTIONS), f"train with objective=v or objective=epsilon, {instead}")  # fmt: skip


def _name(node: Mapping[str, Any]) -> str:
    return str(node.get("_target_")).rpartition(".")[2]


def _unfit(why: str, key: str, got: Any, allowed: Any, remedy: str) -> ConfigError:
    what = f"diffusers' text-to-video pipeline cannot hold this run: {why}"
    return ConfigError(what, key=key, got=f"{got}, in the run's settings", allowed=allowed, remedy=remedy)
