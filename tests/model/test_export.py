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


@pytest.mark.parametrize(
    "variant",
    ["video", *(pytest.param(name, marks=pytest.mark.slow) for name in ("image", "audio", "audio with mel stem"))],
)
def test_exported_branch_equals_eager_at_other_sizes(variant):
    key = VARIANTS[variant][0]
    example = together(item(key, i) for i in (0, 1, 2))
    branch = Branch(small_model(variant, decoder=None, depth=1), key, list(example))
    exported = trace(branch, example).module()
    for numbers in ((3, 4), (1, 5, 2, 4, 3)):
        batch = together(item(key, number) for number in numbers)
        assert distances(exported, branch, batch)[VECTORS] < 1e-5


@pytest.mark.slow  # small ones are above, and more in tests/export
@pytest.mark.parametrize("key", ["image", "text", "audio"])
def test_branches_of_the_bundled_model(key):
    config = read_config(BUNDLED / "tiny")
    adapters = {key: config.model.adapters[key]}
    small_config = replace(config.model, adapters=adapters, projections=(key,), depth=1, decoder=None)
    model = randomise(OnePeace(small_config)).eval()
    example, batch = examples(key, PROCESSORS[key].from_config(config.processors[key], BUNDLED / "tiny"))
    branch = Branch(model, key, list(example))
    assert distances(trace(branch, example).module(), branch, batch)[VECTORS] < 1e-5
