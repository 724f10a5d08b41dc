"""torch.export of each embedding path, with sizes that vary afterwards."""

import pytest
import torch
from support.small_models import VARIANTS, item, small_model, together
from torch import nn
from torch.export import Dim, export

LENGTH = Dim("length", min=2, max=39)
BATCH = Dim("batch", min=2, max=64)
SHAPES = {
    "text": {"ids": {0: BATCH, 1: LENGTH}, "lengths": {0: BATCH}},
    "image": {"pixels": {0: BATCH}},
    "video": {"pixels": {0: BATCH}},
    "audio": {"waveform": {0: BATCH, 1: Dim.AUTO}, "lengths": {0: BATCH}},
}


class Embed(nn.Module):
    """Unit vectors of one modality as a function of its tensors."""

    def __init__(self, model, key):
        super().__init__()
        self.model, self.key = model, key

    def forward(self, batch):
        return self.model({self.key: batch})[self.key]


@torch.no_grad()
@pytest.mark.parametrize(
    ("variant", "padded"),
    [
        ("text", True),
        ("text", False),
        ("image", False),
        ("audio", True),
        ("audio with mel stem", True),
        ("video", False),
    ],
)
def test_exported_path_equals_eager_at_other_sizes(variant, padded):
    key = VARIANTS[variant][0]
    module = Embed(small_model(variant, decoder=None, depth=1), key)

    def batch(*indices):
        return together(item(key, i if padded else indices[0]) for i in indices)

    example = batch(0, 1, 2)
    shapes = {name: SHAPES[key][name] for name in example}
    program = export(module, (example,), dynamic_shapes=(shapes,)).module()
    for other in (batch(3, 4), batch(1, 5, 2, 4, 3)):
        assert torch.allclose(program(other), module(other), rtol=0, atol=1e-5)
