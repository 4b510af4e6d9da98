"""What a step takes, without taking it: against known sizes, against a real step, and against the resident memory."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from tests.stages.test_autoencoder import batch, stage
from vdm.ema import EMA
from vdm.errors import ConfigError
from vdm.preflight import ledger as ledgers
from vdm.preflight import report
from vdm.preflight.check import Preflight, processes_of
from vdm.preflight.ledger import Ledger, Peak
from vdm.preflight.limits import Limit, control_groups
from vdm.preflight.report import Bucket, Cost, Remedy, Shape
from vdm.preflight.sharding import Sharing, parts, sharing_of, total
from vdm.preflight.simulate import Setting, Usage, simulate

ROOT = Path(__file__).resolve().parents[2]
CPU = torch.device("cpu")
SETTING = Setting(device=CPU, precision="32-true", accumulate=1, last_step=99, has_average=True)


@pytest.fixture
def exact(monkeypatch):
    """Tensors alone, without what malloc adds."""
    monkeypatch.setattr(ledgers, "GAPS_OF_SMALL", 1.0)
    monkeypatch.setattr(ledgers, "GAPS_OF_LARGE", 1.0)


def usage_of(module, count=4, **changed):
    return simulate(
        module, batch(), shape=(3, 4, 16, 16), count=count, setting=replace(SETTING, **changed), others=True
    )


def test_bytes_of_known_tensors():
    ledger = Ledger(CPU)
    with ledger:
        a = torch.ones(1000)
        ledger("forward")
        b = a.view(10, 100).t()  # the same memory
        c = b * 2
        ledger("backward")
        del c
        d = torch.zeros(10)
    assert ledger.live == 4000 + 40
    assert {name: peak.total for name, peak in ledger.peaks.items()} == {
        "other": 4000,
        "forward": 8000,
        "backward": 8000,
    }
    del a, b, d
    assert ledger.live == 0


def test_a_fake_tensor_that_is_asked_for_its_value_lets_the_step_go_on():
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    with mode:
        x = torch.empty(4, 8)
    mask = torch.tensor([True, False, True, False])
    with Ledger(CPU):
        assert x.sum().item() == 0.0
        assert bool(torch.isfinite(x.sum()))
        assert x[:, 0].tolist() == [0.0] * 4
        assert x[mask].shape == (2, 8)  # a mask that has values is obeyed
        assert (x > 0).nonzero().shape == (32, 2)


def test_parts_of_a_step(exact):
    module = stage()
    usage = usage_of(module)
    weights = sum(p.numel() for p in module.parameters()) * 4
    averaged = sum(p.numel() for p in module.autoencoder.parameters()) * 4
    assert usage.parameters == usage.gradients == weights
    assert usage.average == averaged
    counters = len(list(module.parameters())) * 4  # of the steps that AdamW has done
    assert usage.optimizer == 2 * weights + counters
    assert usage.frozen == sum(b.nbytes for b in module.buffers())
    assert usage.worst_phase in ("forward", "backward")
    assert usage.peak > usage.states + usage.kept
    assert usage.flops.model == usage.flops.hardware > 0
    assert {"forward", "backward", "optimizer", "ema", "validation", "samples"} <= usage.peaks.keys()
    assert all(p.grad is None for p in module.parameters())  # the stage itself has seen nothing of it
    assert not any(type(p).__name__ == "FakeTensor" for p in module.parameters())


def test_activations_grow_with_the_batch_and_nothing_else_does(exact):
    small, large = usage_of(stage(), count=2), usage_of(stage(), count=8)
    assert (small.parameters, small.optimizer, small.average) == (large.parameters, large.optimizer, large.average)
    assert large.kept == pytest.approx(4 * small.kept, rel=0.05)
    assert large.flops.model == pytest.approx(4 * small.flops.model, rel=0.01)


def test_gradients_are_there_from_the_second_batch_of_a_step_on(exact):
    module = stage()
    more = usage_of(module, accumulate=2).peaks["forward"].total - usage_of(module).peaks["forward"].total
    assert more == pytest.approx(sum(p.nbytes for p in module.parameters()), rel=0.01)


def test_a_schedule_that_switches_something_on_later_is_counted(exact):
    assert usage_of(stage(start_step=50)).kept > 1.2 * usage_of(stage(start_step=1000)).kept


def test_a_simulated_step_takes_what_a_real_one_does(exact):
    """The same ledger around real tensors."""
    guess = usage_of(stage())
    module, real = stage(), Ledger(CPU)
    for tensor in (*module.parameters(), *module.buffers()):
        real.add(tensor)
    module.phases.observers.append(real)
    with real:
        average = EMA(module.averaged(), 0.5)
        optimizer = module.make_optimizer(module.parameter_groups())
        for parameter in module.parameters():
            parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        data = batch()
        real.add(data["video"])
        before = real.live
        with module.phases("forward"):
            losses = module.losses(data)
        kept = real.live - before
        with module.phases("backward"):
            losses["loss"].backward()
    assert average.updates == 0
    assert guess.kept == pytest.approx(kept, rel=0.01)
    for phase in ("forward", "backward"):
        assert guess.peaks[phase].total == pytest.approx(real.peaks[phase].total, rel=0.02)


RESIDENT = """
import os, sys
sys.path.insert(0, {root!r})
import torch
import vdm
import tests.preflight.test_preflight as here
from tests.stages.test_autoencoder import stage
from vdm.preflight.report import predicted
from vdm.watching.devices import resident, resident_peak

torch.set_num_threads(1)
data = {{"video": torch.zeros(1, 3, 8, 64, 64), "key": ["a"], "caption": [""], "fps": torch.ones(1)}}
module, before = stage(), resident()
guess = here.simulate(module, data, shape=(3, 8, 64, 64), count=16, setting=here.SETTING, others=False)
if os.fork() == 0:
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")
    before = resident()
    batch = {{**data, "video": torch.rand(16, 3, 8, 64, 64) * 2 - 1}}
    optimizer = module.make_optimizer(module.parameter_groups())
    for _ in range(3):
        module.losses(batch)["loss"].backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    print(predicted(guess.peak, "cpu"), resident_peak() - before, flush=True)
    os._exit(0)
os.wait()
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="asks the system for the peak of a process")
def test_the_prediction_is_near_the_resident_memory():
    """A step of 300 MB; benchmarks/preflight.py has six configurations."""
    code = RESIDENT.format(root=str(ROOT))
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    guess, truth = map(int, done.stdout.split())
    assert guess == pytest.approx(truth, rel=0.25), (guess, truth)


# ---- strategies -----------------------------------------------------------------------------------------------------

MB = 1_000_000
USAGE = Usage(
    parameters=100 * MB, frozen=50 * MB, gradients=100 * MB, optimizer=200 * MB, average=100 * MB, kept=400 * MB,
    peaks={"forward": Peak(850 * MB, 850 * MB), "backward": Peak(940 * MB, 870 * MB), "optimizer": Peak(560 * MB, 460 * MB)},
)  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("one", {"weights": 100, "optimizer": 200, "average": 100, "gradients": 70, "working": 420, "sharing": 0}),
        ("ddp", {"weights": 100, "optimizer": 200, "average": 100, "gradients": 70, "working": 420, "sharing": 100}),
        ("zero1", {"weights": 100, "optimizer": 50, "average": 100, "gradients": 70, "working": 420, "sharing": 35}),
        ("zero2", {"weights": 100, "optimizer": 50, "average": 100, "gradients": 25, "working": 420, "sharing": 35}),
        ("zero3", {"weights": 25, "optimizer": 50, "average": 25, "gradients": 25, "working": 420, "sharing": 55}),
        ("fsdp", {"weights": 25, "optimizer": 50, "average": 25, "gradients": 25, "working": 420, "sharing": 20}),
    ],
)
def test_what_each_strategy_leaves_on_one_of_four(kind, expected):
    sharing = Sharing(kind, 1 if kind == "one" else 4, bucket=10 * MB, whole_at_once=20 * MB)
    found = parts(USAGE, sharing, on_host=False)
    assert {name: value // MB for name, value in found.items() if name != "frozen"} == expected
    assert found["frozen"] == 50 * MB


def test_one_process_takes_its_peak():
    assert total(USAGE, Sharing("one"), on_host=True) == USAGE.peak


def test_what_is_offloaded_is_not_on_the_device():
    sharing = Sharing("zero2", 4, offloads_optimizer=True)
    assert parts(USAGE, sharing, on_host=False)["optimizer"] == 0
    assert parts(USAGE, sharing, on_host=True)["optimizer"] == 50 * MB


def test_the_settings_of_a_strategy():
    module = nn.Sequential(nn.Linear(10, 10, bias=False), nn.Sequential(nn.Linear(20, 20, bias=False)))
    zero = {"_target_": "vdm.strategies.zero.Zero", "stage": 3, "offload_optimizer": True, "offload_parameters": False,
            "units": ["Sequential"], "reduce_bucket_size": 100, "max_live_parameters": 10**9}  # fmt: skip
    root = nn.Module()
    root.add_module("inner", module)
    root.add_module("rest", nn.Linear(5, 5, bias=False))
    sharing = sharing_of({"strategy": zero}, 8, root)
    assert (sharing.kind, sharing.processes, sharing.bucket, sharing.offloads_optimizer) == ("zero3", 8, 400, True)
    assert sharing.whole_at_once == 4 * (25 + 100 + 400)
    assert sharing_of({"strategy": "auto"}, 1, root).kind == "one"
    assert sharing_of({"strategy": "ddp"}, 2, root).kind == "ddp"


@pytest.mark.parametrize(
    ("trainer", "expected"),
    [
        ({"devices": 1, "accelerator": "cpu"}, (1, 1)), ({"devices": "2", "accelerator": "cpu", "num_nodes": 3}, (6, 2)),
        ({"devices": [0, 3], "accelerator": "gpu"}, (2, 2)), ({"devices": "auto", "accelerator": "cpu"}, (1, 1)),
    ],
)  # fmt: skip
def test_how_many_processes(trainer, expected, monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert processes_of(trainer) == expected


# ---- memory there is ------------------------------------------------------------------------------------------------


def group(folder, limit, used, cache, *, old):
    folder.mkdir(parents=True, exist_ok=True)
    names = ("memory.limit_in_bytes", "memory.usage_in_bytes") if old else ("memory.max", "memory.current")
    for name, value in zip(names, (limit, used), strict=True):
        (folder / name).write_text(f"{value}\n")
    (folder / "memory.stat").write_text(f"anon 5\ninactive_file {cache}\n")


@pytest.mark.parametrize("old", [True, False])
def test_the_limit_of_a_container_counts(tmp_path, old):
    own = tmp_path / "cgroup"
    own.write_text("5:cpu:/x\n4:memory:/job/step\n" if old else "0::/job/step\n")
    root = tmp_path / "fs"
    base = root / "memory" if old else root
    group(base / "job" / "step", "max" if not old else 1 << 62, 100, 0, old=old)
    group(base / "job", 8000, 3000, 1000, old=old)
    assert control_groups(root, own) == [8000 - 3000 + 1000]
    assert control_groups(root, tmp_path / "absent") == []


# ---- what is said ---------------------------------------------------------------------------------------------------


def bucket(**changed):
    shape = Shape("16x256x256", "data.batch_size", 8)
    return Bucket(shape, USAGE, Sharing("one"), "cuda", 0, **changed)


def test_what_does_not_fit_is_told_with_what_would():
    limit = Limit(900 * MB, "of a GPU")
    remedies = [
        Remedy("data.batch_size=4 stage.accumulate=2", 700 * MB),
        Remedy("backbone.checkpoint_levels=[0]", 890 * MB),
    ]
    (line,) = report.advice([bucket(remedies=remedies)], limit)
    assert line.startswith("16x256x256 may not fit")
    assert "data.batch_size=4 stage.accumulate=2 (0.70 GB)" in line
    assert "checkpoint_levels" not in line  # too close
    (line,) = report.advice([bucket(remedies=remedies[1:])], limit)
    assert "nothing by itself; the most is gained by backbone.checkpoint_levels=[0]" in line
    text = report.table([bucket()], limit)
    assert "16x256x256" in text
    assert "may not fit" in text
    assert "0.90 GB of a GPU" in text


def test_verdicts():
    assert [report.verdict(x, Limit(100, "")) for x in (80, 95, 105, 120)] == [
        "fits",
        "is close",
        "may not fit",
        "does not fit",
    ]


def test_what_a_job_costs():
    text = report.cost(Cost(0.5, 7200, 8, is_measured=True))
    assert "2 steps/s" in text
    assert "1 hours for 7,200 steps on each of 8 devices, 8 hours of devices" in text
    assert "nothing is said" in report.cost(Cost(None, 10, 1, False, "the peak is not known"))


class Data:
    num_workers = 2

    def sample_dataloader(self):
        assert self.num_workers == 0
        return iter([batch()])

    def on_after_batch_transfer(self, clips, _):
        return clips


def preflight(**changed):
    settings = {
        "trainer": {"accelerator": "cpu", "devices": 1, "precision": "32-true", "max_steps": 100, "strategy": "auto"},
        "callbacks": {"moving_average": {"decay": 0.9}}, "texts": None,
        "data": {"clip": {"frames": 4, "height": 16, "width": 16}, "batch_size": 4, "buckets": None, **changed},
    }  # fmt: skip
    return Preflight(stage=stage(), datamodule=Data(), settings=settings, before=100 * MB)


def test_the_short_form_is_crude_where_that_is_enough(caplog):
    check = preflight()
    check.limit = Limit(1 << 40, "free")
    with caplog.at_level("INFO"):
        check.short()
    assert "memory: at most" in caplog.text
    assert "batch" not in check.__dict__  # no clip was read


def test_the_bound_is_above_what_is_taken(exact):
    check = preflight()
    (shape, sizes), (found,) = next(iter(check.shapes())), check.buckets(others=False)
    assert check.bound(shape, sizes) > found.usage.peak


def test_a_job_that_cannot_fit_is_stopped_with_what_would_help():
    check = preflight()
    check.limit = Limit(120 * MB, "free")
    with pytest.raises(ConfigError, match="(?s)4x16x16 does not fit.*data.batch_size.*preflight=true.*preflight=false"):
        check.short()


def test_a_job_that_may_fit_is_warned(caplog):
    check = preflight()
    check.limit = Limit(int(check.buckets(others=False)[0].bytes / 1.05), "free")
    check.short()
    assert "which may not fit" in caplog.text


def test_each_bucket_has_a_line_and_the_cost_is_their_mean():
    sizes = [{"frames": 4, "height": 16, "width": 16, "weight": 1.0, "batch_size": 2},
             {"frames": 1, "height": 16, "width": 16, "weight": 1.0, "batch_size": 4}]  # fmt: skip
    check = preflight(buckets=sizes)
    assert [shape.key for shape, _ in check.shapes()] == ["data.buckets[0].batch_size", "data.buckets[1].batch_size"]
    text = check.full()
    assert "4x16x16" in text
    assert "1x16x16" in text
    assert "measured on this device" in text
    assert "for 100 steps" in text


def test_a_smaller_batch_is_found_on_the_line(exact):
    check = preflight(batch_size=64)
    check.limit = Limit(1, "free")
    (before,) = check.buckets(others=False)
    check.limit = Limit(int(before.bytes * 0.999), "free")
    (found,) = check.buckets(others=False)
    setting = found.remedies[0].setting
    assert setting.startswith("data.batch_size=")
    count, times = (int(part.split("=")[1]) for part in setting.split())
    assert count * times == 64  # a step learns from as many clips as before
    assert count < 64
    assert found.remedies[0].bytes <= found.bytes
