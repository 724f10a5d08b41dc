"""Search, filters, names, dates and classification by the JSON API."""

import sqlite3
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import pytest
from support.embedding import assert_same
from support.indexes import fabricate
from support.random_model import save_random_model

pytest.importorskip("fastapi", reason="the API comes with the extra web")


from support.api import assert_error, client_of, encoded, names, post, search, status_of

from onepeace import load
from onepeace.index import Index, Query, build, cache
from onepeace.index.database import DATABASE
from onepeace.index.items import Item
from onepeace.serve.requests import Decoder


def test_search_finds_what_the_index_finds(client, index, collection):
    words = {"text": ["waves", "in the snow"], "without": "people", "weights": {"text": 0.3}}
    picture = collection / "cat.jpg"
    sound = collection / "dog.ogg"

    answer = search(client, image=encoded(picture), audio=encoded(sound), top=5, **words)

    expected = index.search(Query(image=picture.read_bytes(), audio=sound.read_bytes(), **words), top=5)
    assert answer["compared"] == expected.compared == 9
    for hit, expected_hit in zip(answer["hits"], expected, strict=True):
        assert hit["path"] == expected_hit.item.path
        assert hit["score"] == pytest.approx(expected_hit.score, abs=1e-5)


def test_nothing_asked_lists_the_newest_files(client, ids):
    listed = names(client, top=5) + names(client, top=5, offset=5)

    assert sorted(listed) == sorted(ids)
    assert listed[-1] == "note.txt"


@pytest.mark.parametrize("words", [{}, {"text": "a dog"}])
def test_only_a_kind(client, words):
    sounds = search(client, only="Sounds", collapse=False, **words)

    assert sounds["compared"] == len(sounds["hits"]) == 4
    assert {hit["kind"] for hit in sounds["hits"]} == {"audio"}
    assert client.get("/about").json()["files"] == {"image": 4, "audio": 4, "text": 1}


def test_search_with_a_hit_leaves_it_out(client, collection, ids):
    hits = search(client, like=ids["cat.jpg"])["hits"]

    assert ids["cat.jpg"] not in [hit["id"] for hit in hits]
    assert search(client, like=[str(collection / "cat.jpg")])["hits"] == hits


def test_conditions_are_joined_and_a_wrong_one_is_named(client, collection):
    conditions = ["kind == 'image'", "'c' in path"]

    assert names(client, below=f"{collection}/", where=conditions, path="cat.*") == ["cat.jpg"]
    error = assert_error(post(client, "/search", {"where": ["width > 0", "widht > 0"]}), 422)
    assert "is not a field" in error


def test_below_means_the_same_as_in_python(client, index, collection, tmp_path, monkeypatch):
    (tmp_path / "link").symlink_to(collection)
    monkeypatch.chdir(collection.parent)

    for place in (str(collection), collection.name, str(tmp_path / "link"), [f"{collection}/cat.jpg", "files/dog.jpg"]):
        expected = index.search("a dog", below=place).compared
        assert search(client, text="a dog", below=place)["compared"] == expected > 0
        assert search(client, below=place)["compared"] == expected
    assert search(client, below="/nowhere")["compared"] == 0
    assert "NUL" in assert_error(post(client, "/search", {"below": "a\0b"}), 422)


def test_timeline_of_one_file_has_its_day_and_kind(client):
    counted = client.post("/timeline", json={"before": "2022", "only": "audio"}).json()
    assert counted == {"unit": "day", "periods": [], "kinds": {"text": 1}}

    counted = client.post("/timeline", json={"before": "2022"}).json()
    assert counted == {"unit": "day", "periods": [["2021-05-05", 1]], "kinds": {"text": 1}}


def test_values_of_tags_are_counted(client):
    values = client.get("/values").json()

    assert values == {
        "artist": [["Ann Example", 1]],
        "camera": [["X100V", 1]],
        "keyword": [["beach", 1], ["waves", 1]],
        "lens": [["23mm F2", 1]],
    }


def complete(client, letters):
    return client.get("/names", params={"q": letters}).json()


def test_names_are_completed(client, collection):
    files = complete(client, "CAT")["files"]

    assert [file["name"] for file in files] == ["cat.jpg", "cat.ogg"]
    assert complete(client, "fil")["folders"] == [{"name": "files", "path": str(collection)}]


@pytest.mark.parametrize(
    ("path", "body", "status", "field"),
    [
        ("/search", {"text": "a", "topp": 3}, 422, "topp"),
        ("/search", {"text": "a", "offset": 10**9}, 422, "offset"),
        ("/search", {"like": 2**70}, 422, "like"),
        ("/search", {"without": ["a"] * 6}, 413, "parts"),
        ("/search", {"text": "a", "where": "import os"}, 422, "where: "),
        ("/search", {"text": "a", "only": "smells"}, 422, "only: "),
        ("/search", [], 422, "the body: "),
        ("/classify", {"labels": ["dog", "cat"]}, 422, "give one of text"),
        ("/classify", {"text": "a", "labels": ["a", " a"]}, 422, "labels"),
        ("/classify", {"text": "a", "labels": ["a", "b", "c", "d"]}, 422, "labels"),
    ],
)
def test_wrong_request_is_refused_in_one_line(client, path, body, status, field):
    error = assert_error(post(client, path, body), status)

    assert field in error
    assert not any(word in error for word in ("Extra inputs", "Input should", "instance of", "literal[", "--"))


@pytest.mark.parametrize("is_kept", [False, True])
def test_damaged_index_is_an_error_of_the_server(tmp_path, monkeypatch, is_kept):
    """One in the cache is deleted, and no path of it is to be typed."""
    if is_kept:
        monkeypatch.setattr(cache, "indexes_folder", lambda: tmp_path)
    index = fabricate(
        tmp_path / "index",
        [
            (Item("/a.jpg", "image"), [1, 0]),
            (Item("/b.jpg", "image"), [0, 1]),
        ],
    )
    with closing(sqlite3.connect(index / DATABASE)) as connection:
        connection.execute("UPDATE files SET metadata = 'no JSON'")
        connection.commit()

    with Index.open(index) as opened:
        answer = post(client_of(opened), "/search", {"like": 1})

    message = assert_error(answer, 500)
    assert "damaged" in message
    assert (str(index) in message, index.exists()) == (not is_kept, not is_kept)


def test_index_that_gets_another_model_is_served_with_it(tmp_path, collection, random_folder, monkeypatch):
    monkeypatch.setattr("onepeace.serve.service.PRESENT", 0.0)
    other = save_random_model(tmp_path / "other", embed_dim=8)
    folder = tmp_path / "index"
    build(folder, collection / "note.txt", str(random_folder), device="cpu", progress=False)
    with Index.open(folder, device="cpu") as opened:
        client = client_of(opened)
        for model in (random_folder, other):
            if model == other:
                build(folder, model=str(other), device="cpu", progress=False)
            assert client.get("/v1/models").json()["data"][0]["id"] == model.name
            answer = client.post("/v1/embeddings", json={"input": "a dog", "model": model.name}).json()
            assert_same(answer["data"][0]["embedding"], load(model, device="cpu").encode(["a dog"])[0])
            assert answer["model"] == model.name


@pytest.mark.parametrize("source", ["image", "like"])
def test_labels_are_ranked_as_by_the_model(client, model, collection, ids, source):
    value = encoded(collection / "cat.jpg") if source == "image" else ids["cat.jpg"]

    ranked = client.post("/classify", json={source: value, "labels": ["dog", "cat", " dog "]}).json()["labels"]

    (shares,) = model.classify([collection / "cat.jpg"], ["dog", "cat"]).tolist()
    expected = sorted(zip(shares, ["dog", "cat"], strict=True), reverse=True)
    assert [entry["label"] for entry in ranked] == [label for _, label in expected]
    assert [entry["probability"] for entry in ranked] == pytest.approx([share for share, _ in expected], abs=1e-5)


def test_requests_that_take_long_to_decode_hold_nobody_up(index, collection, monkeypatch):
    may_go_on = threading.Event()
    is_decoding = threading.Event()
    picture = Decoder.picture

    def slow(self, *arguments):
        is_decoding.set()
        assert may_go_on.wait(120)
        return picture(self, *arguments)

    monkeypatch.setattr(Decoder, "picture", slow)
    image = encoded(collection / "cat.jpg")
    with client_of(index) as client, ThreadPoolExecutor() as pool:
        searches = [pool.submit(status_of, client, "/search", image=image) for _ in range(8)]
        try:
            assert is_decoding.wait(120)
            assert status_of(client, "/search", text="a dog") == 200
            assert not any(search.done() for search in searches)
        finally:
            may_go_on.set()
        assert {search.result() for search in searches} == {200}
