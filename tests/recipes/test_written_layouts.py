"""What each layout writes of its download, case by case."""

import re

import pytest
from support.downloads import VIDEOS, picture
from support.layouts import size_of, wave_of


def photographs_of_2014():
    files = {}
    for split, number in {"train2014": 9, "val2014": 42}.items():
        files[f"{split}/COCO_{split}_{number:012d}.jpg"] = picture(number)
        rows = [{"image_id": number, "caption": "A dog."}]
        files[f"annotations/captions_{split}.json"] = {"annotations": rows}
    return files


CASES = {
    "flickr8k": (
        ["keep_out=1"], {},
        {"f8k_train_a": {"size": (216, 144)}, "f8k_other_a": {}, "f8k_dev_b": {}},
        {"f8k_test_a": {"captions": [f"Sentence {i} of test_a" for i in range(5)], "size": (240, 160)}}, [],
    ),
    "flickr8k with broken and missing pictures": (
        [], {"Flicker8k_Dataset/train_a.jpg": "", "Flicker8k_Dataset/test_a.jpg": None},
        {"f8k_other_a": {}}, {},
        [r"/train_a\.jpg: ", r"/test_a\.jpg: No such file", "val/flickr8k/flickr8k_test: nothing to write"],
    ),
    "flickr30k": (
        ["size=144"], {"flickr30k-images/1.jpg": None, "flickr30k-images/in/1.jpg": picture(1, (500, 333))},
        {"f30k_1": {"captions": [f"Sentence {i} of 1, here" for i in range(5)], "size": (216, 144)}},
        {"f30k_3": {"size": (216, 144)}}, [r"4\.jpg: No such file"],
    ),
    "coco_karpathy": (
        ["size=144"], {},
        {"cocok_COCO_train2014_1": {"size": (216, 144)}, "cocok_COCO_val2014_2": {}},
        {"cocok_COCO_val2014_3": {"captions": [f"Sentence {i}" for i in range(5)], "size": (216, 144)}}, [],
    ),
    # 234748 is a picture of data/samples
    "coco": (
        ["size=144"], {"train2017/000000000025.jpg": "no picture"},
        {"coco_000000000009": {"size": (192, 144)}},
        {"coco_000000000139": {"captions": [f"Caption {i} of 139" for i in range(5)]}}, [r"000000000025\.jpg"],
    ),
    "coco of 2014, with other names and the same keys": (
        ["train=[train2014]", "val=[val2014]"], photographs_of_2014(),
        {"coco_000000000009": {}}, {"coco_000000000042": {}}, [],
    ),
    "audiocaps": (
        [], {f"sounds/{VIDEOS[0]}.wav": "no sound", "sounds/91006.wav": 1.0},
        {f"acaps_{video}_30": {"youtube_id": video, "start": 30} for video in VIDEOS[1:8]}
        | {f"acaps_{VIDEOS[3]}_30": {"captions": ["Sound 3, and so on"], "samples": 1.3 * 16000}},
        {"acaps_ttttttttttt_0": {"captions": [f"test {i}" for i in range(5)], "samples": 160000}},
        [r"train\.csv: 1 of 9 audio files are missing", rf"{VIDEOS[0]}\.wav: "],
    ),
    "clotho": (
        [], {"development/b.wav": "no sound"},
        {"clotho_development_00000": {"captions": [f"It rains {i}" for i in range(5)], "file_name": "Rain, 1.wav"}},
        {"clotho_evaluation_00000": {}}, [r"b\.wav: "],
    ),
    "vggsound": (
        [], {},
        {"vgg_ttttttttttt_000000": {}, "vgg_--0PQM4-hqg_000030": {
            "captions": [f"{start}playing violin, fiddle" for start in ("", "the sound of ", "a recording of ")],
            "label": "playing violin, fiddle", "target": 1, "youtube_id": "--0PQM4-hqg",
        }},
        {"vgg_---g-f_I2yQ_000001": {}}, [r"vggsound\.csv: 1 of 3 audio files are missing \(vgg_gonegonegon_000005"],
    ),
    # Two classes share the name missile.
    "imagenet": (
        ["size=100"], {"train/n01440764/n01440764_9.JPEG": "no picture"},
        {"in1k_n01440764_0": {"size": (100, 133), "label": "tench", "target": 0, "captions": [
            "a photo of a tench", "a picture of a tench", "a tench",
        ]}, "in1k_n03773504_1": {}, "in1k_n04008634_2": {"label": "missile", "target": 744}},
        {"in1k_ILSVRC2012_val_00000001": {"label": "missile", "target": 657, "size": (60, 48)},
         "in1k_ILSVRC2012_val_00000000": {}, "in1k_ILSVRC2012_val_00000002": {}},
        [r"n01440764_9\.JPEG: "],
    ),
    "urbansound8k": (
        [], {},
        {"us8k_101-0-0-1": {"label": "air conditioner", "fold": 1, "freesound_id": "101", "samples": 3200}}
        | {f"us8k_{name}": {} for name in (
            "101-1-0-0", "101-1-0-1", "102-0-0-0", "102-0-0-1", "102-1-0-0", "102-1-0-1",
        )},
        {f"us8k_110-{target}-0-{i}": {"target": target} for target in (0, 1) for i in (0, 1)},
        [r"UrbanSound8K\.csv: 1 of 8 audio files are missing \(us8k_101-0-0-0"],
    ),
    "fsd50k": (
        [], {},
        {"fsd50k_64760": {
            "targets": {"labels": ["Bark", "Dog"]}, "label": None,
            "captions": ["the sound of Bark", "the sound of Dog"],
        }},
        {"fsd50k_37199": {"targets": {"labels": ["Car horn"]}}}, [r"eval\.csv: 1 of 2 audio files are missing"],
    ),
}  # fmt: skip
"""By the name of the layout and what is special: options, files in the download, the fields of the samples that are
written for train and val, and patterns of what is told."""


def field_of(record, name):
    if name == "size":
        return size_of(record)
    if name == "samples":
        wave, _ = wave_of(record)
        return len(wave)
    return record.about[name]


def assert_fields(records, expected):
    assert set(records) == set(expected)
    for key, fields in expected.items():
        for name, value in fields.items():
            assert field_of(records[key], name) == value, f"{key} {name}"


@pytest.mark.parametrize("case", CASES)
def test_shards_of_a_download(prepare, case):
    options, files, train, val, messages = CASES[case]
    layout = re.match(r"\w+", case)[0]
    shards = prepare(layout, *options, files=files)
    assert_fields(shards.train, train)
    assert_fields(shards.val, val)
    for pattern in messages:
        assert re.search(pattern, shards.err), pattern


def test_equal_downloads_give_equal_bytes(prepare, tmp_path):
    """Not the time, nor where the shards lie."""
    root = prepare("coco").root
    moved = root.rename(tmp_path / "moved")
    prepare("coco", "--shard-size", "15")
    paths = list(root.rglob("*.tar"))
    assert paths
    for path in paths:
        assert path.read_bytes() == (moved / path.relative_to(root)).read_bytes()
