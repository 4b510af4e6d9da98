"""From a checked configuration to a finished run: find the run folder, build the parts, fit, record what came out."""

from __future__ import annotations

import contextlib
import logging
import shutil
import sys
import time
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.utilities.exceptions import SIGTERMException

from vdm import checkpoint, config, lineage, restore, runs, sweeps
from vdm.callbacks.checkpoint import FolderCheckpointIO
from vdm.errors import ConfigError, RunError
from vdm.faults import told_plainly
from vdm.metrics_file import MetricsFile
from vdm.preflight.check import Preflight
from vdm.runs import Run, same
from vdm.slurm import environment, job
from vdm.stages.base import Origin, Stage
from vdm.strategies import launching
from vdm.watching.devices import resident

log = logging.getLogger(__name__)

STOPPING = ("patience", "min_delta")  # settings of callbacks.checkpoint that decide when a run ends early


def train(cfg: DictConfig) -> float | None:
    """Train one stage; returns the optimised metric for sweepers."""
    lineage.adopt(cfg)
    resolved = config.resolve(cfg)
    settings = {key: value for key, value in resolved.items() if key != "hydra"}
    run = runs.locate(settings, stage=settings["stage"]["name"], data=settings["data"]["name"])
    leader = job.is_leader()
    held = job.patiently(lambda: runs.lock(run)) if leader else None
    try:
        if leader:
            sweeps.started(run.folder)
            checkpoint.recover(run.folder / "checkpoints")
        if settings["resume"] == "auto":
            same.check_goes_on(run, settings, leader=leader)
        start = _starting_point(run, settings, leader)
        is_behind = start is not None and settings["resume"] == "auto" and run.damaged_behind(start)
        if start is not None and not is_behind and _is_finished(run, settings):
            return _already_done(run, settings)
        with told_plainly():
            return _fit(cfg, settings, run, start, leader)
    finally:
        if held is not None:
            held.close()


def _starting_point(run: Run, settings: dict[str, Any], leader: bool) -> Path | None:
    """The checkpoint to continue from."""
    resume = settings["resume"]
    if resume == "never":
        if run.checkpoints() and settings.get("debug") is None and run.name != "debug":
            remedy = "give the new run a name with run.id=<name>, or continue this one with resume=auto"
            raise ConfigError(
                "this run exists and holds checkpoints", key="resume", got=f"never, for {run.name}", remedy=remedy
            )
        if run.name == "debug":
            shutil.rmtree(run.folder / "checkpoints", ignore_errors=True)
        return None
    if resume == "auto":
        return _newest_whole(run, leader)
    if (Path(resume) / "manifest.json").exists():
        return Path(resume)
    return runs.find(settings["paths"]["output_root"], resume, key="resume").last_checkpoint()


def _newest_whole(run: Run, leader: bool) -> Path | None:
    """All ranks read the same files and find the same; the leader takes the damaged ones out of everybody's way."""
    damaged = []
    for folder in reversed(run.checkpoints()):
        reason = checkpoint.damage(folder)
        if reason is None:
            break
        damaged.append((folder, reason))
    else:
        if damaged:
            remedy = f"bring back a copy, or delete {run.folder / 'checkpoints'} to begin this run again"
            raise RunError("no checkpoint of this run is whole", key="resume", remedy=remedy,
                           got="; ".join(f"{folder.name}: {reason}" for folder, reason in damaged))  # fmt: skip
        return None
    for path, reason in damaged if leader else ():
        log.warning("%s is damaged (%s): it is set aside, and the run goes on from %s", path.name, reason, folder.name)
        run.set_aside(path)
    return folder


def _is_finished(run: Run, settings: dict[str, Any]) -> bool:
    info = run.info
    if info.get("state") != "complete":
        return False
    asked = (settings["callbacks"].get("checkpoint") or {}).items()
    stopped = info.get("stopped")  # early; with other settings it may go on
    has_stopped = stopped is not None and {name: value for name, value in asked if name in STOPPING} == stopped
    return has_stopped or info.get("step", 0) >= settings["trainer"]["max_steps"]


def _already_done(run: Run, settings: dict[str, Any]) -> float | None:
    info = run.info
    log.info(
        "%s is complete at step %s; nothing to do. More steps: trainer.max_steps. Anew: run.id=<name>.",
        run.name,
        info["step"],
    )
    return _metric(info.get("metrics", {}), settings)


def _fit(cfg: DictConfig, settings: dict[str, Any], run: Run, start: Path | None, leader: bool) -> float | None:
    _quieten_lightning()
    before = resident()
    datamodule, stage, parents = _built(cfg, settings, run, start)
    if settings["preflight"] and start is None:
        with torch.random.fork_rng(devices=[]):
            Preflight(stage=stage, datamodule=datamodule, settings=settings, before=before).short()
    callbacks = [instantiate(node, _convert_="all") for node in cfg.callbacks.values() if node is not None]
    for callback in callbacks:
        callback.run = run
    resumed_step = checkpoint.read_manifest(start)["step"] if start is not None else None
    trainer = pl.Trainer(
        **_trainer_settings(cfg),
        callbacks=callbacks,
        logger=_loggers(cfg, run, resumed_step, leader),
        plugins=[FolderCheckpointIO(), *environment.plugins()],
        default_root_dir=run.folder,
        # What our own callbacks and loader do, and what a stream without epochs has no use for:
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        limit_val_batches=0,
        num_sanity_val_steps=0,
    )
    if start is not None:
        same.check_shapes(run, start, stage)
    if leader:
        _record_start(cfg, settings, run, parents, datamodule, resumed_step)
    with contextlib.suppress(SIGTERMException):  # Lightning raises it after the callback has saved
        trainer.fit(stage, datamodule=datamodule, ckpt_path=None if start is None else str(start), weights_only=True)
    stopped = next((c.stopped_early for c in callbacks if getattr(c, "stopped_early", None) is not None), None)
    done = stage.step >= trainer.max_steps or stopped is not None
    best = next((c.ended_with for c in callbacks if getattr(c, "ended_with", None) is not None), None)
    metrics = stage.metrics if best is None else stage.metrics | {best["metric"]: best["value"]}
    if leader:
        run.update(
            state="complete" if done else "interrupted", step=stage.step, metrics=metrics, finished=time.time(),
            **({} if stopped is None and "stopped" not in run.info else {"stopped": stopped}),
        )  # fmt: skip
        last = run.last_checkpoint()
        log.info(
            "%s: %s at step %d%s",
            run.name,
            "complete" if done else "interrupted",
            stage.step,
            f", {last}" if last else "",
        )
    asked = next((c.stop_signal for c in callbacks if getattr(c, "stop_signal", None) is not None), None)
    if asked is not None and not done:
        job.leave(asked)
    if not done and stage.step == (resumed_step or 0):
        raise RunError("training ended without a single step", got=f"step {stage.step} of {trainer.max_steps}")
    return _metric(metrics, settings)


def preflight(cfg: DictConfig) -> None:
    """What the job would take, and whether it is there, on standard output. Leaves nothing behind."""
    lineage.adopt(cfg)
    settings = {key: value for key, value in config.resolve(cfg).items() if key != "hydra"}
    _quieten_lightning()
    before = resident()
    run = runs.locate(settings, stage=settings["stage"]["name"], data=settings["data"]["name"])
    datamodule, stage, _ = _built(cfg, settings, run, None)
    sys.stdout.write(Preflight(stage=stage, datamodule=datamodule, settings=settings, before=before).full() + "\n")


def _built(cfg: DictConfig, settings: dict[str, Any], run: Run, start: Path | None) -> tuple[Any, Stage, list]:
    """The data, the stage and what it starts from."""
    pl.seed_everything(settings["seed"], verbose=False)  # initial weights; every step seeds itself
    datamodule = instantiate(cfg.get("texts") or cfg.data, _convert_="all")
    datamodule.run_folder = run.folder
    datamodule.setup("fit")
    stage: Stage = instantiate(cfg.stage, _convert_="all")
    parents = run.info.get("lineage", [])
    if start is None or stage.needs_parents:
        parents = _load_parents(stage, settings, checkpoint.parent_of(start) if start is not None else None)
    stage.prepare(run.folder)
    return datamodule, stage, parents


def _quieten_lightning() -> None:
    """Its advice is about the parts that we replace; it raises its own log level when it is imported."""
    warnings.filterwarnings("ignore", module="(pytorch_lightning|lightning_fabric)")
    for name in ("pytorch_lightning", "lightning_fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)


def _trainer_settings(cfg: DictConfig) -> dict[str, Any]:
    settings = OmegaConf.to_container(cfg.trainer, resolve=True)
    settings = {key: value for key, value in settings.items() if key != "_target_"}
    if isinstance(settings["strategy"], dict):
        settings["strategy"] = instantiate(cfg.trainer.strategy, _convert_="all")
    return launching.started(settings)


def _loggers(cfg: DictConfig, run: Run, resumed_step: int | None, leader: bool) -> list:
    """metrics.csv always, and what the logger group adds: in the run folder, under the run's name, as one continued run."""
    if not leader:
        return []
    found: list = [MetricsFile(path=str(run.folder / "metrics.csv"), resumed_step=resumed_step)]
    for name, node in (cfg.logger or {}).items():
        place = {"save_dir": str(run.folder)}
        if name == "wandb":
            place |= {"id": run.name, "name": run.name, "resume": "allow", "group": str(cfg.stage.name)}
        elif name == "tensorboard" and resumed_step is not None:
            place |= {"purge_step": resumed_step + 1}
        found.append(instantiate(node, **place))
    return found


def _load_parents(stage: Stage, settings: dict[str, Any], folder_before: Path | None = None) -> list[dict[str, Any]]:
    """Put the weights named in `init`, of runs or published ones, into the stage's networks of the same names.

    `folder_before` is the checkpoint that a run which goes on began with; its parent may have newer ones.
    """
    parents, init = [], settings.get("init") or {}
    for network in lineage.STAGE_OF:
        wanted = init.get(network)
        if wanted is None:
            continue
        if lineage.is_published(network, wanted):
            parents.append(_load_published(stage.backbone, wanted, init, settings["objective"]))
            continue
        if folder_before is None:
            parent = runs.find(settings["paths"]["output_root"], wanted, key=f"init.{network}")
        else:
            parent = Run(folder_before.parents[1])
        folder = folder_before or parent.last_checkpoint()
        new = _new_here(stage, network, restore.settings_of(parent).get("condition") or {})
        stage.origins[network] = Origin(folder, tuple(new))
        # A text encoder that nobody trained is in no checkpoint.
        is_there = checkpoint.holds(folder, network) or network != "conditions"
        tensors = checkpoint.network_weights(folder, network) if is_there else {}
        report = checkpoint.load_weights(getattr(stage, network), tensors, source=f"init.{network}", allow_missing=new)
        digest = checkpoint.identity(folder, network)
        log.info("%s starts from %s (%s): %s", network, parent.name, folder.name, report)
        parents.append({"network": network, "run": parent.name, "checkpoint": folder.name, "sha256": digest})
    llm = settings.get("llm") or {}
    asked = (llm.get("plans") or llm).get("run")
    return parents if asked is None else [*parents, {"network": "language", "run": asked}]


def _new_here(stage: Stage, network: str, known: Mapping[str, Any]) -> list[str]:
    """Prefixes of what this run adds to its parent: conditions that it did not hear, and their doors of the backbone."""
    if network not in ("backbone", "conditions"):
        return []
    members = stage.conditions.members
    new = [name for name in members if name not in known]
    if network == "conditions":
        return [f"members.{name}." for name in new]
    open_before = {door for name in members if name not in new for door in members[name].doors}
    return stage.backbone.door_keys(*sorted({door for name in new for door in members[name].doors} - open_before))


def _load_published(backbone: Any, source: str, init: dict[str, Any], objective: dict[str, Any]) -> dict[str, Any]:
    from vdm.backbones.initial import load_published
    from vdm.backbones.published import trained_to_predict

    report = load_published(backbone, source, fps=init.get("fps"))
    log.info("backbone starts from %s: %s", source, report)
    predicted = trained_to_predict(source)
    if predicted not in (None, objective["prediction"]):
        log.warning(
            "these weights have learned to predict %s, and this run predicts %s", predicted, objective["prediction"]
        )
    return {"network": "backbone", "source": str(source)}


def _record_start(cfg, settings, run: Run, parents, datamodule, resumed_step: int | None) -> None:
    runs.write_atomically(run.folder / "config.yaml", same.written(settings))
    facts = {"stage": settings["stage"]["name"], "data": settings["data"]["name"], "lineage": parents}
    if resumed_step is None:
        facts |= {"command": runs.typed("train.py"), "data_fingerprint": datamodule.fingerprint}
        run.update(**facts, state="running", step=0, **runs.provenance())
    else:
        run.update(state="running")
    log.info("%s %s in %s", "continuing" if resumed_step is not None else "training", run.name, run.folder)
    if resumed_step is not None:
        log.info("from step %d of %d", resumed_step, settings["trainer"]["max_steps"])


def _metric(metrics: dict[str, float], settings: dict[str, Any]) -> float | None:
    wanted = settings["optimized_metric"]
    monitored = (settings["callbacks"].get("checkpoint") or {}).get("monitor")
    if wanted is not None and wanted not in metrics:
        raise ConfigError("no such metric was logged", key="optimized_metric", got=wanted, allowed=sorted(metrics))
    return metrics.get(wanted or monitored)
