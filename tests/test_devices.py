"""Which device a process takes."""

import pytest
import torch

from vdm.devices import this_device
from vdm.errors import ConfigError


@pytest.fixture
def gpus(monkeypatch):
    """A machine with as many, as far as one asks; the list of those that were made the current one."""
    chosen = []

    def there_are(count):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
        monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
        return chosen

    for name in ("LOCAL_RANK", "SLURM_LOCALID"):
        monkeypatch.delenv(name, raising=False)
    return there_are


def test_without_a_gpu(gpus):
    chosen = gpus(0)
    assert this_device() == this_device("cpu") == torch.device("cpu")
    with pytest.raises(ConfigError, match=r"(?s)no GPU.*llm\.device"):
        this_device("cuda", key="llm.device")
    assert chosen == []


def test_each_process_has_its_own(gpus, monkeypatch):
    chosen = gpus(4)
    assert this_device() == torch.device("cuda", 0)
    monkeypatch.setenv("SLURM_LOCALID", "2")
    assert this_device("cuda") == torch.device("cuda", 2)
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert this_device() == torch.device("cuda", 3)
    assert chosen == [torch.device("cuda", i) for i in (0, 2, 3)]
    assert this_device("cpu") == torch.device("cpu")
    gpus(1)  # a launcher shows each process one
    assert this_device() == torch.device("cuda", 0)


def test_another_word(gpus):
    gpus(1)
    with pytest.raises(ConfigError, match="auto, cpu, cuda"):
        this_device("tpu")
