"""What a report is asked for, checked before anything is read."""

from __future__ import annotations

from pathlib import Path

from vdm.bounds import PositiveFloat, PositiveInt
from vdm.errors import DataError


def is_possible(
    *, folder: str, run: str | None, each: PositiveInt | None, most_megabytes: PositiveFloat | None
) -> None:
    """The numbers are in their ranges by the types; here the folders are looked for."""
    if not (Path(folder) / "metrics.json").is_file():
        raise DataError("there is no evaluation in this folder", key="folder", got=folder,
                        remedy="name one with a metrics.json: <run>/evaluation/<protocol>")  # fmt: skip
    if run not in (None, "auto") and not (Path(str(run)) / "run.json").is_file():
        raise DataError(
            "this is no folder of a run", key="run", got=run, allowed="auto, null, or a folder with a run.json"
        )


def run_of(folder: Path, run: str | None) -> Path | None:
    """The folder of the run; `auto` looks above the evaluation."""
    if run != "auto":
        return None if run is None else Path(run)
    above = Path(folder).absolute().parents
    return next((place for place in above[:3] if (place / "run.json").is_file()), None)
