"""Makes the report of an evaluation again: python -m vdm.evaluation.report folder=<evaluation folder>. All settings: --help."""

import logging
import sys
from pathlib import Path

from omegaconf import DictConfig

from vdm.evaluation.report import write_report
from vdm.evaluation.report.request import run_of
from vdm.launch import launch
from vdm.sampling.request import verbatim

log = logging.getLogger(__name__)


def main(cfg: DictConfig) -> None:
    folder = Path(cfg.folder)
    chosen = {name: cfg[name] for name in ("each", "most_megabytes") if cfg[name] is not None}
    log.info("written: %s", write_report(folder, run=run_of(folder, cfg.run), **chosen))


if __name__ == "__main__":
    sys.argv[1:] = verbatim(sys.argv[1:], keys=("folder", "run"))
    launch(main, "report")
