"""Measure a run by a protocol: python evaluate.py protocol=shapes run=<run>. Also: compare, study. All settings: --help."""

import sys
from importlib import import_module

from omegaconf import DictConfig

from vdm.launch import launch
from vdm.sampling.request import verbatim

COMMANDS = {"compare": "vdm.evaluating.compare", "study": "vdm.evaluation.study"}  # by the first word


def main(cfg: DictConfig) -> None:
    from vdm.evaluating.command import evaluate  # late: torch takes seconds to import

    evaluate(cfg)


if __name__ == "__main__":
    if sys.argv[1:2] and sys.argv[1] in COMMANDS:
        sys.exit(import_module(COMMANDS[sys.argv[1]]).main(sys.argv[2:]))
    sys.argv[1:] = verbatim(sys.argv[1:], keys=("videos", "reference", "output", "run"))
    launch(main, "evaluate")
