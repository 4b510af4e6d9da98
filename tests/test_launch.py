"""What a user reads when a part cannot be built."""

import sys

import hydra
import pytest
from hydra.errors import ConfigCompositionException, InstantiationException

from vdm.errors import ConfigError
from vdm.launch import CONF, explain


def test_the_message_of_a_constructor_is_not_lost_in_hydras():
    cause = ConfigError("a share of clips", key="condition.text.drop_prob", got=2, allowed="0 to 1")
    error = InstantiationException("Error in call to target 'vdm...'\nfull_key: condition.text")
    error.__cause__ = cause
    assert explain(error, "train") is cause
    assert "Error in call" in str(explain(InstantiationException("Error in call\nfull_key: x"), "train"))


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("sampler.num_steps=5", ["key:     sampler.num_steps", "write protocol.sampler.num_steps=<value>"]),
        ("guidance=5", ["no setting 'guidance'", "write protocol.guidance=<value>"]),
        ("protocol.clps=5", ["no setting 'clps' in 'protocol'", "did you mean 'clips'?"]),
    ],
)
def test_a_setting_that_stands_elsewhere(monkeypatch, word, said):
    monkeypatch.setattr(sys, "argv", ["evaluate.py", "protocol=shapes", word])
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        with pytest.raises(ConfigCompositionException) as caught:
            hydra.compose("evaluate", overrides=sys.argv[1:])
        message = str(explain(caught.value, "evaluate"))
    for part in said:
        assert part in message
