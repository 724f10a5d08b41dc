"""The pyramid over a feature map."""

import torch

from onepeace.heads import Pyramid


def test_pyramid_has_four_strides():
    torch.manual_seed(0)
    pyramid, x = Pyramid(32, 12), torch.randn(2, 32, 6, 10, requires_grad=True)
    maps = pyramid(x)
    assert [tuple(one.shape) for one in maps] == [(2, 12, 24, 40), (2, 12, 12, 20), (2, 12, 6, 10), (2, 12, 3, 5)]
    for one in maps:  # the norm at the end is over the channels of each place
        assert torch.allclose(one.mean(1), torch.zeros(()), atol=1e-5)
        (grad,) = torch.autograd.grad(one.sin().sum(), x, retain_graph=True)
        assert grad.abs().max() > 0
    seen = torch.autograd.grad(maps[0][0, :, 0, 0].sin().sum(), x)[0][0].abs().sum(0)
    assert seen[:1, :1].any()
    assert not seen[2:].any()
    assert not seen[:, 2:].any()
