"""What is searched without an index being named is kept in one index, of which each search sees a part."""

import shutil
from contextlib import ExitStack
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest

from onepeace.errors import UserError
from onepeace.index import Index, remove
from onepeace.index.cache import delete, indexes_folder, kept, kept_index
from onepeace.index.lock import writing


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ONEPEACE_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def words(tmp_path):
    """A folder of texts with a folder in it."""
    for name in ("a.txt", "b.txt", "2024/c.txt", "2024/may/d.txt"):
        path = tmp_path / "words" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"words of {name}")
    return tmp_path / "words"


ALL = {"words/a.txt", "words/b.txt", "words/2024/c.txt", "words/2024/may/d.txt"}
PART = {"words/2024/c.txt", "words/2024/may/d.txt"}


class Search(NamedTuple):
    """Names of the files that a search of some paths sees, and the report of the update before it."""

    names: set[str]
    report: Any


@pytest.fixture
def search(random_folder, tmp_path):
    """Searches below some paths."""

    def run(*paths):
        index = kept_index(paths, str(random_folder), device="cpu", progress=False)
        with Index.open(index.folder, part=index.part) as opened:
            items = list(opened.items())
            hits = opened.search("words", top=99, collapse=False)
            assert {hit.item.path for hit in hits} == {item.path for item in items}
            assert len(opened) == sum(opened.stats()["files"].values()) == len(items)
        return Search({item.path.removeprefix(f"{tmp_path}/") for item in items}, index.report)

    return run


@pytest.fixture
def no_search(monkeypatch):
    """A search finds all files and embeds nothing."""

    def find_all(self, *_, **__):
        return [SimpleNamespace(item=item) for item in self.items()]

    monkeypatch.setattr(Index, "search", find_all)


def test_whole_after_its_part_embeds_the_others(words, search):
    assert search(words / "2024").names == PART

    whole = search(words)

    assert whole.names == ALL
    assert (whole.report.added, whole.report.unchanged) == (2, 2)


@pytest.mark.usefixtures("no_search")
@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["2024"], PART),
        (["2024/may"], {"words/2024/may/d.txt"}),
        (["a.txt"], {"words/a.txt"}),
        (["b.txt", "2024"], PART | {"words/b.txt"}),
    ],
)
def test_part_after_the_whole_needs_no_model(words, search, no_model, names, expected):
    search(words)
    no_model()

    assert search(*(words / name for name in names)).names == expected
    assert len(list(indexes_folder().glob("*.index"))) == 1


def test_only_the_part_that_is_named_is_updated(words, search):
    search(words)
    (words / "a.txt").unlink()
    (words / "new.txt").write_text("new")
    (words / "2024" / "c.txt").rename(words / "2024" / "e.txt")

    part = search(words / "2024")

    assert part.names == {"words/2024/e.txt", "words/2024/may/d.txt"}
    assert (part.report.moved, part.report.removed) == (1, 0)
    assert search(words / "b.txt").names == {"words/b.txt"}
    whole = search(words)
    assert (whole.report.added, whole.report.removed) == (1, 1)
    assert len(whole.names) == 4


@pytest.mark.parametrize("hidden", [".private", "ignored"])
def test_folder_that_the_whole_leaves_out_is_seen_where_it_is_named(words, search, hidden):
    (words / ".onepeaceignore").write_text("ignored/")
    (words / hidden).mkdir()
    (words / hidden / "x.txt").write_text("private")

    assert search(words / hidden).names == {f"words/{hidden}/x.txt"}
    assert search(words).names == ALL
    both = search(words, words / hidden)
    assert both.names == ALL | {f"words/{hidden}/x.txt"}
    assert both.report.unchanged == 5


def test_folder_that_vanished_keeps_its_files_and_is_named(words, search):
    may = words / "2024" / "may"
    search(may)
    shutil.move(may, words.parent / "may")

    assert search(words).names == ALL - {"words/2024/may/d.txt"}
    with pytest.raises(UserError, match="may: missing"):
        search(may)

    shutil.move(words.parent / "may", may)
    assert search(words).names == ALL
    assert search(words).report.unchanged == 4


def test_kept_indexes_list_their_roots(words, search):
    search(words / "2024")
    search(words / "a.txt")
    ((folder, stats),) = kept().items()
    assert stats["roots"] == {str(words / "2024"): 2, str(words / "a.txt"): 1}

    search(words)

    assert kept()[folder]["roots"] == {str(words): 4}


def test_kept_index_without_a_part_that_is_removed(words, search):
    search(words)
    (folder,) = kept()

    assert remove(folder, [words / "2024"]) == 2

    assert search(words).names == ALL - PART
    assert search(words / "2024").names == PART
    assert search(words).names == ALL


def test_kept_index_is_deleted_without_its_files(words, search):
    search(words)
    (folder,) = kept()

    delete(folder)

    assert kept() == {}
    assert (words / "b.txt").is_file()


def test_open_part_stays_a_part_when_the_index_changes(words, search, random_folder):
    kept_part = kept_index([words / "2024"], str(random_folder), device="cpu", progress=False)
    with Index.open(kept_part.folder, part=kept_part.part) as part:
        search(words)
        (words / "2024" / "new.txt").write_text("new")
        search(words / "2024")
        with Index.open(kept_part.folder) as whole:
            outside = whole.item(words / "a.txt")
            assert len(whole) == 5

        assert part.refresh()

        assert len(part) == 3
        assert len(part.means()[0]) == 3
        assert part.item(outside.id) is None
        assert part.item(outside.path) is None
        assert list(part.roots()) == part.stats()["roots"] == [str(words / "2024")]


def test_tables_have_an_index_of_their_paths(words, search):
    table = words.parent / "t.csv"
    table.write_text("caption\na river\na tree\n")
    search(words)

    assert search(table).names == {"t.csv::2", "t.csv::3"}
    table.write_text("caption\na river\n")
    assert search(table).names == {"t.csv::2"}
    assert len(kept()) == 2


def test_search_waits_for_a_writer_unless_there_is_nothing_to_write(words, search, monkeypatch):
    search(words)
    with ExitStack() as writer:
        writer.enter_context(writing(next(iter(kept()))))
        part = search(words / "2024")
        assert part.names == PART
        assert part.report.unchanged == 2

        (words / "2024" / "new.txt").write_text("new")
        monkeypatch.setattr("onepeace.index.cache.status", lambda _: writer.close())
        assert len(search(words / "2024").names) == 3


def test_index_of_an_earlier_version_can_be_deleted(words, search, caplog):
    search(words)
    (folder,) = kept()
    earlier = folder.with_name("earlier.index")
    earlier.mkdir()
    (earlier / "index.sqlite").write_bytes(b"something else")

    assert list(kept()) == [folder]
    assert f"onepeace index remove {earlier}" in caplog.messages[-1]
    delete(earlier)
    assert search(words).names == ALL
