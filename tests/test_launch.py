"""What a user reads when a part cannot be built."""

from hydra.errors import InstantiationException

from vdm.errors import ConfigError
from vdm.launch import explain


def test_the_message_of_a_constructor_is_not_lost_in_hydras():
    cause = ConfigError("a share of clips", key="condition.text.drop_prob", got=2, allowed="0 to 1")
    error = InstantiationException("Error in call to target 'vdm...'\nfull_key: condition.text")
    error.__cause__ = cause
    assert explain(error, "train") is cause
    assert "Error in call" in str(explain(InstantiationException("Error in call\nfull_key: x"), "train"))
