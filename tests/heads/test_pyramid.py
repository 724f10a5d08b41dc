"""The pyramid over a feature map."""

import torch

from onepeace.heads import Pyramid


def test_pyramid_has_four_strides():
    torch.manual_seed(0)
    pyramid = Pyramid(32, 12)
    x = torch.randn(2, 32, 6, 10, requires_grad=True)
    levels = pyramid(x)
    shapes = [tuple(level.shape) for level in levels]
    assert shapes == [(2, 12, 24, 40), (2, 12, 12, 20), (2, 12, 6, 10), (2, 12, 3, 5)]
    for level in levels:  # the norm at the end is over the channels of each place
        assert torch.allclose(level.mean(1), torch.zeros(()), atol=1e-5)
        (gradient,) = torch.autograd.grad(level.sin().sum(), x, retain_graph=True)
        assert gradient.abs().max() > 0
    corner = levels[0][0, :, 0, 0]
    (gradient,) = torch.autograd.grad(corner.sin().sum(), x)
    is_read = gradient[0].abs().sum(0) > 0
    assert is_read[:1, :1].any()
    assert not is_read[2:].any()
    assert not is_read[:, 2:].any()
