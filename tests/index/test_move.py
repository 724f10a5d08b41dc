"""An index that is moved to another model, while it is open."""

import shutil

import numpy as np
import pytest
from support.indexes import content
from support.random_model import save_random_model

from onepeace.errors import UsageError, UserError
from onepeace.index import Index, check, embedding, maintain
from onepeace.index.move import NEXT
from onepeace.serve.service import Service


@pytest.fixture(scope="module")
def new_model(tmp_path_factory):
    """The folder of another model, with longer vectors."""
    return save_random_model(tmp_path_factory.mktemp("other") / "model", depth=1, embed_dim=24)


@pytest.fixture
def move(new_model, index):
    def run(model=str(new_model), **options):
        return maintain.build(index, model=model, device="cpu", progress=False, **options)

    return run


@pytest.fixture(autouse=True)
def _built(build, words):
    build(words)


def scores(opened):
    return [hit.score for hit in opened.search("words number 3")]


def test_moved_index_is_as_a_new_one(move, update, check_as_new, words, index, new_model):
    (words / "5.txt").unlink()
    (words / "new.txt").write_text("new words")

    report = move()

    assert (report.added, report.vanished) == (6, 1)
    assert check(index).ok
    assert not (index / NEXT).exists()
    assert update().unchanged == 6
    check_as_new(words, model=new_model)


def test_open_index_follows_when_it_is_refreshed(move, words, index, new_model):
    with Index.open(index) as opened:
        ids_before = {item.path: item.id for item in opened.items()}
        scores_before = scores(opened)
        move()
        assert scores(opened) == scores_before

        description = Service(opened).about()  # refreshes it

        assert (description["model"], description["embed_dim"]) == (new_model.name, 24)
        assert opened.model == str(new_model)
        assert opened.search("words number 3", top=1)[0].item.path == str(words / "3.txt")
        assert {item.path: item.id for item in opened.items()} == ids_before


def test_open_index_with_a_model_of_its_own_does_not_follow(move, index, random_folder):
    with Index.open(index, model=str(random_folder)) as opened:
        move()

        with pytest.raises(UserError, match="moved"):
            opened.refresh()


def test_interrupted_move_goes_on_where_it_was(move, index, monkeypatch):
    content_before = content(index)
    take = embedding.Embedding.take
    taken_paths = []

    def take_four(self, result, reading, video):
        if len(taken_paths) == 4:
            raise KeyboardInterrupt
        taken_paths.append(reading.item.path)
        take(self, result, reading, video)

    with monkeypatch.context() as patch:
        patch.setattr(embedding.Embedding, "take", take_four)
        with pytest.raises(KeyboardInterrupt):
            move()
    np.testing.assert_equal(content(index), content_before)

    report = move()

    assert (report.unchanged, report.added) == (4, 2)
    assert move().unchanged == 6


def test_move_to_a_third_model_starts_anew(move, index):
    shutil.copytree(index, index / NEXT)

    assert move().added == 6


def test_build_with_another_model_does_not_move_an_index(build, words, index, new_model):
    with pytest.raises(UserError, match=f"onepeace index build {index} --model {new_model}"):
        build(words, model=new_model)


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"exclude": "*.txt"}, "exclude"),
        ({"model": None}, "PATHS"),
    ],
)
def test_options_of_a_build_do_not_move_an_index(move, options, word):
    with pytest.raises(UsageError, match=word):
        move(**options)


def test_move_waits_for_a_disk_that_is_not_mounted(move, words, index, tmp_path):
    content_before = content(index)
    words.rename(tmp_path / "elsewhere")
    words.mkdir()

    with pytest.raises(UserError, match="mounted"):
        move()
    np.testing.assert_equal(content(index), content_before)


def test_move_waits_for_a_folder_that_cannot_be_read(move, words, index):
    content_before = content(index)
    (words / ".onepeaceignore").write_text("!\n")

    with pytest.raises(UserError, match="lost"):
        move()
    np.testing.assert_equal(content(index), content_before)


def test_move_waits_if_most_files_are_missing(build, move, words, index):
    for number in range(6, 15):
        (words / f"{number}.txt").write_text(f"words number {number}")
    build(words)
    for path in sorted(words.iterdir())[3:]:
        path.unlink()

    with pytest.raises(UserError, match="12 files are missing"):
        move()
    assert len(content(index)) == 15
