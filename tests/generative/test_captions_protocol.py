"""The protocol of written captions, with a writer whose captions are known."""

import pytest
from support.evaluation import KnownEmbedder, described, means, values
from support.small_shards import write_shard

from onepeace.generative.captions import score_captions

pytest.importorskip("pycocoevalcap")

RECIPE = """
sets:
  photos: {protocol: captions, modality: image, shards: "val/captioned.tar"}
"""
BASELINES = "sets.photos.train={modality: image, shards: train/captioned.tar}"
PHOTOS = {
    "dog": ["a dog runs on the grass", "the brown dog is running"],
    "cat": ["a cat sleeps on a red sofa", "one cat is asleep"],
    "acorn": ["an acorn lies on the table near a plate", "there is an acorn"],
}
REFERENCES = list(PHOTOS.values())
TRAIN_PHOTOS = {
    "rain": ["rain falls", "a cat sleeps on a red sofa"],
    "dog": ["a dog runs on the grass", "rain falls"],
    "cat": ["the cat eats"],
    "acorn": ["an acorn"],
}


class Writer(KnownEmbedder):
    """Writes the captions that it has."""

    def __init__(self, *captions, **options):
        super().__init__(**options)
        self.captions = list(captions)
        self.inputs = []

    def caption(self, inputs):
        self.inputs += inputs
        return self.captions


@pytest.fixture
def root(tmp_path):
    for folder, photos in (("val", PHOTOS), ("train", TRAIN_PHOTOS)):
        samples = {word: described(word.encode(), *captions) for word, captions in photos.items()}
        write_shard(tmp_path / folder / "captioned.tar", samples)
    return tmp_path


def test_values_are_those_of_the_captions(measured):
    captions = ["a dog runs on the grass", "a cat sleeps", "an acorn lies on a dog"]
    writer = Writer(*captions)

    bleu, rouge, cider = measured(embedder=writer)

    assert writer.inputs == [b"dog", b"cat", b"acorn"]
    expected = means(score_captions(captions, REFERENCES))
    for row in (bleu, rouge, cider):
        assert row.value == expected[row.metric]
        assert row.n == 3
    assert bleu.per_query == ()  # it is the mean of nothing
    assert bleu.interval is None
    for row in (rouge, cider):
        assert len(row.per_query) == 3
        assert row.interval[0] < row.value < row.interval[1]


def test_chance_is_the_caption_of_the_next_item(measured):
    dog, cat, acorn = [captions[0] for captions in REFERENCES]
    expected = means(score_captions([cat, acorn, dog], REFERENCES))

    rows = measured(embedder=Writer(dog, cat, acorn))

    assert {row.metric: row.chance for row in rows} == expected
    assert all(row.chance < row.value for row in rows)


@pytest.mark.parametrize(
    ("baseline", "captions"),
    [
        ("most frequent", ["rain falls"] * 3),
        ("nearest", ["a dog runs on the grass", "the cat eats", "an acorn"]),
    ],
)
def test_baselines_need_no_writer(measured, baseline, captions):
    figures = values(measured(BASELINES))

    for metric, value in means(score_captions(captions, REFERENCES)).items():
        assert figures["photos", f"{metric} ({baseline})"] == value
    assert len(figures) == 6


def test_captions_find_their_items(measured):
    rows = measured(BASELINES, "sets.photos.at=[1, 3]", embedder=Writer("a dog", "a dog", "an acorn"))
    rows_by_metric = {row.metric: row for row in rows}

    first = rows_by_metric["caption to image R@1"]
    assert first.value == pytest.approx(2 / 3)
    assert first.chance == pytest.approx(1 / 3)
    assert "caption to image R@3" not in rows_by_metric  # of three, it is always 1
    assert rows_by_metric["caption to image R@1 (most frequent)"].value == 0
    assert rows_by_metric["caption to image R@1 (nearest)"].value == 1
