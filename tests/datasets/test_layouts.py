"""Each public layout on a few made-up files of its download, by the command that makes shards of it."""

import dataclasses
import inspect
import json
import pickle
import re
from fnmatch import fnmatch
from pathlib import Path

import pytest
from support.downloads import DOWNLOADS, picture, sound
from support.layouts import captions, media, wave_of

from onepeace.cli import main
from onepeace.datasets import LAYOUTS
from onepeace.datasets.layout import OfficialSplits

ROOT = Path(__file__).resolve().parents[2]
IMAGENET = ("n01440764", "n03773504", "n04008634")
NO_LAYOUT = {f"{name}-*.tar*" for name in ("caltech101", "labelled_mix", "fashion", "sounds")}
"""Shards of recipes that no layout writes."""


# ------------------------------------------------------------------ every layout


@pytest.mark.parametrize("name", LAYOUTS)
def test_help_says_what_a_layout_reads_and_its_options(name, capsys):
    assert main(["shards", "--layout", name, "--help"]) == 0
    out = capsys.readouterr().out
    assert re.search("SOURCE (holds|is)", out.partition("--force")[2])
    assert all(f"  {option.name}=" in out for option in dataclasses.fields(LAYOUTS[name]))


@pytest.mark.parametrize("name", LAYOUTS)
def test_an_empty_download_is_one_line_that_names_it(name, source, capsys, tmp_path):
    assert main(["shards", "--layout", name, str(source), "-o", str(tmp_path / "root")]) == 1
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert str(source) in err
    assert not (tmp_path / "root").exists()


def test_every_layout_is_listed_and_in_the_readme(capsys):
    assert main(["shards", "--layout", "?"]) == 2
    assert f"no layout '?'; there are {', '.join(LAYOUTS)}" in capsys.readouterr().err
    text = (ROOT / "data/README.md").read_text(encoding="utf-8")
    assert not [name for name in LAYOUTS if f"`{name}`" not in text]


def test_recipes_name_the_shards_that_the_layouts_write():
    """Those of the sets that have a layout, and a smaller copy's ("coco_mini") too."""
    files = {ROOT / "recipes/own_layouts.py", *(inspect.getfile(type(layout)) for layout in LAYOUTS.values())}
    code = "".join(Path(file).read_text() for file in files)
    written = re.findall(r'"(train/\w+/\w+)"', code)
    tables = [layout for layout in LAYOUTS.values() if isinstance(layout, OfficialSplits) and layout.prefix]
    written += [
        layout.shards(split) for layout in tables for split in layout.train if layout.shards(split) not in written
    ]
    assert len(written) >= 20
    for path in [*ROOT.glob("recipes/pretrain/*.yaml"), ROOT / "recipes/ablation/base.yaml"]:
        for pattern in re.findall(r"train/\w+/[a-z][^\"]*", path.read_text()):
            found = [name for name in written if fnmatch(f"{name}-00000.tar", pattern)]
            assert len(found) == (0 if Path(pattern).name in NO_LAYOUT else 1), f"{path.name}: {pattern}"


BAD = [
    ("tiny_imagenet", "tiny-imagenet-200/words.txt", "\nn01443537\t \n", ":2: "),
    ("tiny_imagenet", "tiny-imagenet-200/val/val_annotations.txt", "\nval_0.JPEG\n", ":2: "),
    ("flickr8k", "text/Flickr8k.token.txt", "train_a.jpg#0\tfine\n\ntrain_a.jpg no tab\n", ":3: "),
    ("flickr30k", "dataset_flickr30k.json", "[]", ": has no list of images"),
    ("coco", "annotations/captions_val2017.json", '{"annotations": [\n{"image_id": 9}]}', ": annotations, entry 1: "),
    ("coco", "annotations/captions_val2017.json", '{"annotations": [\n{"image_id": }]}', ":2: not JSON"),
    ("audiocaps", "dataset/test.csv", "audiocap_id,youtube_id,start_time,caption\n\n1,Abcdefghijk,x,a dog\n", ":3: "),
    ("audiocaps", "dataset/test.csv", "audiocap_id,youtube_id,start_time,caption\n1,Abcdefghijk,30\n", ":2: 3 cells"),
    ("clotho", "clotho_captions_development.csv", "name,text\na.wav,1\n", ":2: no file_name"),
    ("fsd50k", "FSD50K.ground_truth/eval.csv", "fname,labels\n37199,Cat\n", ":2: label 'Cat'"),
    ("vggsound", "vggsound.csv", "---g-f_I2yQ,1,people marching,val\n", ":1: the split is 'val'"),
    ("vqav2", "v2_mscoco_train2014_annotations.json", {"annotations": [{"answers": 3}]}, ": annotations, entry 1: "),
    ("nlvr2", "data/dev.json", '\n{"a": \n', ":2: not JSON"),
    ("nlvr2", "data/dev.json", '\n{"identifier": "dev-1-0-0", "label": "Yes", "sentence": "x"}\n', ":2: expected"),
    ("snli_ve", "snli_ve_dev.jsonl", '{"pairID": "9.jpg#0", "gold_label": "-"}\n', ":1: expected pairID"),
    ("refcoco", "refcoco/refs(unc).p", b"nothing", ": not a readable"),
    ("refcoco", "refcoco/refs(unc).p", pickle.dumps([{"ann_id": 1}]), ": list, entry 1: expected ref_id, split, "),
    ("coco_detection", "annotations/instances_val2017.json", {"images": [{"id": 1}]}, ": images, entry 1: expected id"),
    ("ade20k", "ADEChallengeData2016/objectInfo150.txt", "Idx\tName\n1\twall\n3\tsky\n", ":3: expected class 2"),
    ("avqa", "val_qa.json", [{"id": 1}], ": list, entry 1: expected id, video_name"),
    ("sound_events", "val.csv", "filename,onset,offset,event_label\na.wav,nan,1,dog\n", ":2: expected a number"),
    ("sound_events", "val.csv", "filename,onset,offset\na.wav,0,1\n", ":2: no column event_label"),
]


@pytest.mark.parametrize(("name", "file", "content", "message"), BAD)
def test_a_broken_table_names_file_and_line(source, prepare, name, file, content, message):
    done = prepare(name, files={file: content}, code=1)
    assert f"{source / file}{message}" in done.err
    assert done.err.count("\n") == 1


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (("coco", "siez=9"), 1, "layout coco: siez is not a field; did you mean size?"),
        (("coco", "val=[train2017]"), 1, "layout coco: train2017 cannot be both training and validation data"),
        (("cocos",), 2, "no layout 'cocos'; there are tiny_imagenet, "),
    ],
)
def test_wrong_options_are_named(prepare, options, code, message):
    name, *rest = options
    assert message in prepare(name, *rest, code=code).err


# ------------------------------------------------------------------ photographs


def test_tiny_imagenet(prepare, source):
    folder = "tiny-imagenet-200"
    copy = {f"{folder}/train/n02509815/images/n02509815_1.JPEG": picture(100, (64, 64))}  # as val_0
    done = prepare(
        "tiny_imagenet",
        "val_per_class=1",
        files={f"{folder}/train/n01443537/images/n01443537_2.JPEG": "no picture", **copy},
    )
    assert set(done.train) == {"tin_n01443537_0", "tin_n01443537_1", "tin_n02509815_0", "tin_n02509815_2"}
    assert len(done.val) == 2
    assert {s.about["label"] for s in done.val.values()} == {"goldfish", "red panda"}
    sample = done.train["tin_n02509815_0"]
    assert media(sample) == (source / folder / "train/n02509815/images/n02509815_0.JPEG").read_bytes()
    assert captions(sample) == [
        *("a photo of a red panda", "a picture of a red panda", "a red panda", "a small photo of a red panda"),
        *("a photo of a lesser panda", "a photo of a bear cat"),
    ]
    assert (sample.about["wnid"], sample.about["target"]) == ("n02509815", 1)
    classes = json.loads((done.root / "val/tiny_imagenet/classes.json").read_text())
    assert [entry["name"] for entry in classes] == ["goldfish", "red panda"]
    assert "n01443537_2.JPEG" in done.err
    assert "train/image_text/tiny_imagenet-*.tar: 4 samples, " in done.out


def test_the_two_flickr_sets_share_no_photograph_between_training_and_validation(prepare):
    """Flickr30k holds Flickr8k's photographs under the first part of their names."""
    text = {key: content for key, content in DOWNLOADS["flickr8k"]().items() if isinstance(content, str)}
    renamed = {key: text.replace("test_a", "1_ab").replace("train_a", "3_cd") for key, text in text.items()}
    renamed |= {"Flicker8k_Dataset/1_ab.jpg": picture(1), "Flicker8k_Dataset/3_cd.jpg": picture(3)}
    gone = {f"Flicker8k_Dataset/{name}.jpg": None for name in ("test_a", "train_a")}
    assert "f8k_3_cd" in prepare("flickr8k", files={**renamed, **gone}).train
    done = prepare("flickr30k")
    assert "f30k_1" not in done.train
    assert {"f8k_3_cd"} <= set(done.train)
    assert {"f30k_3"} <= set(done.val)
    assert "f8k_3_cd" not in prepare("flickr8k").train


# ------------------------------------------------------------------ sounds


def test_esc50(source, prepare):
    sound(source / "audio/1-100032-A-0.wav", 5, rate=44100)
    sound(source / "audio/5-200-B-2.wav", 2, rate=48000, channels=2)
    sound(source / "audio/3-77-A-43.wav", 6, rate=16000)
    bad = {"audio/2-55-A-1.wav": "no sound", "audio/noise.wav": "", "audio/2-55-A-50.wav": ""}
    done = prepare("esc50", files=bad)
    assert set(done.train) == {"esc50_1-100032-A-0", "esc50_3-77-A-43"}
    assert set(done.val) == {"esc50_5-200-B-2"}
    dog, pig = done.train["esc50_1-100032-A-0"], done.val["esc50_5-200-B-2"]
    assert (dog.about["label"], dog.about["license"]) == ("dog", "CC BY 3.0")
    assert (pig.about["label"], pig.about["license"]) == ("pig", "CC BY-NC 3.0")
    assert (pig.about["target"], pig.about["fold"], pig.about["freesound_id"]) == (2, 5, "200")
    for sample in (dog, pig, done.train["esc50_3-77-A-43"]):
        wave, rate = wave_of(sample)
        assert (wave.shape, rate) == ((80000,), 16000)
        assert wave.std() > 0.02
    wave, _ = wave_of(pig)
    assert abs(wave[33000:]).max() < 0.01 < wave[:32000].std()
    names = json.loads((done.root / "val/esc50_fold5/classes.json").read_text())
    assert (len(names), names[0], names[43]) == (50, "dog", "car horn")
    assert all(name in done.err for name in bad)


def test_sets_of_sounds_take_no_videos(prepare):
    sounds = [name for name, content in DOWNLOADS["audiocaps"]().items() if isinstance(content, float)]
    done = prepare(
        "audiocaps", files={**dict.fromkeys(sounds), **{f"{name}.mp4": "a video" for name in sounds}}, code=1
    )
    assert "test.csv: none of its 1 audio files is there; " in done.err
    assert "train.csv: none of its 9 audio files is there; " in done.err
    assert "not videos: extract their sound" in done.err
    assert done.err.splitlines()[-1].endswith("download: nothing in it can be used; nothing was written")


def test_sets_of_youtube_share_no_video_between_training_and_validation(prepare):
    prepare("audiocaps")
    done = prepare("vggsound")
    assert "vgg_--0PQM4-hqg_000030" in done.train
    assert "vgg_ttttttttttt_000000" not in done.train  # its video is in AudioCaps' test split
    classes = json.loads((done.root / "val/vggsound/classes.json").read_text())
    assert classes == ["people marching", "playing violin, fiddle", "waterfall"]


# ------------------------------------------------------------------ the files that come with the repository


def test_samples_are_all_listed_with_licence(samples):
    import csv

    with (samples / "captions.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    on_disk = {p.relative_to(samples).as_posix() for p in samples.rglob("*") if p.suffix in (".jpg", ".ogg")}
    assert {row["image"] or row["audio"] for row in rows} == on_disk
    assert len(on_disk) == 37
    assert all(row["caption"] and row["source"] and row["license"] and "GPL" not in row["license"] for row in rows)
    assert sum(p.stat().st_size for p in samples.rglob("*") if p.is_file()) <= 4_000_000
