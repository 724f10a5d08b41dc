"""Whether answers are called right when they are: figures of embedders whose vectors are known, and mistakes."""

from pathlib import Path

import numpy as np
import pytest
from support.evaluation import EqualEmbedder, measure, recipe_of, values
from support.small_shards import write_shard

from onepeace.errors import UserError
from onepeace.evaluate.protocols.match import FIRST
from onepeace.evaluate.run import read_recipe
from onepeace.index.banks import Banks
from onepeace.index.calibrate import FILE
from onepeace.index.match import POSSIBLE

WIDTH, COUNT = 64, 12
RECIPE = """
sets:
  folder:
    protocol: match
    sources:
      pictures: {modality: image, shards: "val/pictures.tar"}
      clips: {modality: audio, shards: "val/clips.tar"}
"""


def unit(rows):
    return (rows / np.linalg.norm(rows, axis=-1, keepdims=True)).astype(np.float32)


class Known:
    """Items and texts that name the same thing are near; everything else is apart. A sound is far from any text."""

    modalities = ("text", "image", "audio")

    def __init__(self, noise=0.3):
        self.noise = noise

    def encode_text(self, texts):
        return unit(np.stack([self._meaning(text) for text in texts]))

    def encode_image(self, items, gap=0.0):
        noise = [self.noise * unit(np.random.default_rng(list(item)).normal(size=WIDTH)) for item in items]
        rows = np.stack([self._meaning(item.decode().split("/")[0]) for item in items]) + noise
        rows[:, 0] -= gap
        return unit(rows)

    def encode_audio(self, items):
        return self.encode_image(items, gap=1.5)

    @staticmethod
    def _meaning(text):
        name = text.casefold().removeprefix("a view of ")
        row = unit(np.random.default_rng(list(name.encode())).normal(size=WIDTH))
        row[0] = 0.5
        return row


@pytest.fixture
def root(tmp_path):
    for name, suffix, kind in (("pictures", "png", "thing"), ("clips", "ogg", "noise")):
        samples = {
            f"{n}_{i}": (f"{kind} {n}/{i}".encode(), {"captions": [f"a view of {kind} {n}"], "label": f"{kind} {n}"})
            for n in range(COUNT)
            for i in range(3)
        }
        write_shard(tmp_path / f"val/{name}.tar", samples, suffix)
    return tmp_path


def figures(root, *overrides, embedder=None, recipe=RECIPE):
    return values(measure(embedder or Known(), recipe_of(root, recipe, *overrides)))


def test_a_good_model_is_sure_of_answers_and_of_their_lack(root):
    got = figures(root)
    for source in ("all", "pictures", "clips"):
        assert got["folder", f"{source}: answered by the first {FIRST}"] == 1
        assert got["folder", f"{source}: AUC"] > 0.95
        assert got["folder", f"{source}: kept"] == 1
        assert got["folder", f"{source}: nothing relevant, of right answers"] == 0
        assert got["folder", f"{source}: turned away"] > 0.4


def test_rows_have_their_numbers_and_chances(root):
    rows = measure(Known(), recipe_of(root, RECIPE, "sets.folder.sources.clips.queries=none"))
    assert {row.metric.split(":")[0] for row in rows} == {"all", "pictures"}
    by_name = {row.metric: row for row in rows}
    assert by_name["all: kept"].n == COUNT
    assert by_name["all: turned away"].chance == POSSIBLE
    assert by_name["all: AUC"].chance == 0.5
    assert by_name[f"all: answered by the first {FIRST}"].chance == pytest.approx(1 - (1 - 3 / (6 * COUNT)) ** FIRST)


def test_captions_mean_their_item_and_names_all_of_them(root):
    names = figures(root, "sets.folder.sources.pictures.queries=names", "sets.folder.sources.clips.queries=none")
    assert names["folder", f"all: answered by the first {FIRST}"] == 1
    captions = measure(
        Known(),
        recipe_of(
            root, RECIPE, "sets.folder.sources.pictures.queries=captions", "sets.folder.sources.clips.queries=none"
        ),
    )
    assert {row.n for row in captions if row.metric.endswith(f"first {FIRST}")} == {3 * COUNT}


def test_an_item_is_a_query_and_not_its_own_answer(root, tmp_path):
    embedder = Known()
    path = tmp_path / FILE
    words = {name: embedder.encode_text([f"{name} {i}" for i in range(50)]) for name in ("word", "image", "audio")}
    path.write_bytes(Banks(words, "known").to_bytes())
    queries = [f"sets.folder.sources.{source}.queries=items" for source in ("pictures", "clips")]
    rows = measure(embedder, recipe_of(root, RECIPE, *queries, f"sets.folder.calibration={path}"))
    by_name = {row.metric: row for row in rows}
    assert by_name["pictures: kept"].n == 3 * COUNT
    assert by_name["pictures: kept"].value == 1
    with pytest.raises(UserError, match="calibration"):
        figures(root, *queries)


def test_what_finds_nothing_is_an_error_and_not_a_figure(root):
    with pytest.raises(UserError, match="first 5"):
        figures(root, embedder=EqualEmbedder())


def test_the_shipped_recipe_reads():
    recipe = read_recipe(Path(__file__).parents[2] / "recipes" / "evaluate" / "match.yaml")
    assert {side.modality for side in recipe.sets["labelled"].sides} == {"image", "audio"}
