"""`evaluate.py study make` and `evaluate.py study count`."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from vdm.errors import suggest
from vdm.evaluation.study.counting import count, table
from vdm.evaluation.study.making import make
from vdm.launch import USER_ERROR, launch
from vdm.sampling.request import verbatim

log = logging.getLogger(__name__)

WORDS = ("make", "count")
USAGE = """usage: python evaluate.py study make samples=[<folder>,<folder>] to=study
       python evaluate.py study count key=study/key.json ratings=<folder>
settings of each: --help, --cfg job
"""


def main(arguments: list[str]) -> int:
    """What comes after `study` on the command line; returns the exit code."""
    word, rest = (arguments[0], arguments[1:]) if arguments else ("", [])
    if word in ("--help", "-h"):
        sys.stdout.write(USAGE)
        return 0
    if word not in WORDS:
        said = suggest(word, WORDS) if word else ""
        sys.stderr.write(f"ConfigError: study makes a page or counts ratings\n  got:     {word or 'nothing'}\n"
                         f"  allowed: {', '.join(WORDS)}\n" + (f"  remedy:  {said}\n" if said else "") + USAGE)  # fmt: skip
        return USER_ERROR
    task, keys = {"make": (_make, ("to", "title", "instructions")), "count": (_count, ("key", "out"))}[word]
    before = sys.argv
    sys.argv = ["evaluate.py", *verbatim(rest, keys=keys)]
    try:
        launch(task, f"study_{word}")
    except SystemExit as end:
        return int(end.code or 0)
    finally:
        sys.argv = before
    return 0


def _make(cfg: DictConfig) -> None:
    names = ("samples", "names", "to", "items", "match", "seed", "points", "lowest", "highest", "title", "instructions")
    given = OmegaConf.to_container(cfg, resolve=True)
    place = make(questions=given["questions"], **{name: given[name] for name in names})
    log.info("for the raters: %s; keep %s to yourself", place / "page", place / "key.json")


def _count(cfg: DictConfig) -> None:
    ratings = cfg.ratings if isinstance(cfg.ratings, str) else [str(one) for one in cfg.ratings]
    out = None if cfg.out is None else Path(cfg.out)
    found, path = count(Path(cfg.key), ratings, draws=cfg.draws, seed=cfg.seed, out=out)
    for problem in found["problems"]:
        log.warning("%s", problem)
    sys.stdout.write(table(found))
    log.info("written to %s", path)
