"""torch.export of each branch, with sizes that vary afterwards."""

from dataclasses import replace

import pytest
from support.small_models import VARIANTS, item, randomise, small_model, together

from onepeace.export.examples import examples
from onepeace.export.graph import VECTORS, Branch, distances, trace
from onepeace.hub.folder import read_config
from onepeace.hub.resolve import BUNDLED
from onepeace.model import OnePeace
from onepeace.processors import PROCESSORS


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


@pytest.mark.slow  # small ones are above, and more in tests/export
@pytest.mark.parametrize("key", ["image", "text", "audio"])
def test_branches_of_the_bundled_model(key):
    config = read_config(BUNDLED / "tiny")
    shallow = replace(
        config.model,
        adapters={key: config.model.adapters[key]},
        projections=(key,),
        depth=1,
        decoder=None,
    )
    processor = PROCESSORS[key].from_config(config.processors[key], BUNDLED / "tiny")
    example, batch = examples(key, processor)
    branch = Branch(randomise(OnePeace(shallow)).eval(), key, list(example))
    exported = trace(branch, example).module()
    assert distances(exported, branch, batch)[VECTORS] < 1e-5
