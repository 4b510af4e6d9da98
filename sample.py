"""Videos from prompts: python sample.py prompt="A red circle moves to the left." All settings: --help, --cfg job."""

import sys

from omegaconf import DictConfig

from vdm.launch import launch
from vdm.sampling.request import verbatim


def main(cfg: DictConfig) -> None:
    from vdm.sampling.command import sample  # late: torch takes seconds to import

    sample(cfg)


if __name__ == "__main__":
    sys.argv[1:] = verbatim(sys.argv[1:], keys=("prompt", "negative_prompt", "prompts", "scene_graph", "output", "run"))
    launch(main, "sample")
