"""The JSON API: vectors, search, files; and what it never does: open a path, fetch an address, serve another file."""

import base64
import io
import json
import os
import re
import shutil
import tarfile
from contextlib import closing
from http.server import BaseHTTPRequestHandler

import numpy as np
import pytest
import soundfile
from PIL import Image
from support.embedding import assert_same
from support.media import TWO_SCENES
from support.server import serving
from support.small_shards import write_tar

pytest.importorskip("gradio", reason="the API comes with the extra web")

from fastapi.testclient import TestClient

from onepeace.index.index import Index
from onepeace.index.query import Part
from onepeace.index.store import Item
from onepeace.index.write import build, update
from onepeace.serve import page
from onepeace.serve.api import create_app
from onepeace.serve.limits import Limits, Refused
from onepeace.serve.media import body_of
from onepeace.serve.service import Service

HOSTS = frozenset({"127.0.0.1", "localhost"})
LIMITS = Limits(upload=200_000, pixels=1_000_000, inputs=5, characters=200, top=20)


def client_of(app):
    return TestClient(app, base_url="http://127.0.0.1:7860", raise_server_exceptions=False)


@pytest.fixture(scope="module")
def service(index_folder):
    made = Service(index_folder, device="cpu", limits=LIMITS)
    yield made
    made.close()


@pytest.fixture(scope="module")
def client(service):
    return client_of(create_app(service, hosts=HOSTS))


@pytest.fixture(scope="module")
def with_page(service, tmp_path_factory):
    """The whole application with a password, and with the page and the map."""
    uploads = tmp_path_factory.mktemp("uploads")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADIO_TEMP_DIR", str(uploads))
        patch.setenv("GRADIO_ANALYTICS_ENABLED", "False")
        options = {"password": "correct horse", "uploads": uploads, "map_page": lambda: "<p>the map</p>"}
        return client_of(page.mount(create_app(service, **options), service))


def encoded(path):
    return base64.b64encode(path.read_bytes()).decode()


def png(width, height):
    buffer = io.BytesIO()
    Image.new("1", (width, height)).save(buffer, "PNG")
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
        {"text": "in the snow", "audio": encoded(sound), "weights": {"text": -0.5}},
    ]
    answer = client.post("/v1/embeddings", json={"input": inputs, "model": "any", "user": "somebody"}).json()
    vectors = np.array([entry["embedding"] for entry in answer["data"]], np.float32)
    assert [entry["index"] for entry in answer["data"]] == [0, 1, 2, 3, 4]
    items = ["a dog", picture, picture, sound]
    assert_same(vectors[:4], model.encode(items, output="numpy"))
    mix = model.encode([{"text": "in the snow", "audio": sound}], weights={"text": -0.5}, output="numpy")
    assert_same(vectors[4:], mix)
    written = client.post("/v1/embeddings", json={"input": inputs[:2], "encoding_format": "base64"}).json()
    buffers = [base64.b64decode(entry["embedding"]) for entry in written["data"]]
    assert_same(np.stack([np.frombuffer(each, "<f4") for each in buffers]), vectors[:2])
    alone = client.post("/v1/embeddings", json={"input": "a dog"}).json()
    assert_same(np.array(alone["data"][0]["embedding"], np.float32), vectors[0])


ADDRESS = "http://127.0.0.1:1/dog.jpg"


@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        ({"input": [{"image": ADDRESS}]}, 400, "input[0].image: an address is never fetched"),
        ({"input": [{"type": "image_url", "image_url": {"url": ADDRESS}}]}, 400, "an address is never fetched"),
        ({"input": [{"audio": "file:///etc/passwd"}]}, 400, "an address is never fetched"),
        ({"input": ["a", {"image": "/etc/passwd"}]}, 400, "input[1].image: not base64"),
        ({"input": [{"audio": "../../etc/passwd"}]}, 400, "not base64"),
        ({"input": [{"image": "data:image/png;base64,"}]}, 400, "input[0].image: 0 bytes"),
        ({"input": [{"image": "bm8gcGljdHVyZQ=="}]}, 400, "input[0].image: not a picture of a known format"),
        ({"input": ["a", {"audio": "bm8gc291bmQ="}]}, 400, "input[1].audio: "),
        ({"input": [{"image": "A" * 300_000}]}, 413, "above the limit of 200000"),
        ({"input": [{"image": png(2000, 1000)}]}, 400, "2000 x 1000 pixels are above the limit of 1000000"),
        ({"input": ["a" * 201]}, 413, "201 characters are above the limit of 200"),
        ({"input": ["a"] * 6}, 413, "input has 6 items; give 1 to 5"),
        ({"input": []}, 400, "input has 0 items"),
        ({"input": [[1, 2]]}, 400, "tokens are not read"),
        ({"input": {"video": "AAAA"}}, 400, "must be a text, or an object with text, image, audio"),
        ({"input": {"text": 5}}, 400, "input[0].text: must be a string, not int"),
        ({"input": {"type": "image_url"}}, 400, "must be a string"),
        ({"input": {"text": "a", "weights": {"image": 1}}}, 400, "weights of these"),
        ({"input": {"text": "a", "weights": {"text": 0}}}, 400, "input[0]: its parts cancel out"),
        ({"input": "a", "dimensions": 3}, 400, "dimensions is 3; vectors of this model have 16"),
        ({"input": "a", "encoding_format": "int8"}, 400, "encoding_format"),
        ({}, 400, "input: Field required"),
        ([], 400, ""),
    ],
)
def test_wrong_request_is_refused_in_one_line_and_the_next_is_answered(client, body, status, said):
    assert said in message(client.post("/v1/embeddings", json=body), status)
    assert client.post("/v1/embeddings", json={"input": "a dog"}).status_code == 200


def test_parts_that_cancel_out_are_refused(client, collection):
    picture = encoded(collection / "cat.jpg")
    answer = client.post("/search", json={"image": picture, "weights": {"image": 0}})
    assert "cancel out" in message(answer, 400)


@pytest.mark.parametrize("body", [b"", b"{", b"\xff", b"[" * 100_000, b'{"input": NaN}'])
def test_body_that_is_no_json_is_refused(client, body):
    answer = client.post("/v1/embeddings", content=body, headers={"content-type": "application/json"})
    message(answer, 400)


# Search


def test_search_finds_what_the_index_finds(client, index_folder, collection, ids):
    picture = collection / "cat.jpg"
    body = {"image": encoded(picture), "text": "waves", "without": "people", "weights": {"text": 0.3}, "top": 5}
    answer = client.post("/search", json=body).json()
    with Index.open(index_folder, device="cpu") as index:
        parts = [Part("text", "waves", 0.3), Part("image", picture.read_bytes()), Part("text", "people", -0.5)]
        expected = index.search(parts, top=5)
    assert answer["compared"] == expected.compared == 9
    assert [hit["id"] for hit in answer["hits"]] == [hit.item.id for hit in expected.hits]
    np.testing.assert_allclose(
        [hit["score"] for hit in answer["hits"]], [hit.score for hit in expected.hits], rtol=0, atol=1e-5
    )
    first = answer["hits"][0]
    assert (first["rank"], first["kind"], first["path"]) == (1, "image", str(picture))
    assert client.get(first["file"]).content == picture.read_bytes()
    assert client.get(first["thumbnail"]).headers["content-type"] == "image/webp"


def test_search_filters_and_pages(client, ids):
    def names(**body):
        hits = client.post("/search", json={"text": "a dog", "duplicates": "show", **body}).json()["hits"]
        return [hit["path"].rpartition("/")[2] for hit in hits]

    everything = names()
    assert sorted(everything) == sorted(ids)
    assert names(only="audio") == [name for name in everything if name.endswith(".ogg")]
    assert names(only=["audio", "text"]) == [name for name in everything if not name.endswith(".jpg")]
    assert names(top=3) + names(top=3, offset=3) + names(top=3, offset=6) == everything
    assert names(sort="path", top=20) == sorted(ids)


def test_search_with_a_hit_leaves_it_out(client, collection, ids):
    hits = client.post("/search", json={"like": ids["cat.jpg"]}).json()["hits"]
    with_file = client.post("/search", json={"image": encoded(collection / "cat.jpg")}).json()["hits"]
    assert ids["cat.jpg"] not in [hit["id"] for hit in hits]
    assert [hit["id"] for hit in hits] == [hit["id"] for hit in with_file if hit["id"] != ids["cat.jpg"]]


@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        ({}, 400, "nothing to search for"),
        ({"text": ""}, 400, "nothing to search for"),
        ({"text": "a", "topp": 3}, 400, "topp"),
        ({"text": "a", "top": 21}, 400, "top is 21; at most 20"),
        ({"text": "a", "top": 0}, 400, "top"),
        ({"text": "a", "offset": 10**9}, 400, "offset is 1000000000; at most 10000"),
        ({"text": "a", "only": "sql"}, 400, "only"),
        ({"text": "a", "weights": {"image": 1}}, 400, "weights: the query has no image"),
        ({"text": "a", "weights": {"text": 1e300}}, 400, "weights.text"),
        ({"text": "a", "without": "b", "weights": {"without": 0.5}}, 400, "weights: without is 0.5; its weight must"),
        ({"like": 12345}, 404, "no item 12345 in the index"),
        ({"like": 2**70}, 400, "like"),
        ({"audio": ADDRESS}, 400, "audio: an address is never fetched"),
        ({"without": ["a"] * 6}, 413, "6 parts; at most 5"),
    ],
)
def test_wrong_search_is_refused_in_one_line(client, body, status, said):
    assert said in message(client.post("/search", json=body), status)


# Files


def test_files_are_served_by_their_numbers(client, collection, ids):
    kinds = {".jpg": "image/jpeg", ".ogg": "audio/ogg", ".txt": "text/plain; charset=utf-8"}
    for name, id_ in ids.items():
        answer = client.get(f"/files/{id_}")
        assert answer.content == (collection / name).read_bytes()
        assert answer.headers["content-type"] == kinds[name[-4:]]
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert "sandbox" in answer.headers["content-security-policy"]
    with Image.open(io.BytesIO(client.get(f"/files/{ids['cat.jpg']}/thumbnail").content)) as image:
        assert max(image.size) <= 480
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
    assert message(outside, 416) == f"bytes={len(data)}-: the file has {len(data)} bytes"
    assert outside.headers["content-range"] == f"bytes */{len(data)}"
    assert client.get(f"/files/{ids['dog.ogg']}", headers={"range": "lines=1-2"}).content == data


TRAVERSALS = [
    "/files/../index.sqlite", "/files/..%2f..%2f..%2fetc%2fpasswd", "/files/%2e%2e/%2e%2e/etc/passwd",
    "/files//etc/passwd", "/files/%2fetc%2fpasswd", "/files/cat.jpg", "/files/1%00.jpg", "/files/1/../../etc/passwd",
    "/files/..\\..\\secret.txt", "/files/1%2f..%2f..%2fsecret.txt", "/files/-1", "/files/1e0", "/files/%ef%bc%91",
    "/files/0x1", "/files/1/thumbnail/../../2x", "/files/99999999999999999999", "/files/999999999999999999",
    "/files/0", "/files/", "/files", "/files/1.5", "/files/1/", "/files/file:%2f%2f%2fetc%2fpasswd",
    "/files/http:%2f%2f127.0.0.1", "/files/%252e%252e%252fsecret.txt",
]  # fmt: skip


@pytest.mark.parametrize("path", TRAVERSALS)
def test_no_other_file_is_reached(client, collection, path):
    (collection.parent / "secret.txt").write_text("the secret", encoding="utf-8")
    answer = client.get(path)
    assert answer.status_code in (404, 405), answer.text
    assert "secret" not in answer.text.replace("secret.txt", "")
    assert "root:" not in answer.text


@pytest.fixture
def changing(tmp_path, samples, random_folder):
    """A folder, a client of its index, and the numbers of its files."""
    folder = tmp_path / "files"
    folder.mkdir()
    (tmp_path / "secret.txt").write_text("the secret, as long as you like", encoding="utf-8")
    shutil.copy2(samples / "images" / "cat.jpg", folder / "cat.jpg")
    (folder / "note.txt").write_text("a note", encoding="utf-8")
    (tmp_path / "elsewhere.txt").write_text("linked when it was indexed", encoding="utf-8")
    (folder / "link.txt").symlink_to(tmp_path / "elsewhere.txt")
    build(tmp_path / "index", [str(folder)], str(random_folder), device="cpu", progress=False)
    service = Service(tmp_path / "index", device="cpu")
    with Index.open(tmp_path / "index") as index:
        numbers = {item.path.rpartition("/")[2]: item.id for item in index.items()}
    yield folder, client_of(create_app(service)), numbers
    service.close()


def test_link_that_was_indexed_is_served_until_it_leads_elsewhere(changing, tmp_path):
    folder, client, numbers = changing
    address = f"/files/{numbers['link.txt']}"
    assert client.get(address).text == "linked when it was indexed"
    (folder / "link.txt").unlink()
    (folder / "link.txt").symlink_to(tmp_path / "secret.txt")
    assert "run onepeace index update" in message(client.get(address), 410)


@pytest.mark.parametrize("change", ["link", "pipe", "other", "gone", "folder", "link of the same size"])
def test_file_that_is_not_what_was_indexed_is_refused(changing, tmp_path, change):
    folder, client, numbers = changing
    for name, address in ((n, f"/files/{numbers[n]}{t}") for n, t in (("cat.jpg", "/thumbnail"), ("note.txt", ""))):
        path = folder / name
        assert client.get(address).status_code == 200
        size = path.stat().st_size
        path.unlink()
        if change == "link":
            path.symlink_to(tmp_path / "secret.txt")
        elif change == "pipe":
            os.mkfifo(path)
        elif change == "other":
            path.write_bytes(b"other")
        elif change == "folder":
            path.mkdir()
        elif change == "link of the same size":
            (tmp_path / f"{name}.same").write_bytes(b"s" * size)
            path.symlink_to(tmp_path / f"{name}.same")
        text = message(client.get(address), 404 if change in ("gone", "pipe", "folder") else 410)
        assert "secret" not in text


def test_change_of_the_index_is_seen_at_once(changing, tmp_path, samples):
    folder, client, numbers = changing
    shutil.copy2(samples / "sounds" / "dog.ogg", folder / "dog.ogg")
    (folder / "note.txt").unlink()
    update(tmp_path / "index", device="cpu", progress=False)
    paths = [hit["path"] for hit in client.post("/search", json={"text": "a"}).json()["hits"]]
    assert sorted(path.rpartition("/")[2] for path in paths) == ["cat.jpg", "dog.ogg", "link.txt"]
    message(client.get(f"/files/{numbers['note.txt']}"), 404)


def test_name_of_the_model_asks_no_connection_that_another_request_may_close(index_folder, random_folder):
    service = Service(index_folder, device="cpu")
    client = client_of(create_app(service))
    service.close()
    assert client.get("/v1/models").json()["data"][0]["id"] == random_folder.name


def test_videos_are_served_with_the_picture_of_every_moment(tmp_path, samples):
    pytest.importorskip("av")
    shard = tmp_path / "shard.tar"
    with tarfile.open(shard, "w") as tar:
        tar.add(TWO_SCENES, "one.webm")
    shutil.copyfile(TWO_SCENES, tmp_path / "a.webm")
    shutil.copyfile(TWO_SCENES, tmp_path / "a.avi")  # by its name browsers do not play it
    soundfile.write(tmp_path / "sound only.mp4", np.sin(np.arange(32000)), 32000, format="WAV")
    paths = [str(path) for path in sorted(tmp_path.iterdir())]
    build(tmp_path / "index", paths, device="cpu", progress=False)
    client = client_of(create_app(Service(tmp_path / "index", device="cpu")))
    body = {"image": encoded(samples / "images" / "coffee.jpg"), "duplicates": "show", "only": "video"}
    hits = {os.path.basename(hit["path"]): hit for hit in client.post("/search", json=body).json()["hits"]}
    assert hits.keys() == {"shard.tar::one.webm", "a.webm", "a.avi", "sound only.mp4"}
    wave = hits.pop("sound only.mp4")
    assert client.get(wave["thumbnail"]).headers["content-type"] == "image/svg+xml"
    for name, hit in hits.items():
        assert (hit["kind"], hit["modality"], hit["start"]) == ("video", "image", 10.0)
        served = client.get(hit["file"], headers={"range": "bytes=0-99"})
        assert served.content == TWO_SCENES.read_bytes()[:100]
        assert served.headers["content-type"] == ("application/octet-stream" if name == "a.avi" else "video/webm")
        assert hit["thumbnail"].endswith("&at=10")
        cat, coffee = (
            np.asarray(Image.open(io.BytesIO(client.get(address).content)).convert("RGB")).astype(int)
            for address in (hit["thumbnail"].replace("&at=10", "&at=9.9"), hit["thumbnail"])
        )
        for shown, path in ((cat, "cat"), (coffee, "coffee")):
            expected = Image.open(samples / "images" / f"{path}.jpg").convert("RGB").resize((160, 120))
            assert np.abs(shown - np.asarray(expected)).mean() < 15
    assert "at" in message(client.get(hits["a.webm"]["thumbnail"].replace("at=10", "at=-1")), 400)
    assert "at" in message(client.get(hits["a.webm"]["thumbnail"].replace("at=10", "at=inf")), 400)


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
    paths = [str(path) for path in (shard, table, sound, named)]
    build(tmp_path / "index", paths, str(random_folder), device="cpu", progress=False)
    service = Service(tmp_path / "index", device="cpu")
    client = client_of(create_app(service))
    hits = {os.path.basename(hit["path"]): hit for hit in client.post("/search", json={"text": "a"}).json()["hits"]}
    served = {name: client.get(hit["file"]) for name, hit in hits.items()}
    assert served["shard.tar::one.jpg"].content == picture
    assert client.get(hits["shard.tar::one.jpg"]["thumbnail"]).headers["content-type"] == "image/webp"
    assert served["shard.tar::two.txt"].text == "words alone"
    assert served[next(name for name in hits if name.startswith("table.csv::"))].text == "a row of words"
    assert served[named.name].text == "a name that is not UTF-8"
    assert served["sound.aiff"].headers["content-type"] == "audio/wav"
    samples_, rate = soundfile.read(io.BytesIO(served["sound.aiff"].content))
    assert (len(samples_), rate) == (16000, 16000)
    os.utime(shard, (1, 1))
    message(client.get(hits["shard.tar::one.jpg"]["file"]), 410)
    service.close()


def test_sample_of_a_shard_that_has_changed_is_refused_whatever_its_folder_is_called(tmp_path):
    (tmp_path / "a::b").mkdir()
    shard = write_tar(tmp_path / "a::b" / "shard.tar", {"one.txt": b"a cat"})
    item = Item(f"{shard}::one.txt", "text", 5, shard.stat().st_mtime_ns, id=1)
    assert body_of(item).source.read() == b"a cat"
    os.utime(shard, (1, 1))
    with pytest.raises(Refused, match="not the file any more") as refused:
        body_of(item)
    assert refused.value.status == 410


def test_file_in_a_folder_that_is_called_like_a_shard_is_served(tmp_path):
    path = tmp_path / "old.tar::new" / "note.txt"
    path.parent.mkdir()
    path.write_text("a note", encoding="utf-8")
    item = Item(str(path), "text", 6, path.stat().st_mtime_ns, id=1)
    with closing(body_of(item).source) as source:
        assert source.read() == b"a note"


# Who may ask, and which doors there are


def test_other_names_of_this_machine_and_other_sites_are_refused(client):
    for host in ("evil.example", "127.0.0.1.evil.example", "evil.example:7860", "", "[", "127.0.0.2"):
        answer = client.get("/health", headers={"host": host})
        assert "this server is not" in message(answer, 421)
    for host in ("localhost:1", "LOCALHOST", "127.0.0.1"):
        assert client.get("/health", headers={"host": host}).status_code == 200
    for origin in ("https://evil.example", "null", "http://127.0.0.1:1", "http://127.0.0.1:7860.evil.example"):
        answer = client.post("/search", json={"text": "a"}, headers={"origin": origin})
        assert "other sites" in message(answer, 403)
    assert client.get("/health", headers={"origin": "http://127.0.0.1:7860"}).status_code == 200


def test_password_is_asked_for_everywhere_but_for_health(with_page, ids):
    basic = base64.b64encode(b"anybody:correct horse").decode()
    right = [{"authorization": f"Basic {basic}"}, {"authorization": "Bearer correct horse"}]
    wrong = ["", "Bearer correct", "Basic !", "Basic Y29ycmVjdA==", "Digest correct horse", "Bearer "]
    assert with_page.get("/health").json() == {"status": "ok"}
    addresses = ["/", "/config", "/docs", "/openapi.json", "/v1/models", f"/files/{next(iter(ids.values()))}"]
    for address in [*addresses, "/gradio_api/info", "/assets/nothing.js", "/nothing"]:
        answer = with_page.get(address)
        message(answer, 401)
        assert answer.headers["www-authenticate"].startswith("Basic realm=")
    for given in wrong:
        message(with_page.get("/v1/models", headers={"authorization": given}), 401)
    for headers in right:
        for address in addresses:
            assert with_page.get(address, headers=headers).status_code == 200


def test_gradio_has_no_door_that_the_page_does_not_need(with_page, collection):
    with_page.headers["authorization"] = "Bearer correct horse"
    reached = []

    class Server(BaseHTTPRequestHandler):
        def do_GET(self):
            reached.append(self.path)

    get = """/gradio_api/file={0}/x /gradio_api/proxy={0}/x /file={0}/x /gradio_api/file=//host/share/x /login
        /gradio_api/custom_component/1/client/component/x /monitoring /gradio_api/openapi.json /gradio_api/runs
        /gradio_api/token /gradio_api/deep_link"""
    post = """/gradio_api/run/find /gradio_api/api/find /gradio_api/call/find /gradio_api/call/v2/find
        /gradio_api/component_server /gradio_api/process_recording /gradio_api/vibe-edit"""
    with serving(Server) as address:
        for path in get.format(address).split():
            message(with_page.get(path), 404)
        for path in post.split():
            message(with_page.post(path, json={"data": []}), 404)
        for path in (f"{address}/dog.jpg", " HTTPS://x/y", "/etc/passwd", str(collection / "cat.jpg"), "../x", ""):
            file = {"path": path, "meta": {"_type": "gradio.FileData"}}
            for data in ([file], [{"deep": [[file]]}], [{**file, "path": "\0"}, file]):
                body = {"data": data, "fn_index": 0, "session_hash": "x"}
                answer = with_page.post("/gradio_api/queue/join", json=body)
                assert "upload the file" in message(answer, 400)
    assert not reached
    for path in (collection / "note.txt", "/etc/passwd"):
        answer = with_page.get(f"/gradio_api/file={path}")
        assert answer.status_code == 403, answer.text


def test_request_that_is_too_large_or_of_unknown_length_is_refused(client):
    big = b"x" * (LIMITS.body + 1)
    assert "above the limit" in message(client.post("/search", content=big), 413)
    assert "Content-Length" in message(client.post("/search", content=iter([b"{}"])), 411)
    assert message(client.get("/nothing"), 404)
    assert message(client.put("/search", json={}), 405)


def test_everything_that_is_sent_forbids_the_browser_to_load_from_elsewhere(client, with_page):
    with_page.headers["authorization"] = "Bearer correct horse"
    for answer in (client.get("/docs"), client.get("/nothing"), with_page.get("/"), with_page.get("/theme.css")):
        assert answer.headers["content-security-policy"].startswith("default-src 'self' data: blob:;")
        assert answer.headers["cross-origin-resource-policy"] == "same-origin"
    assert with_page.get("/map").text == "<p>the map</p>"
    assert 'src=\\"map\\"' in with_page.get("/config").text
    assert client.get("/map").status_code == 404


def test_documentation_names_every_route_and_field_and_loads_nothing(client):
    text = client.get("/docs").text
    description = client.get("/openapi.json").json()
    for path in ("/v1/embeddings", "/search", "/files/{id_}", "/health"):
        assert path in description["paths"]
        assert path in text
    for name in description["components"]["schemas"]["SearchRequest"]["properties"]:
        assert f"<code>{name}</code>" in text
    assert not re.search(r"<script|<link|src=|https?://", text)
    assert json.loads(client.get("/v1/models").text)["data"][0]["embed_dim"] == 16
