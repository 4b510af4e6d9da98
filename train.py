"""Train one stage: python train.py stage=autoencoder data=shapes. All settings: --help, --cfg job."""

from omegaconf import DictConfig

from vdm.launch import launch


def main(cfg: DictConfig) -> float | None:
    from vdm.training import train  # late: Lightning takes seconds to import

    return train(cfg)


if __name__ == "__main__":
    launch(main, "train")
