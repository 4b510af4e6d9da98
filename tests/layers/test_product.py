"""The matrix product behind the linear layers: the same in every layout that the layers hand it."""

import pytest
import torch
import torch.nn.functional as F

from vdm.layers.product import product

torch.set_num_threads(1)


@pytest.mark.parametrize("rows", [3, 512], ids=["few", "many"])
@pytest.mark.parametrize("layout", ["plain", "turned", "expanded", "part"])
def test_products_of_any_layout(rows, layout):
    torch.manual_seed(0)
    x, weight, bias = torch.randn(2, rows, 24), torch.randn(40, 24), torch.randn(40)
    if layout == "turned":
        weight = torch.randn(24, 40).T
    elif layout == "expanded":  # the gradient of a sum
        x = torch.ones(1).expand(2, rows, 24)
    elif layout == "part":
        x = torch.randn(2, rows, 48)[..., 24:]
    add = torch.randn(2 * rows, 40)
    exact = F.linear(x.double(), weight.double(), bias.double())
    torch.testing.assert_close(product(x, weight, bias), exact.float(), rtol=1e-5, atol=1e-5)
    summed = product(x, weight, bias, add=add)
    torch.testing.assert_close(summed, exact.float().view(add.shape) + add, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(product(x, weight), (exact - bias).float(), rtol=1e-5, atol=1e-5)


def test_autocast_computes_in_its_precision():
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert product(torch.randn(128, 8), torch.randn(8, 8)).dtype == torch.bfloat16
