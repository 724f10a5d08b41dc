"""The protocol of written captions, with a writer whose captions are known."""

from pathlib import Path

import pytest
from support.evaluation import KnownEmbedder, measure, recipe_of, together, values
from support.small_shards import write_shard

from onepeace.errors import UserError
from onepeace.evaluate.captions import score_captions
from onepeace.evaluate.run import read_recipe

pytest.importorskip("pycocoevalcap")

SHIPPED = Path(__file__).parents[2] / "recipes" / "evaluate" / "captions.yaml"
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
METRICS = ("BLEU-4", "ROUGE-L", "CIDEr-D")


class Writer(KnownEmbedder):
    """Writes the given captions."""

    def __init__(self, *captions, **options):
        super().__init__(**options)
        self.captions, self.asked = list(captions), []

    def caption(self, inputs):
        self.asked += inputs
        return self.captions


@pytest.fixture
def root(tmp_path):
    samples = {word: (word.encode(), {"captions": captions}) for word, captions in PHOTOS.items()}
    write_shard(tmp_path / "val/captioned.tar", samples)
    known = {
        "1": (b"rain", {"captions": ["rain falls", "a cat sleeps on a red sofa"]}),
        "2": (b"dog", {"captions": ["a dog runs on the grass", "rain falls"]}),
        "3": (b"cat", {"captions": ["the cat eats"]}),
        "4": (b"acorn", {"captions": ["an acorn"]}),
    }
    write_shard(tmp_path / "train/captioned.tar", known)
    return tmp_path


def test_figures_of_a_writer_and_of_guessing(root):
    captions = ["a dog runs on the grass", "a cat sleeps", "an acorn lies on a dog"]
    writer = Writer(*captions)
    rows = measure(writer, recipe_of(root, RECIPE))
    assert writer.asked == [b"dog", b"cat", b"acorn"]
    want = together(score_captions(captions, list(PHOTOS.values())))
    firsts = [captions[0] for captions in PHOTOS.values()]
    guessed = together(score_captions([*firsts[1:], firsts[0]], list(PHOTOS.values())))
    assert {row.metric: (row.value, row.chance, row.n) for row in rows} == {
        metric: (want[metric], guessed[metric], 3) for metric in METRICS
    }
    assert all(row.chance < row.value for row in rows)
    assert [len(row.per_query) for row in rows] == [0, 3, 3]  # BLEU-4 is the mean of nothing
    assert rows[0].interval is None
    assert all(row.interval[0] < row.value < row.interval[1] for row in rows[1:])


def test_baselines_stand_beside_a_writer_and_alone(root):
    recipe = recipe_of(root, RECIPE, BASELINES)
    alone = values(measure(KnownEmbedder(), recipe))
    beside = values(measure(Writer(*[captions[0] for captions in PHOTOS.values()]), recipe))
    assert beside == alone | {("photos", metric): beside["photos", metric] for metric in METRICS}
    references = list(PHOTOS.values())
    for name, captions in {
        "most frequent": ["rain falls"] * 3,
        "nearest": ["a dog runs on the grass", "the cat eats", "an acorn"],
    }.items():
        want = together(score_captions(captions, references))
        assert {metric: alone["photos", f"{metric} ({name})"] for metric in METRICS} == want


def test_captions_find_their_own_items(root):
    recipe = recipe_of(root, RECIPE, BASELINES, "sets.photos.at=[1, 3]")
    rows = measure(Writer("a dog", "a dog", "an acorn"), recipe)
    got = {row.metric: (row.value, row.chance) for row in rows if "R@" in row.metric}
    assert got["caption to image R@1"] == (pytest.approx(2 / 3), pytest.approx(1 / 3))
    assert got["caption to image R@3"] == (1, 1)
    assert got["caption to image R@1 (most frequent)"][0] == 0
    assert got["caption to image R@1 (nearest)"][0] == 1


def test_vectors_can_be_of_another_model(root, monkeypatch):
    asked = []

    def load(name, modalities):
        asked.append((name, modalities))
        return KnownEmbedder()

    monkeypatch.setattr("onepeace.embed.embedder.load", load)
    overrides = ("sets.photos.at=[1]", "sets.photos.encoder=models/other")
    writer = Writer("a dog", "a cat", "an acorn", shift=1)
    assert values(measure(writer, recipe_of(root, RECIPE, *overrides)))["photos", "caption to image R@1"] == 1
    assert asked == [("models/other", ["image", "text"])]
    assert values(measure(writer, recipe_of(root, RECIPE, overrides[0])))["photos", "caption to image R@1"] == 0


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train={modality: audio, shards: x.tar}", "modality is 'image', that of train 'audio'"),
        ("at=[0]", r"at is \[0\]"),
    ],
)
def test_a_mistake_in_the_options_is_named(root, override, message):
    with pytest.raises(UserError, match=message):
        recipe_of(root, RECIPE, f"sets.photos.{override}")


def test_who_writes_nothing_has_no_figures(root):
    with pytest.raises(UserError, match="train"):
        measure(KnownEmbedder(), recipe_of(root, RECIPE))
    with pytest.raises(ValueError, match="caption returned 2 texts for 3 items"):
        measure(Writer("a dog", "a cat"), recipe_of(root, RECIPE))


def test_the_shipped_recipe_is_complete():
    protocols = read_recipe(SHIPPED).sets.values()
    assert [(one.modality, one.train.modality, one.encoder) for one in protocols] == [
        ("image", "image", "tiny"), ("audio", "audio", "tiny"), ("audio", "audio", "tiny"),
    ]  # fmt: skip
