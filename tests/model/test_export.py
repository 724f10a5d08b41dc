"""torch.export of each embedding path, with sizes that vary afterwards."""

import pytest
import torch
from support.small_models import VARIANTS, item, small_model, together
from torch.export import Dim, export

from onepeace.export.graph import Branch

LENGTH = Dim("length", min=2, max=39)
BATCH = Dim("batch", min=2, max=64)
SHAPES = {
    "text": {"ids": {0: BATCH, 1: LENGTH}, "lengths": {0: BATCH}},
    "image": {"pixels": {0: BATCH}},
    "video": {"pixels": {0: BATCH}},
    "audio": {"waveform": {0: BATCH, 1: Dim.AUTO}, "lengths": {0: BATCH}},
}


@torch.no_grad()
@pytest.mark.parametrize(
    ("variant", "padded"),
    [
        ("text", True),
        pytest.param("text", False, marks=pytest.mark.slow),
        ("image", False),
        ("audio", True),
        pytest.param("audio with mel stem", True, marks=pytest.mark.slow),
        ("video", False),
    ],
)
def test_exported_path_equals_eager_at_other_sizes(variant, padded):
    key = VARIANTS[variant][0]
    model = small_model(variant, decoder=None, depth=1)

    def batch(*indices):
        return together(item(key, i if padded else indices[0]) for i in indices)

    example = batch(0, 1, 2)
    module = Branch(model, key, list(example))
    shapes = tuple(SHAPES[key][name] for name in example)
    program = export(module, tuple(example.values()), dynamic_shapes=(shapes,)).module()
    for other in (batch(3, 4), batch(1, 5, 2, 4, 3)):
        assert torch.allclose(program(*other.values()), model({key: other})[key], rtol=0, atol=1e-5)
