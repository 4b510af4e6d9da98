"""What there is to look at: a line for each clip, videos and drawings of the first, the best and the worst."""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from vdm.errors import UserError
from vdm.evaluating.measuring import Measured
from vdm.runs import write_atomically
from vdm.types import VideoBatch
from vdm.video import save_mp4, save_png, sheet, to_float

log = logging.getLogger(__name__)

CASES = "cases.jsonl"
ON_SHEET = 96  # pixels of the shorter side, about


def shown(measured: Measured, count: int) -> list[int]:
    """Which cases are shown, in their order: a quarter the worst and a quarter the best by the first score, the first ones."""
    everything = range(len(measured.cases))
    name = measured.names[0] if measured.names else None
    known = [i for i in everything if name in measured.cases[i].get("scores", {})]
    ranked = sorted(known, key=lambda i: (measured.cases[i]["scores"][name], i), reverse=bool(measured.best_first))
    extreme = min(count // 4, len(ranked) // 2)
    chosen = {*ranked[:extreme], *(ranked[-extreme:] if extreme else [])}
    for i in everything:
        if len(chosen) >= min(count, len(everything)):
            break
        chosen.add(i)
    return sorted(chosen)


class Gallery:
    """Writes into the folder of an evaluation. `drawing` has functions that read and draw a plan, or is None."""

    def __init__(self, folder: Path, *, drawing: Mapping[str, Any] | None, scale: int):
        self.folder, self.drawing, self.scale = folder, drawing, scale
        self._written: dict[str, dict[str, str | None]] = {}
        self._rows: list[Tensor] = []
        self._captions: list[str] = []

    def add(self, batch: VideoBatch, made: Tensor, original: Tensor | None, record: dict[str, Any] | None) -> None:
        """One clip 3 T H W in uint8, the clip of its caption in [-1, 1], and what the model was told besides."""
        key, fps = batch["key"][0], float(batch["fps"][0])
        name = file_name(key)
        paths: dict[str, str | None] = {"video": f"videos/{name}.mp4", "original": None}
        save_mp4(self.folder / paths["video"], to_float(made.cpu()), fps)
        self._rows += [small(clip) for clip in (original, to_float(made.cpu())) if clip is not None]
        if original is not None:
            paths["original"] = f"originals/{name}.mp4"
            save_mp4(self.folder / paths["original"], original.cpu(), fps)
        self._captions.append(batch["caption"][0])
        self._written[key] = paths | self._draw(name, record)

    def finish(self, measured: Measured) -> None:
        """The sheet, its captions, and the table of all clips."""
        if self._rows:
            save_png(self.folder / "sheet.png", sheet(self._rows, scale=self.scale))
            write_atomically(self.folder / "captions.txt", "\n".join(self._captions) + "\n")
        nothing = dict.fromkeys(("video", "original", "plan", "timeline", "graph"))
        lines = []
        for case in measured.cases:
            files = nothing | self._written.get(case["key"], {})
            line = {
                "key": case["key"],
                "caption": case["caption"],
                "video": files["video"],
                "original": files["original"],
            }
            line |= {"scores": case.get("scores", {})} | {name: files[name] for name in ("plan", "timeline", "graph")}
            lines.append(json.dumps(line, ensure_ascii=False))
        write_atomically(self.folder / CASES, "".join(f"{line}\n" for line in lines))

    def _draw(self, name: str, record: dict[str, Any] | None) -> dict[str, str | None]:
        if record is None:
            return {}
        paths: dict[str, str | None] = {"plan": f"plans/{name}.json"}
        write_atomically(
            self.folder / paths["plan"], json.dumps(record, indent=1, ensure_ascii=False, default=str) + "\n"
        )
        if self.drawing is None:
            return paths
        try:
            plan, graphs, _ = self.drawing["read"](self.folder / paths["plan"])
            drawn = {"timeline": None if plan is None else self.drawing["plan"](plan)}
            drawn |= {"graph": None if graphs is None else self.drawing["graphs"](graphs)}
        except UserError as error:
            log.warning("the plan of %s is not drawn: %s", name, error.what)
            return paths
        for kind, canvas in drawn.items():
            if canvas is not None:
                paths[kind] = f"plans/{name}.{kind}.svg"
                write_atomically(self.folder / paths[kind], canvas.to_svg())
        return paths


def small(clip: Tensor) -> Tensor:
    """For the sheet: of a large clip every n-th pixel."""
    step = max(1, min(clip.shape[-2:]) // ON_SHEET)
    return clip[..., ::step, ::step].cpu()


def file_name(key: str) -> str:
    """The key, where it is a name; else one that no other key has."""
    plain = re.sub(r"[^A-Za-z0-9_.~-]", "_", key)[:100]
    return plain if plain == key else f"{plain}-{hashlib.sha256(key.encode('utf-8', 'surrogatepass')).hexdigest()[:8]}"


def chosen_numbers(measured: Measured, chosen: Sequence[int]) -> list[int]:
    """The numbers of the clips of these cases."""
    return [measured.cases[i]["number"] for i in chosen]
