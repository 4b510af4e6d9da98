"""Phases, stopwatches, counted operations and who is late: on numbers that are known."""

import copy

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from vdm.phases import Phases
from vdm.watching import devices
from vdm.watching.flops import FlopCounter
from vdm.watching.stopwatch import CudaStopwatch, Stopwatch
from vdm.watching.stragglers import find_straggler


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


class Event:
    """As a GPU's, on a clock that nobody waits for."""

    def __init__(self, clock):
        self.clock, self.waited = clock, 0

    def record(self):
        self.at = self.clock.now

    def synchronize(self):
        self.waited += 1

    def elapsed_time(self, end):
        return 1000 * (end.at - self.at)


def broken(phases, clock):
    with phases("backward"):
        clock.now += 4
        raise ValueError("broken")


def a_step(phases, clock):
    phases.outside("other")
    with phases("forward"):
        clock.now += 1
        with phases("autoencoder"):
            clock.now += 10
        clock.now += 2
    clock.now += 0.5
    with pytest.raises(ValueError, match="broken"):
        broken(phases, clock)
    phases.outside("data_wait")
    clock.now += 3


@pytest.mark.parametrize("kind", [Stopwatch, CudaStopwatch])
def test_time_belongs_to_the_innermost_phase_and_adds_up(kind):
    clock, phases = Clock(), Phases()
    watch = Stopwatch(clock=clock) if kind is Stopwatch else CudaStopwatch(event=lambda: Event(clock))
    phases.observers.append(watch)
    for _ in range(3):
        a_step(phases, clock)
    seconds = watch.read()
    assert {name: value for name, value in seconds.items() if value} == {
        "forward": 9, "autoencoder": 30, "backward": 12, "other": 1.5, "data_wait": 9,
    }  # fmt: skip
    assert sum(seconds.values()) == clock.now
    clock.now += 1
    assert watch.read() == {"data_wait": 1.0}
    assert phases.current == "data_wait"


def test_events_are_folded_long_before_they_are_too_many():
    clock, made = Clock(), []
    watch = CudaStopwatch(event=lambda: made.append(Event(clock)) or made[-1])
    for number in range(3 * CudaStopwatch.LIMIT):
        clock.now += 1
        watch(("forward", "backward")[number % 2])
        assert len(watch._marks) <= CudaStopwatch.LIMIT + 1
    assert not any(event.waited for event in made[-CudaStopwatch.LIMIT // 2 :])  # only what is long past is waited for
    assert sum(watch.read().values()) == clock.now


def test_a_copy_of_phases_is_observed_by_nobody():
    phases = Phases()
    phases.observers.append(print)
    assert copy.deepcopy({"phases": phases})["phases"].observers == []


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(32, 64), nn.Linear(64, 32)
        self.conv = nn.Conv1d(1, 4, 3, padding=1)

    def forward(self, x):
        return self.second(self.first(x).relu()) + self.conv(x[:, None]).sum(1)


class Network(nn.Module):
    def __init__(self, *, again):
        super().__init__()
        self.block, self.again = Block(), again

    def forward(self, x):
        return checkpoint(self.block, x, use_reentrant=False) if self.again else self.block(x)


def counted(*, again):
    torch.manual_seed(0)
    network, phases = Network(again=again), Phases()
    x = torch.randn(8, 32, requires_grad=True)
    counter = FlopCounter(network)
    phases.observers.append(counter)
    with counter:
        with phases("forward"):
            out = network(x)
        with phases("backward"):
            out.sum().backward()
        with phases("optimizer"):
            torch.ones(64, 64) @ torch.ones(64, 64)
    assert not network.block.first._forward_hooks
    assert not network.block.first._forward_pre_hooks
    return counter.result(), network.block.first.weight.grad


def test_operations_of_a_step_with_and_without_recomputation():
    linear, conv = 2 * 2 * 8 * 32 * 64, 2 * 8 * 4 * 3 * 32
    plain, gradient = counted(again=False)
    assert plain.phases["forward"] == linear + conv
    assert plain.phases["backward"] == 2 * (linear + conv)
    assert plain.model == plain.hardware == 3 * (linear + conv)  # and nothing of the optimizer
    twice, same = counted(again=True)
    assert twice.model == plain.model
    assert twice.hardware == 4 * linear + 3 * conv  # what comes last is needed by nobody, and not computed again
    assert torch.equal(gradient, same)


STEADY = {"data_wait": 0.01, "forward": 0.3, "backward": 0.6, "optimizer": 0.09}


def ranks(count, late=None, **more):
    rows = [dict(STEADY) for _ in range(count)]
    if late is not None:
        for phase, seconds in more.items():
            rows[late][phase] += seconds
            for number, row in enumerate(rows):
                row["backward"] += seconds * (number != late)  # they wait where gradients meet
    return rows


@pytest.mark.parametrize("count", [2, 3, 8])
@pytest.mark.parametrize("phase", ["data_wait", "forward"])
def test_the_rank_that_is_late_is_named_and_not_those_that_wait(count, phase):
    found = find_straggler(ranks(count, late=1, **{phase: 0.5}), [1e-3] * count, step=1.5, threshold=0.1)
    assert (found.rank, found.phase) == (1, phase)
    assert found.share == pytest.approx(1 / 3)
    assert "rank 1" in str(found)


def test_nobody_is_named_for_noise_and_a_slow_device_is_found_by_its_probe():
    assert find_straggler(ranks(4, late=2, forward=0.05), [1e-3, 1.2e-3, 1e-3, 1e-3], step=1.0, threshold=0.1) is None
    found = find_straggler(ranks(4), [1e-3, 1e-3, 1e-3, 2.5e-3], step=1.0, threshold=0.1)
    assert (found.rank, found.phase, found.share) == (3, "device", pytest.approx(0.6))


def test_peaks_of_devices(monkeypatch):
    assert devices.peak_tflops(torch.device("cpu"), "32-true") is None
    cuda = torch.device("cuda")
    for name, half in (("NVIDIA H100 80GB HBM3", 989), ("NVIDIA H100 PCIe", 756), ("NVIDIA A100-SXM4-80GB", 312),
                       ("NVIDIA L40S", 362), ("NVIDIA L4", 121), ("Tesla T4", 65), ("Unheard Of 1", None)):  # fmt: skip
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda _, name=name: name)
        assert devices.peak_tflops(cuda, "bf16-mixed") == half
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "NVIDIA A100-SXM4-80GB")
    assert devices.peak_tflops(cuda, "32-true") == 19.5


def test_a_measured_peak_is_what_a_product_reaches():
    peak = devices.measured_tflops(torch.device("cpu"), "32-true", size=256, seconds=0.05)
    assert 1e-4 < peak < 100


def test_memory_of_this_process():
    before = devices.resident()
    block = torch.ones(16 << 20)  # 64 MB
    assert devices.resident() - before > 50e6
    assert devices.resident_peak() >= devices.resident() - 1e6
    del block
