"""An index that is moved to another model, while it is open."""

import shutil

import numpy as np
import pytest
from support.indexes import check_same, content
from support.random_model import save_random_model

from onepeace.errors import UsageError, UserError
from onepeace.index import Index, check, embedding, maintain
from onepeace.index.move import NEXT
from onepeace.serve.service import Service


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    """The folder of another model, with longer vectors."""
    return save_random_model(tmp_path_factory.mktemp("other") / "model", depth=1, embed_dim=24)


@pytest.fixture
def words(tmp_path):
    folder = tmp_path / "words"
    folder.mkdir()
    for i in range(6):
        (folder / f"{i}.txt").write_text(f"words number {i}")
    return folder


@pytest.fixture
def move(other):
    def run(folder, model=str(other), **options):
        return maintain.build(folder, model=model, device="cpu", progress=False, **options)

    return run


def test_moved_index_is_what_a_new_one_is_and_open_ones_follow(build, move, update, words, other, tmp_path):
    index = tmp_path / "index"
    build(index, words)
    with Index.open(index) as opened, Index.open(index, model=opened.model) as bound:
        ids = {item.path: item.id for item in opened.items()}
        before = [hit.score for hit in opened.search("words number 3")]
        (words / "5.txt").unlink()
        (words / "new.txt").write_text("new words")
        report = move(index)
        assert (report.added, report.vanished) == (6, 1)
        assert [hit.score for hit in opened.search("words number 3")] == before
        about = Service(opened).about()
        assert (about["model"], about["embed_dim"], opened.model) == (other.name, 24, str(other))
        assert opened.search("words number 3", top=1)[0].item.path == str(words / "3.txt")
        assert all(ids.get(item.path, item.id) == item.id for item in opened.items())
        with pytest.raises(UserError, match="moved to another model"):
            bound.refresh()
    build(tmp_path / "fresh", words, model=other)
    check_same(index, tmp_path / "fresh")
    assert check(index).ok
    assert not (index / NEXT).exists()
    assert update(index).unchanged == 6


def test_interrupted_move_goes_on_where_it_was(build, move, words, tmp_path, monkeypatch):
    index = tmp_path / "index"
    build(index, words)
    old = content(index)
    take = embedding.Embedding.take
    taken = []

    def interrupted(self, result, reading, video):
        if len(taken) == 4:
            raise KeyboardInterrupt
        taken.append(reading.item.path)
        take(self, result, reading, video)

    with monkeypatch.context() as patch:
        patch.setattr(embedding.Embedding, "take", interrupted)
        with pytest.raises(KeyboardInterrupt):
            move(index)
    np.testing.assert_equal(content(index), old)
    report = move(index)
    assert (report.unchanged, report.added) == (4, 2)
    assert move(index).unchanged == 6


def test_move_to_a_third_model_starts_anew(build, move, words, random_folder, tmp_path):
    index = tmp_path / "index"
    build(index, words)
    shutil.copytree(index, index / NEXT)
    assert move(index).added == 6


def test_model_typed_by_accident_does_not_move_an_index(build, move, words, other, tmp_path):
    index = tmp_path / "index"
    build(index, words)
    with pytest.raises(UserError, match=f"onepeace index build {index} --model {other}"):
        build(index, words, model=other)
    for options, reason in (({"exclude": "*.txt"}, "exclude"), ({"model": None}, "name PATHS")):
        with pytest.raises(UsageError, match=reason):
            move(index, **options)


def test_files_that_cannot_be_read_keep_an_index_with_its_model(build, move, words, tmp_path):
    index = tmp_path / "index"
    build(index, words)
    old = content(index)
    words.rename(tmp_path / "elsewhere")
    words.mkdir()
    with pytest.raises(UserError, match="perhaps not mounted"):
        move(index)
    words.rmdir()
    (tmp_path / "elsewhere").rename(words)
    (words / ".onepeaceignore").write_text("!\n")
    with pytest.raises(UserError, match="would be lost"):
        move(index)
    np.testing.assert_equal(content(index), old)


def test_move_waits_for_a_disk_that_seems_not_to_be_mounted(build, move, words, tmp_path):
    for i in range(6, 15):
        (words / f"{i}.txt").write_text(f"words number {i}")
    build(tmp_path / "index", words)
    for path in sorted(words.iterdir())[3:]:
        path.unlink()
    with pytest.raises(UserError, match="12 files are missing"):
        move(tmp_path / "index")
    assert len(content(tmp_path / "index")) == 15
