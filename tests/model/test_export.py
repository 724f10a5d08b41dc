"""torch.export of each branch, with sizes that vary afterwards."""

from dataclasses import replace

import pytest
from support.small_models import VARIANTS, item, randomise, small_model, together

from onepeace.export.examples import examples
from onepeace.export.graph import distance, trace
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
    model = small_model(variant, decoder=None, depth=1)
    program = trace(model, key, together(item(key, i) for i in (0, 1, 2))).module()
    for indices in ((3, 4), (1, 5, 2, 4, 3)):
        assert distance(program, model, key, together(item(key, i) for i in indices)) < 1e-5


@pytest.mark.slow  # small ones are above, and more in tests/export
@pytest.mark.parametrize("key", ["image", "text", "audio"])
def test_branches_of_the_bundled_model(key):
    config = read_config(BUNDLED / "tiny")
    adapters = {key: config.model.adapters[key]}
    one = replace(config.model, adapters=adapters, projections=(key,), depth=1, decoder=None)
    model = randomise(OnePeace(one)).eval()
    example, other = examples(key, PROCESSORS[key].from_config(config.processors[key], BUNDLED / "tiny"))
    assert distance(trace(model, key, example).module(), model, key, other) < 1e-5
