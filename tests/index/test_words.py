"""Files are found by the words of their names, captions, tags and texts, whatever is typed."""

import os
import shutil
from contextlib import closing
from dataclasses import replace

import numpy as np
import pytest
from support.indexes import META

from onepeace.index import Index, Query, check
from onepeace.index.database import DATABASE, connect
from onepeace.index.items import Item, Span
from onepeace.index.match import Scale
from onepeace.index.store import Store
from onepeace.index.tokens import words_of
from onepeace.index.words import WordSearch, words_of_query

FOLDERS = ["/disk/ann/Pictures"]
ITEMS = [
    Item("/disk/ann/Pictures/2024/Italy/IMG_2034.jpg", "image", caption="A black dog runs on the beach"),
    Item("/disk/ann/Pictures/MyHolidayPhoto2024.JPG", "image"),
    Item("/disk/ann/Pictures/Stromrechnung.txt", "text"),
    Item("/disk/ann/Pictures/京都の猫.png", "image", tags={"camera": "X100V", "keywords": ["temple", "Kirschblüte"]}),
    Item("/disk/ann/Pictures/Москва зимой.jpg", "image", metadata={"taken by": "Bob", "year": 1999}),
    Item("/disk/ann/Pictures/saxophone.ogg", "audio"),
    Item("/disk/ann/Pictures/rot\udce9/cafe\u0301.ogg", "audio"),
    Item("/disk/ann/train-0001.tar::000012.jpg", "image", caption="x" * 200_000 + " late"),
    Item("/disk/ann/table.csv::17", "text", caption="a row about pumpkins"),
]
TEXTS = {2: "Betrag: 12 Euro\nan die Stadtwerke Zürich", 6: 'a "quoted" text: NEAR AND * -minus'}
"""Contents of files by their position."""


def add(store, items, vectors=None, texts=()):
    if vectors is None:
        vectors = np.tile(np.array([[1, 0]], np.float32), (len(items), 1))
    words = [words_of(item, FOLDERS, dict(texts).get(position, "")) for position, item in enumerate(items)]
    with store.transaction():
        store.add([(item, [Span(item.modality)]) for item in items], vectors, words)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """An index that is only read."""
    folder = tmp_path_factory.mktemp("words") / "index"
    with closing(Store.create(folder, 2, META)) as store:
        add(store, ITEMS, texts=TEXTS)
    return folder


@pytest.fixture
def copy(folder, tmp_path):
    """An index that is changed."""
    return shutil.copytree(folder, tmp_path / "index")


def names_with(folder, query):
    """Names of the files that have all words of a query."""
    with closing(Store(folder)) as store:
        paths = {item.id: item.path for item in store.items()}
        ids = WordSearch(store, query).file_ids.tolist()
    return ", ".join(os.path.basename(paths[id_]) for id_ in ids)


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("IMG_2034", "IMG_2034.jpg"),
        ("img2034", "IMG_2034.jpg"),
        ("2034", "IMG_2034.jpg"),
        ("img_2034.jpg", "IMG_2034.jpg"),
        ("img_2034.png", ""),
        ("the dog in Italy", "IMG_2034.jpg"),
        ("italy cat", ""),
        ("Holiday", "MyHolidayPhoto2024.JPG"),
        ("myholidayphoto2024", "MyHolidayPhoto2024.JPG"),
        ("photo 2024", "MyHolidayPhoto2024.JPG"),
        ("stromrechnung zurich", "Stromrechnung.txt"),
        ("Rechnung", "Stromrechnung.txt"),
        ("phone", ""),
        ("猫", "京都の猫.png"),
        ("京都", "京都の猫.png"),
        ("都京", ""),
        ("Москва".upper(), "Москва зимой.jpg"),
        ("x100v kirschblute", "京都の猫.png"),
        ("bob 1999", "Москва зимой.jpg"),
        ("caf\xe9", "cafe\u0301.ogg"),
        ("rot", "cafe\u0301.ogg"),
        ("ann", ""),
        ("train 000012", "train-0001.tar::000012.jpg"),
        ("late", ""),
        ("pumpkins", "table.csv::17"),
        ("17", ""),
        ("jpg", ""),
        (".png", "京都の猫.png"),
        ("*.png", "京都の猫.png"),
    ],
)
def test_query_finds_files_with_its_words(folder, query, expected):
    assert names_with(folder, query) == expected


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ("", []),
        ("the AND of", []),
        ("a dog, the Dog!", ["dog"]),
        ("*** - :", []),
        ('"NEAR(quoted"', ["NEAR(quoted"]),
        ("one two three four five six seven eight", "one two three four five six seven eight".split()),
        ("one two three four five six seven eight nine", []),
        ("x" * 1001, []),
    ],
)
def test_words_of_a_query(query, words):
    assert words_of_query(query) == words


@pytest.mark.parametrize(
    "query",
    ['"', '"quoted', "NEAR(quoted minus)", "quoted NOT", "name:quoted", "-minus", "{name} : x", "quoted*", "^quoted",
     "\0quoted", "\ud800", "a.jpg" * 190, "😀", "'; DROP TABLE files", "(" * 900, "quoted + elephant", "O'Neill"],
)  # fmt: skip
def test_nothing_in_a_query_is_an_operator(folder, query):
    is_word = query == "-minus" or query.strip('"^*\0') == "quoted"
    expected = "cafe\u0301.ogg" if is_word else ""

    assert names_with(folder, query) == expected


def test_cells_in_any_depth_are_words():
    value = ["deepest", 7, 1.5, True, None]
    for _ in range(10_000):
        value = {"cell": value}

    words = words_of(Item("/a.jpg", "image", metadata={"first": "top", "nested": value}), [])

    assert words.about.split() == ["top", "deepest", "7"]


def test_words_of_each_file(folder):
    with closing(Store(folder)) as store:
        search = WordSearch(store, "a dog of Bob in 2024")
        assert search.file_ids.tolist() == []
        assert search.words_by_file([1, 2, 3, 5]) == {
            1: ("dog", "2024"),
            2: ("2024",),
            5: ("Bob",),
        }


def test_words_follow_changes(copy):
    with closing(Store(copy, write=True)) as store:
        add(store, [replace(ITEMS[0], caption="a cat")])
        with store.transaction():
            store.remove([2])

    assert names_with(copy, "dog") == names_with(copy, "holiday") == ""
    assert names_with(copy, "cat italy") == "IMG_2034.jpg"
    assert check(copy).ok


@pytest.mark.parametrize(
    "damage",
    [
        "UPDATE word_index_data SET block = x'00' WHERE id > 10",
        "DELETE FROM word_index_docsize WHERE id = 3",
        "UPDATE words SET about = 'an elephant' WHERE file = 2",
        "DELETE FROM words WHERE file = 2",
    ],
)
def test_damaged_words_are_seen_and_repaired(copy, damage):
    with closing(connect(copy / DATABASE, "mode=rw")) as connection:
        connection.execute(damage)
    is_file_lost = "file = 2" in damage

    assert not check(copy).ok
    assert check(copy, repair=True).lost == is_file_lost
    assert check(copy).ok
    assert names_with(copy, "italy dog") == "IMG_2034.jpg"
    assert names_with(copy, "elephant") == ""


class TextBranch:
    """Encodes any text as the same vector."""

    def encode(self, texts):
        return np.array([[1, 0]] * len(texts), np.float32)


@pytest.fixture
def opened(tmp_path, monkeypatch):
    """100 pictures, from the nearest to every text to the furthest; every tenth has "dog" in its name, 95 a caption."""
    items = []
    for number in range(100):
        animal = "dog" if number % 10 == 5 else "cat"
        items.append(Item(f"/disk/ann/Pictures/{number % 4}/{animal}{number}.jpg", "image"))
    items[95] = replace(items[95], caption="on the beach")
    angles = np.linspace(0, 2, 100)
    vectors = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    with closing(Store.create(tmp_path / "index", 2, META)) as store:
        add(store, items, vectors)
    monkeypatch.setattr(Index, "text_branch", TextBranch())
    with Index.open(tmp_path / "index") as index:
        yield index


def names(hits):
    return [hit.item.path.rpartition("/")[2].removesuffix(".jpg") for hit in hits]


DOGS = [f"dog{i}" for i in range(5, 100, 10)]
CATS = [f"cat{i}" for i in range(100) if i % 10 != 5]


def test_search_shows_files_with_all_words_first(opened):
    hits = opened.search("a dog", top=12, collapse=False)

    scores_of_dogs = [hit.score for hit in hits][:10]
    assert names(hits) == [*DOGS, *CATS[:2]]
    assert [hit.words for hit in hits] == [("dog",)] * 10 + [()] * 2
    assert scores_of_dogs == sorted(scores_of_dogs, reverse=True)


def test_search_finds_words_beyond_the_nearest(opened):
    hits = opened.search("Dog, beach", top=2, collapse=False)

    assert names(hits) == ["dog95", "cat0"]
    assert [hit.words for hit in hits] == [("Dog", "beach"), ()]


def test_search_marks_files_with_some_words(opened):
    hits = opened.search("dog elephant", top=6, collapse=False)

    assert [hit.words for hit in hits] == [()] * 5 + [("dog",)]


def test_search_pages_with_words(opened):
    hits = []
    for offset in range(0, 16, 4):
        hits += opened.search("dog", top=4, offset=offset, collapse=False)

    assert names(hits) == [*DOGS, *CATS[:6]]
    assert [hit.rank for hit in hits] == [*range(1, 17)]


@pytest.mark.parametrize(
    "filters",
    [{"where": "'/1/' in path"}, {"below": "/disk/ann/Pictures/1"}, {"sort": "path", "below": "/disk/ann/Pictures/1"}],
)
def test_search_filters_files_with_words(opened, filters):
    hits = opened.search("dog", top=100, collapse=False, **filters)

    dogs = {f"dog{number}" for number in range(5, 100, 20)}
    files_of_folder = {name for name in [*DOGS, *CATS] if int(name[3:]) % 4 == 1}
    assert set(names(hits)) == files_of_folder
    assert len(hits) == len(files_of_folder)
    assert set(names(hit for hit in hits if hit.words)) == dogs


@pytest.mark.parametrize(
    "query",
    [
        Query(vector=[1, 0]),
        Query(text="dog", vector=[1, 0]),
        Query(vector=[1, 0], without="dog"),
    ],
)
def test_search_by_other_than_texts_has_no_words(opened, query):
    hits = opened.search(query, top=6, collapse=False)

    assert names(hits) == ["cat0", "cat1", "cat2", "cat3", "cat4", "dog5"]
    assert not any(hit.words for hit in hits)


class Unlikely(Scale):
    """No file is relevant by what it is about."""

    def score(self, modality, cosines):
        return cosines, np.zeros(len(cosines))


@pytest.fixture
def _unlikely(monkeypatch):
    monkeypatch.setattr("onepeace.index.search.Scale", Unlikely)


@pytest.mark.usefixtures("_unlikely")
@pytest.mark.parametrize(
    ("query", "options", "has_heading"),
    [
        ("elephant", {}, True),
        ("dog", {}, False),
        ("dog", {"only": "text"}, False),  # there is none
        ("dog", {"where": "not 'dog' in path"}, True),
    ],
)
def test_heading_calls_no_file_with_all_words_irrelevant(opened, query, options, has_heading):
    assert bool(opened.search(query, **options).heading) == has_heading


@pytest.mark.usefixtures("_unlikely")
@pytest.mark.parametrize(
    ("query", "likelihood"),
    [
        ("dog cat", "unlikely"),
        ("dog", "named"),
    ],
)
def test_likelihood_of_a_file_with_all_words(opened, query, likelihood):
    assert [hit.likelihood for hit in opened.search(query, top=2)] == [likelihood] * 2


@pytest.mark.usefixtures("_unlikely")
def test_search_by_path_leaves_no_file_out(opened):
    by_path = opened.search("dog", sort="path", top=100, collapse=False)

    assert {*names(by_path)} == {*DOGS, *CATS}


def test_names_begin_at_the_outermost_folder(build, index, tmp_path):
    inner = tmp_path / "Holidays" / "2024" / "Italy"
    inner.mkdir(parents=True)
    (inner / "a.txt").write_text("pasta")

    build(inner)
    assert names_with(index, "italy pasta") == "a.txt"
    assert names_with(index, "holidays italy") == ""

    build(tmp_path / "Holidays")
    assert names_with(index, "holidays italy pasta") == "a.txt"
    assert check(index).ok


def test_words_of_a_part_of_an_index(folder):
    with closing(Store(folder)) as store:
        assert WordSearch(store, "holiday").file_ids.tolist() == [2]
        store.show_only("id = 3")
        assert WordSearch(store, "stromrechnung rechnung").file_ids.tolist() == [3]
        assert not WordSearch(store, "").has("holiday")
