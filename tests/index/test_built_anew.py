"""An index that is built anew with another model, while it is open."""

import shutil

import numpy as np
import pytest
from support.indexes import content
from support.random_model import save_random_model

from onepeace.errors import UsageError, UserError
from onepeace.index import Index, check, maintain
from onepeace.index.maintain import NEXT
from onepeace.index.record import Recorder
from onepeace.serve.service import Service


@pytest.fixture(scope="module")
def new_model(tmp_path_factory):
    """The folder of another model, with longer vectors."""
    return save_random_model(tmp_path_factory.mktemp("other") / "model", depth=1, embed_dim=24)


@pytest.fixture
def build_anew(new_model, index):
    def run(model=str(new_model), **options):
        return maintain.build(index, model=model, device="cpu", progress=False, **options)

    return run


@pytest.fixture(autouse=True)
def _built(build, words):
    build(words)


def scores(opened):
    return [hit.score for hit in opened.search("words number 3")]


def test_index_is_as_a_new_one(build_anew, update, check_as_new, words, index, new_model):
    (words / "5.txt").unlink()
    (words / "new.txt").write_text("new words")
    with pytest.raises(UserError, match=r"5\.txt: missing .* onepeace index update"):
        build_anew()
    update()

    assert build_anew().added == 6
    assert check(index).ok
    assert not (index / NEXT).exists()
    assert update().unchanged == 6
    check_as_new(words, model=new_model)


def test_open_index_follows(build_anew, words, index, new_model):
    dimensions = []

    def encode(embedder, inputs):
        dimensions.append(embedder.embed_dim)
        return np.asarray(embedder.encode(inputs, progress=False))

    with Index.open(index, encode=encode) as opened:
        scores_before = scores(opened)
        with opened.reading():
            build_anew()
            assert scores(opened) == scores_before
        assert {*dimensions} == {16}
        description = Service(opened).about()

        assert (description["model"], description["embed_dim"]) == (new_model.name, 24)
        assert opened.model == str(new_model)
        assert opened.embedder.embed_dim == 24
        assert opened.search("words number 3", top=1)[0].item.path == str(words / "3.txt")
        assert dimensions[-1] == 24


def test_open_index_with_a_model_of_its_own_does_not_follow(build_anew, index, random_folder):
    with Index.open(index, model=str(random_folder)) as opened:
        build_anew()

        for _ in range(2):
            with pytest.raises(UserError, match="another model"):
                opened.search("words")


def test_interrupted_build_goes_on_where_it_was(build_anew, index, monkeypatch):
    content_before = content(index)
    record_vectors = Recorder.record_vectors
    recorded = []

    def record_four(self, file):
        if len(recorded) == 4:
            raise KeyboardInterrupt
        recorded.append(file.item.path)
        record_vectors(self, file)

    with monkeypatch.context() as patch:
        patch.setattr(Recorder, "record_vectors", record_four)
        with pytest.raises(KeyboardInterrupt):
            build_anew()
    np.testing.assert_equal(content(index), content_before)

    report = build_anew()

    assert (report.unchanged, report.added) == (4, 2)
    assert build_anew().unchanged == 6


def test_third_model_starts_anew(build_anew, index):
    shutil.copytree(index, index / NEXT)

    assert build_anew().added == 6


def test_build_of_paths_refuses_another_model(build, words, index, new_model):
    with pytest.raises(UserError, match=f"onepeace index build {index} --model {new_model}"):
        build(words, model=new_model)


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"exclude": "*.txt"}, "exclude"),
        ({"model": None}, "PATHS"),
    ],
)
def test_options_that_are_for_paths(build_anew, options, word):
    with pytest.raises(UsageError, match=word):
        build_anew(**options)


def test_build_anew_waits_for_a_disk_that_is_not_mounted(build_anew, words, index, tmp_path):
    content_before = content(index)
    words.rename(tmp_path / "elsewhere")
    words.mkdir()

    with pytest.raises(UserError, match="mounted"):
        build_anew()
    np.testing.assert_equal(content(index), content_before)
