"""Several labels for each item: mean average precision over the classes that occur."""

import numpy as np
import pytest
from support.evaluation import EqualEmbedder, KnownEmbedder, measure, recipe_of
from support.small_shards import write_shard

from onepeace.errors import UserError
from onepeace.evaluate import metrics

RECIPE = """
sets: {tags: {protocol: multi_label, modality: image, shards: "val/tags.tar", templates: ["{}"]}}
"""


@pytest.fixture
def tags(tmp_path):
    content = {"1": "dog rain", "2": "dog", "3": "cat rain", "4": "cat"}
    samples = {key: (text.encode(), {"targets": {"labels": text.split()}}) for key, text in content.items()}
    write_shard(tmp_path / "val/tags.tar", samples)
    return tmp_path


def test_a_model_that_hears_all_labels_is_right_and_one_that_mistakes_them_is_not(tags):
    (right,) = measure(KnownEmbedder(), recipe_of(tags, RECIPE))
    assert right[:3] == ("tags", "mAP of 3 classes", 1.0)
    assert (right.n, right.per_query, right.interval) == (3, (1.0,) * 3, (1.0, 1.0))
    (wrong,) = measure(KnownEmbedder(1), recipe_of(tags, RECIPE))
    assert wrong.value < 0.7
    assert wrong.interval[0] < wrong.value
    (equal,) = measure(EqualEmbedder(), recipe_of(tags, RECIPE))
    assert equal.value == pytest.approx((1 / 3 + 2 / 4) / 2)  # the wrong ones come first: places 3 and 4


def test_chance_is_what_random_scores_reach(tags):
    (row,) = measure(KnownEmbedder(), recipe_of(tags, RECIPE))
    correct = np.array([[1, 1, 0, 0], [0, 0, 1, 1], [1, 0, 1, 0]])
    scores = np.random.default_rng(0).random((3000, 3, 4))
    reached = np.mean([metrics.average_precisions(each, correct) for each in scores])
    assert row.chance == pytest.approx(reached, abs=0.01)


def test_samples_without_labels_and_unknown_classes_are_named(tags):
    (tags / "names.json").write_text('["dog", "cat"]')
    with pytest.raises(UserError, match="label 'rain' is not among the 2 classes"):
        measure(KnownEmbedder(), recipe_of(tags, RECIPE, "sets.tags.classes=names.json"))
    write_shard(tags / "val/tags.tar", {"7": (b"dog", {"label": "dog"})})
    with pytest.raises(UserError, match="7 has no list of labels"):
        measure(KnownEmbedder(), recipe_of(tags, RECIPE))
    write_shard(tags / "val/tags.tar", {"7": (b"dog", {"targets": {"labels": []}})})
    with pytest.raises(UserError, match="not one of 1 samples has a label"):
        measure(KnownEmbedder(), recipe_of(tags, RECIPE, "sets.tags.classes=names.json"))
