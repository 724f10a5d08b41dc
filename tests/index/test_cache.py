"""What is searched without an index being named has an index of its paths; nothing is embedded twice for it."""

import multiprocessing
import os
import random
import shutil
from contextlib import ExitStack
from types import SimpleNamespace

import pytest
from support.crash import META, answers, start_server, without_model, write_texts
from support.indexes import check_same

from onepeace.errors import UsageError
from onepeace.files.atomic import Locked
from onepeace.index import Index, build, cache, check, scan
from onepeace.index.cache import delete, kept, kept_index
from onepeace.index.database import DATABASE, writing


@pytest.fixture(autouse=True)
def new_cache(tmp_path, monkeypatch):
    """Puts another folder, with no indexes, in the place of the one in the cache."""

    def use(name="cache"):
        monkeypatch.setattr(cache, "indexes_folder", lambda: tmp_path / name)

    use()
    return use


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


@pytest.fixture
def search(model, tmp_path):
    """Searches some paths: the hits, their names, the report of the update before it, and the folder of the index."""

    def run(*paths):
        with kept_index(paths, model, progress=False) as index, Index.open(index.folder, model=model) as opened:
            hits = [(hit.item.path, hit.score, hit.match) for hit in opened.search("words", top=99, collapse=False)]
        names = {path.removeprefix(f"{tmp_path}/") for path, _, _ in hits}
        return SimpleNamespace(hits=hits, names=names, report=index.report, folder=index.folder)

    return run


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["2024"], PART),
        (["b.txt", "2024"], PART | {"words/b.txt"}),
    ],
)
def test_part_after_the_whole_embeds_and_reads_nothing(words, search, model, monkeypatch, names, expected):
    search(words)
    with monkeypatch.context() as patch:
        patch.setattr("onepeace.index.embed.read_entry", None)
        with kept_index([words / name for name in names], model, progress=False) as kept_part:
            pass

    assert kept_part.report.copied == len(expected)
    assert search(*(words / name for name in names)).names == expected


def test_answer_depends_on_the_files_that_are_named_alone(words, search, tmp_path, new_cache):
    others = tmp_path / "others"
    others.mkdir()
    for number in range(20):
        (others / f"{number}.txt").write_text(f"words, more words: {number}")
    shutil.copy(words / "a.txt", others)
    expected = {}
    for paths in ((words / "2024",), (words,), (others,)):
        new_cache(f"of {paths[0].name}")
        expected[paths] = search(*paths).hits

    new_cache("of all")
    found = {}
    for paths in [*reversed(expected)] * 2:
        hits = search(*paths).hits
        assert found.setdefault(paths, hits) == hits
        for hit, expected_hit in zip(hits, expected[paths], strict=True):
            assert hit == pytest.approx(expected_hit, abs=1e-6)  # a model computes in batches, which round


def test_equal_files_come_in_the_order_of_their_paths(words, search, new_cache):
    shutil.copy(words / "2024" / "c.txt", words / "2024" / "may" / "z.txt")
    shutil.copy(words / "2024" / "c.txt", words / "2023.txt")
    for parts in ([], [words / "2024" / "may"], [words / "2024"]):
        new_cache(f"after {len(parts)} {[part.name for part in parts]}")
        for part in parts:
            search(part)
        equal = [path for path, _, _ in search(words).hits if path.endswith(("2023.txt", "c.txt", "z.txt"))]
        assert equal == sorted(equal), parts


def test_index_with_vectors_of_another_is_as_a_new_one(words, search, random_folder, tmp_path):
    search(words / "2024")
    (words / "2024" / "c.txt").write_text("other words")
    shutil.copy(words / "2024" / "may" / "d.txt", words / "copy.txt")

    report = search(words).report

    assert (report.added, report.copied) == (3, 2)
    build(tmp_path / "new", words, str(random_folder), device="cpu", progress=False)
    check_same(search(words).folder, tmp_path / "new")


def test_vectors_of_another_model_or_a_damaged_index_are_not_taken(words, search):
    folder = search(words / "2024").folder
    (folder / "index.sqlite").write_bytes(b"damaged")

    assert search(words).report.added == 4
    assert not folder.exists()
    with kept_index([words / "2024"], "tiny", progress=False) as of_other_model:
        assert of_other_model.report.added == 2


def test_only_the_paths_that_are_named_are_updated(words, search):
    search(words)
    (words / "a.txt").unlink()
    (words / "new.txt").write_text("new")
    (words / "2024" / "c.txt").rename(words / "2024" / "e.txt")

    part = search(words / "2024")

    assert part.names == {"words/2024/e.txt", "words/2024/may/d.txt"}
    assert (part.report.copied, part.report.added) == (2, 0)
    whole = search(words)
    assert (whole.report.added, whole.report.moved, whole.report.removed) == (1, 1, 1)
    assert len(whole.names) == 4


@pytest.mark.parametrize("hidden", [".private", "ignored"])
def test_folder_that_the_whole_leaves_out_is_seen_where_it_is_named(words, search, hidden):
    (words / ".onepeaceignore").write_text("ignored/")
    (words / hidden).mkdir()
    (words / hidden / "x.txt").write_text("private")

    assert search(words / hidden).names == {f"words/{hidden}/x.txt"}
    assert search(words).names == ALL
    assert search(words, words / hidden).names == ALL | {f"words/{hidden}/x.txt"}


def test_folder_that_vanished_keeps_its_vectors_and_is_named(words, search):
    may = words / "2024" / "may"
    search(may)
    shutil.move(may, words.parent / "may")

    assert search(words).names == ALL - {"words/2024/may/d.txt"}
    vanished = search(may)
    assert [problem.path for problem in vanished.report.problems] == [may]
    assert vanished.names == {"words/2024/may/d.txt"}

    shutil.move(words.parent / "may", may)
    assert search(may).report.unchanged == 1
    assert search(words).report.added == 0


def test_small_indexes_that_were_used_last_are_kept(words, search, monkeypatch):
    monkeypatch.setattr(cache, "MOST_SMALL", 2)
    first = search(words / "a.txt").folder
    second = search(words / "b.txt").folder
    search(words / "a.txt")

    third = search(words).folder

    assert {*kept()} == {first, third}
    assert not second.exists()


def test_index_that_is_searched_meanwhile_is_kept(words, search, monkeypatch):
    first = search(words / "a.txt").folder
    search(words / "b.txt")
    monkeypatch.setattr(cache, "MOST_SMALL", 2)

    def getmtime(path):
        before = os.stat(path).st_mtime
        os.utime(path, (before + 1, before + 1))  # another process searches it
        return before

    monkeypatch.setattr(os.path, "getmtime", getmtime)
    search(words)

    assert first.exists()


def test_nobody_writes_to_an_index_that_is_deleted(words, search, monkeypatch):
    folder = search(words).folder

    def rmtree(path, **_):
        with pytest.raises(Locked), writing(path):
            pass

    monkeypatch.setattr(shutil, "rmtree", rmtree)
    delete(folder)


def test_index_that_is_in_use_is_kept(words, model, search, monkeypatch):
    monkeypatch.setattr(cache, "MOST_SMALL", 2)
    with kept_index([words / "a.txt"], model, progress=False) as used:
        for name in ("b.txt", "2024"):
            search(words / name)
        assert used.folder.exists()

    search(words)
    assert not used.folder.exists()


def test_search_waits_for_a_writer(words, search, monkeypatch):
    with ExitStack() as writer:
        writer.enter_context(writing(search(words).folder))
        monkeypatch.setattr("onepeace.index.cache.status", lambda _: writer.close())

        assert search(words).names == ALL


@pytest.mark.parametrize("damage", [b"damaged", b""])
def test_damaged_index_is_made_anew(words, search, damage):
    folder = search(words).folder
    (folder / DATABASE).write_bytes(damage)

    assert search(words).names == ALL
    assert check(folder).ok


@pytest.mark.parametrize("place", ["update", "build", "utime"])
def test_index_that_another_process_deletes_meanwhile_is_built_again(words, search, monkeypatch, place):
    folder = search(words).folder
    if place == "build":
        delete(folder)
    where = os if place == "utime" else cache
    plain = getattr(where, place)
    calls = []

    def delete_first(path, *arguments, **options):
        calls.append(path)
        if place == "build":
            report = plain(path, *arguments, **options)
        if len(calls) == 1:
            delete(folder)
        return report if place == "build" else plain(path, *arguments, **options)

    monkeypatch.setattr(where, place, delete_first)
    assert search(words).names == ALL


def test_files_of_a_kind_that_the_model_does_not_read_are_an_error(samples, model, monkeypatch):
    monkeypatch.setattr(scan, "modalities_of", lambda *_: [])
    with pytest.raises(UsageError, match="reads none of these files"), kept_index([samples], model, progress=False):
        pass


NUM_FOLDERS = 5


def search_at_random(cache_folder, folders, seed):
    """Search folders, whose indexes are deleted by other processes all the time."""
    draw = random.Random(seed)  # noqa: S311
    with without_model(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(cache, "indexes_folder", lambda: cache_folder)
        patch.setattr(cache, "identity", lambda _: META)
        patch.setattr(cache, "MOST_SMALL", 2)
        for _ in range(20):
            folder = draw.choice(folders)
            with kept_index([folder], progress=False) as index:
                paths = {path for path, *_ in answers(index.folder)}
            assert paths == {str(path) for path in folder.iterdir()}


def test_many_processes_search_and_delete(tmp_path):
    folders = [write_texts(tmp_path / "texts" / str(number), 3) for number in range(NUM_FOLDERS)]
    context = multiprocessing.get_context("forkserver")
    start_server()
    processes = []
    for seed in range(4):
        processes.append(context.Process(target=search_at_random, args=(tmp_path / "cache", folders, seed)))
        processes[-1].start()
    for process in processes:
        process.join()

    assert [process.exitcode for process in processes] == [0] * len(processes)
    assert {path.suffix for path in (tmp_path / "cache").iterdir()} == {".index"}


def test_index_of_an_earlier_version_can_be_deleted(words, search, caplog):
    folder = search(words).folder
    earlier = folder.with_name("earlier.index")
    earlier.mkdir()
    (earlier / "index.sqlite").write_bytes(b"something else")

    assert list(kept()) == [folder]
    assert caplog.messages[-1].startswith(f"{earlier}: damaged, or of an earlier version")
    delete(earlier)
    assert [*cache.indexes_folder().iterdir()] == [folder]
