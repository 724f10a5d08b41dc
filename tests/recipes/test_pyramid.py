"""The pyramid over a feature map."""

import torch
from support.recipe_files import recipe_file


def test_pyramid_has_four_strides():
    torch.manual_seed(0)
    pyramid = recipe_file("pyramid").Pyramid(32, 12)
    x = torch.randn(2, 32, 6, 10, requires_grad=True)
    levels = pyramid(x)
    sizes = [tuple(level.shape[2:]) for level in levels]
    assert sizes == [(24, 40), (12, 20), (6, 10), (3, 5)]
    for level in levels:  # the norm at the end is over the channels of each place
        assert level.shape[:2] == (2, 12)
        assert level.mean(1).abs().max() < 1e-5
        loss = level.sin().sum()
        (gradient,) = torch.autograd.grad(loss, x, retain_graph=True)
        assert gradient.any()
    corner = levels[0][0, :, 0, 0]
    (gradient,) = torch.autograd.grad(corner.sin().sum(), x)
    is_read = gradient[0].abs().sum(0) > 0
    assert is_read[:1, :1].any()
    assert not is_read[2:].any()
    assert not is_read[:, 2:].any()
