"""What is searched without an index being named is kept in one index, of which each search sees a part."""

import shutil
from contextlib import ExitStack

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


@pytest.fixture
def search(random_folder, tmp_path):
    """Names of the files that a search of some paths sees, and the report."""

    def run(*paths):
        index = kept_index(paths, str(random_folder), device="cpu", progress=False)
        with Index.open(index.folder, part=index.part) as opened:
            seen = {item.path.removeprefix(f"{tmp_path}/") for item in opened.items()}
            hits = {
                hit.item.path.removeprefix(f"{tmp_path}/") for hit in opened.search("words", top=99, collapse=False)
            }
            assert hits == seen
            assert len(opened) == sum(opened.stats()["files"].values()) == len(seen)
        return seen, index.report

    return run


ALL = {"words/a.txt", "words/b.txt", "words/2024/c.txt", "words/2024/may/d.txt"}
PART = {"words/2024/c.txt", "words/2024/may/d.txt"}


def test_parts_and_wholes_embed_nothing_twice(words, search, monkeypatch):
    assert search(words / "2024")[0] == PART
    seen, report = search(words)
    assert (seen, report.added, report.unchanged) == (ALL, 2, 2)
    monkeypatch.setattr("onepeace.embed.embedder.load", lambda *_, **__: pytest.fail("the model is loaded"))
    monkeypatch.setattr("onepeace.export.text_branch.TextBranch.open", lambda _: pytest.fail("a query is encoded"))
    for paths, expected in (
        ([words / "2024"], PART),
        ([words / "2024" / "may"], {"words/2024/may/d.txt"}),
        ([words / "a.txt"], {"words/a.txt"}),
        ([words / "b.txt", words / "2024"], PART | {"words/b.txt"}),
    ):
        with monkeypatch.context() as no_search:
            no_search.setattr(Index, "search", lambda self, *_, **__: [Hit(item) for item in self.items()])
            assert search(*paths)[0] == expected
    assert len(list(indexes_folder().glob("*.index"))) == 1


class Hit:
    """As far as `search` above looks."""

    def __init__(self, item):
        self.item = item


def test_only_the_part_that_is_named_is_brought_up_to_date(words, search):
    search(words)
    (words / "a.txt").unlink()
    (words / "new.txt").write_text("new")
    (words / "2024" / "c.txt").rename(words / "2024" / "e.txt")
    seen, report = search(words / "2024")
    assert (seen, report.moved, report.removed) == ({"words/2024/e.txt", "words/2024/may/d.txt"}, 1, 0)
    assert search(words / "b.txt")[0] == {"words/b.txt"}
    seen, report = search(words)
    assert (report.added, report.removed, len(seen)) == (1, 1, 4)


@pytest.mark.parametrize("hidden", [".private", "ignored"])
def test_folder_that_the_whole_leaves_out_is_seen_only_where_it_is_named(words, search, hidden):
    (words / ".onepeaceignore").write_text("ignored/")
    (words / hidden).mkdir()
    (words / hidden / "x.txt").write_text("private")
    assert search(words / hidden)[0] == {f"words/{hidden}/x.txt"}
    assert search(words)[0] == ALL
    seen, report = search(words, words / hidden)
    assert (seen, report.unchanged) == (ALL | {f"words/{hidden}/x.txt"}, 5)


def test_folder_that_vanished_keeps_its_files_and_is_told_by_name(words, search):
    search(words / "2024" / "may")
    shutil.move(words / "2024" / "may", words.parent / "may")
    assert search(words)[0] == ALL - {"words/2024/may/d.txt"}
    with pytest.raises(UserError, match="may: missing"):
        search(words / "2024" / "may")
    shutil.move(words.parent / "may", words / "2024" / "may")
    seen, report = search(words)
    assert (seen, report.unchanged) == (ALL, 4)


def test_listed_roots_have_counts_and_parts_are_removed(words, search):
    search(words / "2024")
    search(words / "a.txt")
    ((folder, stats),) = kept().items()
    assert stats["roots"] == {str(words / "2024"): 2, str(words / "a.txt"): 1}
    search(words)
    assert kept()[folder]["roots"] == {str(words): 4}
    assert remove(folder, [words / "2024"]) == 2
    assert search(words)[0] == ALL - PART
    assert search(words / "2024")[0] == PART
    assert search(words)[0] == ALL
    delete(folder)
    assert kept() == {}
    assert (words / "b.txt").is_file()


def test_open_part_stays_a_part_when_others_change_the_index(words, search, random_folder):
    part = kept_index([words / "2024"], str(random_folder), device="cpu", progress=False)
    with Index.open(part.folder, part=part.part) as opened:
        search(words)
        (words / "2024" / "new.txt").write_text("new")
        search(words / "2024")
        with Index.open(part.folder) as whole:
            other = next(item for item in whole.items() if item.path.endswith("a.txt"))
            assert len(whole) == 5
        assert opened.refresh()
        assert len(opened) == 3
        assert opened.item(other.id) is None
        assert opened.item(other.path) is None
        assert list(opened.roots()) == opened.stats()["roots"] == [str(words / "2024")]
        assert len(opened.means()[0]) == 3


def test_tables_have_an_index_of_their_paths(words, search):
    table = words.parent / "t.csv"
    table.write_text("caption\na river\na tree\n")
    search(words)
    seen, _ = search(table)
    assert seen == {"t.csv::2", "t.csv::3"}
    table.write_text("caption\na river\n")
    assert search(table)[0] == {"t.csv::2"}
    assert len(kept()) == 2


def test_search_waits_for_one_that_writes_unless_it_has_nothing_to_write(words, search, random_folder, monkeypatch):
    search(words)
    with ExitStack() as other:
        other.enter_context(writing(next(iter(kept()))))
        seen, report = search(words / "2024")
        assert (seen, report.unchanged) == (PART, 2)
        (words / "2024" / "new.txt").write_text("new")
        monkeypatch.setattr("onepeace.index.cache.status", lambda _: other.close())
        assert len(search(words / "2024")[0]) == 3


def test_index_of_an_earlier_version_is_said_and_can_be_deleted(words, search, caplog):
    search(words)
    (folder,) = kept()
    earlier = folder.with_name("earlier.index")
    earlier.mkdir()
    (earlier / "index.sqlite").write_bytes(b"something else")
    assert list(kept()) == [folder]
    (line,) = caplog.messages[-1:]
    assert f"onepeace index remove {earlier}" in line
    delete(earlier)
    assert search(words)[0] == ALL
