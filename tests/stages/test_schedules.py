"""Learning rates over a run: golden values at its corners, and every group at its own rate."""

import pytest
import torch

from vdm.stages.schedules import one_cycle


def rates(total_steps, pct_start):
    first, second = torch.nn.Parameter(torch.zeros(1)), torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([{"params": [first]}, {"params": [second], "lr": 0.5}], lr=2.0)
    schedule = one_cycle(optimizer, total_steps=total_steps, pct_start=pct_start)
    seen = []
    for _ in range(total_steps + 1):
        seen.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        schedule.step()
    return seen


def test_up_to_the_rate_of_each_group_and_down_to_nothing():
    seen = rates(100, 0.2)
    assert seen[0] == [0.0, 0.0]
    assert seen[10] == pytest.approx([1.0, 0.25])  # half way up
    assert seen[20] == [2.0, 0.5]
    assert seen[60] == pytest.approx([1.0, 0.25])  # half way down
    assert seen[100] == pytest.approx([0.0, 0.0])
    assert all(a[0] == pytest.approx(4 * a[1]) for a in seen)


@pytest.mark.parametrize(("total_steps", "pct_start"), [(1, 0.0), (1, 1.0), (20, 0.05), (3, 0.9)])
def test_every_length_can_be_made(total_steps, pct_start):
    assert all(0 <= rate <= 2 for pair in rates(total_steps, pct_start) for rate in pair)
