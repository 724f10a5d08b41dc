"""torch.export of each branch, with sizes that vary afterwards."""

import pytest
from support.small_models import VARIANTS, item, small_model, together

from onepeace.export.graph import VECTORS, Branch, distances, trace


def batch_of_items(key, numbers):
    return together(item(key, number) for number in numbers)


@pytest.mark.parametrize(
    "variant",
    [
        "video",
        pytest.param("image", marks=pytest.mark.slow),
        pytest.param("audio", marks=pytest.mark.slow),
        pytest.param("audio with mel stem", marks=pytest.mark.slow),
    ],
)
def test_exported_branch_equals_eager_at_other_sizes(variant):
    key = VARIANTS[variant][0]
    example = batch_of_items(key, [0, 1, 2])
    branch = Branch(small_model(variant, decoder=None, depth=1), key, list(example))
    exported = trace(branch, example).module()
    for numbers in ((3, 4), (1, 5, 2, 4, 3)):
        batch = batch_of_items(key, numbers)
        assert distances(exported, branch, batch)[VECTORS] < 1e-5
