"""Muon: directions are orthogonal, parity with torch's for plain matrices and with AdamW for the rest."""

import copy

import pytest
import torch
from torch import nn

from vdm.errors import ConfigError
from vdm.stages.muon import Muon, orthogonal


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 32, 3), nn.SiLU(), nn.Conv2d(32, 48, 3), nn.Flatten(), nn.Linear(48, 24))


def muon(groups, **changed):
    settings = {"lr": 1e-3, "betas": [0.9, 0.99], "weight_decay": 0.01, "matrix_lr": 0.02, "momentum": 0.95}
    return Muon(groups, **{**settings, "min_width": 16, "max_width": None, "fused": False, **changed})


def steps(network, optimizer, count=3):
    for number in range(count):
        optimizer.zero_grad()
        x = torch.randn(8, 3, 5, 5, generator=torch.Generator().manual_seed(number))
        network(x).square().mean().backward()
        optimizer.step()


@pytest.mark.parametrize("shape", [(2, 16, 40), (3, 40, 16), (1, 32, 288)])
def test_directions_are_orthogonal(shape):
    torch.manual_seed(0)
    given = torch.randn(shape) @ torch.diag(torch.logspace(-1, 0, shape[-1]))
    values = torch.linalg.svdvals(orthogonal(given))
    assert values.min() > 0.6
    assert values.max() < 1.3
    u, _, v = torch.linalg.svd(given, full_matrices=False)
    assert torch.linalg.svdvals(u.mT @ orthogonal(given) @ v.mT).min() > 0.6, "and keep the singular vectors"


def test_directions_of_one_size_are_kept():
    """Singular values from 0.003 of the norm on come out alike."""
    values = torch.logspace(-2.5, -0.5, 24)
    values = values / values.norm()
    found = torch.linalg.svdvals(orthogonal(torch.diag(values)[None]))
    assert 0.6 < found.min() < found.max() < 1.3


def test_the_same_as_torch_for_a_linear_layer(monkeypatch):
    monkeypatch.setattr("vdm.stages.muon.NEWTON_SCHULZ", ((3.4445, -4.7750, 2.0315),) * 5)  # torch's
    torch.manual_seed(0)
    ours, theirs = nn.Linear(24, 64, bias=False), nn.Linear(24, 64, bias=False)
    theirs.load_state_dict(ours.state_dict())
    first = muon([{"params": list(ours.parameters()), "matrices": True}], weight_decay=0.1)
    second = torch.optim.Muon(theirs.parameters(), lr=0.02, weight_decay=0.1, momentum=0.95)
    x = torch.randn(100, 24)
    for _ in range(5):
        for network, optimizer in ((ours, first), (theirs, second)):
            optimizer.zero_grad()
            (network(x) - 1).square().mean().backward()
            optimizer.step()
    moved = (theirs.weight - ours.weight).norm() / (0.02 * 5 * 24**0.5)
    assert moved < 0.02, "torch's iterates in bfloat16"


def test_what_is_no_wide_matrix_goes_to_adamw():
    first, second = net(), net()
    steps(first, muon([{"params": list(first.parameters())}]))  # no group says that it has matrices
    steps(second, torch.optim.AdamW(second.parameters(), lr=1e-3, betas=(0.9, 0.99), weight_decay=0.01))
    assert all(torch.equal(p, q) for p, q in zip(first.parameters(), second.parameters(), strict=True))
    third = net()
    optimizer = muon([{"params": list(third.parameters()), "matrices": True}])
    assert [tuple(p.shape) for g in optimizer.param_groups if g["matrices"] for p in g["params"]] == [
        (48, 32, 3, 3),
        (24, 48),
    ]


def test_a_group_with_a_rate_of_its_own_scales_both():
    network = net()
    groups = muon([{"params": list(network.parameters()), "matrices": True, "lr": 5e-4}]).param_groups
    assert [group["lr"] for group in groups] == [5e-4, pytest.approx(0.01)]


def test_continued_from_a_checkpoint_it_is_the_same():
    whole = net()
    optimizer = muon([{"params": list(whole.parameters()), "matrices": True}])
    steps(whole, optimizer)
    half, state = copy.deepcopy(whole), copy.deepcopy(optimizer.state_dict())
    steps(whole, optimizer)
    restored = muon([{"params": list(half.parameters()), "matrices": True}])
    restored.load_state_dict(state)
    steps(half, restored)
    assert all(torch.equal(p, q) for p, q in zip(whole.parameters(), half.parameters(), strict=True))


def test_pieces_of_matrices_are_refused():
    network = net()
    optimizer = muon([{"params": list(network.parameters()), "matrices": True}])
    steps(network, optimizer, 1)
    group = next(g for g in optimizer.param_groups if g["matrices"])
    flat = nn.Parameter(group["params"][0].detach().flatten())
    flat.grad = torch.zeros_like(flat)
    group["params"] = [flat]
    with pytest.raises(ConfigError, match="cut matrices into pieces"):
        optimizer.step()


def test_mixed_precision_leaves_the_step_as_it_is():
    """The loop runs a step inside autocast, and steps along gradients of low rank would come out many times too long."""
    steps = []
    for is_mixed in (False, True):
        torch.manual_seed(0)
        matrix = nn.Parameter(torch.randn(32, 128))
        matrix.grad = torch.randn(32, 2) @ torch.randn(2, 128)
        before = matrix.detach().clone()
        optimizer = Muon([{"params": [matrix], "matrices": True}], lr=1e-3, betas=(0.9, 0.99), weight_decay=0.0,
                         matrix_lr=1.0, momentum=0.9, min_width=8, max_width=None, fused=False)  # fmt: skip
        with torch.autocast("cpu", torch.bfloat16, enabled=is_mixed):
            optimizer.step()
        steps.append(matrix.detach() - before)
    assert torch.equal(*steps)


def test_matrices_that_cost_too_much_go_to_adamw():
    network = nn.Sequential(nn.Linear(40, 40), nn.Linear(40, 20), nn.Conv2d(20, 24, 3))
    groups = muon([{"params": list(network.parameters()), "matrices": True}], max_width=24).param_groups
    taken = [tuple(p.shape) for group in groups if group["matrices"] for p in group["params"]]
    assert taken == [(20, 40), (24, 20, 3, 3)]
