"""Files of the index by the JSON API: no other file is ever reached."""

import io
import os
import shutil
import tarfile
from contextlib import closing

import numpy as np
import pytest
import soundfile
from PIL import Image
from support.indexes import fabricate
from support.media import TWO_SCENES

pytest.importorskip("fastapi", reason="the API comes with the extra web")


from support.api import client_of, encoded, message

from onepeace.index import Index, build, remove, update
from onepeace.index.items import Item
from onepeace.index.roots import Root, keep_roots
from onepeace.index.store import Store


def test_files_are_served_by_their_numbers(client, collection, ids):
    kinds = {".jpg": "image/jpeg", ".ogg": "audio/ogg", ".txt": "text/plain; charset=utf-8"}
    for name in set(ids) - {"note.txt"}:
        answer = client.get(f"/files/{ids[name]}")
        assert answer.content == (collection / name).read_bytes()
        assert answer.headers["content-type"] == kinds[name[-4:]]
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert "sandbox" in answer.headers["content-security-policy"]
    for path in ("/", f"/files/{ids['cat.jpg']}"):
        headers_only = client.head(path)
        assert (headers_only.status_code, headers_only.content) == (200, b"")
        assert headers_only.headers["content-length"] == client.get(path).headers["content-length"]
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
    ("byte_range", "part"),
    [("bytes=0-9", slice(0, 10)), ("bytes=100-", slice(100, None)), ("bytes=-7", slice(-7, None)),
     ("bytes=5-99999999", slice(5, None))],
)  # fmt: skip
def test_player_can_ask_for_a_part(client, collection, ids, byte_range, part):
    data = (collection / "dog.ogg").read_bytes()
    answer = client.get(f"/files/{ids['dog.ogg']}", headers={"range": byte_range})
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
    folder = tmp_path / "files"
    elsewhere = tmp_path / "elsewhere"
    for target in (folder, elsewhere):
        (target / "sub").mkdir(parents=True)
        shutil.copy2(samples / "images" / "cat.jpg", target / "cat.jpg")
        shutil.copy2(samples / "images" / "cat.jpg", target / "sub" / "cat.jpg")
    path = folder / ("sub/cat.jpg" if name == "sub" else name)
    status = path.stat()
    index = fabricate(tmp_path / "index", [(Item(str(path), "image", status.st_size, status.st_mtime_ns), [1, 0])])
    with closing(Store(index, write=True)) as store, store.transaction():
        keep_roots(store, [Root(str(folder), "folder")])
    real = os.path.realpath

    def swapped(linked_path, **options):
        resolved = real(linked_path, **options)
        if str(linked_path) == str(path) and not (folder / name).is_symlink():
            (folder / name).rename(tmp_path / "moved")
            (folder / name).symlink_to(elsewhere / name)
        return resolved

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
        listed = client.post("/search", json={"text": "a", "collapse": False}).json()["hits"]
        hits = {os.path.basename(hit["path"]): hit for hit in listed}
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
