"""Which run an evaluation takes when none is named."""

import types

import hydra
import pytest
from hydra.utils import instantiate

from vdm import config
from vdm.evaluating.sources import Sources
from vdm.launch import CONF
from vdm.runs import Run

RUNS = (("webvid", "vdm"), ("ucf101", "finetune"), ("msrvtt", "finetune"))  # the newest at the end


@pytest.fixture
def outputs(tmp_path):
    for number, (data, stage) in enumerate(RUNS):
        run = Run(tmp_path / f"{stage}-{data}")
        (run.folder / "checkpoints" / "step-00000010").mkdir(parents=True)
        (run.folder / "config.yaml").write_text(f"stage: {{name: {stage}}}\n")
        run.update(stage=stage, data=data, state="complete", finished=float(number))
    return tmp_path


@pytest.mark.parametrize(
    ("protocol", "taken"),
    [
        ("ucf101", "finetune-ucf101"),  # tuned on the protocol's data, not the newest
        ("msrvtt", "finetune-msrvtt"),
        ("activitynet", "finetune-msrvtt"),  # nobody was: the newest
        ("ucf101_zero_shot", "vdm-webvid"),
    ],
)
def test_the_run_that_was_tuned_on_the_data(outputs, protocol, taken):
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = hydra.compose("evaluate", overrides=[f"protocol={protocol}", f"paths.output_root={outputs}"])
    settings = config.resolve(cfg)
    alone = types.SimpleNamespace(is_first=True)
    assert Sources(settings, instantiate(settings["protocol"], _convert_="all"), alone).run.name == taken
