"""Search, filters, names, dates and classification by the JSON API."""

import io
import os
import sqlite3
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import pytest
from PIL import Image
from support.indexes import fabricate

pytest.importorskip("fastapi", reason="the API comes with the extra web")


from support.api import ADDRESS, client_of, encoded, message, post

from onepeace.index import Index, Query
from onepeace.index.database import DATABASE
from onepeace.index.items import Item
from onepeace.serve.recent import RecentUploads
from onepeace.serve.uploads import Refused, Request

NAMES = ("where", "path", "after", "before", "rank")


def test_search_finds_what_the_index_finds(client, index, collection):
    picture = collection / "cat.jpg"
    body = {"image": encoded(picture), "text": "waves", "without": "people", "weights": {"text": 0.3}, "top": 5}
    answer = client.post("/search", json=body).json()
    query = Query(text="waves", image=picture.read_bytes(), without="people", weights={"text": 0.3})
    expected = index.search(query, top=5)
    assert answer["compared"] == expected.compared == 9
    for hit, expected_hit in zip(answer["hits"], expected, strict=True):
        assert hit["path"] == expected_hit.item.path
        assert hit["score"] == pytest.approx(expected_hit.score, abs=1e-5)
    first = answer["hits"][0]
    assert client.get(f"/{first['file']}").status_code == 200
    assert client.get("/files/{id}/about".format(**first)).json()["path"] == first["path"]


def test_search_filters_and_pages(client, ids):
    def names(**body):
        hits = client.post("/search", json={"text": "a dog", "collapse": False, **body}).json()["hits"]
        return [os.path.basename(hit["path"]) for hit in hits]

    everything = names()
    assert sorted(everything) == sorted(ids)
    assert sorted(names(only="Sounds")) == sorted(names(only="audio"))
    assert sorted(names(only="audio")) == sorted(name for name in ids if name.endswith(".ogg"))
    assert sorted(names(only=["audio", "text"])) == sorted(name for name in ids if not name.endswith(".jpg"))
    assert names(top=3) + names(top=3, offset=3) + names(top=3, offset=6) == everything


def test_nothing_asked_lists_the_newest_files(client, collection, ids):
    times = os.stat(collection / "note.txt")
    os.utime(collection / "note.txt", (4e9, 4e9))  # the index keeps what it has read
    pages = [client.post("/search", json={"top": 5, "offset": offset}).json() for offset in (0, 5)]
    os.utime(collection / "note.txt", ns=(times.st_atime_ns, times.st_mtime_ns))  # other tests ask for it
    names = [os.path.basename(hit["path"]) for page in pages for hit in page["hits"]]
    assert sorted(names) == sorted(ids)
    assert names[-1] == "note.txt"
    sounds = client.post("/search", json={"only": "audio"}).json()
    assert (sounds["compared"], {hit["kind"] for hit in sounds["hits"]}) == (4, {"audio"})
    assert client.get("/about").json()["files"] == {"image": 4, "audio": 4, "text": 1}


def test_search_with_a_hit_leaves_it_out(client, collection, ids):
    hits = client.post("/search", json={"like": ids["cat.jpg"]}).json()["hits"]
    with_path = client.post("/search", json={"like": [str(collection / "cat.jpg")]}).json()["hits"]
    assert ids["cat.jpg"] not in [hit["id"] for hit in hits]
    assert hits == with_path


def test_uploads_are_named_by_key_in_later_searches(client, collection):
    files = {"image": encoded(collection / "cat.jpg"), "audio": encoded(collection / "dog.ogg")}
    first = client.post("/search", json={**files, "text": ["a dog", "in the snow"]}).json()
    keys = first["uploads"]
    named = {name: [f"upload:{key}" for key in keys[name]] for name in files}
    again = client.post("/search", json={**named, "text": ["a dog", "in the snow"]}).json()
    assert again == first
    small = client.get(f"/uploads/{keys['image'][0]}/thumbnail")
    with Image.open(io.BytesIO(small.content)) as image:
        assert image.format == "WEBP"
    message(client.get("/uploads/0123/thumbnail"), 410)
    message(client.post("/search", json={"image": "upload:0123"}), 410)
    message(client.post("/search", json={"image": named["audio"]}), 422)  # a sound is no picture


def test_uploads_are_kept_up_to_a_number_of_bytes():
    recent = RecentUploads(most_bytes=10)
    first, second = recent.keep(b"1234"), recent.keep(b"5678")
    assert recent.get(first) == b"1234"  # is now the last used
    third = recent.keep(b"90ab")
    assert (recent.get(first), recent.get(third)) == (b"1234", b"90ab")
    with pytest.raises(Refused):
        recent.get(second)


def test_filters_below_a_folder_and_several_conditions(client, collection, ids):
    def names(**body):
        hits = client.post("/search", json=body).json()["hits"]
        return sorted(os.path.basename(hit["path"]) for hit in hits)

    assert names(below=str(collection)) == names(below=f"{collection}/") == sorted(ids)
    assert names(below="/") == sorted(ids)
    assert names(below=f"{collection}/", where=["kind == 'image'", "'c' in path"], path="cat.*") == ["cat.jpg"]
    assert names(below=f"{collection}/ca") == []
    assert names(below=f"{collection.parent}/index") == []
    error = message(client.post("/search", json={"where": ["width > 0", "widht > 0"]}), 422)
    assert "column 1 " in error


def test_timeline_counts_files_that_pass_the_filters(client):
    years = client.post("/timeline", json={"before": "2022"}).json()
    assert years == {"unit": "day", "periods": [["2021-05-05", 1]]}
    everything = client.post("/timeline", json={}).json()
    assert sum(count for _, count in everything["periods"]) == 9
    assert everything["periods"][0][0].startswith("2021")
    sounds = client.post("/timeline", json={"only": "audio"}).json()["periods"]
    assert sum(count for _, count in sounds) == 4
    assert client.post("/timeline", json={"before": "1990"}).json()["periods"] == []


def test_values_of_tags_are_counted(client):
    values = client.get("/values").json()
    assert values == {"camera": [["X100V", 1]], "keyword": [["beach", 1], ["waves", 1]]}
    for where in ("camera == 'X100V'", "keyword == 'beach'", "near(48.1, 11.6, 1*km)"):
        hits = client.post("/search", json={"where": [where]}).json()["hits"]
        assert [os.path.basename(hit["path"]) for hit in hits] == ["sea.jpg"]


def test_names_are_completed(client, collection):
    answer = client.get("/names", params={"q": "CAT"}).json()
    assert [file["name"] for file in answer["files"]] == ["cat.jpg", "cat.ogg"]
    folders = client.get("/names", params={"q": "fil"}).json()["folders"]
    assert folders == [{"name": "files", "path": str(collection)}]
    for nothing in ("", "'", '" OR "', "*", "\0", "zebra"):
        assert client.get("/names", params={"q": nothing}).json() == {"files": [], "folders": []}
    assert client.get("/lookup", params={"path": answer["files"][0]["path"]}).json()["kind"] == "image"
    message(client.get("/lookup", params={"path": "/etc/passwd"}), 404)


@pytest.mark.parametrize(
    ("body", "status", "field"),
    [
        ({"text": "a", "topp": 3}, 422, "topp"),
        ({"text": "a", "top": 0}, 422, "top"),
        ({"text": "a", "offset": 10**9}, 422, "offset"),
        ({"text": "a", "weights": {"image": 1}}, 422, "weights"),
        ({"text": "a", "weights": {"text": 10**400}}, 422, "weights.text"),
        ({"like": 12345}, 404, "12345"),
        ({"like": 2**70}, 422, "like"),
        ({"audio": ADDRESS}, 422, "audio"),
        ({"without": ["a"] * 6}, 413, "parts"),
        ({"text": "a", "where": "import os"}, 422, "where: "),
        ({"text": "a", "only": "smells"}, 422, "only: "),
        ({"text": "a", "only": 5}, 422, "only: "),
        ({"text": "a", "like": None}, 422, "like: "),
        ({"image": ""}, 422, "image: "),
        ([], 422, "the body: "),
    ],
)
def test_wrong_search_is_refused_in_one_line(client, body, status, field):
    error = message(post(client, "/search", body), status)
    assert field in error
    assert not any(word in error for word in ("Extra inputs", "Input should", "instance of", "literal[", "--"))


def test_damaged_index_is_an_error_of_the_server(tmp_path):
    index = fabricate(tmp_path / "index", [(Item("/a.jpg", "image"), [1, 0]), (Item("/b.jpg", "image"), [0, 1])])
    with closing(sqlite3.connect(index / DATABASE)) as connection:
        connection.execute("UPDATE files SET size = size + 1")
        connection.commit()
    with Index.open(index) as opened:
        answer = post(client_of(opened), "/search", {"like": 1})
    assert "the index is damaged" in message(answer, 500)


@pytest.mark.parametrize("half", ["\ud800", "a\udc00b"])
def test_half_of_a_letter_is_answered(client, half):
    bodies = [{"text": half}, {"text": "a", "without": half}, {"like": half}]
    bodies += [{"text": "a", name: half} for name in NAMES]
    for body in bodies:
        assert post(client, "/search", body).status_code in (200, 404, 422)
    for path in ("/search", "/classify", "/ask"):
        assert "surrogate" in message(post(client, path, {half: 1}), 422)
    assert "surrogate" in message(post(client, "/v1/embeddings", {"input": {half: "a"}}), 422)
    assert post(client, "/v1/embeddings", {"input": [half]}).status_code in (200, 422)
    assert post(client, "/classify", {"text": half, "labels": [half, "a"]}).status_code in (200, 422)


def test_labels_are_chosen_for_what_is_sent_and_for_a_file(client, model, collection, ids):
    labels = ["dog", "cat"]
    for body in ({"image": encoded(collection / "cat.jpg")}, {"like": ids["cat.jpg"]}):
        ranked = client.post("/classify", json={**body, "labels": [*labels, " dog "]}).json()["labels"]
        (shares,) = model.classify([collection / "cat.jpg"], labels)
        expected = dict(zip(labels, shares.tolist(), strict=True))
        probabilities = {entry["label"]: entry["probability"] for entry in ranked}
        assert list(probabilities) == sorted(expected, key=expected.get, reverse=True)
        assert probabilities == pytest.approx(expected, abs=1e-5)
    for body in ({"labels": labels}, {"text": "a", "like": 1, "labels": labels}, {"text": "a", "labels": []}):
        message(client.post("/classify", json=body), 422)
    message(client.post("/classify", json={"text": "a", "labels": list("abcd")}), 422)
    message(client.post("/classify", json={"text": "a", "labels": ["dog " * 10, "cat"]}), 413)
    message(client.post("/classify", json={"text": "a", "labels": ["a" * 101, "cat"]}), 413)
    message(client.post("/ask", json={"id": ids["cat.jpg"]}), 404)


def test_requests_that_take_long_to_decode_hold_nobody_up(index, collection, monkeypatch):
    answered = threading.Event()
    decoding = threading.Event()
    picture = Request.picture

    def slow(self, *arguments):
        decoding.set()
        assert answered.wait(120)
        return picture(self, *arguments)

    monkeypatch.setattr(Request, "picture", slow)
    body = {"image": encoded(collection / "cat.jpg")}
    with client_of(index) as client, ThreadPoolExecutor() as pool:
        searches = [pool.submit(client.post, "/search", json=body) for _ in range(8)]
        try:
            assert decoding.wait(120)
            assert client.post("/search", json={"text": "a dog"}).status_code == 200
            assert not any(search.done() for search in searches)
        finally:
            answered.set()
        assert {search.result().status_code for search in searches} == {200}
