"""Videos in an index: found by their pictures and their sound, at the moment; what is missing or broken in them."""

import os
import shutil

import numpy as np
import pytest
from support.indexes import content, items_by_name
from support.media import H264, TWO_SCENES, media
from support.random_model import save_random_model
from support.small_shards import write_tar

from onepeace.index import Index, Query, embed, maintain

pytest.importorskip("av")

SINE = "-f lavfi -i sine=d=12 -c:a aac"
SILENCE = "-f lavfi -i anullsrc=d=12 -c:a aac"
TEST_PICTURES = (
    "-f lavfi -i smptebars=d=6:s=64x48:r=5[a];testsrc2=d=6:s=64x48:r=5[b];[a]setsar=1[c];[b]setsar=1[d];[c][d]concat"
)
VP9 = "-c:v libvpx-vp9 -deadline realtime -cpu-used 8 -g 5 -movflags +faststart"


def video_of(*scenes: tuple[str, float], name="scenes.mp4", sound=""):
    """A video of one colour after the other, each for so many seconds."""
    graph = ""
    for number, (colour, seconds) in enumerate(scenes):
        graph += f"color={colour}:d={seconds}:s=64x48:r=4[{number}];"
    inputs = "".join(f"[{number}]" for number in range(len(scenes)))
    return media(name, f"-f lavfi -i {graph}{inputs}concat=n={len(scenes)}", sound, H264, "-g 4")


def spans_by_name(index):
    """(modality, start, end) of the vectors of each file, by its name."""
    spans = {}
    for path, file in content(index).items():
        spans[path.rpartition("/")[2]] = [(span.modality, span.start, span.end) for span in file.fields["spans"]]
    return spans


def only_spans(index):
    (spans,) = spans_by_name(index).values()
    return spans


def only_item(index):
    (item,) = items_by_name(index).values()
    return item


@pytest.fixture(scope="module")
def with_others(tmp_path_factory, samples):
    """An index of the video of a cat, coffee and a bark beside pictures and sounds, made by the bundled model."""
    pictures = [samples / "images" / f"{name}.jpg" for name in ("cat", "coffee", "bus", "sea")]
    sounds = [samples / "sounds" / f"{name}.ogg" for name in ("dog", "sea", "rain")]
    folder = tmp_path_factory.mktemp("video") / "index"
    maintain.build(folder, [TWO_SCENES, *pictures, *sounds], "tiny", device="cpu", progress=False)
    return folder


def test_video_has_vectors_of_its_scenes_and_windows(with_others):
    item = items_by_name(with_others)[TWO_SCENES.name]

    assert spans_by_name(with_others)[TWO_SCENES.name] == [
        ("image", 0.0, 10.0),
        ("image", 10.0, 20.008),
        ("audio", 0.0, 10.0),
        ("audio", 5.0, 15.0),
        ("audio", 10.0, 20.0),
        ("audio", 15.0, pytest.approx(20.008)),
    ]
    assert item.kind == "video"
    assert (item.width, item.height, item.duration) == (160, 120, 20.008)
    assert item.note is None


@pytest.mark.parametrize(
    ("field", "name", "least_score", "first", "last"),
    [
        ("image", "cat.jpg", 0.9, 0, 9),
        ("image", "coffee.jpg", 0.9, 9.9, 12),
        ("audio", "dog.ogg", 0.4, 9.9, 15.1),
    ],
)
def test_video_is_found_at_the_moment(with_others, samples, field, name, least_score, first, last):
    (path,) = samples.rglob(name)
    with Index.open(with_others) as index:
        (hit,) = index.search(Query(like=path), only="video").hits

    assert hit.kind == "video"
    assert hit.modality == field
    assert first <= hit.start <= last
    assert hit.start < hit.end <= 20.6
    assert hit.score > least_score


def test_like_a_video_is_like_its_pictures_and_its_sound(with_others):
    with Index.open(with_others) as opened:
        hits = opened.search(Query(like=TWO_SCENES), top=6)
        (nearest_sound,) = opened.search(Query(like=TWO_SCENES), only="audio", top=1)

    names = [os.path.basename(hit.item.path) for hit in hits]
    assert {*names[:3]} >= {"cat.jpg", "coffee.jpg"}
    assert TWO_SCENES.name not in names
    assert os.path.basename(nearest_sound.item.path) == "dog.ogg"


def test_pictures_that_look_the_same_are_one_vector(build, index):
    build(video_of(("navy", 12), ("yellow", 25), ("navy", 5)), model="tiny")

    assert only_spans(index) == [("image", 0.0, 12.0), ("image", 12.0, 37.0), ("image", 37.0, 42.0)]


@pytest.fixture
def long_video(monkeypatch):
    """32 seconds of which each looks different, in an index of at most 8 pictures of a video."""
    monkeypatch.setattr(embed, "ALIKE", 2.0)
    monkeypatch.setattr(embed, "MOST", 8)
    colours = [("red", 1), ("lime", 1), ("blue", 1)] * 11
    return video_of(*colours[:32])


def test_pictures_of_a_long_video_are_from_all_of_it(build, index, long_video):
    build(long_video)

    assert [start for _, start, _ in only_spans(index)] == [0, 4, 8, 12, 16, 20, 24, 28]


def test_member_of_a_shard_is_as_a_file(build, index, tmp_path):
    shard = write_tar(tmp_path / "a.tar", {"a.webm": TWO_SCENES.read_bytes(), "a.txt": b"a cat, then coffee"})
    build(shard)
    build(TWO_SCENES, into=tmp_path / "file")

    item = only_item(index)

    assert item.path == f"{shard}::a.webm"
    assert item.kind == "video"
    assert item.caption == "a cat, then coffee"
    assert only_spans(index) == only_spans(tmp_path / "file")
    (member,) = content(index).values()
    (file,) = content(tmp_path / "file").values()
    np.testing.assert_allclose(member.vectors, file.vectors, atol=1e-5)


def with_zeros_behind_its_middle(video):
    """The bytes of a video whose second half of the content is gone."""
    damaged = bytearray(video.read_bytes())
    start = damaged.index(b"mdat")
    middle = start + (len(damaged) - start) // 2
    damaged[middle:] = bytes(len(damaged) - middle)
    return damaged


@pytest.fixture(scope="module")
def odd_index(tmp_path_factory, random_folder):
    """An index of videos of which a part is missing, silent or damaged."""
    folder = tmp_path_factory.mktemp("odd")
    shutil.copyfile(video_of(("red", 3), ("navy", 3)), folder / "no sound.mp4")
    shutil.copyfile(video_of(("red", 3), ("navy", 3), sound=SILENCE), folder / "silence.mp4")
    shutil.copyfile(media("no pictures.mp4", SINE), folder / "no pictures.mp4")
    shutil.copyfile(media("silence only.mkv", SILENCE), folder / "silence only.mkv")
    damaged = with_zeros_behind_its_middle(media("vp9.mp4", TEST_PICTURES, SINE, VP9))
    (folder / "damaged.mp4").write_bytes(damaged)
    whole = media("vp9.mkv", TEST_PICTURES, VP9).read_bytes()
    (folder / "cut.mkv").write_bytes(whole[: len(whole) // 2])
    report = maintain.build(
        folder / "index",
        folder,
        str(random_folder),
        device="cpu",
        progress=False,
    )
    assert report.problems == []
    return folder / "index"


@pytest.mark.parametrize(
    ("name", "modalities", "notes"),
    [
        ("no sound.mp4", {"image"}, ["no sound"]),
        ("silence.mp4", {"image"}, ["digital silence"]),
        ("no pictures.mp4", {"audio"}, ["no pictures"]),
        ("silence only.mkv", {"audio"}, ["digital silence", "no pictures"]),
        ("damaged.mp4", {"image", "audio"}, ["pictures cannot be decoded", "sound cannot be decoded"]),
        ("cut.mkv", {"image"}, ["pictures end at second", "cut off", "no sound"]),
    ],
)
def test_odd_video_has_vectors_of_what_can_be_read_and_a_note(odd_index, name, modalities, notes):
    item = items_by_name(odd_index)[name]
    assert {modality for modality, *_ in spans_by_name(odd_index)[name]} == modalities

    assert item.kind == "video"
    assert item.note.count("; ") == len(notes) - 1
    for note in notes:
        assert note in item.note


@pytest.mark.parametrize("modality", ["image", "audio"])
def test_model_of_one_modality_takes_that_of_a_video(build, index, tmp_path, modality):
    build(TWO_SCENES, model=save_random_model(tmp_path / "model", ("text", modality)))

    assert {span[0] for span in only_spans(index)} == {modality}
    assert only_item(index).note is None
