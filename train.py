"""Train one stage: python train.py stage=autoencoder data=shapes. All settings: --help, --cfg job."""

from vdm.slurm import signals

signals.hold()  # first: the warning of a job would end a program that is still importing

from omegaconf import DictConfig  # noqa: E402

from vdm.launch import launch  # noqa: E402
from vdm.strategies import launching  # noqa: E402


def main(cfg: DictConfig) -> float | None:
    if cfg.preflight is True:
        from vdm.training import preflight

        return preflight(cfg)
    if (processes := launching.count(cfg.trainer)) > 1:
        return launching.run(cfg, processes)
    from vdm.training import train  # late: Lightning takes seconds to import

    return train(cfg)


if __name__ == "__main__":
    launch(main, "train")
