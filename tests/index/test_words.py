"""Files are found by the words of their names, captions, tags and texts, whatever is typed."""

import os
import shutil
from contextlib import ExitStack, closing
from dataclasses import replace

import numpy as np
import pytest
from support.indexes import META

from onepeace.index import Index, Query, check
from onepeace.index.database import DATABASE, Store, connect
from onepeace.index.encoder import Encoder
from onepeace.index.items import Item, Span
from onepeace.index.match import Scale
from onepeace.index.words import WordSearch, words_in, words_of, words_of_query

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
    with store.transaction():
        for position, (item, vector) in enumerate(zip(items, vectors, strict=True)):
            words = words_of(item, FOLDERS, words_in(dict(texts).get(position, "")))
            store.add(item, [Span(item.kind)], vector, words)


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
    with Index.open(folder) as index, index.reading() as state:
        paths = {item.id: item.path for item in state.items()}
        ids = WordSearch(state, query, len(paths)).file_ids.tolist()
    return ", ".join(os.path.basename(paths[id_]) for id_ in ids)


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("IMG_2034", "IMG_2034.jpg"),
        ("img_2034.jpg", "IMG_2034.jpg"),
        ("img_2034.png", ""),
        ("the dog in Italy", "IMG_2034.jpg"),
        ("myholidayphoto2024", "MyHolidayPhoto2024.JPG"),
        ("photo 2024", "MyHolidayPhoto2024.JPG"),
        ("stromrechnung zurich", "Stromrechnung.txt"),
        ("Rechnung", "Stromrechnung.txt"),
        ("phone", ""),
        ("京都", "京都の猫.png"),
        ("都京", ""),
        ("Москва".upper(), "Москва зимой.jpg"),
        ("x100v kirschblute", "京都の猫.png"),
        ("caf\xe9", "cafe\u0301.ogg"),
        ("ann", ""),
        ("train 000012", "train-0001.tar::000012.jpg"),
        ("late", ""),
        ("17", ""),
        ("jpg", ""),
        ("*.png", "京都の猫.png"),
    ],
)
def test_query_finds_files_with_its_words(folder, query, expected):
    assert names_with(folder, query) == expected


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ("the AND of", []),
        ("a dog, the Dog!", ["dog"]),
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
    ['"', '"quoted', "NEAR(quoted minus)", "name:quoted", "-minus", "quoted*", "\0quoted", "\ud800", "(" * 900],
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
    with Index.open(folder) as index, index.reading() as state:
        search = WordSearch(state, "a dog of Bob in 2024", len(ITEMS))
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
        "DELETE FROM words WHERE file = 2",
    ],
)
def test_damaged_words_are_seen(copy, damage):
    with closing(connect(copy / DATABASE, "mode=rw")) as connection:
        connection.execute(damage)

    assert not check(copy).ok


WIDTH = 128


class TextBranch:
    """Encodes any text as the same vector."""

    def encode(self, texts):
        return np.eye(1, WIDTH, dtype=np.float32).repeat(len(texts), axis=0)


@pytest.fixture
def make(tmp_path, monkeypatch):
    """Makes an index of pictures by their paths, from the nearest to every text to the furthest, and opens it.

    Pictures at angles from the text are alike, unless they lie towards other dimensions.
    """
    monkeypatch.setattr("onepeace.index.state.uses_text_branch", lambda store: True)
    monkeypatch.setattr(Encoder, "_text_branch", lambda self: TextBranch())
    with ExitStack() as opened:

        def make(paths, captions=(), dates=(), angles=None, towards=1):
            items = []
            for path in paths:
                item = Item(f"/disk/ann/Pictures/{path}.jpg", "image", date=dict(dates).get(path))
                items.append(replace(item, caption=dict(captions).get(path)))
            if angles is None:
                angles = np.linspace(0, 1.5, len(items))
            vectors = np.zeros((len(items), WIDTH), np.float32)
            vectors[:, 0] = np.cos(angles)
            vectors[np.arange(len(items)), towards] = np.sin(angles)
            with closing(Store.create(tmp_path / "index", WIDTH, META)) as store:
                add(store, items, vectors)
            return opened.enter_context(Index.open(tmp_path / "index"))

        yield make


NAMES = [f"{'dog' if i % 20 == 5 else 'cat'}{i}" for i in range(100)]
DOGS = [name for name in NAMES if name.startswith("dog")]
CATS = [name for name in NAMES if name.startswith("cat")]


@pytest.fixture
def opened(make):
    """100 pictures in four folders; every twentieth has "dog" in its name, dog85 a caption."""
    return make([f"{number % 4}/{name}" for number, name in enumerate(NAMES)], {"1/dog85": "on the beach"})


def names(hits):
    return [hit.item.path.rpartition("/")[2].removesuffix(".jpg") for hit in hits]


def test_search_pages_with_words(opened):
    hits = []
    for offset in range(0, 12, 4):
        hits += opened.search("dog", top=4, offset=offset, collapse=False)

    assert names(hits) == [*DOGS, *CATS[:7]]
    assert [hit.rank for hit in hits] == [*range(1, 13)]


@pytest.mark.parametrize(
    "query",
    [
        Query(text="dog", vector=np.eye(WIDTH)[0]),
        Query(vector=np.eye(WIDTH)[0], without="dog"),
    ],
)
def test_search_by_other_than_texts_has_no_words(opened, query):
    hits = opened.search(query, top=6, collapse=False)

    assert names(hits) == ["cat0", "cat1", "cat2", "cat3", "cat4", "dog5"]
    assert not any(hit.words for hit in hits)


@pytest.mark.parametrize(
    ("num_with_word", "num_files", "are_rare"),
    [
        (0, 100, False),
        (3, 3, True),
        (4, 79, False),
        (20, 400, True),
        (21, 10_000, False),
    ],
)
def test_words_are_rare_if_few_files_have_them(make, num_with_word, num_files, are_rare):
    index = make([f"dog{number}" for number in range(num_with_word)] or ["cat"])

    with index.reading() as state:
        assert WordSearch(state, "dog", num_files).are_rare == are_rare


class Cosine(Scale):
    """The match is the cosine, and the standard deviation 0.1."""

    def score(self, modality, cosines):
        return 10 * cosines, cosines.astype(np.float64)


@pytest.fixture
def _match_is_cosine(monkeypatch):
    monkeypatch.setattr("onepeace.index.search.Scale", Cosine)


def at(*matches):
    """Angles of pictures that have these matches."""
    return np.arccos(matches)


@pytest.mark.usefixtures("_match_is_cosine")
def test_common_words_count_as_two_standard_deviations_and_decide_between_equals(make):
    """A folder "motorcycle" with other pictures, and photographs of motorcycles elsewhere."""
    paths = [*"abcd", *(f"motorcycle/{number}" for number in range(7))]
    index = make(paths, angles=at(0.97, 0.8, 0.6, 0.2, 0.97, 0.75, 0.41, 0.39, *[0.1] * 3))

    hits = index.search("motorcycle", collapse=False)

    expected = ["0 likely", "a likely", "b possible", "1 possible", "2 named", "c weak", "3 named", "4 named"]
    assert [f"{name} {hit.likelihood}" for name, hit in zip(names(hits), hits, strict=True)][:8] == expected
    assert names(hits)[8:] == ["5", "6"]
    assert not any(hit.rare for hit in hits)
    assert [hit.named for hit in hits] == [bool(hit.words) for hit in hits]


@pytest.mark.usefixtures("_match_is_cosine")
def test_rare_words_are_named_whatever_the_match(make):
    index = make(["a", "invoice1", "invoice2"], angles=at(0.99, 0.97, 0.1))

    hits = index.search("invoice", collapse=False)

    assert [hit.value for hit in hits] == ["likely 0.97", "named", "likely 0.99"]
    assert [hit.rare for hit in hits] == [True, True, False]
    assert hits[0].to_dict()["rare"] is True


@pytest.mark.usefixtures("_match_is_cosine")
@pytest.mark.parametrize("options", [{"min_match": 0.7}, {"sort": "date"}, {"sort": "date", "min_match": 0.7}])
@pytest.mark.parametrize("best", [0.8, 0.1])
def test_named_file_is_dropped_by_neither_minimum_nor_sorting(make, options, best):
    dates = {"invoice": 1, **{str(number): 2 + number for number in range(20)}}
    index = make([*dates], dates=dates, angles=at(0.05, best, *np.linspace(0.06, 0.09, 19)))

    hits = index.search("invoice", top=3, collapse=False, **options)

    assert set(names(hits)) == ({"invoice", "0"} if best >= 0.7 else {"invoice"})


@pytest.mark.usefixtures("_match_is_cosine")
def test_minimum_looks_on_until_the_page_is_full(make):
    """Neither files with the word nor a burst of copies are all that reaches the minimum."""
    with_word = [f"cat{number}" for number in range(12)]
    burst = [f"burst{number}" for number in range(60)]
    good = [f"good{number}" for number in range(20)]
    index = make(
        [*with_word, *burst, *good],
        angles=at(*[0.3] * 12, *[0.95] * 60, *np.linspace(0.9, 0.72, 20)),
        towards=[*range(1, 13), *[13] * 60, *range(14, 34)],
    )

    hits = index.search("cat", top=10, min_match=0.7)

    assert names(hits) == ["burst0", *good[:9]]
    assert len(hits[0].copies) == 59
    assert names(index.search("cat", top=40, min_match=0.7)) == ["burst0", *good]


class Weak(Scale):
    """No file is relevant by what it is about."""

    def score(self, modality, cosines):
        return cosines, np.zeros(len(cosines))


@pytest.mark.parametrize(
    ("query", "options", "has_heading"),
    [
        ("elephant", {}, True),
        ("cat", {}, False),
        ("dog", {"only": "text"}, False),  # there is none
        ("dog", {"where": "not 'dog' in path"}, True),
    ],
)
def test_heading_calls_no_file_with_all_words_irrelevant(opened, monkeypatch, query, options, has_heading):
    monkeypatch.setattr("onepeace.index.search.Scale", Weak)
    assert bool(opened.search(query, **options).heading) == has_heading


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
