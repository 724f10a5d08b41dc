"""Each public layout on a few made-up files of its download, by the command that makes shards of it."""

import dataclasses
import pickle
import re
from fnmatch import fnmatch
from pathlib import Path

import pytest
from support.downloads import DOWNLOADS, picture, sound
from support.layouts import NAMES, captions, layout_file, media, wave_of
from support.samples import FOLDER, rows

from onepeace.cli import main
from onepeace.datasets.layout import OfficialSplits, load_layout

ROOT = Path(__file__).resolve().parents[2]


# ------------------------------------------------------------------ every layout


@pytest.mark.parametrize("name", NAMES)
def test_help_names_source_and_options(name, capsys):
    assert main(["shards", "--layout", layout_file(name), "--help"]) == 0
    _, _, help_of_layout = capsys.readouterr().out.partition("--force")
    assert re.search("SOURCE (holds|is)", help_of_layout)
    for option in dataclasses.fields(load_layout(layout_file(name))):
        assert f"  {option.name}=" in help_of_layout


@pytest.mark.parametrize("name", NAMES)
def test_empty_download_is_named_in_one_line(name, source, capsys, tmp_path):
    root = tmp_path / "root"
    assert main(["shards", "--layout", layout_file(name), str(source), "-o", str(root)]) == 1
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert str(source) in err
    assert not root.exists()


def test_layouts_are_listed_in_readme():
    text = (ROOT / "data/README.md").read_text(encoding="utf-8")
    assert [name for name in NAMES if f"`{name}`" not in text] == []


def names_of_shards():
    """Names of the shards that layouts write as training data, such as train/image_text/coco."""
    names = set()
    for name in NAMES:
        layout = load_layout(layout_file(name))
        if isinstance(layout, OfficialSplits) and layout.prefix:
            names |= {layout.shards(split) for split in layout.train}
        names |= set(re.findall(r'"(train/\w+/\w+)"', Path(layout_file(name)).read_text()))
    assert len(names) >= 20
    return names


@pytest.mark.parametrize("recipe", [*ROOT.glob("recipes/pretrain/*.yaml"), ROOT / "recipes/ablation/base.yaml"])
def test_recipes_name_the_shards_that_layouts_write(recipe):
    """Some shards, such as those of caltech101, are of no layout."""
    names = names_of_shards()
    for pattern in re.findall(r"train/\w+/[a-z][^\"]*", recipe.read_text()):
        matches = [name for name in names if fnmatch(f"{name}-00000.tar", pattern)]
        is_of_a_layout = not re.search("/(caltech101|labelled_mix|fashion|sounds)-", pattern)
        assert len(matches) == is_of_a_layout, pattern


BROKEN_TABLES = [
    ("tiny_imagenet", "tiny-imagenet-200/val/val_annotations.txt", "\nval_0.JPEG\n", ":2: "),
    ("flickr8k", "text/Flickr8k.token.txt", "train_a.jpg#0\tfine\n\ntrain_a.jpg no tab\n", ":3: "),
    ("coco", "annotations/captions_val2017.json", '{"annotations": [\n{"image_id": 9}]}', ": annotations, entry 1: "),
    ("audiocaps", "dataset/test.csv", "audiocap_id,youtube_id,start_time,caption\n\n1,Abcdefghijk,x,a dog\n", ":3: "),
    ("fsd50k", "FSD50K.ground_truth/eval.csv", "fname,labels\n37199,Cat\n", ":2: label 'Cat'"),
    ("vggsound", "vggsound.csv", "---g-f_I2yQ,1,people marching,val\n", ":1: the split is 'val'"),
    ("nlvr2", "data/dev.json", '\n{"a": \n', ":2: not JSON"),
    ("nlvr2", "data/dev.json", '\n{"identifier": "dev-1-0-0", "label": "Yes", "sentence": "x"}\n', ":2: expected"),
    ("refcoco", "refcoco/refs(unc).p", b"nothing", ": not a readable"),
    ("refcoco", "refcoco/refs(unc).p", pickle.dumps([{"ann_id": 1}]), ": list, entry 1: expected ref_id, split, "),
    ("ade20k", "ADEChallengeData2016/objectInfo150.txt", "Idx\tName\n1\twall\n3\tsky\n", ":3: expected class 2"),
    ("sound_events", "val.csv", "filename,onset,offset,event_label\na.wav,nan,1,dog\n", ":2: expected a number"),
]


@pytest.mark.parametrize(("name", "file", "content", "message"), BROKEN_TABLES)
def test_broken_table_is_named_with_its_line(source, prepare, name, file, content, message):
    err = prepare(name, files={file: content}, code=1).err
    assert f"{source / file}{message}" in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("name", "option", "code", "message"),
    [
        ("coco", "siez=9", 1, "coco.py: siez is not a field; did you mean size?"),
        ("coco", "val=[train2017]", 1, "train2017 cannot be both"),
        ("cocos", "size=9", 2, "cocos.py: no such file"),
        ("coco_files", "size=9", 2, "coco_files.py: defines no layout"),
    ],
)
def test_wrong_options_are_named(prepare, name, option, code, message):
    assert message in prepare(name, option, code=code).err


# ------------------------------------------------------------------ photographs


def test_tiny_imagenet(prepare, source):
    """One picture is broken, one is among the validation data."""
    folder = "tiny-imagenet-200/train"
    copy_of_val_0 = picture(100, (64, 64))
    files = {
        f"{folder}/n01443537/images/n01443537_2.JPEG": "no picture",
        f"{folder}/n02509815/images/n02509815_1.JPEG": copy_of_val_0,
    }
    shards = prepare("tiny_imagenet", "val_per_class=1", files=files)

    assert set(shards.train) == {"tin_n01443537_0", "tin_n01443537_1", "tin_n02509815_0", "tin_n02509815_2"}
    val_labels = [record.about["label"] for record in shards.val.values()]
    assert sorted(val_labels) == ["goldfish", "red panda"]
    sample = shards.train["tin_n02509815_0"]
    assert media(sample) == (source / folder / "n02509815/images/n02509815_0.JPEG").read_bytes()
    assert captions(sample) == [
        "a photo of a red panda",
        "a picture of a red panda",
        "a red panda",
        "a small photo of a red panda",
        "a photo of a lesser panda",
        "a photo of a bear cat",
    ]
    assert sample.about["wnid"] == "n02509815"
    assert sample.about["target"] == 1
    assert [entry["name"] for entry in shards.classes("val/tiny_imagenet")] == ["goldfish", "red panda"]
    assert "n01443537_2.JPEG" in shards.err
    assert "train/image_text/tiny_imagenet-*.tar: 4 samples, " in shards.out


def test_flickr_sets_share_no_photograph_between_training_and_validation(prepare):
    """Flickr30k holds Flickr8k's photographs under the first part of their names."""
    files = {"Flicker8k_Dataset/test_a.jpg": None, "Flicker8k_Dataset/train_a.jpg": None}
    for name, content in DOWNLOADS["flickr8k"]().items():
        if isinstance(content, str):
            files[name] = content.replace("test_a", "1_ab").replace("train_a", "3_cd")
    files["Flicker8k_Dataset/1_ab.jpg"] = picture(1)
    files["Flicker8k_Dataset/3_cd.jpg"] = picture(3)

    assert "f8k_3_cd" in prepare("flickr8k", files=files).train
    shards = prepare("flickr30k")
    assert "f30k_1" not in shards.train
    assert "f30k_3" in shards.val
    assert "f8k_3_cd" in shards.train
    assert "f8k_3_cd" not in prepare("flickr8k").train


# ------------------------------------------------------------------ sounds


@pytest.fixture
def esc50(source, prepare):
    """A short one in stereo, one too long, and names that are no sounds of the set."""
    sound(source / "audio/1-100032-A-0.wav", 5, rate=44100)
    sound(source / "audio/5-200-B-2.wav", 2, rate=48000, channels=2)
    sound(source / "audio/3-77-A-43.wav", 6, rate=16000)
    return prepare("esc50", files={"audio/2-55-A-1.wav": "no sound", "audio/noise.wav": "", "audio/2-55-A-50.wav": ""})


def test_esc50(esc50):
    assert set(esc50.train) == {"esc50_1-100032-A-0", "esc50_3-77-A-43"}
    assert set(esc50.val) == {"esc50_5-200-B-2"}
    assert esc50.train["esc50_1-100032-A-0"].about["license"] == "CC BY 3.0"
    pig = esc50.val["esc50_5-200-B-2"]
    expected = {"label": "pig", "license": "CC BY-NC 3.0", "target": 2, "fold": 5, "freesound_id": "200"}
    assert expected.items() <= pig.about.items()
    assert esc50.classes("val/esc50_fold5")[43] == "car horn"
    for name in ("2-55-A-1.wav", "noise.wav", "2-55-A-50.wav"):
        assert f"audio/{name}" in esc50.err
    for record in [*esc50.train.values(), pig]:
        wave, rate = wave_of(record)
        assert wave.shape == (80000,)
        assert rate == 16000
    wave, _ = wave_of(pig)  # of two seconds
    assert wave[:32000].std() > 0.01
    assert abs(wave[33000:]).max() < 0.01


def test_sets_of_youtube_share_no_video_between_training_and_validation(prepare):
    prepare("audiocaps")
    shards = prepare("vggsound")
    assert "vgg_--0PQM4-hqg_000030" in shards.train
    assert "vgg_ttttttttttt_000000" not in shards.train  # its video is in AudioCaps' test split
    assert shards.classes("val/vggsound") == ["people marching", "playing violin, fiddle", "waterfall"]


# ------------------------------------------------------------------ the files that come with the repository


def test_samples_have_a_caption_and_a_licence_and_a_name_that_tells_nothing():
    for row in rows():
        assert all([row["caption"], row["source"], row["license"]]), row
        assert "GPL" not in row["license"]
        assert re.fullmatch(r"images/IMG_\d{4}\.jpg|sounds/REC_\d{4}\.ogg", row["file"])
    listed = [row["image"] or row["audio"] for row in rows()]
    files = [*FOLDER.rglob("*.jpg"), *FOLDER.rglob("*.ogg")]
    assert len(files) == 37
    assert sorted(listed) == sorted(path.relative_to(FOLDER).as_posix() for path in files)
