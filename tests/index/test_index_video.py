"""Videos in an index: found by their pictures and their sound, at the moment; what is missing or broken in them."""

import os
import re
import shutil
import sys

import numpy as np
import pytest
from support.indexes import check_same, content
from support.media import H264, TWO_SCENES, media
from support.small_shards import write_tar

from onepeace.index import Index, Query
from onepeace.index import video as video_module

pytest.importorskip("av")


def made_of(*scenes: tuple[str, float], name="scenes.mp4", sound=()):
    """A video of one colour after the other, each for so many seconds."""
    graph = "".join(f"color={colour}:d={seconds}:s=64x48:r=4[{i}];" for i, (colour, seconds) in enumerate(scenes))
    graph += "".join(f"[{i}]" for i in range(len(scenes))) + f"concat=n={len(scenes)}"
    return media(name, "-f", "lavfi", "-i", graph, *sound, *H264, "-g", "4")


def spans(index, name=None):
    """(modality, start, end) of the vectors of a file, or of the only one."""
    with Index.open(index) as opened:
        (item,) = [item for item in opened.items() if name in (None, os.path.basename(item.path))]
        _, found, _ = opened.store.intact([item.id])[item.id]
        return [(span.modality, span.start, span.end) for span in found]


def item_of(index):
    with Index.open(index) as opened:
        (item,) = opened.store.items()
        return item


def check_found(index, samples):
    """That the two scenes and the sound are found where they are."""
    coffee, cat = (Query(image=samples / "images" / f"{name}.jpg") for name in ("coffee", "cat"))
    for part, modality, score, times in (
        (cat, "image", 0.9, (0, 9)),
        (coffee, "image", 0.9, (9.9, 12)),
        (Query(audio=samples / "sounds" / "dog.ogg"), "audio", 0.4, (9.9, 15.1)),
    ):
        (hit,) = index.search(part).hits
        assert (hit.item.modality, hit.modality) == ("video", modality)
        assert times[0] <= hit.start <= times[1]
        assert hit.start < hit.end <= 20.6
        assert hit.score > score


def test_two_scenes_and_a_bark_are_found_where_they_are(build, tmp_path, samples):
    build(tmp_path / "index", TWO_SCENES, model="tiny")
    assert spans(tmp_path / "index") == [
        ("image", 0.0, 10.0), ("image", 10.0, 20.008),
        ("audio", 0.0, 10.0), ("audio", 5.0, 15.0), ("audio", 10.0, 20.0), ("audio", 15.0, pytest.approx(20.008)),
    ]  # fmt: skip
    with Index.open(tmp_path / "index") as index:
        check_found(index, samples)
        (item,) = index.items()
        assert (item.modality, item.width, item.height, item.duration, item.note) == ("video", 160, 120, 20.008, None)
        query = Query(image=samples / "images" / "cat.jpg")
        for only, found in ((["video"], 1), (["image"], 1), (["audio"], 1), (["audio", "video"], 1), (["text"], 0)):
            hits = index.search(query, only=only).hits
            assert len(hits) == found
            assert all(hit.modality == "image" for hit in hits) or only == ["audio"]
        assert index.search(query, where="duration < 20").hits == ()
        assert len(index.search(query, where="duration > 20 and width == 160 and kind == 'video'").hits) == 1


def test_update_follows_a_video(build, update, tmp_path, monkeypatch):
    (tmp_path / "files").mkdir()
    path = tmp_path / "files" / "a.webm"
    shutil.copyfile(TWO_SCENES, path)
    build(tmp_path / "index", tmp_path / "files")
    before = content(tmp_path / "index")[str(path)][1]
    assert len(before) == 2 + 10  # that model reads two seconds of sound at once
    with monkeypatch.context() as context:
        context.setattr("onepeace.embed.embedder.load", None)
        path.rename(tmp_path / "files" / "b.webm")
        shutil.copyfile(TWO_SCENES, tmp_path / "files" / "copy.webm")
        report = update(tmp_path / "index")
    assert (report.moved, report.copied, report.vectors) == (1, 1, 0)
    found = content(tmp_path / "index")
    assert found.keys() == {str(tmp_path / "files" / name) for name in ("b.webm", "copy.webm")}
    assert all((vectors == before).all() for _, vectors in found.values())

    shutil.copyfile(made_of(("red", 3), ("navy", 3)), tmp_path / "files" / "copy.webm")
    report = update(tmp_path / "index")
    assert (report.changed, report.unchanged) == (1, 1)
    build(tmp_path / "fresh", tmp_path / "files")
    check_same(tmp_path / "index", tmp_path / "fresh")


def test_pictures_that_look_the_same_are_one_vector(build, tmp_path):
    build(tmp_path / "still", made_of(("navy", 45)), model="tiny")
    assert spans(tmp_path / "still") == [("image", 0.0, 45.0)]
    assert item_of(tmp_path / "still").note == "there is no sound in it that can be decoded"
    build(tmp_path / "scenes", made_of(("navy", 12), ("yellow", 25), ("navy", 5)), model="tiny")
    assert spans(tmp_path / "scenes") == [("image", 0.0, 12.0), ("image", 12.0, 37.0), ("image", 37.0, 42.0)]


def test_pictures_of_a_long_video_are_few_and_from_all_of_it(build, tmp_path, monkeypatch):
    path = made_of(*([("red", 1), ("lime", 1), ("blue", 1)] * 11)[:32])
    monkeypatch.setattr(video_module, "ALIKE", 2.0)
    monkeypatch.setattr(video_module, "MOST", 8)
    build(tmp_path / "index", path)
    starts = [start for _, start, _ in spans(tmp_path / "index")]
    assert starts == [0, 4, 8, 12, 16, 20, 24, 28]
    # Of a member of a shard it is not known how long it is.
    build(tmp_path / "in shard", write_tar(tmp_path / "a.tar", {"a.mp4": path.read_bytes()}))
    assert [start for _, start, _ in spans(tmp_path / "in shard")] == list(range(8))
    assert "only its first 8 pictures are in the index, up to second 8" in item_of(tmp_path / "in shard").note


def test_member_of_a_shard_is_as_a_file(build, tmp_path):
    shard = write_tar(tmp_path / "a.tar", {"a.webm": TWO_SCENES.read_bytes(), "a.txt": b"a cat, then coffee"})
    build(tmp_path / "index", shard)
    build(tmp_path / "file", TWO_SCENES)
    with Index.open(tmp_path / "index") as index:
        (item,) = index.items()
    assert (item.path, item.modality, item.caption) == (f"{shard}::a.webm", "video", "a cat, then coffee")
    assert spans(tmp_path / "index")[1] == ("image", 10.0, 10.0)  # how long it is is not known
    (one,), (two,) = (content(tmp_path / name).values() for name in ("index", "file"))
    np.testing.assert_allclose(one[1], two[1], atol=1e-5)


def halved(path, target, start):
    """A video whose bytes behind the middle are zeros, from the first of those that name its content on."""
    whole = bytearray(path.read_bytes())
    first = whole.index(start)
    middle = first + (len(whole) - first) // 2
    whole[middle:] = bytes(len(whole) - middle)
    target.write_bytes(whole)
    return target


def test_what_can_be_read_of_a_video_is_kept_with_a_note(build, tmp_path):
    with_sound = ("-f", "lavfi", "-i", "sine=d=12", "-c:a", "aac")
    silence = ("-f", "lavfi", "-i", "anullsrc=d=12", "-c:a", "aac")
    folder = tmp_path / "files"
    folder.mkdir()
    shutil.copyfile(made_of(("red", 3), ("navy", 3)), folder / "no sound.mp4")
    shutil.copyfile(made_of(("red", 3), ("navy", 3), sound=silence), folder / "silence.mp4")
    shutil.copyfile(media("no pictures.mp4", *with_sound), folder / "no pictures.mp4")
    shutil.copyfile(media("silence only.mkv", *silence), folder / "silence only.mkv")
    scenes = (
        "-f",
        "lavfi",
        "-i",
        "smptebars=d=6:s=64x48:r=5[a];testsrc2=d=6:s=64x48:r=5[b];[a]setsar=1[c];[b]setsar=1[d];[c][d]concat",
    )
    vp9 = ("-c:v", "libvpx-vp9", "-deadline", "realtime", "-cpu-used", "8", "-g", "5", "-movflags", "+faststart")
    halved(media("vp9.mp4", *scenes, *with_sound, *vp9), folder / "damaged.mp4", b"mdat")
    whole = media("vp9.mkv", *scenes, *vp9).read_bytes()
    (folder / "cut.mkv").write_bytes(whole[: len(whole) // 2])
    build(tmp_path / "index", folder)
    with Index.open(tmp_path / "index") as index:
        assert index.problems() == []
        notes = {os.path.basename(item.path): item.note for item in index.items()}
        lengths = {os.path.basename(item.path): item.duration for item in index.items()}
        assert {item.modality for item in index.items()} == {"video"}
    no_sound, no_pictures = (f"there {one} in it that can be decoded" for one in ("is no sound", "are no pictures"))
    assert notes.pop("damaged.mp4").startswith("the pictures cannot be decoded (")
    assert re.search("pictures end at second [4-8] of 12", notes.pop("cut.mkv"))
    assert notes == {
        "no sound.mp4": no_sound,
        "silence.mp4": "digital silence",
        "no pictures.mp4": no_pictures,
        "silence only.mkv": f"digital silence; {no_pictures}",
    }
    assert lengths == pytest.approx(
        {
            "no sound.mp4": 6,
            "silence.mp4": 12,
            "no pictures.mp4": 12,
            "silence only.mkv": 12,
            "damaged.mp4": 12,
            "cut.mkv": 12,
        },
        abs=0.1,
    )
    kinds = {name: {modality for modality, *_ in spans(tmp_path / "index", name)} for name in lengths}
    assert kinds["no sound.mp4"] == kinds["silence.mp4"] == {"image"}
    assert kinds["no pictures.mp4"] == kinds["silence only.mkv"] == {"audio"}
    assert kinds["damaged.mp4"] == {"image", "audio"}


def test_video_of_which_nothing_can_be_read_is_a_problem(build, update, tmp_path):
    broken = {
        "empty.mp4": (b"", "the file is empty (0 bytes)"),
        "words.avi": (b"hello " * 100, "not a sound or video of a known format, or damaged"),
        "list.mp4": (b"ffconcat version 1.0\nfile a.mp4\n", "not a sound or video of a known format, or damaged"),
    }
    (tmp_path / "files").mkdir()
    for name, (data, _) in broken.items():
        (tmp_path / "files" / name).write_bytes(data)
    shutil.copyfile(TWO_SCENES, tmp_path / "files" / "good.webm")
    report = build(tmp_path / "index", tmp_path / "files")
    assert report.added == 1
    found = {os.path.basename(problem.path): problem.reason for problem in report.problems}
    assert found.keys() == broken.keys()
    for name, (_, reason) in broken.items():
        assert found[name].startswith(reason)
        assert "; " not in found[name], "each reason once"
    (tmp_path / "files" / "empty.mp4").write_bytes(TWO_SCENES.read_bytes())
    report = update(tmp_path / "index")
    assert (report.copied, report.known_problems, report.problems) == (1, 2, [])


def test_without_pyav_a_video_is_listed_with_the_remedy(build, update, tmp_path, monkeypatch):
    with monkeypatch.context() as context:
        context.setitem(sys.modules, "av", None)
        report = build(tmp_path / "index", TWO_SCENES)
    assert [problem.reason for problem in report.problems] == ['needs av: pip install "onepeace[media]"']
    assert update(tmp_path / "index").added == 1


def test_a_model_takes_of_a_video_what_it_reads(build, tmp_path):
    from support.random_model import save_random_model

    for modalities, kept in ((("text", "image"), {"image"}), (("text", "audio"), {"audio"})):
        model = save_random_model(tmp_path / modalities[1], modalities)
        build(tmp_path / f"{modalities[1]} index", TWO_SCENES, model=model)
        assert {modality for modality, *_ in spans(tmp_path / f"{modalities[1]} index")} == kept
        assert item_of(tmp_path / f"{modalities[1]} index").note is None
    (tmp_path / "note.txt").write_text("words")
    text = save_random_model(tmp_path / "text", ("text",))
    report = build(tmp_path / "text index", TWO_SCENES, tmp_path / "note.txt", model=text)
    assert (report.left_out, report.added) == ({"video": 1}, 1)


def test_like_a_video_is_like_its_pictures_and_its_sound(build, tmp_path, samples):
    build(tmp_path / "index", TWO_SCENES, samples / "images", samples / "sounds", model="tiny")
    with Index.open(tmp_path / "index") as index:
        results = index.search(Query(like=TWO_SCENES), top=6)
        names = [os.path.basename(hit.item.path) for hit in results.hits]
        assert {"cat.jpg", "coffee.jpg"} <= {*names}
        sounds = index.search(Query(like=TWO_SCENES), only="audio", top=2)
        assert "dog.ogg" in [os.path.basename(hit.item.path) for hit in sounds.hits]
        assert TWO_SCENES.name not in names
