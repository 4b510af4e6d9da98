"""What is asked for: prompts, keys and file names. Light, so that what is wrong with it is said before anything is built."""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from vdm import restore
from vdm.bounds import Fraction, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from vdm.errors import ConfigError, DataError

STAGES = ("vdm", "dysen", "finetune")  # those that train a video model
KEY = re.compile(r"[A-Za-z0-9_-]{1,120}")
LONGEST_NAME = 160  # bytes; file systems take 255, and something is added while a file is written
SLOWEST, FASTEST = 0.1, 240.0
PROCESS = (("RANK", "WORLD_SIZE"), ("SLURM_PROCID", "SLURM_NTASKS"))


@dataclass(frozen=True)
class Order:
    """One sample to be made. Its key, with the seed, decides its noise."""

    prompt: str
    key: str
    copy: int  # how many samples of the same prompt come before it
    name: str  # of its files, without the ending


def verbatim(arguments: Sequence[str], keys: Sequence[str]) -> list[str]:
    """Quote the values of `keys` for Hydra, so that a sentence may hold commas, quotes, brackets and emoji as typed."""
    starts = tuple(f"{key}=" for key in keys)
    return [_quoted(argument) if argument.startswith(starts) else argument for argument in arguments]


def _quoted(argument: str) -> str:
    key, _, text = argument.partition("=")
    if text in ("", "null") or (len(text) > 1 and text[0] == text[-1] and text[0] in "'\""):
        return argument  # quoted for Hydra already
    text = readable(text)
    text = re.sub(r"(\\*)\$\{", lambda found: found[1] * 2 + "\\${", text)  # not an interpolation
    text = re.sub(r"(\\*)('|$)", lambda found: found[1] * 2 + ("\\'" if found[2] else ""), text)
    return f"{key}='{text}'"


def readable(text: str) -> str:
    """Without bytes that are not text, which no file could be written with."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


# ---- prompts ----------------------------------------------------------------------------------------------------------


def orders(*, prompt: str | None, prompts: str | None, num: int, names: str) -> list[Order]:
    """Every sample, the copies of a prompt beside each other. A prompt that comes again gets further copies."""
    asked = [(prompt, None)] if prompts is None else read_prompts(prompts)
    copies: Counter[str] = Counter()
    made: list[Order] = []
    for text, key in asked:
        text = readable(str(text))
        for copy in range(copies[text], copies[text] + num):
            position = copy - copies[text]
            if key is None:
                full = f"{hashlib.sha256(text.encode()).hexdigest()[:16]}-{copy}"
            else:
                full = key if num == 1 else f"{key}-{position}"
            name = {"index": f"{len(made):04d}", "vbench": vbench_name(text, copy), "key": full}[names]
            made.append(Order(text, full, copy, name))
        copies[text] += num
    twice = [key for key, count in Counter(order.key for order in made).items() if count > 1]
    if twice:
        remedy = "give each its own: the key decides the noise and the file"
        raise DataError("two samples have the same key", key="prompts", got=twice[0], remedy=remedy)
    return made


def read_prompts(path: str) -> list[tuple[str, str | None]]:
    """Prompts of a file, each with its key where it has one."""
    remedy = 'a .txt with one prompt a line, or a .jsonl with one {"prompt": "..."} a line'
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError("the prompts cannot be read", key="prompts", got=f"{path}: {error}", remedy=remedy) from None
    suffix = Path(path).suffix.lower()
    if suffix == ".json":
        found = [_entry(text, path, 1)]
    elif suffix == ".jsonl":
        lines = text.split("\n")
        found = [_entry(line, path, number) for number, line in enumerate(lines, start=1) if line.strip()]
    else:
        found = [(line.strip(), None) for line in text.splitlines() if line.strip()]
    if not found:
        raise DataError("there is no prompt in the file", key="prompts", got=path, remedy=remedy)
    return found


def _entry(line: str, path: str, number: int) -> tuple[str, str | None]:
    form = '{"prompt": "...", "key": "..."}, the key optional'
    try:
        entry = json.loads(line)
    except ValueError as error:
        raise DataError("this is not JSON", key="prompts", got=f"{path}:{number}: {error}", allowed=form) from None
    prompt, key = (entry.get("prompt"), entry.get("key")) if isinstance(entry, dict) else (entry, None)
    if not isinstance(prompt, str):
        raise DataError("an entry without a prompt", key="prompts", got=f"{path}:{number}: {line[:80]}", allowed=form)
    if key is not None and not (isinstance(key, str) and KEY.fullmatch(key)):
        allowed = "letters, digits, '_' and '-', at most 120"
        raise DataError("a key that is no file name", key="prompts", got=f"{path}:{number}: {key!r}", allowed=allowed)
    return prompt, key


def read_signal(path: str | int, key: str) -> object:
    """What is said to a condition: a number, or json that holds it or is the record of a sample that has it under `key`."""
    if isinstance(path, int):
        return path
    try:
        said = json.loads(Path(path).read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError("this file cannot be read as json", key=key, got=f"{path}: {error}") from None
    return said[key] if isinstance(said, dict) and key in said else said


def vbench_name(prompt: str, copy: int) -> str:
    """`<prompt>-<copy>`. Where the prompt is no file name it is changed, and told apart by a hash."""
    name = re.sub(r"[/\\\x00-\x1f\x7f]", "_", prompt).lstrip(".")
    name = name.encode()[:LONGEST_NAME].decode("utf-8", "ignore")
    if name != prompt or not name:
        name = f"{name}~{hashlib.sha256(prompt.encode()).hexdigest()[:8]}"
    return f"{name}-{copy}"


def share(everything: Sequence[Order]) -> tuple[list[Order], int, int]:
    """What this process makes of it, its rank, and the number of processes."""
    rank, world = 0, 1
    for rank_name, world_name in PROCESS:
        if rank_name in os.environ and world_name in os.environ:
            rank, world = int(os.environ[rank_name]), int(os.environ[world_name])
            break
    return list(everything[rank::world]), rank, world


# ---- checks, named by conf/sample.yaml ----------------------------------------------------------------------------------


def is_possible(
    *,
    prompt: str | int | float | bool | None,
    prompts: str | None,
    num: PositiveInt,
    negative_prompt: str | int | float | bool | None,
    guidance: float,
    guidance_rescale: Fraction,
    guidance_interval: list[Fraction],
    scene_graph: str | None,
    guidance_scene_graph: NonNegativeFloat | None,
    plan: bool,
    ablate: Literal["dysen", "imagination", "window", "policy"] | None,
    frames: PositiveInt | None,
    size: str | int | None,
    fps: PositiveFloat | None,
    format: Literal["mp4", "gif", "png", "npz"],
    names: Literal["index", "vbench", "key"],
    crf: NonNegativeInt,
    pixel_format: Literal["yuv420p", "yuv444p"],
    batch_size: PositiveInt,
    precision: Literal["auto", "fp32", "bf16", "fp16"],
    device: Literal["auto", "cpu", "cuda"],
    overwrite: bool,
    ema: bool,
    step: PositiveInt | None,
    tiling: dict | None,
) -> None:
    """What can be said about a request without its run."""
    if (prompt is None) == (prompts is None):
        got = "neither" if prompt is None else "both"
        remedy = 'prompt="..." for one, prompts=<file> for many'
        raise ConfigError("what is to be shown?", key="prompt, prompts", got=got, allowed="one of them", remedy=remedy)
    if ablate is not None and (not plan or scene_graph is not None):
        got = f"{ablate}, with plan=false" if not plan else f"{ablate}, with scene_graph={scene_graph}"
        remedy = "set plan=true and leave out scene_graph, or leave out ablate"
        raise ConfigError(
            "a part can be taken away from plans that are made here", key="ablate", got=got, remedy=remedy
        )
    if guidance_scene_graph is not None and scene_graph is None and not plan:
        remedy = "give one with scene_graph=<file>, make one with plan=true, or leave guidance_scene_graph at null"
        raise ConfigError("there is no scene graph to point towards", key="scene_graph", got="null", remedy=remedy)
    if not (math.isfinite(guidance) and guidance >= 0):
        allowed = "a number >= 0: 0 ignores the prompt, 1 is the plain model, 5 to 15 is usual"
        raise ConfigError(
            "guidance points towards the prompt, or nowhere", key="guidance", got=guidance, allowed=allowed
        )
    low, high = guidance_interval if len(guidance_interval) == 2 else (1, 0)
    if low > high:
        allowed = "[low, high] with 0 <= low <= high <= 1"
        raise ConfigError("the interval is a range", key="guidance_interval", got=guidance_interval, allowed=allowed)
    if crf > 51:
        raise ConfigError("a quality of H.264", key="crf", got=crf, allowed="0 (nothing lost) to 51")
    if fps is not None and not SLOWEST <= fps <= FASTEST:
        raise ConfigError("frames a second", key="fps", got=fps, allowed=f"{SLOWEST} to {FASTEST}")
    if tiling is not None and not _is_tiling(tiling):
        form = "{tile: [16, 128, 128], overlap: [4, 32, 32], exact_norm: false}, in frames, height, width"
        raise ConfigError("these are no tiles", key="tiling", got=tiling, allowed=form)
    if size is not None:
        parse_size(size)


def _is_tiling(tiling: dict) -> bool:
    if set(tiling) != {"tile", "overlap", "exact_norm"} or not isinstance(tiling["exact_norm"], bool):
        return False
    lists = [tiling["tile"], tiling["overlap"]]
    return all(isinstance(each, list) and len(each) == 3 and all(type(n) is int for n in each) for each in lists)


def parse_size(size: str | int) -> tuple[int, int]:
    """Height and width."""
    found = re.fullmatch(r"([1-9]\d{0,4})x([1-9]\d{0,4})", str(size))
    if not found:
        allowed = "HEIGHTxWIDTH, such as 256x320 for a clip that is wider than high"
        raise ConfigError("a size has two numbers", key="size", got=size, allowed=allowed)
    return int(found[1]), int(found[2])


def prompts_are_there(*, prompts: str | None) -> None:
    if prompts is not None:
        read_prompts(prompts)


def signals_are_there(*, scene_graph: str | None) -> None:
    if scene_graph is not None:
        read_signal(scene_graph, "scene_graph")


def run_is_there(*, output_root: str, run: str | int | None) -> None:
    restore.chosen_run(output_root, run, stage=STAGES)
