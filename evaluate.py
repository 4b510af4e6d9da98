"""Measure a run by a protocol: python evaluate.py protocol=reconstruction run=<run>. All settings: --help, --cfg job."""

from omegaconf import DictConfig

from vdm.launch import launch


def main(cfg: DictConfig) -> None:
    from vdm.evaluating import evaluate  # late: torch takes seconds to import

    evaluate(cfg)


if __name__ == "__main__":
    launch(main, "evaluate")
