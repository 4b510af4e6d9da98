"""What a stage takes over: which run `init.<network>=auto` means, what is in a published model, how these networks are built.

Light and early: the configuration is completed here before it is checked, so that every check sees the network that will
be there and not the one a default names.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf, open_dict

from vdm import runs
from vdm.autoencoder import published as published_autoencoder
from vdm.backbones import published
from vdm.errors import ConfigError, DataError, RunError
from vdm.runs import Run

log = logging.getLogger(__name__)

STAGE_OF = {"autoencoder": "autoencoder", "backbone": "vdm", "conditions": "vdm"}  # which trains a network
FOLLOWED = ("autoencoder", "backbone", "objective", "condition", "scene_encoder")  # groups that come from init.vdm
GRAPHS = "scene_graph"  # the condition that stage=dysen needs
TUNED = "finetune"  # the stage that goes on with any video model, on any data
VIDEO_MODELS = ("dysen", "vdm", TUNED)  # stages that train one
RUN_OF = {
    "llm.run": "language",
    "llm.plans.run": "language",
    "selector.run": "planner",
}  # settings that name a run of a stage
CONF = Path(__file__).resolve().parents[1] / "conf"


def adopt(cfg: DictConfig) -> None:
    """Write run names in the place of `auto`, and the settings of a network of an earlier stage in the place of its group."""
    for key, stage in RUN_OF.items():
        if OmegaConf.select(cfg, key) == "auto":
            _name_run(cfg, key, stage)
    if OmegaConf.select(cfg, "init") is None or OmegaConf.select(cfg, "stage.name") is None:
        return
    for key, split in (("stage.planned", "train_split"), ("stage.planned_val", "val_split")):
        if OmegaConf.select(cfg, f"{key}.folder") == "auto":
            _name_plans(cfg, f"{key}.folder", str(cfg.data[split]))
    if OmegaConf.select(cfg, "init.vdm") is not None:
        _follow(cfg)
        return
    if OmegaConf.select(cfg, "init.diffusers") is not None:
        _take_apart(cfg, Path(str(cfg.init.diffusers)))
    for network in [str(name) for name in cfg.init]:
        wanted = cfg.init[network]
        if wanted is None or network not in STAGE_OF or is_published(network, wanted):
            continue
        own = _own_record(cfg) if wanted == "auto" else None
        if own is not None and (own.get("init") or {}).get(network):
            _write(cfg, network, own["init"][network], own)
            continue
        parent = _newest(cfg, network) if wanted == "auto" else runs.find(
            str(cfg.paths.output_root), str(wanted), key=f"init.{network}"
        )  # fmt: skip
        _write(cfg, network, parent.name if wanted == "auto" else str(wanted), _record(parent, network))


def _name_run(cfg: DictConfig, key: str, stage: str) -> None:
    own = _own_record(cfg) if OmegaConf.select(cfg, "stage.name") is not None else None
    recorded = OmegaConf.select(OmegaConf.create(own), key) if own is not None else None
    root = str(cfg.paths.output_root)
    if recorded is None:
        parent = runs.newest_complete(root, stage)
        if parent is None:
            remedy = f"train one first: python train.py stage={stage}; or name a run: {key}=<run>"
            raise RunError(f"this takes the newest complete run of stage={stage}, and there is none", key=key,
                           got=f"auto, in {root}", remedy=remedy)  # fmt: skip
        recorded = parent.name
        log.info("%s: the newest complete run of stage=%s is %s", key, stage, recorded)
    OmegaConf.update(cfg, key, recorded)


def _name_plans(cfg: DictConfig, key: str, split: str) -> None:
    own = _own_record(cfg)
    recorded = OmegaConf.select(OmegaConf.create(own), key) if own is not None else None
    if recorded is None:
        recorded = str(newest_plans(str(cfg.data.root), str(cfg.data.name), split, key=key))
        log.info("%s: the newest plans of this split are %s", key, recorded)
    OmegaConf.update(cfg, key, recorded)


def newest_plans(root: str, data: str, split: str, *, key: str) -> Path:
    """Of those of a split that are finished and no trial."""
    folder = Path(root) / split / "plans"
    done = sorted(folder.glob("*/report.json"), key=lambda path: path.stat().st_mtime)
    whole = [path.parent for path in done if _is_whole(path.parent)]
    if not whole:
        remedy = f"make them: python -m dysen.plan data={data} split={split}; or name a folder: {key}=<folder>"
        raise RunError("this takes planned scene graphs, and there are none of this split", key=key,
                       got=f"auto, in {folder}", remedy=remedy)  # fmt: skip
    return whole[-1]


def _is_whole(plans: Path) -> bool:
    try:
        return json.loads((plans / "planner.json").read_text(encoding="utf-8"))["limit"] is None
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _follow(cfg: DictConfig) -> None:
    """Goes on with a video model: all its networks, their settings and what they read. stage=dysen needs one that hears
    scene graphs; stage=finetune takes any, and may say more to it than its parent did."""
    asked, is_tuned = str(cfg.init.vdm), cfg.stage.name == TUNED
    own = _own_record(cfg) if asked == "auto" else None
    wanted = str((own or {}).get("init", {}).get("vdm") or asked)
    if wanted == "auto":
        parent = _newest_video_model(cfg) if is_tuned else _newest_with_graphs(cfg)
    else:
        stages = VIDEO_MODELS if is_tuned else None
        parent = runs.find(str(cfg.paths.output_root), wanted, key="init.vdm", stage=stages)
    record = _record(parent, "vdm")
    if not is_tuned and GRAPHS not in (record.get("condition") or {}):
        raise RunError("this run hears no scene graphs", key="init.vdm", got=parent.name,
                       remedy=f"train a parent that does: {_with_graphs(cfg)}; or leave out init.vdm")  # fmt: skip
    name = parent.name if wanted == "auto" else wanted
    given = [key for key in _given() if key.split(".")[0] in FOLLOWED or key == "data.extras"]
    if is_tuned:
        given = [key for key in given if key not in ("condition", "data.extras")]
        _check_added(record, name)
    for key in given:
        if key in FOLLOWED or key.startswith("scene_encoder."):
            raise ConfigError(f"this is as in the parent {name}", key=key,
                              remedy="leave it out, or name another parent with init.vdm=<run>")  # fmt: skip
    kept = {key: OmegaConf.select(cfg, key) for key in given}
    with open_dict(cfg):
        cfg.init.vdm = name
        for network in STAGE_OF:
            if cfg.init[network] not in (None, "auto", name):
                raise ConfigError(f"the networks of stage={cfg.stage.name} are of one run", key=f"init.{network}",
                                  got=cfg.init[network], remedy=f"leave it out, and name their run: init.vdm={name}")  # fmt: skip
            cfg.init[network] = name
        added = cfg.get("condition")
        for group in FOLLOWED:
            cfg[group] = record.get(group)
        if cfg.autoencoder.get("pretrained") is not None:
            cfg.autoencoder.pretrained = None  # the run has weights of its own
        read = (record.get("data") or {}).get("extras") or []
        if is_tuned:
            _hear_more(cfg, added, [*read, *((record.get("data") or {}).get("extras_if_there") or [])])
        else:
            cfg.data.extras = read
        for key, value in kept.items():
            OmegaConf.update(cfg, key, value, force_add=True)


def _check_added(record: dict[str, Any], parent: str) -> None:
    """Conditions that are named come on top of the parent's."""
    chosen = HydraConfig.get().runtime.choices.get("condition") if HydraConfig.initialized() else None
    words = re.findall(r"\w+", str(chosen or ""))
    known = [word for word in words if word in (record.get("condition") or {})]
    if known:
        raise ConfigError(f"the parent {parent} hears this already", key="condition", got=", ".join(known),
                          remedy="name only what comes on top, or leave out condition")  # fmt: skip


def _hear_more(cfg: DictConfig, added: DictConfig | None, read: list[str]) -> None:
    """The parent's conditions with what is set differently here, and new ones; clips may lack what the parent's read."""
    conditions = OmegaConf.create(cfg.condition or {})
    for name, node in (added or {}).items():
        if node is None or (name not in conditions and "_target_" not in node):
            raise ConfigError("the parent hears other things", key=f"condition.{name}", allowed=list(conditions),
                              remedy="settings of its conditions may change; none can be left out")  # fmt: skip
        is_change = name in conditions and "_target_" not in node
        conditions[name] = OmegaConf.merge(conditions[name], node) if is_change else node
    for node in conditions.values():
        if "clip_frames" in node:
            node.clip_frames = cfg.data.clip.frames  # of this data
    read += [node[key] for node in conditions.values() for key in ("reads", "times") if node.get(key) is not None]
    cfg.condition = conditions
    cfg.data.extras_if_there = [name for name in dict.fromkeys(read) if name not in cfg.data.extras]


def _newest_video_model(cfg: DictConfig) -> Run:
    """Of stage=dysen, else of stage=vdm, whatever it was trained on."""
    root = str(cfg.paths.output_root)
    for stage in VIDEO_MODELS[:2]:
        parent = runs.newest_complete(root, stage)
        if parent is not None:
            log.info("init.vdm: the newest complete run of stage=%s is %s, trained on %s", stage, parent.name,
                     parent.info.get("data"))  # fmt: skip
            return parent
    raise RunError(
        f"stage={TUNED} goes on with a complete run of stage=dysen or stage=vdm, and there is none",
        key="init.vdm",
        got=f"auto, in {root}",
        remedy="train one first: python train.py stage=vdm data=<data>; or name a run: init.vdm=<run>",
    )


def _given() -> list[str]:
    """Keys and groups that the command sets."""
    task = HydraConfig.get().overrides.task if HydraConfig.initialized() else []
    return [override.lstrip("+~").partition("=")[0].partition("@")[0] for override in task]


def _with_graphs(cfg: DictConfig) -> str:
    return f"python train.py stage=vdm condition=[text,{GRAPHS}] data={cfg.data.name}"


def _newest_with_graphs(cfg: DictConfig) -> Run:
    root, data = str(cfg.paths.output_root), str(cfg.data.name)

    def hears(run: Run) -> bool:
        return GRAPHS in (_record(run, "vdm").get("condition") or {})

    parent = runs.newest_complete(root, "vdm", data, suits=hears)
    if parent is None:
        raise RunError(
            f"stage={cfg.stage.name} goes on with a complete run of stage=vdm that hears scene graphs, and there is none",
            key="init.vdm",
            got=f"auto, in {root}",
            remedy=f"train one first: {_with_graphs(cfg)}; or name a run: init.vdm=<run>",
        )
    log.info("init.vdm: the newest complete run of stage=vdm that hears scene graphs is %s", parent.name)
    return parent


def _newest(cfg: DictConfig, network: str) -> Run:
    root, stage, data = str(cfg.paths.output_root), STAGE_OF[network], str(cfg.data.name)
    parent = runs.newest_complete(root, stage, data)
    if parent is None:
        raise RunError(
            f"stage={cfg.stage.name} starts from a complete run of stage={stage}, and there is none",
            key=f"init.{network}",
            got=f"auto, in {root}",
            remedy=f"train one first: python train.py stage={stage} data={data}; or name a run: init.{network}=<run>",
        )
    trained_on = parent.info.get("data")
    other = "" if trained_on == data else f", trained on {trained_on}"
    log.info("init.%s: the newest complete run of stage=%s is %s%s", network, stage, parent.name, other)
    return parent


def _own_record(cfg: DictConfig) -> dict[str, Any] | None:
    """A run with a chosen name keeps the parent that it began with."""
    chosen = OmegaConf.select(cfg, "run.id")
    if chosen is None or cfg.resume == "never":
        return None
    runs.id_is_a_name(id=chosen)
    run = Run(runs.folder_of(cfg, str(chosen)))
    if run.last_checkpoint() is None or run.info.get("stage") != cfg.stage.name:
        return None
    return _record(run, "run")


def _record(run: Run, network: str) -> dict[str, Any]:
    try:
        return OmegaConf.to_container(OmegaConf.load(run.folder / "config.yaml"))
    except (OSError, ValueError) as error:
        remedy = "name another run, or restore its config.yaml"
        raise RunError("config.yaml cannot be read", key=f"init.{network}", got=f"{run.name}: {error}",
                       remedy=remedy) from None  # fmt: skip


def _write(cfg: DictConfig, network: str, run: str, record: dict[str, Any]) -> None:
    with open_dict(cfg):
        cfg.init[network] = run
        if STAGE_OF[network] == cfg.stage.name or (cfg.stage.name == TUNED and network != "autoencoder"):
            return  # trained on here: built as this command says, and the weights must fit
        settings = record.get(network)
        if not isinstance(settings, dict):
            raise RunError("this run has no such network", key=f"init.{network}", got=run, allowed=sorted(record))
        if "pretrained" in settings:
            settings["pretrained"] = None  # the run has weights of its own
        cfg[network] = OmegaConf.create(settings)


def is_published(network: str, wanted: Any) -> bool:
    """Whether a backbone begins with published weights, and not with those of a run."""
    return network == "backbone" and published.is_published(wanted)


def _take_apart(cfg: DictConfig, folder: Path) -> None:
    """The U-Net, the autoencoder and the text encoder of a published model, each where the command names nothing else."""
    key = "init.diffusers"
    absent = [part for part in ("unet", "vae", "text_encoder", "tokenizer") if not (folder / part).is_dir()]
    if absent:
        raise ConfigError("no text-to-video model of diffusers is found here, and nothing is downloaded", key=key,
                          got=f"{folder}, without {', '.join(absent)}" if folder.is_dir() else f"{folder}: no folder",
                          remedy="name the downloaded folder, such as text-to-video-ms-1.7b")  # fmt: skip
    unet, vae = str(folder / "unet"), str(folder / "vae")
    with open_dict(cfg):
        if cfg.init.backbone in (None, unet):
            settings = published.described_by(unet, key=key)
            if "temporal_conv" not in settings:
                raise ConfigError("the U-Net of this model makes images", key=key, got=folder,
                                  remedy=f"set init.backbone={unet} for its layers within a frame")  # fmt: skip
            del settings["streams"]  # the condition opens its own
            own = {name: cfg.backbone[name] for name in published.RUNTIME if name in cfg.backbone}
            cfg.init.backbone = unet
            cfg.backbone = {"_target_": "vdm.backbones.unet3d.UNet3D", **settings, **own}
        if cfg.init.autoencoder in (None, "auto") and cfg.autoencoder.get("pretrained") in (None, vae):
            settings = published_autoencoder.settings_from_diffusers(vae, key=key)
            cfg.init.autoencoder = None
            cfg.autoencoder = OmegaConf.merge(OmegaConf.load(CONF / "autoencoder" / "kl2d.yaml"), settings)
        if published.TEXT in (cfg.get("condition") or {}):
            clip = OmegaConf.load(CONF / "condition" / "text_clip_l.yaml")[published.TEXT].encoder
            encoder = cfg.condition[published.TEXT].encoder
            encoder = encoder if encoder.get("_target_") == clip._target_ else clip
            longest = published.read_config(folder / "text_encoder", key=key).get("max_position_embeddings", 77)
            encoder = OmegaConf.merge(encoder, {"folder": str(folder), "length": min(encoder.length, longest)})
            cfg.condition[published.TEXT].encoder = encoder


# Named by `checks` in conf/: said before anything is built.


def parents_exist(*, output_root: str, init: Mapping[str, Any]) -> None:
    """Every run named in `init` is there and holds weights; `auto` has been replaced by a name before."""
    for network, wanted in init.items():
        if network in STAGE_OF and wanted not in (None, "auto") and not is_published(network, wanted):
            runs.find(output_root, str(wanted), key=f"init.{network}")


def plans_are_there(*, folder: str, data: str, split: str, key: str) -> None:
    """A folder of plans that somebody named; `auto` has been replaced by one before."""
    if folder != "auto" and not any(Path(folder).glob("*.jsonl")):
        raise DataError("no plans in this folder", key=key, got=folder,
                        remedy=f"make some: python -m dysen.plan data={data} split={split} output={folder}")  # fmt: skip
