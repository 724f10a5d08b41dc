"""Whether answers are called right when they are: figures of embedders whose vectors are known, and mistakes."""

from pathlib import Path

import numpy as np
import pytest
from support.evaluation import EqualEmbedder, described
from support.small_shards import write_shard

from onepeace.errors import UserError
from onepeace.evaluate.protocols.match import FIRST, GAINS
from onepeace.evaluate.run import read_recipe
from onepeace.index.banks import CALIBRATION, Banks
from onepeace.index.match import POSSIBLE

WIDTH = 64
NUM_CLASSES = 12
NUM_ITEMS = 3
"""Items of each class in each of the two sources."""
RECIPE = """
sets:
  folder:
    protocol: match
    sources:
      pictures: {modality: image, shards: "val/pictures.tar"}
      clips: {modality: audio, shards: "val/clips.tar"}
"""
ANSWERED = f"answered by the first {FIRST}"


def queries(**kinds):
    """Overrides that set what the queries of each source are."""
    return [f"sets.folder.sources.{source}.queries={kind}" for source, kind in kinds.items()]


def chance_of_first(share_of_answers):
    """The chance that one of the first in a random order is an answer."""
    return pytest.approx(1 - (1 - share_of_answers) ** FIRST)


def unit(rows):
    return (rows / np.linalg.norm(rows, axis=-1, keepdims=True)).astype(np.float32)


def direction(name):
    """A random vector that depends on the name alone."""
    return unit(np.random.default_rng(list(name)).normal(size=WIDTH))


class NamingEmbedder:
    """Items and texts that name the same thing are near; everything else is apart. A sound is far from any text."""

    modalities = ("text", "image", "audio")

    def encode_text(self, texts):
        return unit(np.stack([self._meaning(text) for text in texts]))

    def encode_image(self, items, gap=0.0):
        rows = []
        for item in items:
            name = item.decode().split("/")[0]
            rows.append(self._meaning(name) + 0.3 * direction(item))
        vectors = np.stack(rows)
        vectors[:, 0] -= gap
        return unit(vectors)

    def encode_audio(self, items):
        return self.encode_image(items, gap=1.5)

    @staticmethod
    def _meaning(text):
        name = text.casefold().removeprefix("a view of ")
        vector = direction(name.encode())
        vector[0] = 0.5
        return vector


def samples_of(noun):
    """Samples of the classes "thing 0", "thing 1", ..."""
    samples = {}
    for number in range(NUM_CLASSES):
        label = f"{noun} {number}"
        for i in range(NUM_ITEMS):
            content = f"{label}/{i}".encode()
            samples[f"{number}_{i}"] = described(content, f"a view of {label}", label=label)
    return samples


@pytest.fixture
def root(tmp_path):
    write_shard(tmp_path / "val/pictures.tar", samples_of("thing"), "png")
    write_shard(tmp_path / "val/clips.tar", samples_of("noise"), "ogg")
    return tmp_path


class TwinEmbedder(NamingEmbedder):
    """Items of two classes each, such as "thing 4" and "thing 5", have one vector, and so have their names."""

    def encode_image(self, items, gap=0.0):
        texts = [item.decode().split("/")[0] for item in items]
        return self.encode_text(texts)

    def encode_text(self, texts):
        return super().encode_text([self._without_twin(text) for text in texts])

    @staticmethod
    def _without_twin(text):
        noun, _, number = text.rpartition(" ")
        return f"{noun} {int(number) // 2}" if number.isdecimal() else text


@pytest.fixture
def rows_by_metric(measured):
    def rows(*overrides):
        return {row.metric: row for row in measured(*overrides, embedder=NamingEmbedder())}

    return rows


@pytest.mark.parametrize("source", ["all", "pictures", "clips"])
def test_answers_and_their_absence_are_recognised(rows_by_metric, source):
    figures = {metric: row.value for metric, row in rows_by_metric().items()}

    assert figures[f"{source}: {ANSWERED}"] == 1
    assert figures[f"{source}: NDCG@10"] > 0.95
    assert figures[f"{source}: AUC"] > 0.95
    assert figures[f"{source}: kept"] == 1
    assert figures[f"{source}: nothing relevant, of right answers"] == 0
    assert figures[f"{source}: turned away"] > 0.4


def test_ties_count_half_in_auc(measured):
    """With a twin of each answer, the best match is the same with and without the answer."""
    (auc,) = [row for row in measured(embedder=TwinEmbedder()) if row.metric == "all: AUC"]
    assert auc.value == pytest.approx(0.5)


def test_rows_have_their_numbers_and_chances(rows_by_metric):
    rows = rows_by_metric(*queries(clips="none"))

    assert {metric.split(":")[0] for metric in rows} == {"all", "pictures"}
    assert rows["all: kept"].n == NUM_CLASSES
    assert rows["all: turned away"].chance == POSSIBLE
    assert rows["all: AUC"].chance == 0.5
    share_of_answers = NUM_ITEMS / (2 * NUM_ITEMS * NUM_CLASSES)
    assert rows[f"all: {ANSWERED}"].chance == chance_of_first(share_of_answers)
    expected = share_of_answers * GAINS.sum() / GAINS[:NUM_ITEMS].sum()
    assert rows["all: NDCG@10"].chance == pytest.approx(expected)


def test_names_mean_all_items_that_have_them(rows_by_metric):
    rows = rows_by_metric(*queries(pictures="names", clips="none"))

    assert rows[f"all: {ANSWERED}"].value == 1
    assert rows[f"all: {ANSWERED}"].n == NUM_CLASSES


def test_captions_mean_their_item(rows_by_metric):
    rows = rows_by_metric(*queries(pictures="captions", clips="none"))
    assert rows[f"all: {ANSWERED}"].n == NUM_ITEMS * NUM_CLASSES


def test_items_as_queries_are_not_their_own_answers(rows_by_metric, tmp_path):
    path = tmp_path / CALIBRATION
    texts = [f"text {i}" for i in range(50)]
    vectors = dict.fromkeys(["word", "image", "audio"], NamingEmbedder().encode_text(texts))
    path.write_bytes(Banks(vectors, "naming").to_bytes())

    rows = rows_by_metric(*queries(pictures="items", clips="items"), f"sets.folder.calibration={path}")

    assert rows["pictures: kept"].n == NUM_ITEMS * NUM_CLASSES
    assert rows["pictures: kept"].value == 1
    share_of_answers = (NUM_ITEMS - 1) / (2 * NUM_ITEMS * NUM_CLASSES - 1)
    assert rows[f"pictures: {ANSWERED}"].chance == chance_of_first(share_of_answers)


def test_items_as_queries_need_a_calibration(measured):
    with pytest.raises(UserError, match="calibration"):
        measured(*queries(pictures="items"))


def test_too_few_answers_are_an_error_and_no_figure(measured):
    with pytest.raises(UserError, match="first 5"):
        measured(embedder=EqualEmbedder())


def test_shipped_recipe_is_read():
    recipe = read_recipe(Path(__file__).parents[2] / "recipes" / "evaluate" / "match.yaml")
    assert recipe.sets["labelled"].sources
