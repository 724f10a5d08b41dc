"""Reading shards: what they give, and what is said about those that are broken."""

import json
import os
import re

import pytest
from support.batches import picture, pictures
from support.small_shards import write_tar

from onepeace.data.config import DataConfig, SourceConfig
from onepeace.data.source import Source, expand, read_source
from onepeace.data.write import new_shards
from onepeace.errors import UserError
from onepeace.processors import PROCESSORS

PAIR = ("image", "text")


def read(folder, members, **options):
    """What is read of a shard with these members."""
    return read_source(write_tar(folder / "a.tar", members).name, PAIR, folder, **options)


def test_source_reads_tar_and_tar_gz_in_order(root):
    samples = read_source("pictures-*", PAIR, root)
    assert [sample.key for sample in samples] == [f"p{i}" for i in range(8)]
    assert samples[6].inputs["image"] == picture(6)
    assert samples[6].captions == ["picture number 6", "a photo of thing 6"]
    assert samples[6].source.endswith("pictures-1.tar.gz")
    assert read_source("more.tar", ("image",), root)[0].label == "gull"


def test_keys_choose_a_part_of_a_source(root):
    samples = read_source("pictures-*", PAIR, root, keys="*[1-3]")
    assert [sample.key for sample in samples] == ["p1", "p2", "p3"]
    with pytest.raises(UserError, match=r"pictures-\*: .*no key fits 'q\*'"):
        read_source("pictures-*", PAIR, root, keys="q*")


def test_missing_shards_are_named(root, monkeypatch):
    with pytest.raises(UserError, match=r"no shard matches .*nothing-\*"):
        expand("nothing-*", root)
    assert expand("{sounds,more,more}.tar", root) == [str(root / "more.tar"), str(root / "sounds.tar")]
    with pytest.raises(UserError, match=r"no shard matches .*less\.tar"):
        expand("{more,less}.tar", root)
    monkeypatch.setenv("HERE", str(root))
    assert len(expand("pictures-*", "${HERE}")) == 2
    with pytest.raises(UserError, match=r"data\.root is \$\{NOWHERE\}.*data\.root=FOLDER"):
        expand("pictures-*", "${NOWHERE}")


def test_incomplete_samples_name_file_and_key(tmp_path, caplog):
    members = pictures(4)
    del members["p1.png"], members["p2.json"]
    assert [sample.key for sample in read(tmp_path, members)] == ["p0", "p3"]
    assert "a.tar: p1 has no image file" in caplog.text
    assert "a.tar: p2 has no caption" in caplog.text
    with pytest.raises(UserError, match=r"a\.tar: x has no caption"):
        read(tmp_path, {"x.png": picture(0)})


def test_samples_of_other_modalities_are_left_out_without_a_warning(tmp_path, caplog):
    sound = {"s.ogg": b"a sound", "s.json": b'{"captions": ["a sound"]}'}
    samples = read(tmp_path, {**pictures(2), **sound})
    assert [sample.key for sample in samples] == ["p0", "p1"]
    assert caplog.text == ""
    with pytest.raises(UserError, match="image and text"):
        read(tmp_path, sound)


def test_source_of_which_too_much_is_broken_stops(tmp_path):
    members = pictures(96)
    for i in range(76):
        del members[f"p{i}.json"]
    with pytest.raises(UserError, match=r"^a\.tar: 0 of 1 shards .* 76 of 96 samples are broken .*p0 .*broken_limit$"):
        read(tmp_path, members)
    assert len(read(tmp_path, members, broken_limit=0.8)) == 20
    for i in range(66):
        del members[f"p{i}.png"]
    assert len(read(tmp_path, members, broken_limit=0)) == 20  # ten broken ones are free


@pytest.mark.parametrize("name", ["a.tar", "a.tar.gz"])
def test_shard_that_is_cut_short_is_lost_with_all_its_samples(tmp_path, caplog, name):
    path = write_tar(tmp_path / name, pictures(6))
    os.truncate(path, path.stat().st_size // 2)
    write_tar(tmp_path / "b.tar", pictures(2, first=10))
    config = SourceConfig("*", PAIR)
    lenient = DataConfig((config,), str(tmp_path), broken_limit=0.5)
    assert [sample.key for sample in Source(config, lenient)] == ["p10", "p11"]
    assert f"{name}: " in caplog.text
    with pytest.raises(UserError, match=r"1 of 2 shards cannot be read, and 0 of 2 samples are broken .*a\.tar"):
        list(Source(config, DataConfig((config,), str(tmp_path))))
    with pytest.raises(UserError, match=rf"{name}: "):  # an evaluation needs all shards
        read_source("*", PAIR, tmp_path, broken_limit=1.0)


def test_written_targets_come_back(tmp_path):
    targets = {
        "label": "dog",
        "labels": ["dog", "cat"],
        "answers": {"net": 0.3},
        "candidates": ["a", "b"],
        "choice": 1,
        "box": [0, 0.25, 0.5, 1],
        "boxes": [[0, 0, 1, 1]],
        "box_labels": ["dog"],
        "events": [[0.5, 1, "bark"]],
        "mask": picture(3),
        "set": "7",
    }
    media = {"png": picture(0), "2.png": picture(1), "3.jpg": picture(2)}
    with new_shards(tmp_path, "a") as shards:
        shards.write("x", media, ["a dog"], targets=targets)
        shards.write("y", {"png": picture(4)}, [], targets={"label": "cat"})
    first, second = read_source("a-*.tar", ("image",), tmp_path)
    assert first.inputs["image"] == list(media.values())
    assert first.targets == targets
    assert second.inputs["image"] == picture(4)
    assert second.targets == {"label": "cat"}
    assert read_source("a-*.tar", PAIR, tmp_path, targets=tuple(targets)) == [first]


def test_more_than_nine_pictures_of_a_sample(tmp_path):
    members = {f"x.{number}.png": picture(number) for number in range(12, 1, -1)}
    members |= {"x.png": picture(1), "x.thumb.png": picture(0), "x.json": b"{}"}
    write_tar(tmp_path / "a.tar", members)
    (sample,) = read_source("a.tar", ("image",), tmp_path)
    assert sample.inputs["image"] == [picture(number) for number in range(1, 13)]


@pytest.mark.parametrize("endings", [("0.png", "1.png"), ("png", "1.png"), ("png", "02.png"), ("png", "jpg")])
def test_picture_that_would_not_be_read_is_named(tmp_path, caplog, endings):
    members = {f"x.{ending}": picture(0) for ending in endings}
    write_tar(tmp_path / "a.tar", {**members, "y.png": picture(1)})
    (sample,) = read_source("a.tar", ("image",), tmp_path)
    assert sample.key == "y"
    assert re.search(r"a\.tar: x: its \.\S+ is another file 1", caplog.text)


def depth_of(*suffixes):
    """The processor of a modality for maps of depth, with these endings."""
    return type("Depth", (PROCESSORS["image"],), {"key": "depth", "suffixes": frozenset(suffixes)})


def test_modality_reads_the_files_of_its_ending_in_full(tmp_path, monkeypatch):
    monkeypatch.setitem(PROCESSORS, "depth", depth_of(".depth.png"))
    names = ("x.depth.png", "x.png", "x.2.depth.png", "y.depth.png", "z.png")
    members = {name: name.encode() for name in names} | {f"{key}.json": b"{}" for key in "xyz"}
    write_tar(tmp_path / "a.tar", members)
    (sample,) = read_source("a.tar", ("image", "depth"), tmp_path)
    assert sample.inputs["image"] == b"x.png"
    assert sample.inputs["depth"] == [b"x.depth.png", b"x.2.depth.png"]
    assert [sample.key for sample in read_source("a.tar", ("image",), tmp_path)] == ["x", "z"]
    assert [sample.key for sample in read_source("a.tar", ("depth",), tmp_path)] == ["x", "y"]


def test_sound_beside_a_video_is_read_before_that_of_the_video(tmp_path):
    write_tar(
        tmp_path / "a.tar", {"x.mp4": b"video", "x.wav": b"sound", "x.json": b"{}", "y.mp4": b"2", "y.json": b"{}"}
    )
    x, y = read_source("a.tar", ("audio",), tmp_path)
    assert (x.inputs["audio"], y.inputs["audio"]) == (b"sound", b"2")


def test_two_modalities_that_would_read_one_file_are_told_apart(tmp_path, monkeypatch):
    monkeypatch.setitem(PROCESSORS, "depth", depth_of(".png"))
    write_tar(tmp_path / "a.tar", {"x.png": b"1", "x.depth.png": b"2", "x.json": b"{}"})
    with pytest.raises(UserError, match=r"a\.tar: x: depth and image would both read one file.*\.depth\.png"):
        read_source("a.tar", ("image", "depth"), tmp_path)


@pytest.mark.parametrize(
    ("ending", "content", "told"),
    [
        ("2.png", None, "x: .*1, 3 "),
        ("png", None, "x has no image file"),
        ("mask.png", b"GIF89a", "x: its mask is not a PNG file"),
        ("json", b"{", r"x\.json cannot be read"),
        ("json", b'{"targets": [1]}', r"x has no box in its \.json"),
    ],
)
def test_corrupt_members_of_a_sample_with_targets_are_named(tmp_path, caplog, ending, content, told):
    files = {
        "png": picture(0),
        "2.png": picture(1),
        "3.png": picture(2),
        "mask.png": picture(3),
        "json": json.dumps({"targets": {"box": [0, 0, 1, 1]}}).encode(),
    }
    members = {}
    for key in "xy":
        for name, data in files.items():
            members[f"{key}.{name}"] = data
    if content is None:
        del members[f"x.{ending}"]
    else:
        members[f"x.{ending}"] = content
    write_tar(tmp_path / "a.tar", members)
    (sample,) = read_source("a.tar", ("image",), tmp_path, targets=("box", "mask"))
    assert sample.key == "y"
    assert len(sample.inputs["image"]) == 3
    assert re.search(rf"a\.tar: {told}", caplog.text)


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("labels", [1], "a list of names"),
        ("answers", {"net": 1.5}, "scores from 0 to 1"),
        ("box", [0.5, 0, 0.25, 1], "x0, y0, x1, y1"),
        ("box_labels", ["dog", "cat"], "for each box"),
        ("events", [[2, 1, "dog"]], "a list of .onset"),
        ("candidates", [None], "a list of answers"),
        ("choice", 2, "number of one of the candidates"),
    ],
)
def test_targets_of_another_form_are_named_where_they_are_needed(tmp_path, name, value, told):
    targets = {
        "boxes": [[0, 0, 1, 1]],
        "box_labels": ["dog"],
        "candidates": ["a", "b"],
        "choice": 0,
        name: value,
    }
    fields = json.dumps({"targets": targets})
    members = {"x.png": picture(0), "x.json": fields.encode()}
    assert read_source(write_tar(tmp_path / "a.tar", members).name, ("image",), tmp_path)
    with pytest.raises(UserError, match=f"a.tar: x: its {name} is not .*{told}"):
        read_source("a.tar", ("image",), tmp_path, targets=(name,))
