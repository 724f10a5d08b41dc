"""Files are found by the words of their names, captions, tags and texts, whatever is typed."""

import shutil
from contextlib import closing

import numpy as np
import pytest

from onepeace.index import check
from onepeace.index.database import DATABASE, connect
from onepeace.index.items import Item, Span
from onepeace.index.store import Store
from onepeace.index.tokens import words_of
from onepeace.index.words import WordSearch, words_of_query

FOLDERS = ["/disk/ann/Pictures"]
FILES = [
    (Item("/disk/ann/Pictures/2024/Italy/IMG_2034.jpg", "image", caption="A black dog runs on the beach"), ""),
    (Item("/disk/ann/Pictures/MyHolidayPhoto2024.JPG", "image"), ""),
    (Item("/disk/ann/Pictures/Stromrechnung.txt", "text"), "Betrag: 12 Euro\nan die Stadtwerke Zürich"),
    (
        Item(
            "/disk/ann/Pictures/京都の猫.png", "image", tags={"camera": "X100V", "keywords": ["temple", "Kirschblüte"]}
        ),
        "",
    ),
    (Item("/disk/ann/Pictures/Москва зимой.jpg", "image", metadata={"taken by": "Bob", "year": 1999}), ""),
    (Item("/disk/ann/Pictures/saxophone.ogg", "audio"), ""),
    (Item("/disk/ann/Pictures/rot\udce9/cafe\u0301.ogg", "audio"), 'a "quoted" text: NEAR AND * -minus'),
    (Item("/disk/ann/train-0001.tar::000012.jpg", "image", caption="x" * 200_000 + " late"), ""),
    (Item("/disk/ann/table.csv::17", "text", caption="a row about pumpkins"), ""),
]


def add(store, files):
    vectors = np.tile(np.array([[1, 0]], np.float32), (len(files), 1))
    words = [words_of(item, FOLDERS, text) for item, text in files]
    with store.transaction():
        store.add([(item, [Span(item.modality)]) for item, _ in files], vectors, words)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """An index that is only read."""
    target = tmp_path_factory.mktemp("words") / "index"
    meta = {"model": "fake", "model_hash": "0", "preprocessing": "1", "modalities": "text image audio"}
    with closing(Store.create(target, 2, meta)) as store:
        add(store, FILES)
    return target


@pytest.fixture
def copy(folder, tmp_path):
    """An index that is changed."""
    return shutil.copytree(folder, tmp_path / "index")


def found(folder, query):
    """Names of the files that have all words of a query."""
    with closing(Store(folder)) as store:
        paths = {item.id: item.path for item in store.items()}
        return [paths[file_id].rpartition("/")[2] for file_id in WordSearch(store, query).files().tolist()]


@pytest.mark.parametrize(
    ("query", "names"),
    [
        ("IMG_2034", ["IMG_2034.jpg"]),
        ("img2034", ["IMG_2034.jpg"]),
        ("2034", ["IMG_2034.jpg"]),
        ("img_2034.jpg", ["IMG_2034.jpg"]),
        ("img_2034.png", []),
        ("the dog in Italy", ["IMG_2034.jpg"]),
        ("italy cat", []),
        ("Holiday", ["MyHolidayPhoto2024.JPG"]),
        ("myholidayphoto2024", ["MyHolidayPhoto2024.JPG"]),
        ("photo 2024", ["MyHolidayPhoto2024.JPG"]),
        ("stromrechnung zurich", ["Stromrechnung.txt"]),
        ("Rechnung", ["Stromrechnung.txt"]),
        ("phone", []),
        ("猫", ["京都の猫.png"]),
        ("京都", ["京都の猫.png"]),
        ("都京", []),
        ("Москва".upper(), ["Москва зимой.jpg"]),
        ("x100v kirschblute", ["京都の猫.png"]),
        ("bob 1999", ["Москва зимой.jpg"]),
        ("caf\xe9", ["cafe\u0301.ogg"]),
        ("rot", ["cafe\u0301.ogg"]),
        ("ann", []),
        ("train 000012", ["train-0001.tar::000012.jpg"]),
        ("late", []),
        ("pumpkins", ["table.csv::17"]),
        ("17", []),
        ("jpg", []),
        (".png", ["京都の猫.png"]),
        ("*.png", ["京都の猫.png"]),
    ],
)
def test_query_and_files(folder, query, names):
    assert found(folder, query) == names


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
    is_word = query.strip('"^*-\0') in ("quoted", "minus")
    assert found(folder, query) == ["cafe\u0301.ogg"] * is_word


def test_words_of_each_file(folder):
    with closing(Store(folder)) as store:
        search = WordSearch(store, "a dog of Bob in 2024")
        assert search.files().tolist() == []
        assert search.words_by_file([1, 2, 3, 5]) == {1: ("dog", "2024"), 2: ("2024",), 5: ("Bob",)}


def test_words_follow_changes(copy):
    with closing(Store(copy, write=True)) as store:
        add(store, [(Item(FILES[0][0].path, "image", caption="a cat"), "")])
        with store.transaction():
            store.remove([2])
    assert found(copy, "dog") == found(copy, "holiday") == []
    assert found(copy, "cat italy") == ["IMG_2034.jpg"]
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
    assert not check(copy).ok
    lost = check(copy, repair=True).lost
    assert lost == ("file = 2" in damage)
    assert check(copy).ok
    assert found(copy, "italy dog") == ["IMG_2034.jpg"]
    assert found(copy, "elephant") == []
