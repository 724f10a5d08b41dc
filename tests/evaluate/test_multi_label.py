"""Several labels for each item: mean average precision over the classes that occur."""

import pytest
from support.evaluation import described
from support.small_shards import write_shard

from onepeace.errors import UserError

RECIPE = """
sets: {tags: {protocol: multi_label, modality: image, shards: "val/tags.tar", templates: ["{}"]}}
"""


@pytest.fixture
def root(tmp_path):
    (tmp_path / "names.json").write_text('["dog", "cat"]')
    samples = {}
    for key, text in enumerate(["dog rain", "dog", "cat rain", "cat"]):
        samples[str(key)] = described(text.encode(), targets={"labels": text.split()})
    write_shard(tmp_path / "val/tags.tar", samples)
    return tmp_path


def test_right_model_reaches_1(measured):
    (row,) = measured()

    assert row[:3] == ("tags", "mAP of 3 classes", 1.0)
    assert row.n == 3
    assert row.per_query == (1.0, 1.0, 1.0)
    assert row.interval == (1.0, 1.0)


def test_label_outside_the_classes_is_named(measured):
    with pytest.raises(UserError, match=r"'rain'.*2 classes"):
        measured("sets.tags.classes=names.json")


@pytest.mark.parametrize(
    ("description", "words"),
    [
        ({"label": "dog"}, "7 has no list"),
        ({"targets": {"labels": []}}, "1 samples"),
    ],
)
def test_samples_without_labels_are_refused(root, measured, description, words):
    write_shard(root / "val/tags.tar", {"7": (b"dog", description)})

    with pytest.raises(UserError, match=words):
        measured("sets.tags.classes=names.json")
