"""One list of pictures and sounds: the figures of an embedder whose vectors are known, and what does not fit."""

from pathlib import Path

import numpy as np
import pytest
from support.evaluation import EqualEmbedder, measure, recipe_of, values
from support.small_shards import write_shard
from support.two_towers import labelled, pairs

from onepeace.data.sample import Sample
from onepeace.errors import UserError
from onepeace.evaluate.protocols import mixed
from onepeace.evaluate.run import read_recipe
from onepeace.index.calibration import FILE, Calibration
from onepeace.index.fitting import ALONE, fit
from onepeace.index.ranking import PartVector, Pool, QueryVector, prior_of, scores

COUNT = 60
RECIPE = """
sets:
  both:
    protocol: mixed
    modality: image
    shards: "val/pictures.tar"
    other: {modality: audio, shards: "val/clips.tar", template: "the sound of {}"}
    calibration: CALIBRATION
"""


class Towers:
    """Pictures and sounds with a gap between them; every sound is the only one of its class."""

    def __init__(self):
        self.image, self.audio = pairs("image", COUNT, 11), pairs("audio", COUNT, 12)

    def encode_text(self, texts):
        side = self.audio if texts[0].startswith("the sound of ") else self.image
        return np.stack([side[0][int(text.split()[-1])] for text in texts])

    def encode_image(self, items):
        return np.stack([self.image[1][int(item)] for item in items])

    def encode_audio(self, items):
        return np.stack([self.audio[1][int(item)] for item in items])


@pytest.fixture(scope="module")
def calibration(tmp_path_factory):
    folder = tmp_path_factory.mktemp("calibration")
    fit(labelled(), prior=0.01, model="", about={}).calibration.save(folder / FILE)
    return folder / FILE


@pytest.fixture
def pool(tmp_path):
    numbers = range(COUNT)
    pictures = {f"p{i}": (f"{i}".encode(), {"captions": [f"picture {i}", "another"]}) for i in numbers}
    clips = {f"c{i}": (f"{i}".encode(), {"captions": ["x"], "label": f"{i}"}) for i in numbers}
    write_shard(tmp_path / "val/pictures.tar", pictures)
    write_shard(tmp_path / "val/clips.tar", clips, "ogg")
    return tmp_path


def figures(pool, calibration, *overrides, embedder=None):
    recipe = recipe_of(pool, RECIPE.replace("CALIBRATION", str(calibration)), *overrides)
    return measure(embedder or Towers(), recipe)


def test_a_gap_between_modalities_is_seen_and_closed(pool, calibration):
    rows = figures(pool, calibration)
    got = {metric: value for (_, metric), value in values(rows).items()}
    # two sides with five figures each for four rankings, two for the pairs, four for the first hits of each ranking
    assert len(rows) == 4 * 2 * 5 + 2 + 4 * 4
    assert got["audio: share of audio in first 10 (raw)"] < 0.1
    assert got["audio: recall@10 mixed (raw)"] < 0.1
    assert got["audio: recall@10 within (raw)"] > 0.9
    assert got["audio: recall@10 mixed (znorm)"] > 0.9
    assert got["audio: NDCG@10 mixed (znorm)"] > 0.8
    assert got["audio: share of audio in first 10 (znorm)"] > 0.3
    assert (
        got["image: share of image in first 10 (per-modality)"]
        == got["audio: share of audio in first 10 (per-modality)"]
        == 0.5
    )
    assert got["pairs: accuracy of the match"] > 0.95
    assert got["pairs: calibration error of the match"] < 0.05
    assert got["first hit without an answer (znorm): accuracy of the match"] > 0.9
    assert got["first hit with an answer (znorm): accuracy of the match"] > 0.8
    chance = {row.metric: row.chance for row in rows}
    assert chance["image: recall@10 mixed (raw)"] == pytest.approx(10 / (2 * COUNT))
    assert chance["image: recall@10 within (raw)"] == pytest.approx(10 / COUNT)
    assert {row.n for row in rows} == {COUNT, 2 * COUNT}


def test_ties_find_nothing(pool, calibration):
    class Equal(EqualEmbedder):
        def encode_text(self, items):
            return np.full((len(items), 32), 32**-0.5, dtype=np.float32)

        encode_image = encode_audio = encode_text

    got = {metric: value for (_, metric), value in values(figures(pool, calibration, embedder=Equal())).items()}
    assert got["image: recall@10 mixed (raw)"] == got["audio: NDCG@10 within (raw)"] == 0


def test_pool_has_equal_parts(pool, calibration):
    rows = figures(pool, calibration, "sets.both.count=20", "sets.both.rankings=[raw]", "sets.both.at=5")
    assert [row.n for row in rows if "image: recall" in row.metric] == [20, 20]
    assert next(row.chance for row in rows if row.metric == "audio: recall@5 mixed (raw)") == pytest.approx(5 / 40)
    assert next(row.chance for row in rows if row.metric == "audio: share of audio in first 5 (raw)") == 0.5

    # the side with fewer items decides
    rows = figures(pool, calibration, "sets.both.other.keys=c1*", "sets.both.rankings=[raw]")
    assert {row.n for row in rows if row.metric.startswith(("image", "audio"))} == {11}
    assert next(row.chance for row in rows if row.metric == "image: recall@10 within (raw)") == pytest.approx(10 / 11)


def test_class_queries_mean_all_items_of_their_class():
    side = mixed.Side(modality="audio", shards="x", template="the sound of {}")
    samples = [Sample(str(i), "", {}, {"label": label}) for i, label in enumerate(["dog", "rain", "dog"])]
    texts, meant = side.queries(samples)
    assert texts == ["the sound of dog", "the sound of rain"]
    assert meant.tolist() == [[True, False, True], [False, True, False]]


def test_diagram_is_drawn(pool, calibration):
    pytest.importorskip("matplotlib")
    figures(pool, calibration, f"sets.both.plot={pool / 'reliability.png'}", "sets.both.rankings=[znorm]")
    assert (pool / "reliability.png").stat().st_size > 10_000


def test_without_pairs_the_order_is_measured_and_the_match_is_not(pool, tmp_path, caplog):
    alone = {key: own._replace(groups=np.full(len(own.groups), ALONE)) for key, own in labelled().items()}
    fit(alone, prior=0.01, model="", about={}).calibration.save(tmp_path / "alone.safetensors")
    rows = figures(pool, tmp_path / "alone.safetensors")
    assert len(rows) == 4 * 2 * 5
    assert "knows no match probability of text and image and audio" in caplog.text


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("rankings=[best]", "rankings has 'best'; known: znorm, raw, centred, per-modality"),
        ("count=0", "count is 0; it should be at least 1"),
        ("at=0", "at is \\[0\\]"),
        ("modality=audio", "both sides are audio"),
        ("modality=depth", "modality is 'depth'; known: image, audio, text"),
        ("other.template=the sound", "template 'the sound' has no {}"),
        ("calibration=none", "no model 'none'"),
    ],
)
def test_mistakes_are_named(pool, calibration, override, message):
    with pytest.raises(UserError, match=message):
        figures(pool, calibration, f"sets.both.{override}")


def test_a_calibration_of_another_width_is_refused(pool, calibration):
    with pytest.raises(UserError, match="is a calibration for vectors of 32 numbers, this model's have 4"):
        figures(pool, calibration, embedder=EqualEmbedder())


def test_the_shipped_recipe_reads():
    protocol = read_recipe(Path(__file__).parents[2] / "recipes" / "evaluate" / "mixed.yaml").sets["mixed"]
    assert [side.modality for side in protocol.sides] == ["image", "audio"]
    assert protocol.count == 400


def test_what_is_said_of_pairs_and_of_first_hits(calibration):
    own = Calibration.load(calibration)
    texts, images = pairs("image", 40, 11)
    pool = Pool.of(images, np.zeros(40, dtype=int), own)
    asked = [
        mixed.Asked("image", QueryVector.of([PartVector("text", text)]), np.eye(40, dtype=bool)[i])
        for i, text in enumerate(texts)
    ]
    said = mixed.pairs(asked, images, pool)
    z = np.concatenate([scores("znorm", one.query, images, pool) for one in asked])
    assert said.probabilities == pytest.approx(own.probability(z, "text", "image", prior=0.5))
    assert np.average(said.truths, weights=said.weights) == pytest.approx(0.5)
    hits = mixed.first_hits("raw", asked, images, pool)
    with_answer, without = hits["first hit with an answer (raw)"], hits["first hit without an answer (raw)"]
    assert with_answer.truths.mean() > 0.9
    assert not without.truths.any()
    assert len(without.truths) == 40
    best = [np.max(np.delete(scores("raw", one.query, images, pool), i)) for i, one in enumerate(asked)]
    rows = [
        np.flatnonzero(scores("raw", one.query, images, pool) == value)[0]
        for one, value in zip(asked, best, strict=True)
    ]
    z = [scores("znorm", one.query, images, pool)[row] for one, row in zip(asked, rows, strict=True)]
    assert without.probabilities == pytest.approx(own.probability(z, "text", "image", prior=prior_of(39)), rel=1e-3)
