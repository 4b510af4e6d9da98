"""The sampling command: what is asked for, less what is there, in batches that fit, each clip written when it is done."""

from __future__ import annotations

import hashlib
import json
import logging
import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor

from vdm import checkpoint, config, restore, runs
from vdm.autoencoder.tiling import Tiling
from vdm.devices import this_device
from vdm.diffusion.guidance import Guidance, classifier_free, instruct_pix2pix
from vdm.errors import ConfigError, RunError, UserError
from vdm.runs import Run
from vdm.sampling import files
from vdm.sampling.model import TextToVideo, free_memory, is_out_of_memory
from vdm.sampling.planning import PLANNED, PlannedPrompt, planner_facts, plans_of, write_plan
from vdm.sampling.request import STAGES, Order, orders, parse_size, read_signal, share

log = logging.getLogger(__name__)

PRECISIONS = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
USUAL_FPS = 8.0  # where a run was trained on clips of any rate
SIGNALS = ("scene_graph", "class_label")  # keys of conf/sample.yaml, each for the condition of this name
ONLY_WHERE_GIVEN = (*SIGNALS, "guidance_scene_graph", "planner", "ablate")  # so that older records stay as they were
DECIDES_THE_FILE = ("format", "crf", "pixel_format")


def sample(cfg: DictConfig) -> list[Path]:
    """Make what is asked for and is not there; returns the files of this process."""
    settings = config.resolve(cfg)
    rank = share([])[1]
    try:
        return _sample(settings, rank)
    except KeyboardInterrupt:
        log.warning("stopped; the same command goes on from here")
        sys.exit(130)
    except UserError as error:
        if rank:  # the launcher speaks for the first process only
            log.error("process %d: %s", rank, error)
        raise


def _sample(asked: dict[str, Any], rank: int) -> list[Path]:
    run = restore.chosen_run(asked["paths"]["output_root"], asked["run"], stage=STAGES)
    folder = _checkpoint(run, asked["step"])
    if rank == 0:
        unfinished = "" if run.state == "complete" else f" ({run.state}: not trained to its end)"
        log.info("sampling from %s, %s%s", run.name, folder.name, unfinished)
    device = this_device(asked["device"])
    precision = _precision(asked["precision"], device)
    facts = _facts(asked, run, folder, precision)
    everything = orders(**{name: asked[name] for name in ("prompt", "prompts", "num", "names")})
    output = _output(asked, run, facts, everything)
    waiting, rank, world = share(everything)
    mine = [output / f"{order.name}.{asked['format']}" for order in waiting]
    todo = [order for order in waiting if not _is_done(order, output, facts, asked["overwrite"])]
    if len(todo) < len(waiting):
        log.info("%d of %d are there already", len(waiting) - len(todo), len(waiting))
    if todo:
        plans = plans_of([order.prompt for order in todo], asked["prompt_planner"]) if "planner" in facts else {}
        model = TextToVideo.of_run(run, folder, averaged=asked["ema"], device=device, precision=PRECISIONS[precision])
        _check_signals(facts, model)
        if rank == 0 and (unsaid := sorted(set(model.conditions.names) - set(model.heard) - set(_said(facts)))):
            log.warning("nothing is said to these conditions of the model: %s", ", ".join(unsaid))
        if rank == 0 and not model.heard:
            log.warning("this model hears no text: every prompt gives samples of everything it knows")
        _make_all(model, todo, plans, asked, facts, output, rank)
    if rank == 0:
        log.info("%d samples in %s", len(everything), output)
    return mine


def _make_all(
    model: TextToVideo,
    todo: list[Order],
    plans: dict[str, PlannedPrompt],
    asked: dict[str, Any],
    facts: dict[str, Any],
    output: Path,
    rank: int,
) -> None:
    shape = model.latent_shape(facts["frames"], *facts["size"])
    guidance = _guidance(model, facts)
    model.say_instead(None if asked["negative_prompt"] is None else str(asked["negative_prompt"]))
    if asked["tiling"] is not None:
        model.decode_in_tiles(Tiling(**asked["tiling"]))
    of_all = _signals(facts)
    signals = {order.prompt: of_all | plans[order.prompt].signals if plans else of_all for order in todo}
    record = facts | {
        "encoders": model.conditions.fingerprint(),
        "device": torch.cuda.get_device_name(model.device) if model.device.type == "cuda" else model.device.type,
        "made_by": runs.provenance(),
    }
    sampler = instantiate(asked["sampler"], _convert_="all")
    if asked["sampler"].get("spacing") == "leading" and model.ends_in_noise:
        log.warning("this model begins in pure noise, where sampler.spacing=leading does not: trailing suits it better")
    size, batched = asked["batch_size"], True
    with _bar(len(todo), rank) as advance:
        while todo:
            batch, latents = todo[:size], None
            try:
                latents = _latents(model, batch, shape, sampler, guidance, batched, facts, signals, advance)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
            if latents is None:  # out of the handler, which keeps alive what filled the memory
                free_memory()
                if size == 1 and not batched:
                    remedy = "fewer frames, a smaller size, or precision=bf16"
                    raise RunError("one clip does not fit into memory", key="frames, size", remedy=remedy)
                size, batched = (max(min(size, len(batch)) // 2, 1), True) if len(batch) > 1 else (1, False)
                said = f"batch_size={size}" if batched else "one branch of guidance at a time"
                log.warning("out of memory: going on with %s", said)
                continue
            for order, latent in zip(batch, latents, strict=True):
                plan = plans.get(order.prompt)
                if plan is not None:
                    write_plan(plan, order.prompt, output, order.name)
                own = {} if plan is None else plan.record
                _write(order, _decoded(model, latent), asked, record | own, output)
            todo = todo[len(batch) :]


def _latents(
    model: TextToVideo,
    batch: Sequence[Order],
    shape: Any,
    sampler: Any,
    guidance: Guidance,
    batched: bool,
    facts: dict[str, Any],
    signals: dict[str, Any],
    advance: Any,
) -> Tensor:
    return model.latents(
        [order.prompt for order in batch],
        [order.key for order in batch],
        seed=facts["seed"],
        shape=shape,
        fps=facts["fps"],
        sampler=sampler,
        guidance=guidance,
        extras=[signals[order.prompt] for order in batch],
        batched=batched,
        callback=lambda *, step, num_steps, latent, clean: advance(len(batch), step, num_steps),
    )


def _guidance(model: TextToVideo, facts: dict[str, Any]) -> Guidance:
    """One scale for all that is said, or another one for what is said besides the text."""
    how = {"rescale": facts["guidance_rescale"], "interval": tuple(facts["guidance_interval"])}
    said = _said(facts)
    if "guidance_scene_graph" not in facts:
        return classifier_free((*model.heard, *said), facts["guidance"], **how)
    return instruct_pix2pix(model.heard, said, facts["guidance"], facts["guidance_scene_graph"], **how)


def _signals(facts: dict[str, Any]) -> dict[str, Any]:
    """What is said besides the text, by condition."""
    return {name: facts[name] for name in SIGNALS if name in facts}


def _said(facts: dict[str, Any]) -> tuple[str, ...]:
    """The conditions besides the text to which something is said."""
    planned = (PLANNED,) if "planner" in facts else ()
    return tuple(dict.fromkeys((*planned, *_signals(facts))))


def _check_signals(facts: dict[str, Any], model: TextToVideo) -> None:
    for name in _signals(facts):
        if name not in model.conditions.names:
            remedy = f"leave out {name}, or train a model with condition=[text,{name}]"
            allowed = model.conditions.names or "none: the model is unconditional"
            raise ConfigError("this model has no such condition", key=name, allowed=allowed, remedy=remedy)


def _decoded(model: TextToVideo, latent: Tensor) -> Tensor:
    """One clip at a time: its frames are what takes the memory."""
    try:
        return model.frames(latent)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
    free_memory()
    remedy = (
        "decode in tiles: 'tiling={tile: [16, 128, 128], overlap: [4, 32, 32], exact_norm: false}', or smaller ones"
    )
    raise RunError("the decoder does not fit into memory", key="tiling", remedy=remedy)


# ---- what there is, and what is written ---------------------------------------------------------------------------------


def _facts(asked: dict[str, Any], run: Run, folder: Path, precision: str) -> dict[str, Any]:
    """Everything that decides a sample, besides its prompt and key."""
    settings = restore.settings_of(run, needs=restore.VIDEO_MODEL)
    clip, store = (_part(settings, "data", part) for part in ("clip", "store"))
    size = parse_size(asked["size"]) if asked["size"] is not None else (clip.get("height"), clip.get("width"))
    frames = asked["frames"] or clip.get("frames")
    stride, rate = clip.get("frame_stride") or 1, store.get("fps") or USUAL_FPS
    for key, value in (("frames", frames), ("size", size[0]), ("size", size[1]), ("fps", stride)):
        if type(value) is not int or value < 1:
            raise ConfigError(
                "the run does not say how it was trained", key=key, got=value, remedy=f"give {key}=<value>"
            )
    fps = asked["fps"] or (rate / stride if isinstance(rate, int | float) else USUAL_FPS)
    stored = checkpoint.read_manifest(folder)["files"]
    kinds = ("weights", "ema") if asked["ema"] else ("weights",)
    said = {name: read_signal(asked[name], name) for name in SIGNALS if asked[name] is not None}
    said |= planner_facts(asked, run, settings["condition"] or {})
    if asked["guidance_scene_graph"] is not None and (PLANNED in said or "planner" in said):
        said["guidance_scene_graph"] = float(asked["guidance_scene_graph"])
    networks = {name: fact["sha256"] for name, fact in stored.items() if name.split("/")[0] in kinds}
    return {
        "run": run.name,
        "run_folder": str(run.folder.absolute()),
        "checkpoint": folder.name,
        "weights": networks,
        "sampler": asked["sampler"],
        **{name: asked[name] for name in ("seed", "negative_prompt", "guidance", "guidance_rescale")},
        **{name: asked[name] for name in ("guidance_interval", "ema", "tiling", *DECIDES_THE_FILE)},
        "frames": frames,
        "size": list(size),
        "fps": float(fps),
        "precision": precision,
        **said,
    }


def _part(settings: Any, *names: str) -> dict[str, Any]:
    for name in names:
        settings = settings.get(name) if isinstance(settings, dict) else None
    return settings if isinstance(settings, dict) else {}


def _output(asked: dict[str, Any], run: Run, facts: dict[str, Any], everything: Sequence[Order]) -> Path:
    """A folder of its own for each choice of settings, so that nothing old is in the way."""
    if asked["output"] is not None:
        return Path(str(asked["output"]))
    numbered = [order.key for order in everything] if asked["names"] == "index" else None
    text = json.dumps([_deciding(facts), asked["names"], numbered], sort_keys=True)
    return run.folder / "generated" / hashlib.sha256(text.encode()).hexdigest()[:8]


def _is_done(order: Order, output: Path, facts: dict[str, Any], overwrite: bool) -> bool:
    """Whether this very sample is there. Another one in its place is not lost unasked."""
    beside = output / f"{order.name}.json"
    if overwrite or not beside.exists():
        return False
    try:
        record = json.loads(beside.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        record = {}
    wanted = _named(order) | _deciding(facts)
    other = [name for name, value in wanted.items() if record.get(name) != value]
    made_here = (PLANNED,) if "planner" in wanted else ()
    other += [n for n in ONLY_WHERE_GIVEN if n in record and n not in wanted and n not in made_here]
    if not other:
        return (output / f"{order.name}.{facts['format']}").exists()
    raise RunError(
        "another sample has this name",
        key="output",
        got=f"{beside}, made with another {', '.join(other[:4])}",
        remedy="set output=<another folder>, names=key, or overwrite=true",
    )


def _deciding(facts: dict[str, Any]) -> dict[str, Any]:
    """Without names: the weights say which they are, wherever their run has been moved."""
    return {name: value for name, value in facts.items() if name not in ("run", "run_folder", "checkpoint")}


def _named(order: Order) -> dict[str, Any]:
    return {"prompt": order.prompt, "key": order.key}


def _write(order: Order, frames: Tensor, asked: dict[str, Any], record: dict[str, Any], output: Path) -> None:
    """The record comes last: where it is, the clip is."""
    choice = {name: asked[name] for name in DECIDES_THE_FILE}
    content = files.encoded(frames.numpy(), record["fps"], **choice)
    files.write_whole(output / f"{order.name}.{asked['format']}", content)
    beside = output / f"{order.name}.json"
    whole = _named(order) | record | {"command": _command(record, beside)}
    text = json.dumps(whole, indent=2, ensure_ascii=False, default=str)
    files.write_whole(beside, (text + "\n").encode())


def _command(record: dict[str, Any], beside: Path) -> str:
    """What makes this sample again, out of its record: one prompt with its own key."""
    sampler = record["sampler"]
    choices = {
        "run": record["run_folder"],
        "step": int(record["checkpoint"].rpartition("-")[2]),
        "prompts": beside.absolute(),
    }
    choices["sampler"] = sampler["_target_"].rpartition(".")[2]
    choices |= {f"sampler.{name}": value for name, value in sampler.items() if not name.startswith("_")}
    same = ("seed", "guidance", "guidance_rescale", "guidance_interval", "negative_prompt", "frames", "fps", "ema")
    choices |= {name: record[name] for name in (*same, "tiling", "precision", *DECIDES_THE_FILE)}
    choices |= {name: beside.absolute() for name in _signals(record)}
    choices |= {name: record[name] for name in ("guidance_scene_graph",) if name in record}
    choices |= {"size": "x".join(map(str, record["size"])), "output": "again"}
    words = [f"{name}={_for_hydra(value)}" for name, value in choices.items()]
    return shlex.join(["python", "sample.py", *words])


def _for_hydra(value: Any) -> str:
    return str(value) if isinstance(value, str | Path) else json.dumps(value).replace('"', "")


# ---- the machine ----------------------------------------------------------------------------------------------------------


def _checkpoint(run: Run, step: int | None) -> Path:
    if step is None:
        return run.last_checkpoint()
    found = {int(path.name.rpartition("-")[2]): path for path in run.checkpoints()}
    if step not in found:
        raise RunError("the run has no checkpoint of this step", key="step", got=step, allowed=sorted(found))
    return found[step]


def _precision(wanted: str, device: torch.device) -> str:
    if wanted != "auto":
        return wanted
    return "bf16" if device.type == "cuda" and torch.cuda.is_bf16_supported() else "fp32"


@contextmanager
def _bar(total: int, rank: int) -> Iterator[Any]:
    """A bar on a terminal, lines elsewhere. It moves with every denoising step."""
    done = 0.0
    if rank == 0 and sys.stderr.isatty():
        columns = (TextColumn("[bold]samples"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        with Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True)) as bar:
            task = bar.add_task("samples", total=total)

            def move(clips: int, step: int, num_steps: int) -> None:
                nonlocal done
                bar.update(task, completed=int(done + clips * step / num_steps))
                done += clips if step == num_steps else 0

            yield move
    else:

        def say(clips: int, step: int, num_steps: int) -> None:
            nonlocal done
            if step == num_steps:
                done += clips
                log.info("sample %d/%d", done, total)

        yield say
