"""Each public layout on a few made-up files of its download, by the command that makes shards of it."""

import dataclasses
import inspect
import io
import json
import re
import sys
import types
from fnmatch import fnmatch
from pathlib import Path

import pytest
from PIL import Image
from support.downloads import DOWNLOADS, MACS, fill, iconify, picture, sound
from support.layouts import captions, media, size_of, wave_of

from onepeace.cli import main
from onepeace.datasets import LAYOUTS
from onepeace.datasets.leaks import check_leaks, read_shard
from onepeace.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "onepeace/datasets"
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
    if name == "imagenet_samples":
        fill(source, {"n01_cat.JPEG": picture(1)})
    assert main(["shards", "--layout", name, str(source), "-o", str(tmp_path / "root")]) == 1
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert str(tmp_path / "root/val/tiny_imagenet" if name == "imagenet_samples" else source) in err
    assert not (tmp_path / "root").exists()


def test_every_layout_is_listed_and_in_the_readme(capsys):
    assert main(["shards", "--layout", "?"]) == 2
    assert f"no layout '?'; there are {', '.join(LAYOUTS)}" in capsys.readouterr().err
    text = (ROOT / "data/README.md").read_text(encoding="utf-8")
    assert not [name for name in LAYOUTS if f"`{name}`" not in text]


def test_recipes_name_the_shards_that_the_layouts_write():
    """Those of the sets that have a layout, and a smaller copy's ("coco_mini") too."""
    files = {inspect.getfile(type(layout)) for layout in LAYOUTS.values()}
    code = "".join(Path(file).read_text() for file in files)
    written = re.findall(r'"(train/\w+/\w+)"', code)
    assert len(written) >= 7
    for path in [*ROOT.glob("recipes/pretrain/*.yaml"), ROOT / "recipes/ablation/base.yaml"]:
        for pattern in re.findall(r"train/\w+/[a-z][^\"]*", path.read_text()):
            found = [name for name in written if fnmatch(f"{name}-00000.tar.gz", pattern)]
            assert len(found) == (0 if Path(pattern).name in NO_LAYOUT else 1), f"{path.name}: {pattern}"


def test_a_layout_is_read_without_shards(source):
    """For evaluation and fine-tuning: files by path, of the split that is asked for."""
    fill(source, {"audio/1-100032-A-0.wav": 0.1, "audio/5-200-B-2.wav": 0.1})
    (dog,), (pig,) = (list(LAYOUTS["esc50"].read(source, split)) for split in ("train", "val"))
    assert (dog.label, pig.label) == ("dog", "pig")
    assert dog.inputs["audio"] == source / "audio/1-100032-A-0.wav"
    assert dog.captions[0] == "a dog barking"


BAD = {
    "tiny_imagenet": [
        ("words.txt", "n01443537 goldfish\n", ":1: expected WNID"),
        ("words.txt", "\nn01443537\t \n", ":2: expected WNID"),
        ("words.txt", "n01443537\tgoldfish\n", ": has no line for class n02509815"),
        ("val/val_annotations.txt", "\nval_0.JPEG\n", ":2: expected a file name"),
    ],
    "flickr8k": [("text/Flickr8k.token.txt", "train_a.jpg#0\tfine\n\ntrain_a.jpg no tab\n", ":3: expected NAME.jpg")],
    "flickr30k": [
        ("results_20130124.token", "1.jpg, 0, A dog\n", ":1: expected NAME.jpg#NUMBER"),
        ("dataset_flickr30k.json", '{"images": [{"filename": "1.jpg"}]}', ": image 1 of the list has no filename and"),
        ("dataset_flickr30k.json", "[]", ": has no list of images"),
    ],
    "coco": [
        ("annotations/captions_val2017.json", '{"annotations": [\n{"image_id": 9}]}', ": annotation 1 has no"),
        ("annotations/captions_val2017.json", '{"annotations": [\n{"image_id": }]}', ":2: not JSON"),
        ("annotations/captions_val2017.json", "[]", ": has no list of annotations"),
    ],
    "conceptual_captions": [
        ("Train_GCC-training.tsv", f"caption\turl\na dog\thttps://example.org/1.jpg\n{row}\n", f":3: {message}")
        for row, message in (
            ("a dog", "expected a caption"), ("a dog\tdog.jpg", "expected a caption"),
            (" .\thttps://example.org/1.jpg", "the caption is empty"),
        )
    ],
    "emoji": [("emojibase-data/en/data.json", '[{"label": "dog"}]', ": entry 0 has no hexcode")],
    "audiocaps": [
        ("dataset/test.csv", f"audiocap_id,youtube_id,start_time,caption\n\n{row}\n", f":3: {message}")
        for row, message in (
            ("1,Abc,30,a dog", "'Abc' is not the id of a video"),
            ("1,Abcdefghijk,x,a dog", "expected a whole number, found 'x'"),
            ("1,Abcdefghijk,30, ", "no caption"), ("1,Abcdefghijk,30", "3 cells in place of 4"),
        )
    ],
    "clotho": [
        ("clotho_captions_development.csv", f"{head}\n{row}\n", message)
        for head, row, message in (
            ("file_name,caption_1,caption_2,caption_3,caption_4,caption_5", "a.wav,1,2,3,,5", ":2: no caption_4"),
            ("file_name,caption_1,caption_2,caption_3,caption_4,caption_5", '"a.wav', ":2: cannot be read"),
            ("name,text", "a.wav,1", ":2: no file_name; expected the columns file_name, caption_1"),
        )
    ],
    "macs": [
        ("MACS.yaml", MACS.replace("sentence: footsteps", "text: x"), ": file 2 of the list has no filename"),
        ("MACS.yaml", MACS.replace("footsteps, tags", "'.', tags"), ": file 2 of the list, public_square-paris-1"),
        ("MACS.yaml", MACS + "- ]\n", ": line 9: not YAML"), ("MACS.yaml", "files: 3\n", ": has no list of files"),
        ("MACS.yaml", "files: []\n", ": has no list of files, or an empty one"),
        ("MACS.yaml", "", ": expected a mapping"),
    ],
    "cifar10": [("cifar-10-batches-bin/test_batch.bin", "short", ": 5 bytes are no whole number of records of 3073")],
    "urbansound8k": [
        (
            "UrbanSound8K/metadata/UrbanSound8K.csv",
            f"slice_file_name,fsID,start,end,salience,fold,classID,class\n{row}\n",
            message,
        )
        for row, message in (
            ("1-0-0-0.wav,1,0,4,1,one,0,siren", ":2: expected a whole number, found 'one'"),
            ("1-0-0-0.wav,1,0,4,1,1,3,siren", ": has the classes [3], not all from 0"),
        )
    ],
    "fsd50k": [
        ("FSD50K.ground_truth/eval.csv", "fname,labels\n37199,Cat\n", ":2: label 'Cat' is not in vocabulary.csv"),
    ],
    "vggsound": [
        ("vggsound.csv", f"---g-f_I2yQ,1,people marching,test\n{row}\n", f":2: {message}")
        for row, message in (
            ("---g-f_I2yQ,1,people marching", "3 cells in place of 4"),
            ("---g-f_I2yQ,one,people marching,test", "expected a whole number, found 'one'"),
            ("---g-f_I2yQ,1,people marching,val", "the split is 'val', not train or test"),
            ("---g-f_I2yQ,1,,test", "no label"),
        )
    ],
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "file", "content", "message"), [(name, *bad) for name, rows in BAD.items() for bad in rows]
)
def test_a_broken_table_names_file_and_line(source, prepare, name, file, content, message):
    file = f"tiny-imagenet-200/{file}" if name == "tiny_imagenet" else file
    done = prepare(name, files={file: content}, code=1)
    assert f"{source / file}{message}" in done.err


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (("coco", "siez=9"), 1, "layout coco: siez is not a field; did you mean size?"),
        (("coco", "size=large"), 1, "layout coco: size should be int"),
        (("coco", "size"), 1, "'size' is not an override"),
        (("coco", "val=[train2017]"), 1, "layout coco: train2017 cannot be both training and validation data"),
        (("clotho", "train=[a]", "val=[a]"), 1, "layout clotho: a cannot be both"),
        (("emoji", "png=[apple=x]"), 1, "png apple=x: expected NAME=FOLDER"),
        (("cocos",), 2, "no layout 'cocos'; there are tiny_imagenet, "),
        (("coco", "--check"), 2, "--check is for a table or folder of your own"),
        (("coco", "--column", "image=x"), 2, "--column is for a table"),
    ],
)
def test_wrong_options_are_named(prepare, options, code, message):
    name, *rest = options
    assert message in prepare(name, *rest, code=code).err


# ------------------------------------------------------------------ what is written of a download


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
    assert "train/image_text/tiny_imagenet-*.tar.gz: 4 samples, " in done.out


def test_imagenet_samples_leave_out_near_copies_of_validation(source, prepare):
    prepare("tiny_imagenet")
    # the picture of val_1, larger and stored anew
    near = picture(101, (64, 64)).resize((256, 256))
    done = prepare(
        "imagenet_samples",
        files={"n02123045_tabby_cat.JPEG": picture(7, (300, 200)), "n02509815_red_panda.JPEG": near},
    )
    assert "ins_n02509815" not in done.train
    assert "n02509815_red_panda.JPEG: near copy" in done.err
    sample = done.train["ins_n02123045"]
    assert captions(sample) == ["a photo of a tabby cat", "a picture of a tabby cat", "a tabby cat"]
    assert size_of(sample) == (192, 128)


def test_flickr30k_as_kaggle_has_it(source, prepare):
    """The folder of pictures inside itself, and one row of the table with a broken separator."""
    inner = "flickr30k_images/flickr30k_images"
    table = "flickr30k_images/results.csv"
    head = "image_name| comment_number| comment\n"
    files = {f"flickr30k-images/{i}.jpg": None for i in (1, 2, 3)}
    files |= {f"{inner}/{i}.jpg": picture(i, (500, 333)) for i in (1, 2, 3)}
    files |= {"results_20130124.token": None}
    rows = "1.jpg| 0| A dog | or so .\n1.jpg| 4   A cat .\n2.jpg| 0| A cow\n"
    done = prepare("flickr30k", files={**files, table: head + rows})
    assert captions(done.train["f30k_1"]) == ["A dog | or so", "A cat"]
    assert set(done.train) == {"f30k_1", "f30k_2"}
    assert "3.jpg: it has no caption" in done.err
    done = prepare("flickr30k", files={table: f"{head}1.jpg, 0, A dog\n"}, code=1)
    assert f"{source / table}:2: expected image_name| comment_number| comment" in done.err


def test_the_two_flickr_sets_share_no_photograph_between_training_and_validation(prepare):
    """Flickr30k holds Flickr8k's photographs under the first part of their names."""
    text = {key: content for key, content in DOWNLOADS["flickr8k"]().items() if isinstance(content, str)}
    renamed = {key: text.replace("test_a", "1_ab").replace("train_a", "3_cd") for key, text in text.items()}
    renamed |= {"Flicker8k_Dataset/1_ab.jpg": picture(1), "Flicker8k_Dataset/3_cd.jpg": picture(3)}
    karpathy = {"dataset_flickr30k.json": {"images": [{"filename": "3.jpg", "split": "test"}]}}
    gone = {f"Flicker8k_Dataset/{name}.jpg": None for name in ("test_a", "train_a")}
    assert "f8k_3_cd" in prepare("flickr8k", files={**renamed, **gone}).train
    done = prepare("flickr30k", files=karpathy)
    assert "f30k_2" in done.train
    assert "f30k_1" not in done.train
    (error,) = check_leaks(done.root).errors
    assert "f30k_3 has the same group" in error
    done = prepare("flickr8k")
    assert "f8k_3_cd" not in done.train
    assert check_leaks(done.root).errors == []


def test_coco_without_photographs_is_an_error(prepare):
    done = prepare("coco", files={"val2017/000000000139.jpg": None, "val2017/dog.jpg": "x"}, code=1)
    assert "val2017: no photographs named NUMBER.jpg" in done.err


def test_imagenet_without_folders_says_how_to_make_them(prepare, source):
    files = {f"val/{wnid}/ILSVRC2012_val_0000000{i}.JPEG": None for i, wnid in enumerate(IMAGENET)}
    done = prepare("imagenet", files={**files, "val/ILSVRC2012_val_00000000.JPEG": picture(1)}, code=1)
    assert f"{source / 'val'}: no pictures val/WNID/*.JPEG (it has pictures outside of such folders); " in done.err


@pytest.mark.parametrize(
    ("name", "file"), [("cifar10", "cifar-10-batches-py/data_batch_1"), ("cifar100", "cifar-100-python/train")]
)
def test_pickled_cifar_is_refused(name, file, source, capsys, tmp_path):
    fill(source, {file: b"\x80\x02}q\x00."})
    assert main(["shards", "--layout", name, str(source), "-o", str(tmp_path / "root")]) == 1
    assert "is pickled, which may run code; download the binary version" in capsys.readouterr().err


def test_a_class_of_cifar_without_a_name_is_an_error(prepare):
    done = prepare("cifar10", files={"cifar-10-batches-bin/batches.meta.txt": "airplane\n"}, code=1)
    assert "test_batch.bin: record 0 has class 3 of 1" in done.err


def test_conceptual_captions_are_downloaded_once_and_failures_named(source, prepare, monkeypatch):
    asked = []

    def download(url, name, max_bytes):
        asked.append(url)
        if url.endswith("3.jpg"):
            raise UserError(f"{name}: the server answered 404 Not Found")
        buffer = io.BytesIO()
        picture(5).save(buffer, "PNG")
        return buffer.getvalue()

    monkeypatch.setattr("onepeace.files.fetch.fetch", download)
    done = prepare("conceptual_captions", "download=true")
    assert set(done.train) == {"cc_train_gcc_training_000000000", "cc_train_gcc_training_000000001"}
    assert sorted(asked) == ["https://example.org/2.png?x=1", "https://example.org/3.jpg"]
    assert "row 2: https://example.org/3.jpg: the server answered 404" in done.err
    assert "row 3: ftp://example.org/4.jpg: addresses must be http or https, not ftp" in done.err
    assert (source / "Train_GCC-training/00000/000000001.png").is_file()
    prepare("conceptual_captions", "download=true")
    assert asked.count("https://example.org/2.png?x=1") == 1


# ------------------------------------------------------------------ drawings


def test_emoji_from_iconify_packages(prepare, monkeypatch):
    drawn = []

    def svg_to_bytes(svg_string, width):
        drawn.append(svg_string)
        if "broken" in svg_string:
            raise ValueError("not SVG")
        buffer = io.BytesIO()
        picture(len(drawn), (width, width), "RGBA").save(buffer, "PNG")
        return list(buffer.getvalue())

    monkeypatch.setitem(sys.modules, "resvg_py", types.SimpleNamespace(svg_to_bytes=svg_to_bytes))
    packages = {
        **iconify(
            "noto", "noto", ["dog-face", "b-button-blood-type"], {"1f436": "dog-face", "1f171": "b-button"},
            aliases={"b-button": {"parent": "b-button-blood-type"}},
        ),
        # no table of code points: known by the names another set gives
        **iconify("fluent", "fluent-emoji-flat", ["dog-face", "unheard-of"], None),
        **iconify("twemoji", "twemoji", ["dog-face-broken"], {"1f436": "dog-face-broken"}),
        **iconify("mdi", "mdi", ["dog"], {"1f436": "dog"}),
    }  # fmt: skip
    done = prepare("emoji", files=packages)
    assert set(done.val) == {"emoji_noto_1f171"}
    assert set(done.train) == {"emoji_noto_1f436", "emoji_fluent_emoji_flat_1f436"}
    assert done.val["emoji_noto_1f171"].about["license"] == "licence of noto"
    assert 'viewBox="0 0 32 32"' in drawn[0]
    assert "dog-face-broken: not SVG" in done.err


def test_emoji_without_the_svg_package_says_what_to_do(prepare, monkeypatch):
    monkeypatch.setitem(sys.modules, "resvg_py", None)
    done = prepare("emoji", files=iconify("noto", "noto", ["dog-face"], {"1f436": "dog-face"}), code=1)
    assert "pip install resvg-py" in done.err


def test_openclipart(prepare):
    held_out = (PACKAGE / "openclipart_val.txt").read_text(encoding="utf-8").splitlines()[0]
    names = {
        # "jane_doe" follows two titles and is an author
        "animals/wild_cat_jane_doe_01": 1,
        "animals/sleepy-dog_jane_doe": 2,
        "food/red_apple": 3,
        "food/cartoon": 4,
        "signs/flags/france": 5,
        f"food/{held_out.replace(' ', '_')}": 6,
        f"things/{held_out.replace(' ', '_')}_02": 7,
    }
    files = {f"{name}.png": picture(seed, (300, 200), "RGBA") for name, seed in names.items()}
    files |= {"food/thin_line.png": picture(8, (300, 20), "RGBA"), "food/broken_bottle.png": "no picture"}
    files |= {"food/nothing_here.png": Image.new("RGBA", (100, 100), "white")}
    done = prepare("openclipart", files=files)
    titles = {captions(s)[0]: s for s in done.train.values()}
    assert set(titles) == {"wild cat", "sleepy dog", "red apple"}
    assert captions(titles["wild cat"]) == ["wild cat", "a drawing of wild cat", "wild cat (animals)"]
    assert size_of(titles["wild cat"]) == (128, 128)
    (one,) = done.val.values()
    assert captions(one) == [held_out]
    assert "broken_bottle.png" in done.err


# ------------------------------------------------------------------ sounds


def test_esc50(source, prepare):
    sound(source / "audio/1-100032-A-0.wav", 5, rate=44100)
    sound(source / "audio/5-200-B-2.wav", 2, rate=48000, channels=2)
    sound(source / "504 - Siren/3-77-A.ogg", 6, rate=16000)
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
    assert "test.csv: not one of its 1 audio files is there; " in done.err
    assert "train.csv: not one of its 9 audio files is there; " in done.err
    assert "not videos: extract their sound" in done.err
    assert done.err.splitlines()[-1].endswith("download: nothing in it can be used; nothing is written")


def test_sets_of_youtube_share_no_video_between_training_and_validation(prepare):
    prepare("audiocaps")
    done = prepare("vggsound")
    assert "vgg_--0PQM4-hqg_000030" in done.train
    assert "vgg_ttttttttttt_000000" not in done.train  # its video is in AudioCaps' test split
    classes = json.loads((done.root / "val/vggsound/classes.json").read_text())
    assert classes == ["people marching", "playing violin, fiddle", "waterfall"]
    assert check_leaks(done.root).errors == []


# ------------------------------------------------------------------ what is written


# ------------------------------------------------------------------ the files that come with the repository


def test_shipped_shards_have_no_leak(shared):
    """The held-out emoji and drawings of this checkout are those of the shards, and in no training shard."""
    names = {split: set() for split in ("train", "val")}
    for split in names:
        for shard in sorted((shared / "data" / split).rglob("emoji-*.tar.gz")):
            names[split] |= {(s.about["hexcode"], s.about["name"]) for s in read_shard(shard)}
    listed = {tuple(line.split("\t")) for line in (PACKAGE / "emoji_val.txt").read_text(encoding="utf-8").splitlines()}
    assert names["val"] == listed
    assert not {name for _, name in names["train"]} & {name for _, name in listed}
    titles = {captions(s)[0] for p in (shared / "data/val/openclipart").glob("*.gz") for s in read_shard(p)}
    assert titles == set((PACKAGE / "openclipart_val.txt").read_text(encoding="utf-8").splitlines())


def test_samples_are_all_listed_with_licence(samples):
    import csv

    with (samples / "captions.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    on_disk = {p.relative_to(samples).as_posix() for p in samples.rglob("*") if p.suffix in (".jpg", ".ogg")}
    assert {row["image"] or row["audio"] for row in rows} == on_disk
    assert len(on_disk) == 37
    assert all(row["caption"] and row["source"] and row["license"] and "GPL" not in row["license"] for row in rows)
    assert sum(p.stat().st_size for p in samples.rglob("*") if p.is_file()) <= 4_000_000
