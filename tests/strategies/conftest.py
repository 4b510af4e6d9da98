"""Parents of small stages, and what one process makes of each stage."""

import importlib.util
import os

import pytest
import torch

os.environ.setdefault("DS_ACCELERATOR", "cpu")
HAS_DEEPSPEED = importlib.util.find_spec("deepspeed") is not None


@pytest.fixture(scope="session")
def stages(shapes_root, tmp_path_factory):
    """The folder of parents and plans, and that of clips."""
    import small_stages

    import vdm.strategies.fsdp
    import vdm.strategies.zero

    if HAS_DEEPSPEED:  # takes seconds, which forked processes then save
        vdm.strategies.zero.import_deepspeed(torch.device("cpu"))

    root = tmp_path_factory.mktemp("parents")
    small_stages.prepare(root, shapes_root)
    return root, shapes_root


@pytest.fixture(scope="session")
def trained(stages, tmp_path_factory):
    """Ten steps of a stage under a trainer; each is trained once."""
    import ranks
    import small_stages

    known = {}

    def train(stage, trainer="cpu", processes=1, *more, output=None, before=None):
        if trainer.startswith("deepspeed") and not HAS_DEEPSPEED:
            pytest.skip("the package deepspeed is not installed")
        asked = (stage, trainer, processes, *more)
        keeps = output is None and before is None
        if keeps and asked in known:
            return known[asked]
        folder = output or tmp_path_factory.mktemp("trained")
        settings = small_stages.settings_of(stage, *stages, processes=processes, trainer=trainer)
        run = ranks.train([*settings, *more], folder, processes, before)
        if keeps:
            known[asked] = run
        return run

    return train
