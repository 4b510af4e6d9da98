"""Checkpoints are whole or absent, exact, and refuse what is not theirs."""

import json
import shutil

import pytest
import torch
from torch import nn

from vdm import checkpoint
from vdm.ema import EMA
from vdm.errors import RunError


def content(value=1.0):
    weights = {"net.weight": torch.full((2, 3), value), "net.bias": torch.randn(3), "scale": torch.tensor(2.0)}
    return {
        "state_dict": weights,
        "ema": {"net.weight": torch.zeros(2, 3)},
        "global_step": 7,
        "optimizer_states": [{"state": {0: torch.ones(2)}}],
    }


def test_round_trip_is_exact(tmp_path):
    saved = content()
    checkpoint.save(tmp_path / "step-00000007", saved, step=7)
    loaded = checkpoint.load(tmp_path / "step-00000007")
    assert loaded["global_step"] == 7
    for kind in ("state_dict", "ema"):
        assert loaded[kind].keys() == saved[kind].keys()
        assert all(torch.equal(loaded[kind][name], saved[kind][name]) for name in saved[kind])


def test_network_weights_prefers_the_average(tmp_path):
    saved = content()
    checkpoint.save(tmp_path / "c", saved, step=1)
    averaged = checkpoint.network_weights(tmp_path / "c", "net")
    assert torch.equal(averaged["weight"], torch.zeros(2, 3))
    assert torch.equal(averaged["bias"], saved["state_dict"]["net.bias"])
    assert torch.equal(checkpoint.network_weights(tmp_path / "c", "net", averaged=False)["weight"], torch.ones(2, 3))
    with pytest.raises(RunError, match="no such network"):
        checkpoint.network_weights(tmp_path / "c", "other")


@pytest.mark.parametrize("damage", ["truncate", "flip", "delete", "manifest", "no manifest", "pickle"])
def test_damage_is_refused(tmp_path, damage):
    folder = tmp_path / "step-00000001"
    checkpoint.save(folder, content(), step=1)
    weights = folder / "weights" / "net.safetensors"
    if damage == "truncate":
        weights.write_bytes(weights.read_bytes()[:-3])
    elif damage == "flip":
        weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    elif damage == "delete":
        weights.unlink()
    elif damage == "manifest":
        (folder / "manifest.json").write_text("{")
    elif damage == "no manifest":
        (folder / "manifest.json").unlink()
    else:  # an honest manifest around a pickle that would run code

        class Evil:
            def __reduce__(self):
                return (exec, ("raise SystemExit('it ran')",))

        torch.save({"x": Evil()}, folder / "trainer.pt")
        manifest = json.loads((folder / "manifest.json").read_text())
        manifest["files"]["trainer.pt"] = checkpoint._fact(folder / "trainer.pt")
        (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(RunError, match="damaged"):
        checkpoint.load(folder)


def test_failed_write_leaves_the_old_one(tmp_path, monkeypatch):
    folder = tmp_path / "step-00000001"
    checkpoint.save(folder, content(1.0), step=1)

    def full_disk(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint.torch, "save", full_disk)
    with pytest.raises(RunError, match="No space left"):
        checkpoint.save(folder, content(2.0), step=1)
    monkeypatch.undo()
    assert [p.name for p in tmp_path.iterdir()] == ["step-00000001"]
    assert checkpoint.load(folder)["state_dict"]["net.weight"][0, 0] == 1.0


def test_recover_puts_back_what_was_being_replaced(tmp_path):
    checkpoint.save(tmp_path / "step-00000001", content(), step=1)
    shutil.copytree(tmp_path / "step-00000001", tmp_path / ".step-00000002.partial-12")
    (tmp_path / "step-00000001").rename(tmp_path / ".step-00000001.old-12")
    checkpoint.recover(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-00000001"]


def test_strict_loading_reports():
    net = nn.Linear(3, 2)
    good = {name: torch.zeros_like(p) for name, p in net.state_dict().items()}
    report = checkpoint.load_weights(net, good, source="x")
    assert (len(report.matched), report.missing, report.unexpected) == (2, [], [])
    with pytest.raises(RunError, match="missing: bias"):
        checkpoint.load_weights(net, {"weight": good["weight"]}, source="x")
    assert checkpoint.load_weights(net, {"weight": good["weight"]}, source="x", allow_missing=["bias"]).missing == [
        "bias"
    ]
    with pytest.raises(RunError, match="unexpected: extra"):
        checkpoint.load_weights(net, {**good, "extra": good["bias"]}, source="x")
    with pytest.raises(RunError, match="misshapen"):
        checkpoint.load_weights(net, {**good, "bias": torch.zeros(9)}, source="x")


def test_moving_average_matches_the_formula_and_swaps():
    torch.manual_seed(0)
    net = nn.Linear(4, 4).double()
    ema = EMA({"net": net}, decay=0.9)
    expected = net.weight.detach().clone().float()
    for n in range(30):
        with torch.no_grad():
            net.weight.add_(torch.randn_like(net.weight))
        ema.update()
        decay = min(0.9, (1 + n) / (10 + n))
        expected = decay * expected + (1 - decay) * net.weight.detach().float()
    torch.testing.assert_close(ema.shadow["net.weight"], expected)
    live = net.weight.detach().clone()
    with ema.in_place():
        torch.testing.assert_close(net.weight.detach().float(), expected)
    assert torch.equal(net.weight, live)
