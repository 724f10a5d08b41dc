"""Files of the index by the JSON API: no other file is ever reached."""

import io
import os
import shutil
import sqlite3
from contextlib import closing
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from support.media import TWO_SCENES
from support.small_shards import write_tar

pytest.importorskip("fastapi", reason="the API comes with the extra web")


from support.api import assert_error, client_of, encoded, names, search

from onepeace.index import Index, build, remove, update
from onepeace.index.database import DATABASE
from onepeace.serve.media import Body
from onepeace.serve.responses import file_response


def hits_by_name(client, **body):
    """The hits of a search by the names of the files."""
    hits = search(client, collapse=False, **body)["hits"]
    return {os.path.basename(hit["path"]): hit for hit in hits}


@pytest.mark.parametrize(
    ("name", "content_type"),
    [("cat.jpg", "image/jpeg"), ("dog.ogg", "audio/ogg"), ("note.txt", "text/plain; charset=utf-8")],
)
def test_files_are_served_by_their_numbers(client, collection, ids, name, content_type):
    answer = client.get(f"/files/{ids[name]}")

    assert answer.content == (collection / name).read_bytes()
    assert answer.headers["content-type"] == content_type
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert "sandbox" in answer.headers["content-security-policy"]


def test_content_in_memory_is_sent_from_its_start():
    """Also where a file that is opened by its descriptor goes on at the place of that."""
    response = file_response(Body(b"content", "text/plain"))

    assert os.read(int(os.path.basename(response.path)), 7) == b"content"


def test_thumbnail_of_a_picture(client, ids):
    answer = client.get(f"/files/{ids['cat.jpg']}/thumbnail")

    with Image.open(io.BytesIO(answer.content)) as image:
        assert max(image.size) <= 480
        assert image.format == "WEBP"


def test_thumbnail_of_a_sound(client, ids):
    answer = client.get(f"/files/{ids['dog.ogg']}/thumbnail")

    assert answer.headers["content-type"] == "image/svg+xml"
    assert answer.text.startswith("<svg xmlns=")


TRAVERSALS = [
    "/files/..%2f..%2f..%2fetc%2fpasswd",
    "/files//etc/passwd",
    "/files/1%00.jpg",
    "/files/1%2f..%2f..%2fsecret.txt",
    "/files/-1",
    "/files/99999999999999999999",
    "/files/file:%2f%2f%2fetc%2fpasswd",
    "/page/..%2fapi.py",
    "/page//etc/passwd",
]


@pytest.mark.parametrize("path", TRAVERSALS)
def test_no_other_file_is_reached(client, collection, path):
    (collection.parent / "secret.txt").write_text("the secret", encoding="utf-8")

    answer = client.get(path)

    assert answer.status_code in (404, 405), answer.text
    assert "secret" not in answer.text.replace("secret.txt", "")
    assert "root:" not in answer.text
    assert "import" not in answer.text


@pytest.fixture
def changing(tmp_path, samples, random_folder, loaded_once):
    """A folder that changes, a client of its index, and the numbers of its files."""
    folder = tmp_path / "files"
    (folder / "sub").mkdir(parents=True)
    (tmp_path / "secret.txt").write_text("the secret, as long as you like", encoding="utf-8")
    shutil.copy2(samples / "images" / "cat.jpg", folder / "sub")
    (folder / "note.txt").write_text("a note", encoding="utf-8")
    (folder / "out.txt").symlink_to(tmp_path / "secret.txt")  # is not indexed
    build(tmp_path / "index", [folder], str(random_folder), device="cpu", progress=False)
    with Index.open(tmp_path / "index", device="cpu") as index:
        ids = {os.path.basename(item.path): item.id for item in index.items()}
        yield SimpleNamespace(folder=folder, client=client_of(index), ids=ids, secret=tmp_path / "secret.txt")


def link_to_same_size_and_time(path, secret):
    status = path.stat()
    secret.write_bytes(b"secret".ljust(status.st_size, b"s"))
    os.utime(secret, ns=(status.st_atime_ns, status.st_mtime_ns))
    path.unlink()
    path.symlink_to(secret)


def replace_by_pipe(path, secret):
    path.unlink()
    os.mkfifo(path)


def rewrite(path, secret):
    path.write_bytes(b"other")


def delete(path, secret):
    path.unlink()


@pytest.mark.parametrize(
    ("change", "name", "suffix"),
    [
        (link_to_same_size_and_time, "sub/cat.jpg", "/thumbnail"),
        (link_to_same_size_and_time, "note.txt", ""),
        (replace_by_pipe, "note.txt", ""),
        (rewrite, "sub/cat.jpg", "/thumbnail"),
        (delete, "note.txt", ""),
    ],
)
def test_file_that_is_not_what_was_indexed_is_refused(changing, change, name, suffix):
    address = f"/files/{changing.ids[os.path.basename(name)]}{suffix}"
    assert changing.client.get(address).status_code == 200
    change(changing.folder / name, changing.secret)

    answer = changing.client.get(address)

    assert answer.status_code in (404, 410)
    assert "secret" not in assert_error(answer, answer.status_code)


@pytest.mark.parametrize("name", ["sub/cat.jpg", "sub"])
def test_link_that_comes_after_the_check_is_not_followed(changing, tmp_path, monkeypatch, name):
    """A picture, or its folder, is replaced by a link to a copy elsewhere with the same size and time."""
    place = changing.folder / name
    elsewhere = shutil.copytree(changing.folder, tmp_path / "elsewhere")
    address = f"/files/{changing.ids['cat.jpg']}"
    realpath = os.path.realpath

    def resolve_and_swap(path, **options):
        resolved = realpath(path, **options)
        if str(path).endswith("cat.jpg") and not place.is_symlink():
            place.rename(tmp_path / "moved")
            place.symlink_to(elsewhere / name)
        return resolved

    assert changing.client.get(address).status_code == 200
    monkeypatch.setattr(os.path, "realpath", resolve_and_swap)
    answers = [changing.client.get(address), changing.client.get(f"{address}/thumbnail")]

    assert place.is_symlink()
    assert [answer.status_code for answer in answers] == [404] * 2


def test_change_of_the_index_is_seen_at_once(changing, tmp_path, samples):
    client = changing.client

    def num_sounds():
        return len(client.post("/timeline", json={"only": "audio"}).json()["periods"])

    def num_points():
        return len(client.get("/points").json()["points"])

    assert sorted(names(client, text="a")) == ["cat.jpg", "note.txt"]
    assert sorted(names(client)) == ["cat.jpg", "note.txt"]
    assert (num_points(), num_sounds()) == (2, 0)
    shutil.copy2(samples / "sounds" / "dog.ogg", changing.folder)
    (changing.folder / "note.txt").unlink()

    update(tmp_path / "index", device="cpu", progress=False)

    assert sorted(names(client, text="a")) == ["cat.jpg", "dog.ogg"]
    assert sorted(names(client)) == ["cat.jpg", "dog.ogg"]
    assert (num_points(), num_sounds()) == (2, 1)
    assert_error(client.get(f"/files/{changing.ids['note.txt']}"), 404)
    remove(tmp_path / "index", changing.folder)
    assert_error(client.get("/points"), 422)


def test_idle_server_lets_the_log_be_written_back(changing, tmp_path):
    client = changing.client
    assert names(client, text="a")
    assert names(client)
    assert client.get(f"/files/{changing.ids['cat.jpg']}/thumbnail").is_success
    for path in ("about", "values", "points", "names?q=cat"):
        assert client.get(f"/{path}").is_success

    with closing(sqlite3.connect(tmp_path / "index" / DATABASE)) as connection:
        with connection:
            connection.execute("UPDATE files SET date = date + 1")
        (is_held_up, *_) = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()

    assert not is_held_up


@pytest.fixture(scope="module")
def videos(tmp_path_factory, samples):
    """A client of an index of videos, by the bundled model, and the hits of a search for coffee by their names."""
    pytest.importorskip("av")
    folder = tmp_path_factory.mktemp("videos")
    shutil.copyfile(TWO_SCENES, folder / "a.webm")
    shutil.copyfile(TWO_SCENES, folder / "a.avi")  # by its name browsers do not play it
    build(folder / "index", sorted(folder.iterdir()), device="cpu", progress=False)
    with Index.open(folder / "index", device="cpu") as index:
        client = client_of(index)
        picture = encoded(samples / "images" / "coffee.jpg")
        yield client, hits_by_name(client, image=picture, only="video")


@pytest.mark.parametrize(
    ("name", "is_playable"),
    [
        ("a.webm", True),
        ("a.avi", False),
    ],
)
def test_videos_are_served(videos, name, is_playable):
    client, hits = videos
    hit = hits[name]

    answer = client.get(f"/{hit['file']}", headers={"range": "bytes=0-99"})

    assert (hit["kind"], hit["modality"], hit["start"]) == ("video", "image", 10.0)
    assert hit["playable"] == is_playable
    assert answer.content == TWO_SCENES.read_bytes()[:100]
    assert ("attachment" in answer.headers.get("content-disposition", "")) != is_playable


@pytest.mark.parametrize(
    ("moment", "shows"),
    [
        (9.9, "cat"),
        (10, "coffee"),
    ],
)
def test_thumbnail_of_a_moment_of_a_video(videos, samples, moment, shows):
    client, hits = videos
    with Image.open(samples / "images" / f"{shows}.jpg") as image:
        expected = np.asarray(image.convert("RGB").resize((160, 120)))

    answer = client.get(f"/files/{hits['a.webm']['id']}/thumbnail", params={"at": moment})

    with Image.open(io.BytesIO(answer.content)) as image:
        shown = np.asarray(image.convert("RGB")).astype(int)
    assert np.abs(shown - expected).mean() < 15


@pytest.fixture(scope="module")
def odd(tmp_path_factory, samples, random_folder):
    """A folder with a shard, a table, and files of an odd kind or name; a client of its index, and its hits."""
    folder = tmp_path_factory.mktemp("odd")
    picture = (samples / "images" / "cat.jpg").read_bytes()
    write_tar(
        folder / "shard.tar", {"one.jpg": picture, "one.txt": b"a cat", "two.txt": b"words alone", "three.jpg": picture}
    )
    (folder / "table.csv").write_text("caption\na row of words\n", encoding="utf-8")
    (folder / os.fsdecode(b"caf\xe9.txt")).write_text("a name that is not UTF-8", encoding="utf-8")
    build(
        folder / "index",
        sorted(folder.iterdir()),
        str(random_folder),
        device="cpu",
        progress=False,
    )
    with Index.open(folder / "index", device="cpu") as index:
        client = client_of(index)
        yield SimpleNamespace(folder=folder, client=client, hits=hits_by_name(client, text="a"))


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("shard.tar::two.txt", "words alone"),
        ("table.csv::2", "a row of words"),
        ("caf\ufffd.txt", "a name that is not UTF-8"),
    ],
)
def test_texts_of_shards_rows_and_odd_names(odd, name, text):
    assert odd.client.get(f"/{odd.hits[name]['file']}").text == text


def test_picture_of_a_shard_until_it_changes(odd, samples):
    hit = odd.hits["shard.tar::one.jpg"]

    assert odd.client.get(f"/{hit['file']}").content == (samples / "images" / "cat.jpg").read_bytes()
    assert odd.client.get(f"/{hit['thumbnail']}").headers["content-type"] == "image/webp"
    os.utime(odd.folder / "shard.tar", (1, 1))
    assert_error(odd.client.get(f"/{hit['file']}"), 410)
