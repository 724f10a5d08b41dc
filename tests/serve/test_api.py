"""The JSON API: vectors, search, classification, files; and what it never does: open a path, fetch an address."""

import base64
import io
import json
import os
import shutil
import sqlite3
import tarfile
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import numpy as np
import pytest
import soundfile
from PIL import Image
from support.embedding import assert_same
from support.indexes import fabricate
from support.media import TWO_SCENES

pytest.importorskip("fastapi", reason="the API comes with the extra web")

from fastapi.testclient import TestClient

from onepeace.index import Index, Query, build, remove, update
from onepeace.index.database import DATABASE
from onepeace.index.items import Item
from onepeace.index.roots import Root, keep_roots
from onepeace.index.store import Store
from onepeace.serve import guesses
from onepeace.serve.app import create_app
from onepeace.serve.recent import RecentUploads
from onepeace.serve.service import Service
from onepeace.serve.uploads import Limits, Refused, Request

HOSTS = ("127.0.0.1", "localhost", "[::1]")
LIMITS = Limits(
    upload=200_000,
    pixels=1_000_000,
    seconds=12.0,
    inputs=5,
    characters=200,
    all_characters=500,
    labels=3,
    label_tokens=12,
    label_characters=100,
    top=20,
)


def client_of(index, **options):
    app = create_app(Service(index, limits=options.pop("limits", LIMITS)), **options)
    return TestClient(app, base_url="http://127.0.0.1:7860", raise_server_exceptions=False)


@pytest.fixture(scope="module")
def client(index):
    return client_of(index, hosts=HOSTS)


def post(client, path, body):
    """Any JSON, also what clients of Python do not send."""
    return client.post(path, content=json.dumps(body), headers={"content-type": "application/json"})


def encoded(path):
    return base64.b64encode(path.read_bytes()).decode()


def png(width, height):
    buffer = io.BytesIO()
    Image.new("1", (width, height)).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def wav(seconds):
    buffer = io.BytesIO()
    soundfile.write(buffer, np.sin(np.arange(int(8000 * seconds))), 8000, format="WAV")
    return base64.b64encode(buffer.getvalue()).decode()


def message(answer, status):
    """What is wrong, in one line."""
    assert answer.status_code == status, answer.text
    text = answer.json()["error"]["message"]
    assert text
    assert "\n" not in text
    assert len(text) < 400
    return text


# Vectors


def test_vectors_of_texts_pictures_and_sounds_are_those_of_the_model(client, model, collection):
    picture, sound = collection / "cat.jpg", collection / "dog.ogg"
    inputs = [
        "a dog",
        {"image": encoded(picture)},
        {"type": "image_url", "image_url": {"url": f"data:image/jpeg;base64,{encoded(picture)}"}},
        {"type": "input_audio", "input_audio": {"data": encoded(sound), "format": "ogg"}},
        {"text": "in the snow", "audio": encoded(sound)},
    ]
    answer = client.post("/v1/embeddings", json={"input": inputs, "model": "any", "user": "somebody"}).json()
    vectors = np.array([entry["embedding"] for entry in answer["data"]], np.float32)
    assert [entry["index"] for entry in answer["data"]] == [0, 1, 2, 3, 4]
    assert_same(vectors[:4], model.encode(["a dog", picture, picture, sound]))
    mix = model.encode([{"text": "in the snow", "audio": sound}])
    assert_same(vectors[4:], mix)
    written = client.post("/v1/embeddings", json={"input": inputs[:2], "encoding_format": "base64"}).json()
    buffers = [base64.b64decode(entry["embedding"]) for entry in written["data"]]
    assert_same(np.stack([np.frombuffer(each, "<f4") for each in buffers]), vectors[:2])
    about = client.get("/v1/models").json()["data"][0]
    assert about["embed_dim"] == vectors.shape[1]


NAMES = ("where", "path", "after", "before", "rank")
ADDRESS = "http://127.0.0.1:1/dog.jpg"


@pytest.mark.parametrize(
    ("body", "status", "field"),
    [
        ({"input": [{"image": ADDRESS}]}, 422, "input[0].image"),
        ({"input": [{"audio": "file:///etc/passwd"}]}, 422, "input[0].audio"),
        ({"input": ["a", {"image": "/etc/passwd"}]}, 422, "input[1].image"),
        ({"input": [{"image": "bm8gcGljdHVyZQ=="}]}, 422, "input[0].image"),
        ({"input": ["a", {"audio": "bm8gc291bmQ="}]}, 422, "input[1].audio"),
        ({"input": [{"image": "A" * 300_000}]}, 413, "input[0].image"),
        ({"input": [{"image": png(700, 900)}] * 2}, 413, "input[1].image"),
        ({"input": [{"audio": wav(5)}] * 3}, 413, "input[2].audio"),
        ({"input": ["a" * 201]}, 413, "input[0].text"),
        ({"input": ["a"] * 6}, 413, "input"),
        ({"input": ["a" * 200] * 3}, 413, "input[2].text"),
        ({"input": []}, 422, "input"),
        ({"input": [{"image": png(20_000, 20_000)}]}, 413, "1000000"),
        ({"input": [""]}, 422, "input[0]"),
        ({"input": [[1, 2]]}, 422, "input[0]"),
        ({"input": {"text": 5}}, 422, "input[0]: text"),
        ({"input": {"text": "a", "weights": {"text": 1}}}, 422, "weights"),
        ({"input": "a", "dimensions": 3}, 422, "dimensions"),
        ({"input": "a", "encoding_format": "int8"}, 422, "encoding_format"),
        ({}, 422, "input"),
    ],
)
def test_wrong_request_is_refused_in_one_line_and_the_next_is_answered(client, body, status, field):
    assert field in message(post(client, "/v1/embeddings", body), status)
    assert client.post("/v1/embeddings", json={"input": "a dog"}).status_code == 200


@pytest.mark.parametrize("body", [b"", b"{", b"\xff", b"[" * 100_000, b'{"input": NaN}', b'{"input": 1e999}'])
def test_body_that_is_no_json_is_refused(client, body):
    answer = client.post("/v1/embeddings", content=body, headers={"content-type": "application/json"})
    assert answer.status_code in (400, 422)
    assert message(answer, answer.status_code)


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (b"", "application/json"),
        (b'{"text":', "application/json"),
        (b"\xff\xd8\xff\xe0", "application/json"),
        (b'{"text": "a dog"}', "text/plain"),
    ],
)
def test_error_of_the_whole_body_names_the_body_and_json(client, body, kind):
    said = message(client.post("/search", content=body, headers={"content-type": kind}), 422)
    assert said.startswith("the body: ")
    assert "json" in said.lower()


# Search


def test_search_finds_what_the_index_finds(client, index, collection):
    picture = collection / "cat.jpg"
    body = {"image": encoded(picture), "text": "waves", "without": "people", "weights": {"text": 0.3}, "top": 5}
    answer = client.post("/search", json=body).json()
    query = Query(text="waves", image=picture.read_bytes(), without="people", weights={"text": 0.3})
    expected = index.search(query, top=5)
    assert answer["compared"] == expected.compared == 9
    assert [hit["path"] for hit in answer["hits"]] == [hit.item.path for hit in expected]
    scores = [[hit["score"] for hit in answer["hits"]], [hit.score for hit in expected]]
    np.testing.assert_allclose(*scores, rtol=0, atol=1e-5)
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
    said = message(client.post("/search", json={"where": ["width > 0", "widht > 0"]}), 422)
    assert "column 1 " in said


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
    found = client.get("/names", params={"q": "CAT"}).json()
    assert [file["name"] for file in found["files"]] == ["cat.jpg", "cat.ogg"]
    folders = client.get("/names", params={"q": "fil"}).json()["folders"]
    assert folders == [{"name": "files", "path": str(collection)}]
    for nothing in ("", "'", '" OR "', "*", "\0", "zebra"):
        assert client.get("/names", params={"q": nothing}).json() == {"files": [], "folders": []}
    assert client.get("/lookup", params={"path": found["files"][0]["path"]}).json()["kind"] == "image"
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
    said = message(post(client, "/search", body), status)
    assert field in said
    assert not any(word in said for word in ("Extra inputs", "Input should", "instance of", "literal[", "--"))


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
    for body in (
        {"text": half},
        {"text": "a", "without": half},
        {"like": half},
        *({"text": "a", n: half} for n in NAMES),
    ):
        assert post(client, "/search", body).status_code in (200, 404, 422)
    for path in ("/search", "/classify", "/ask"):
        assert "surrogate" in message(post(client, path, {half: 1}), 422)
    assert "surrogate" in message(post(client, "/v1/embeddings", {"input": {half: "a"}}), 422)
    assert post(client, "/v1/embeddings", {"input": [half]}).status_code in (200, 422)
    assert post(client, "/classify", {"text": half, "labels": [half, "a"]}).status_code in (200, 422)


def test_labels_are_chosen_for_what_is_sent_and_for_a_file(client, model, collection, ids):
    labels = ["dog", "cat"]
    for body in ({"image": encoded(collection / "cat.jpg")}, {"like": ids["cat.jpg"]}):
        found = client.post("/classify", json={**body, "labels": [*labels, " dog "]}).json()["labels"]
        (shares,) = model.classify([collection / "cat.jpg"], labels)
        expected = sorted(zip(labels, shares.tolist(), strict=True), key=lambda pair: -pair[1])
        assert [each["label"] for each in found] == [label for label, _ in expected]
        np.testing.assert_allclose([each["probability"] for each in found], [share for _, share in expected], atol=1e-5)
    for body in ({"labels": labels}, {"text": "a", "like": 1, "labels": labels}, {"text": "a", "labels": []}):
        message(client.post("/classify", json=body), 422)
    message(client.post("/classify", json={"text": "a", "labels": list("abcd")}), 422)
    message(client.post("/classify", json={"text": "a", "labels": ["dog " * 10, "cat"]}), 413)
    message(client.post("/classify", json={"text": "a", "labels": ["a" * 101, "cat"]}), 413)
    message(client.post("/ask", json={"id": ids["cat.jpg"]}), 404)


def test_requests_that_take_long_to_decode_hold_nobody_up(index, collection, monkeypatch):
    answered, decoding, picture = threading.Event(), threading.Event(), Request.picture

    def slow(self, *given):
        decoding.set()
        assert answered.wait(120)
        return picture(self, *given)

    monkeypatch.setattr(Request, "picture", slow)
    body = {"image": encoded(collection / "cat.jpg")}
    with client_of(index) as client, ThreadPoolExecutor() as pool:
        sent = [pool.submit(client.post, "/search", json=body) for _ in range(8)]
        try:
            assert decoding.wait(120)
            assert client.post("/search", json={"text": "a dog"}).status_code == 200
            assert not any(each.done() for each in sent)
        finally:
            answered.set()
        assert {each.result().status_code for each in sent} == {200}


# Files


def test_files_are_served_by_their_numbers(client, collection, ids):
    kinds = {".jpg": "image/jpeg", ".ogg": "audio/ogg", ".txt": "text/plain; charset=utf-8"}
    for name in set(ids) - {"note.txt"}:
        answer = client.get(f"/files/{ids[name]}")
        assert answer.content == (collection / name).read_bytes()
        assert answer.headers["content-type"] == kinds[name[-4:]]
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert "sandbox" in answer.headers["content-security-policy"]
    for path in ("/", f"/files/{ids['cat.jpg']}"):
        head = client.head(path)
        assert (head.status_code, head.content) == (200, b"")
        assert head.headers["content-length"] == client.get(path).headers["content-length"]
    for large, most in (("", 480), ("?large=true", 1600)):
        small = client.get(f"/files/{ids['cat.jpg']}/thumbnail{large}")
        with Image.open(io.BytesIO(small.content)) as image:
            assert max(image.size) <= most
            assert image.format == "WEBP"
    wave = client.get(f"/files/{ids['dog.ogg']}/thumbnail")
    assert wave.headers["content-type"] == "image/svg+xml"
    assert wave.text.startswith("<svg xmlns=")
    message(client.get(f"/files/{ids['note.txt']}/thumbnail"), 404)


@pytest.mark.parametrize(
    ("asked", "part"),
    [("bytes=0-9", slice(0, 10)), ("bytes=100-", slice(100, None)), ("bytes=-7", slice(-7, None)),
     ("bytes=5-99999999", slice(5, None))],
)  # fmt: skip
def test_player_can_ask_for_a_part(client, collection, ids, asked, part):
    data = (collection / "dog.ogg").read_bytes()
    answer = client.get(f"/files/{ids['dog.ogg']}", headers={"range": asked})
    assert (answer.status_code, answer.content) == (206, data[part])
    first = range(len(data))[part][0]
    assert answer.headers["content-range"] == f"bytes {first}-{first + len(data[part]) - 1}/{len(data)}"
    outside = client.get(f"/files/{ids['dog.ogg']}", headers={"range": f"bytes={len(data)}-"})
    assert (outside.status_code, outside.content) == (416, b"")
    assert outside.headers["content-range"] == f"bytes */{len(data)}"


TRAVERSALS = [
    "/files/..%2f..%2f..%2fetc%2fpasswd", "/files/%2e%2e/%2e%2e/etc/passwd", "/files//etc/passwd", "/files/1%00.jpg",
    "/files/..\\..\\secret.txt", "/files/1%2f..%2f..%2fsecret.txt", "/files/-1", "/files/0x1",
    "/files/99999999999999999999", "/files/0", "/files/", "/files/file:%2f%2f%2fetc%2fpasswd",
    "/page/..%2fapi.py", "/page/%2e%2e%2fapi.py", "/page//etc/passwd", "/page/..\\api.py",
]  # fmt: skip


@pytest.mark.parametrize("path", TRAVERSALS)
def test_no_other_file_is_reached(client, collection, path):
    (collection.parent / "secret.txt").write_text("the secret", encoding="utf-8")
    answer = client.get(path)
    assert answer.status_code in (404, 405), answer.text
    assert "secret" not in answer.text.replace("secret.txt", "")
    assert "root:" not in answer.text
    assert "import" not in answer.text


@pytest.fixture
def changing(tmp_path, samples, random_folder):
    """A folder, a client of its index, and the numbers of its files."""
    folder = tmp_path / "files"
    folder.mkdir()
    (tmp_path / "secret.txt").write_text("the secret, as long as you like", encoding="utf-8")
    shutil.copy2(samples / "images" / "cat.jpg", folder / "cat.jpg")
    (folder / "note.txt").write_text("a note", encoding="utf-8")
    (folder / "out.txt").symlink_to(tmp_path / "secret.txt")  # is not indexed
    build(tmp_path / "index", [folder], str(random_folder), device="cpu", progress=False)
    with Index.open(tmp_path / "index", device="cpu") as index:
        numbers = {os.path.basename(item.path): item.id for item in index.items()}
        yield folder, client_of(index), numbers


@pytest.mark.parametrize("change", ["link", "pipe", "other", "gone", "folder", "link to the same size and time"])
def test_file_that_is_not_what_was_indexed_is_refused(changing, tmp_path, change):
    folder, client, numbers = changing
    for name, address in ((n, f"/files/{numbers[n]}{t}") for n, t in (("cat.jpg", "/thumbnail"), ("note.txt", ""))):
        path = folder / name
        assert client.get(address).status_code == 200
        status = path.stat()
        path.unlink()
        if change == "link":
            path.symlink_to(tmp_path / "secret.txt")
        elif change == "pipe":
            os.mkfifo(path)
        elif change == "other":
            path.write_bytes(b"other")
        elif change == "folder":
            path.mkdir()
        elif change == "link to the same size and time":
            (tmp_path / f"{name}.same").write_bytes(b"secret" + b"s" * (status.st_size - 6))
            os.utime(tmp_path / f"{name}.same", ns=(status.st_atime_ns, status.st_mtime_ns))
            path.symlink_to(tmp_path / f"{name}.same")
        answer = client.get(address)
        assert answer.status_code in (404, 410)
        assert "secret" not in message(answer, answer.status_code)


@pytest.mark.parametrize("address", ["", "/thumbnail"])
@pytest.mark.parametrize("name", ["cat.jpg", "sub/cat.jpg", "sub"])
def test_link_that_comes_after_the_check_is_not_followed(tmp_path, samples, monkeypatch, name, address):
    """Of a picture, or of its folder: a copy with the same size and time lies elsewhere."""
    folder, elsewhere = tmp_path / "files", tmp_path / "elsewhere"
    for place in (folder, elsewhere):
        (place / "sub").mkdir(parents=True)
        shutil.copy2(samples / "images" / "cat.jpg", place / "cat.jpg")
        shutil.copy2(samples / "images" / "cat.jpg", place / "sub" / "cat.jpg")
    path = folder / ("sub/cat.jpg" if name == "sub" else name)
    status = path.stat()
    index = fabricate(tmp_path / "index", [(Item(str(path), "image", status.st_size, status.st_mtime_ns), [1, 0])])
    with closing(Store(index, write=True)) as store, store.transaction():
        keep_roots(store, [Root(str(folder), "folder")])
    real = os.path.realpath

    def swapped(asked, **options):
        found = real(asked, **options)
        if str(asked) == str(path) and not (folder / name).is_symlink():
            (folder / name).rename(tmp_path / "moved")
            (folder / name).symlink_to(elsewhere / name)
        return found

    with Index.open(index, device="cpu") as opened:
        client = client_of(opened)
        assert client.get(f"/files/1{address}").status_code == 200
        monkeypatch.setattr(os.path, "realpath", swapped)
        answers = [client.get(f"/files/1{address}") for _ in range(3)]
        assert (folder / name).is_symlink()
        assert [answer.status_code for answer in answers] == [404] * 3


def test_change_of_the_index_is_seen_at_once(changing, tmp_path, samples):
    folder, client, numbers = changing

    def names(**body):
        return sorted(os.path.basename(hit["path"]) for hit in client.post("/search", json=body).json()["hits"])

    assert names(text="a") == names() == ["cat.jpg", "note.txt"]
    assert len(client.get("/points").json()["points"]) == 2
    assert len(client.post("/timeline", json={"only": "audio"}).json()["periods"]) == 0
    shutil.copy2(samples / "sounds" / "dog.ogg", folder / "dog.ogg")
    (folder / "note.txt").unlink()
    update(tmp_path / "index", device="cpu", progress=False)
    assert names(text="a") == names() == ["cat.jpg", "dog.ogg"]
    assert len(client.post("/timeline", json={"only": "audio"}).json()["periods"]) == 1
    assert len(client.get("/points").json()["points"]) == 2
    message(client.get(f"/files/{numbers['note.txt']}"), 404)
    remove(tmp_path / "index", folder)
    message(client.get("/points"), 422)


def test_videos_are_served_with_the_picture_of_every_moment(tmp_path, samples):
    pytest.importorskip("av")
    shutil.copyfile(TWO_SCENES, tmp_path / "a.webm")
    shutil.copyfile(TWO_SCENES, tmp_path / "a.avi")  # by its name browsers do not play it
    soundfile.write(tmp_path / "sound only.mp4", np.sin(np.arange(32000)), 32000, format="WAV")
    build(tmp_path / "index", sorted(tmp_path.iterdir()), device="cpu", progress=False)
    with Index.open(tmp_path / "index", device="cpu") as index:
        client = client_of(index)
        body = {"image": encoded(samples / "images" / "coffee.jpg"), "collapse": False, "only": "video"}
        hits = {os.path.basename(hit["path"]): hit for hit in client.post("/search", json=body).json()["hits"]}
        wave = hits.pop("sound only.mp4")
        assert client.get(f"/{wave['thumbnail']}").headers["content-type"] == "image/svg+xml"
        for name, hit in hits.items():
            assert (hit["kind"], hit["modality"], hit["start"]) == ("video", "image", 10.0)
            assert hit["playable"] == (name == "a.webm")
            served = client.get(f"/{hit['file']}", headers={"range": "bytes=0-99"})
            assert served.content == TWO_SCENES.read_bytes()[:100]
            assert ("attachment" in served.headers.get("content-disposition", "")) == (name == "a.avi")
            for moment, shows in ((9.9, "cat"), (10, "coffee")):
                small = client.get(f"/files/{hit['id']}/thumbnail", params={"at": moment})
                shown = np.asarray(Image.open(io.BytesIO(small.content)).convert("RGB")).astype(int)
                expected = Image.open(samples / "images" / f"{shows}.jpg").convert("RGB").resize((160, 120))
                assert np.abs(shown - np.asarray(expected)).mean() < 15
        for moment in ("-1", "inf", "nan"):
            message(client.get(f"/files/{hits['a.webm']['id']}/thumbnail?at={moment}"), 422)


def test_samples_of_shards_rows_of_tables_and_odd_files_are_served(tmp_path, samples, random_folder):
    picture = (samples / "images" / "cat.jpg").read_bytes()
    shard = tmp_path / "shard.tar"
    with tarfile.open(shard, "w") as tar:
        for name, data in (("one.jpg", picture), ("one.txt", b"a cat"), ("two.txt", b"words alone")):
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    table = tmp_path / "table.csv"
    table.write_text("caption\na row of words\n", encoding="utf-8")
    sound = tmp_path / "sound.aiff"
    soundfile.write(sound, 0.1 * np.sin(np.arange(32000)).astype(np.float32), 32000)
    named = tmp_path / os.fsdecode(b"caf\xe9.txt")
    named.write_text("a name that is not UTF-8", encoding="utf-8")
    build(tmp_path / "index", [shard, table, sound, named], str(random_folder), device="cpu", progress=False)
    with Index.open(tmp_path / "index", device="cpu") as index:
        client = client_of(index)
        found = client.post("/search", json={"text": "a", "collapse": False}).json()["hits"]
        hits = {os.path.basename(hit["path"]): hit for hit in found}
        served = {name: client.get(f"/{hit['file']}") for name, hit in hits.items()}
        assert served["shard.tar::one.jpg"].content == picture
        small = client.get(f"/{hits['shard.tar::one.jpg']['thumbnail']}")
        assert small.headers["content-type"] == "image/webp"
        assert served["shard.tar::two.txt"].text == "words alone"
        assert served[next(name for name in hits if name.startswith("table.csv::"))].text == "a row of words"
        assert served["caf\ufffd.txt"].text == "a name that is not UTF-8"
        assert served["sound.aiff"].headers["content-type"] == "audio/wav"
        os.utime(shard, (1, 1))
        message(client.get(f"/{hits['shard.tar::one.jpg']['file']}"), 410)


# Who may ask, and what leaves


def test_other_names_of_this_machine_and_other_sites_are_refused(client):
    for host in ("evil.example", "127.0.0.1.evil.example", "evil.example:7860", "", "[", "127.0.0.2"):
        assert client.get("/health", headers={"host": host}).status_code == 400
    for host in ("localhost:1", "LOCALHOST", "127.0.0.1", "[::1]:7860"):
        assert client.get("/health", headers={"host": host}).status_code == 200
    for origin in ("https://evil.example", "null", "http://127.0.0.1:1", "http://127.0.0.1:7860.evil.example"):
        message(client.post("/search", json={"text": "a"}, headers={"origin": origin}), 403)
    assert client.get("/health", headers={"origin": "http://127.0.0.1:7860"}).status_code == 200


def test_password_is_asked_for_everywhere_but_for_health(index, ids):
    client = client_of(index, password="correct horse")  # noqa: S106
    basic = base64.b64encode(b"anybody:correct horse").decode()
    addresses = ["/", "/page/app.js", "/about", "/openapi.json", "/v1/models", f"/files/{ids['cat.jpg']}", "/nothing"]
    assert client.get("/health").status_code == 200
    for address in addresses:
        answer = client.get(address)
        message(answer, 401)
        assert answer.headers["www-authenticate"].startswith("Basic realm=")
        for right in (f"Basic {basic}", "Bearer correct horse"):
            given = client.get(address, headers={"authorization": right})
            assert given.status_code == (404 if address == "/nothing" else 200)
    for wrong in ("", "Bearer correct", "Basic !", "Basic Y29ycmVjdA==", "Digest correct horse", "Bearer ", "Basic é"):
        message(client.get("/about", headers={"authorization": wrong.encode()}), 401)
    client = client_of(index, password="pässwört")  # noqa: S106
    assert client.get("/about", headers={"authorization": "Bearer pässwört".encode()}).status_code == 200


@pytest.fixture
def with_password(index, monkeypatch):
    """The status that a client gets for a password, and a clock to move."""
    now = [1000.0]
    monkeypatch.setattr(guesses.time, "monotonic", lambda: now[0])
    app = client_of(index, password="correct horse").app  # noqa: S106

    def get(password, address, **headers):
        client = TestClient(app, base_url="http://127.0.0.1:7860", client=(address, 1))
        return client.get("/about", headers={"authorization": f"Bearer {password}", **headers}).status_code

    return get, now


@pytest.mark.parametrize("network", ["10.0.1.7", "2001:db8::{}"])
def test_client_that_guesses_is_stopped_and_locks_nobody_else_out(with_password, network):
    get, now = with_password
    asked = [get(f"guess {i}", network.format(i)) for i in range(guesses.GUESSES + 5)]
    assert asked == [401] * guesses.GUESSES + [429] * 5
    assert get("correct horse", network.format("ffff")) == 429  # the right one is not told from others
    assert get("correct horse", "10.0.2.1") == 200
    assert get("correct horse", "2001:db8:0:1::1") == 200
    now[0] += guesses.WINDOW + 1
    assert get("correct horse", network.format("ffff")) == 200


def test_guesses_of_all_clients_are_limited_too_but_for_those_who_knew_it(with_password, monkeypatch):
    monkeypatch.setattr(guesses, "ALL_GUESSES", guesses.ALL_GUESSES // 20)
    get, now = with_password
    assert get("correct horse", "10.0.0.1") == 200
    asked = {get(f"guess {i}", f"10.1.{i}.1") for i in range(guesses.ALL_GUESSES + 1)}
    assert asked == {401, 429}
    assert get("correct horse", "10.0.2.1") == 429
    assert get("correct horse", "10.0.0.1") == 200
    now[0] += guesses.WINDOW + 1
    assert get("correct horse", "10.0.2.1") == 200


def test_request_that_is_too_large_or_of_unknown_length_is_refused(client):
    message(client.post("/search", content=b"x" * (LIMITS.body + 1)), 413)
    message(client.post("/search", content=iter([b"{}"])), 411)
    message(client.get("/nothing"), 404)
    message(client.put("/search", json={}), 405)


def test_everything_that_is_sent_forbids_scripts_of_others_and_inline_ones(client):
    for address in ("/", "/page/app.js", "/nothing", "/about"):
        policy = client.get(address).headers["content-security-policy"]
        assert policy.startswith("default-src 'none'; script-src 'self';")
        assert "unsafe" not in policy
    page = client.get("/").text
    assert "<script>" not in page
    assert " style=" not in page
    assert "http://" not in page.replace("http://www.w3.org", "")
