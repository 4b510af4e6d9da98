"""Messages for users hold what they promise, also after a trip between processes."""

import pickle

import pytest

from vdm.errors import ConfigError, DataError, RunError, suggest


@pytest.mark.parametrize("kind", [ConfigError, DataError, RunError])
@pytest.mark.parametrize(
    ("allowed", "shown"), [("1 to 3", "1 to 3"), (["a", "b"], "a, b"), (7, "7"), ({"x": 1}, "x"), (range(2), "0, 1")]
)
def test_message(kind, allowed, shown):
    error = kind("this does not fit", key="data.size", got=5, allowed=allowed, remedy="set data.size=3")
    lines = str(error).splitlines()
    assert lines[0] == "this does not fit"
    assert lines[1:] == ["  key:     data.size", "  got:     5", f"  allowed: {shown}", "  remedy:  set data.size=3"]
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is kind
    assert str(again) == str(error)


def test_suggest():
    assert suggest("batch_siz", ["batch_size", "seed"]) == "did you mean 'batch_size'?"
    assert suggest("zzz", ["batch_size"]) == ""
