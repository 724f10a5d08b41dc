"""An index made with an `Embedder` around a module that is not of this library."""

import numpy as np
import pytest
import torch
from support.indexes import content

from onepeace.embed.embedder import Embedder
from onepeace.errors import UsageError, UserError
from onepeace.hub.identity import Identity
from onepeace.index import Index, Query, build, loading, update
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
def words(tmp_path):
    folder = tmp_path / "words"
    folder.mkdir()
    for name in ("apple", "bread", "cherry"):
        (folder / f"{name}.txt").write_text(f"{name} and more of it")
    return folder


def check_vectors(index, embedder):
    for path, (_, vectors) in content(index).items():
        with open(path) as file:
            expected = embedder.encode_text([file.read()]).numpy()
        np.testing.assert_array_equal(vectors, expected)


def test_foreign_embedder_is_built_searched_and_updated(words, tmp_path, monkeypatch):
    monkeypatch.setattr(loading, "COMPILE_FROM", 1)
    index = tmp_path / "index"
    report = build(index, words, model=foreign(), progress=False)
    assert (report.added, report.vectors) == (3, 3)
    check_vectors(index, foreign())
    (words / "date.txt").write_text("date and more of it")
    assert update(index, model=foreign(), progress=False).added == 1
    check_vectors(index, foreign())
    with Index.open(index, model=foreign()) as opened:
        best = opened.search("cherry and more of it", top=1)[0]
    assert best.item.path == str(words / "cherry.txt")
    assert best.score == pytest.approx(1)


def test_index_of_a_foreign_embedder_needs_it_for_new_words_only(words, tmp_path):
    index = tmp_path / "index"
    build(index, words, model=foreign(), progress=False)
    with Index.open(index) as opened:
        assert len(opened.search(Query(like=str(words / "apple.txt")))) == 2
        with pytest.raises(UserError, match="an Embedder of your own, Projection; pass it as model="):
            opened.search("apple")
    for change in (lambda: update(index), lambda: build(index, words)):
        with pytest.raises(UserError, match="pass it as model="):
            change()


@pytest.mark.parametrize("other", [{"seed": 1}, {"power": 0.5}])
def test_another_foreign_embedder_is_refused(words, tmp_path, other):
    build(tmp_path / "index", words, model=foreign(), progress=False)
    with pytest.raises(UserError, match="made with another model"):
        Index.open(tmp_path / "index", model=foreign(**other))
    with pytest.raises(UserError, match="made with another model"):
        update(tmp_path / "index", model=foreign(**other))


def test_identity_is_that_of_load_of_the_maker_or_of_the_weights(words, tmp_path, model, random_folder):
    index = tmp_path / "index"
    build(index, words, model=str(random_folder), progress=False)
    assert update(index, model=model, progress=False).unchanged == 3
    with Index.open(index) as opened:
        assert model.identity == (opened.model, opened.model_hash, True)
    with pytest.raises(UserError, match="has image, audio, which this Embedder was loaded without"):
        update(index, model=Embedder(model.module, {"text": model.processors["text"]}, model.identity))
    assert foreign(identity=Identity("mine", "1")).identity == ("mine", "1", False)
    assert foreign().identity == foreign().identity != foreign(seed=1).identity


def test_makers_who_give_the_same_hash_are_told_by_their_names(words, tmp_path):
    build(tmp_path / "index", words, model=foreign(identity=Identity("a/b", "../1")), progress=False)
    Index.open(tmp_path / "index", model=foreign(identity=Identity("a/b", "../1"))).close()
    with pytest.raises(UserError, match="made with another model, a/b"):
        Index.open(tmp_path / "index", model=foreign(identity=Identity("c", "../1")))


def test_options_of_loading_are_refused_for_an_embedder(words, tmp_path):
    for options in ({"device": "cpu"}, {"dtype": "float32"}, {"engine": "ray"}):
        with pytest.raises(UsageError):
            build(tmp_path / "index", words, model=foreign(), **options)
    assert not (tmp_path / "index").exists()
