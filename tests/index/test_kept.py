"""Plain folders that are searched have an index of their own in the cache folder."""

import shutil
from contextlib import ExitStack

import pytest

from onepeace.errors import UserError
from onepeace.index import Index
from onepeace.index.kept import delete, kept, kept_index
from onepeace.index.lock import writing


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ONEPEACE_CACHE", str(tmp_path / "cache"))


def test_only_what_changed_is_embedded_again(tmp_path, random_folder, no_model):
    for name in ("a", "b"):
        (tmp_path / "words").mkdir(exist_ok=True)
        (tmp_path / "words" / f"{name}.txt").write_text(f"words of {name}")
    options = {"device": "cpu", "progress": False}
    folder, _ = kept_index([tmp_path / "words"], str(random_folder), **options)
    assert folder.is_relative_to(tmp_path / "cache")
    no_model()
    (tmp_path / "words" / "a.txt").rename(tmp_path / "words" / "c.txt")
    assert kept_index([tmp_path / "words"], str(random_folder), **options)[0] == folder
    with Index.open(folder) as index:
        assert sorted(item.path for item in index.items()) == [str(tmp_path / "words" / f"{name}.txt") for name in "bc"]
    ((place, about),) = kept().items()
    assert (place, about["roots"], about["files"]) == (folder, [str(tmp_path / "words")], {"text": 2})
    delete(folder)
    assert kept() == {}
    assert (tmp_path / "words" / "b.txt").is_file()


def test_a_search_waits_for_another_that_writes(tmp_path, random_folder, monkeypatch):
    (tmp_path / "a.txt").write_text("words")
    options = {"device": "cpu", "progress": False}
    folder, _ = kept_index([tmp_path / "a.txt"], str(random_folder), **options)
    with ExitStack() as other:
        other.enter_context(writing(folder))
        monkeypatch.setattr("onepeace.index.kept.status", lambda _: other.close())
        assert kept_index([tmp_path / "a.txt"], str(random_folder), **options)[1].unchanged == 1


def test_folder_that_is_gone_is_said(tmp_path, random_folder):
    (tmp_path / "words").mkdir()
    (tmp_path / "words" / "a.txt").write_text("words")
    kept_index([tmp_path / "words"], str(random_folder), device="cpu", progress=False)
    shutil.rmtree(tmp_path / "words")
    with pytest.raises(UserError, match="words: "):
        kept_index([tmp_path / "words"], str(random_folder), device="cpu", progress=False)
