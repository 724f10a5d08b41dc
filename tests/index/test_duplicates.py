"""Files that are copies of others: across formats and sizes, and no groups of different ones."""

import io
import os
import tarfile

import numpy as np
import pytest
import soundfile
from PIL import Image
from support.indexes import fabricate

from onepeace.errors import UserError
from onepeace.index.duplicates import duplicates
from onepeace.index.index import Index
from onepeace.index.store import Item


def found(folder, *arguments):
    """The names of each group."""
    with Index.open(folder) as index:
        groups = duplicates(index, *arguments, progress=False)
    return [[os.path.basename(copy.item.path) for copy in group.copies] for group in groups]


def at(degrees):
    return [np.cos(np.radians(degrees)), np.sin(np.radians(degrees))]


def test_copies_in_other_formats_and_sizes_are_found_and_different_files_are_not(build, samples, tmp_path):
    folder = tmp_path / "files"
    folder.mkdir()
    for name in ("images/dog.jpg", "images/cat.jpg", "sounds/dog.ogg", "sounds/cat.ogg", "sounds/sea.ogg"):
        (folder / os.path.basename(name)).write_bytes((samples / name).read_bytes())
    with Image.open(folder / "dog.jpg") as image:
        image.resize((image.width // 2, image.height // 2)).save(folder / "small.png")
    sound, rate = soundfile.read(folder / "dog.ogg")
    soundfile.write(folder / "copy.wav", sound, rate)
    soundfile.write(folder / "dog.ogg", sound, rate, subtype="VORBIS", compression_level=0.5)
    build(tmp_path / "index", folder, model="tiny")
    assert sorted(found(tmp_path / "index")) == [["copy.wav", "dog.ogg"], ["dog.jpg", "small.png"]]
    assert found(tmp_path / "index", {}) == []


def test_no_chain_of_small_changes_joins_different_files(tmp_path):
    files = [
        (Item(f"/p/{degrees}.jpg", "image", 10, width=100 - degrees, height=1), at(degrees))
        for degrees in (0, 12, 24, 36, 60)
    ]
    folder = fabricate(tmp_path / "i", files)
    assert found(folder, {"image": np.cos(np.radians(15))}) == [["0.jpg", "12.jpg"], ["24.jpg", "36.jpg"]]
    assert found(folder, {"image": np.cos(np.radians(11))}) == []


def test_kinds_stay_apart_and_texts_have_only_copies_of_one_content(tmp_path):
    files = [
        (Item("/p/a.jpg", "image", 100), at(0)),
        (Item("/p/a.ogg", "audio", 100), at(0)),
        (Item("/p/a.txt", "text", 100, hash=b"1" * 16), at(0)),
        (Item("/p/b.txt", "text", 100, hash=b"1" * 16), at(0)),
        (Item("/p/c.txt", "text", 100, hash=b"2" * 16), at(0)),
    ]
    assert found(fabricate(tmp_path / "i", files)) == [["a.txt", "b.txt"]]


def test_the_best_copy_is_first_and_the_largest_surplus(tmp_path):
    files = [
        (Item("/p/small.jpg", "image", 70, width=10, height=10), at(1)),
        (Item("/p/large.jpg", "image", 50, width=20, height=10), at(0)),
        (Item("/p/short.ogg", "audio", 90, duration=4.9), at(0)),
        (Item("/p/long.ogg", "audio", 80, duration=5.0, hash=b"1" * 16), at(0)),
        (Item("/p/same.ogg", "audio", 80, duration=5.0, hash=b"1" * 16), at(0)),
    ]
    with Index.open(fabricate(tmp_path / "i", files)) as index:
        sounds, pictures = duplicates(index)
    assert [copy.item.path for copy in sounds.copies] == ["/p/long.ogg", "/p/same.ogg", "/p/short.ogg"]
    assert ([copy.is_exact for copy in sounds.copies], sounds.surplus) == ([True, True, False], 170)
    assert [copy.item.path for copy in pictures.copies] == ["/p/large.jpg", "/p/small.jpg"]
    assert pictures.copies[1].similarity == pytest.approx(np.cos(np.radians(1)))


def test_thoroughly_pictures_that_look_alike_are_found_where_their_vectors_are_not_near(tmp_path):
    generator = np.random.default_rng(0)
    photo = Image.fromarray(generator.integers(0, 256, (8, 9, 3), dtype=np.uint8)).resize((90, 80))
    other = Image.fromarray(generator.integers(0, 256, (8, 9, 3), dtype=np.uint8)).resize((90, 80))
    drawn = {"photo.png": photo, "small.jpg": photo.resize((45, 40)), "far.jpg": photo, "other.png": other}
    drawn |= {"white.png": Image.new("L", (90, 80), 255), "grey.png": Image.new("L", (90, 80), 99), "gone.png": photo}
    shard = tmp_path / "s.tar"
    with tarfile.open(shard, "w") as tar:
        for name, image in (("a.png", photo), ("b.png", other)):
            buffer = io.BytesIO()
            image.save(buffer, "PNG")
            info = tarfile.TarInfo(name)
            info.size = len(buffer.getvalue())
            tar.addfile(info, io.BytesIO(buffer.getvalue()))
    files = [(Item(f"{shard}::a.png", "image", 9, shard.stat().st_mtime_ns, width=9, height=1), at(-20))]
    places = {"photo.png": 0, "small.jpg": 40, "far.jpg": 60, "other.png": 20, "white.png": 25, "grey.png": 50}
    for name, degrees in {**places, "gone.png": 10}.items():
        drawn[name].save(tmp_path / name)
        status = os.stat(tmp_path / name)
        size = (90, 80) if name == "photo.png" else (1, 1)
        item = Item(str(tmp_path / name), "image", status.st_size, status.st_mtime_ns, width=size[0], height=size[1])
        files.append((item, at(degrees)))
    (tmp_path / "gone.png").write_bytes(b"changed")
    folder = fabricate(tmp_path / "i", files)
    assert found(folder, {"image": 0.999}) == []
    (group,) = found(folder, {"image": 0.999}, True)
    assert sorted(group) == ["photo.png", "s.tar::a.png", "small.jpg"]


def test_index_without_files_is_said(build, tmp_path, samples):
    from onepeace.index.write import remove

    build(tmp_path / "i", samples / "images" / "cat.jpg")
    remove(tmp_path / "i", [samples / "images" / "cat.jpg"])
    with pytest.raises(UserError, match=r"i: no files in it; add some"):
        found(tmp_path / "i")
