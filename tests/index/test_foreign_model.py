"""An index made with an `Embedder` around a module that is not of this library."""

from pathlib import Path

import numpy as np
import pytest
import torch
from support.indexes import content

from onepeace.embed.embedder import Embedder
from onepeace.errors import UsageError, UserError
from onepeace.hub.resolve import Identity
from onepeace.index import Index, Query, embed, maintain
from onepeace.processors.processor import Processor

EMBED_DIM = 8
NUM_BYTES = 256


class ByteCounts(Processor):
    key = "text"

    def __init__(self, power: float = 1.0) -> None:
        self.power = power

    def decode(self, item):
        text = item.encode() if isinstance(item, str) else item.read_bytes()
        counts = np.bincount(np.frombuffer(text, np.uint8), minlength=NUM_BYTES)
        return torch.from_numpy(counts**self.power).float()

    def collate(self, samples):
        return {"counts": torch.stack(samples)}

    def size(self, sample):
        return 0


class Projection(torch.nn.Module):
    def __init__(self, seed):
        super().__init__()
        self.embed_dim = EMBED_DIM
        weights = np.random.default_rng(seed).normal(size=(NUM_BYTES, EMBED_DIM))
        self.weights = torch.nn.Parameter(torch.from_numpy(weights).float())

    def forward(self, inputs):
        return {"text": inputs["text"]["counts"] @ self.weights}


def foreign(seed=0, power=1.0, identity=None):
    return Embedder(Projection(seed), {"text": ByteCounts(power)}, identity)


@pytest.fixture
def build(words, index):
    """Builds an index of the words with an `Embedder`."""

    def run(embedder, **options):
        return maintain.build(index, words, model=embedder, progress=False, **options)

    return run


@pytest.fixture
def update(index):
    def run(embedder, **options):
        return maintain.update(index, model=embedder, progress=False, **options)

    return run


def check_vectors(index, embedder):
    for path, file in content(index).items():
        expected = embedder.encode_text([Path(path).read_text()]).numpy()
        np.testing.assert_array_equal(file.vectors, expected)


def test_build_search_and_update(build, update, words, index, monkeypatch):
    monkeypatch.setattr(embed, "COMPILE_FROM", 1)

    report = build(foreign())

    assert (report.added, report.vectors) == (6, 6)
    check_vectors(index, foreign())
    (words / "new.txt").write_text("something else")
    assert update(foreign()).added == 1
    check_vectors(index, foreign())
    with Index.open(index, model=foreign()) as opened:
        best = opened.search("words number 3", top=1)[0]
    assert best.item.path == str(words / "3.txt")
    assert best.score == pytest.approx(1)


def test_index_needs_the_embedder_for_new_words_only(build, update, words, index):
    build(foreign())

    with Index.open(index) as opened:
        assert len(opened.search(Query(like=str(words / "0.txt")), collapse=False)) == 5
        with pytest.raises(UserError, match=r"Projection.* model="):
            opened.search("apple")
    for change in (build, update):
        with pytest.raises(UserError, match="model="):
            change(None)


@pytest.mark.parametrize("options", [{"seed": 1}, {"power": 0.5}])
def test_another_embedder_is_refused(build, update, index, options):
    build(foreign())

    with pytest.raises(UserError, match="another model"):
        Index.open(index, model=foreign(**options))
    with pytest.raises(UserError, match="another model"):
        update(foreign(**options))


def test_another_name_with_the_same_hash_is_refused(build, index):
    build(foreign(identity=Identity("a/b", "../1")))

    Index.open(index, model=foreign(identity=Identity("a/b", "../1"))).close()
    with pytest.raises(UserError, match="another model, a/b"):
        Index.open(index, model=foreign(identity=Identity("c", "../1")))


def test_identity_of_a_loaded_model(build, update, index, model, random_folder):
    build(str(random_folder))

    assert update(model).unchanged == 6
    with Index.open(index) as opened:
        assert model.identity == (opened.model, opened.model_hash, True)


def test_identity_of_a_model_loaded_in_part(build, update, model, random_folder):
    build(str(random_folder))

    with pytest.raises(UserError, match="image, audio"):
        update(Embedder(model.module, {"text": model.processors["text"]}, model.identity))


@pytest.mark.parametrize(
    "options",
    [
        {"dtype": "float32"},
        {"engine": "ray"},
    ],
)
def test_options_of_loading_are_refused(build, index, options):
    with pytest.raises(UsageError):
        build(foreign(), **options)
    assert not index.exists()
