"""Writes a run as a diffusers folder: python -m vdm.export run=<run> to=<folder>. All settings: --help, --cfg job."""

import sys

from omegaconf import DictConfig

from vdm.launch import launch
from vdm.sampling.request import verbatim


def main(cfg: DictConfig) -> None:
    from vdm.export.command import export  # late: torch takes seconds to import

    export(cfg)


if __name__ == "__main__":
    sys.argv[1:] = verbatim(sys.argv[1:], keys=("run", "to"))
    launch(main, "export")
