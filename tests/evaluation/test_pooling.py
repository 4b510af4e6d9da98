"""Max pooling axis by axis gives the bits of PyTorch's, also inside a TorchScript network, and leaves alone what it cannot do."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from vdm.evaluation.pooling import QuickPools, pooled

CASES = [
    ((2, 5, 7, 13, 12), {"kernel_size": (1, 3, 3), "stride": (1, 2, 2)}),
    ((2, 5, 7, 13, 12), {"kernel_size": 3, "stride": 1}),
    ((1, 3, 4, 8, 9), {"kernel_size": (2, 2, 2)}),
    ((2, 3, 6, 6, 6), {"kernel_size": 3, "stride": (2, 1, 3)}),
    ((3, 4, 4, 4), {"kernel_size": 2}),  # without a batch
    ((2, 3, 9, 9, 9), {"kernel_size": 3, "padding": 1}),
    ((2, 3, 9, 9, 9), {"kernel_size": 2, "dilation": 2}),
    ((2, 3, 9, 8, 7), {"kernel_size": 3, "stride": 2, "ceil_mode": True}),
]


@pytest.mark.parametrize(("shape", "given"), CASES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_same_bits(shape, given, dtype):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    x.view(-1)[::37] = float("nan")
    x.view(-1)[1::41] = float("-inf")
    wanted = F.max_pool3d(x, **given)
    with QuickPools():
        found = F.max_pool3d(x, **given)
    assert torch.equal(wanted.isnan(), found.isnan())
    assert torch.equal(wanted.nan_to_num(), found.nan_to_num())
    assert found.is_contiguous()


def test_pictures_and_layouts():
    x = torch.randn(2, 6, 15, 14).to(memory_format=torch.channels_last)
    with QuickPools():
        assert torch.equal(F.max_pool2d(x, 3, 2), torch.max_pool2d(x, 3, 2))
        found = F.max_pool2d(x, 3, 2)
    assert torch.equal(found, F.max_pool2d(x, 3, 2))
    assert pooled(2, x, [3, 3], [2, 2]) is not None, "it was this one"
    assert pooled(2, x.long(), [3]) is None
    with QuickPools(), pytest.raises(RuntimeError, match="too small|smaller than"):
        F.max_pool2d(x, 99)


class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv3d(3, 8, 3), nn.Conv3d(8, 8, 1)
        self.norm = nn.BatchNorm3d(8)

    def forward(self, x: torch.Tensor):
        x = F.max_pool3d(torch.relu(self.norm(self.first(x))), [1, 3, 3], [1, 2, 2])
        return F.max_pool3d(self.second(F.pad(x, [1, 1, 1, 1, 1, 1])), 3, 1).mean((2, 3, 4))


def test_inside_a_script():
    torch.manual_seed(0)
    network = torch.jit.script(Small().eval())
    x = torch.randn(2, 3, 6, 20, 20)
    seen = []
    with torch.no_grad():
        wanted = network(x)

        class Watched(QuickPools):
            def __torch_dispatch__(self, func, types, args=(), kwargs=None):
                seen.append(str(func))
                return super().__torch_dispatch__(func, types, args, kwargs)

        for _ in range(3):  # the script is optimised on its way
            with Watched():
                assert torch.equal(network(x), wanted)
    assert sum("max_pool3d" in name for name in seen) == 6
