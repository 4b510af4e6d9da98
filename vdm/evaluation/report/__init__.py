"""A result as one page: report.html needs nothing but itself, and says how every number was made.

What makes it is the evaluation folder (`metrics.json`, `cases.jsonl`, videos and drawings) and the folder of the run. The same
files give the same page, but for single bits of clips that are encoded again.
"""

from __future__ import annotations

from pathlib import Path

from vdm.errors import RunError
from vdm.evaluation.report.gallery import Embedder
from vdm.evaluation.report.page import page
from vdm.evaluation.report.reading import read_cases, read_lineage, read_result
from vdm.runs import write_atomically

__all__ = ["write_report"]


def write_report(folder: Path, *, run: Path | None, each: int = 6, most_megabytes: float = 24.0) -> Path:
    """Write `report.html` into an evaluation folder.

    Args:
        run: the folder of the run that was measured; None: nobody knows it, and the page is without curves and lineage.
        each: that many of the worst and that many of the best cases.
        most_megabytes: of videos and pictures together; the page names those that are left out.
    """
    result = read_result(Path(folder))
    cases, unreadable = read_cases(result.folder)
    lineage = read_lineage(Path(run)) if run is not None else []
    embed = Embedder(round(most_megabytes * 1e6))
    text = page(result, cases, unreadable, lineage, each=each, embed=embed)
    path = result.folder / "report.html"
    try:
        write_atomically(path, text.encode("utf-8", "replace").decode("utf-8"))
    except OSError as error:
        raise RunError("the report cannot be written", key="folder", got=f"{path}: {error}",
                       remedy="free space, or copy the folder to where you may write") from None  # fmt: skip
    return path
