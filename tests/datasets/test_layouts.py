"""Each public layout on a few made-up files of its download, by the command that makes shards of it."""

import dataclasses
import io
import json
import re
import sys
import types
from fnmatch import fnmatch
from pathlib import Path

import pytest
from PIL import Image
from support.downloads import DOWNLOADS, MACS, VIDEOS, fill, iconify, picture, sound

from onepeace.cli import main
from onepeace.data.leaks import check_leaks, read_shard
from onepeace.datasets import LAYOUTS
from onepeace.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "onepeace/datasets"


@pytest.fixture
def source(tmp_path):
    folder = tmp_path / "download"
    folder.mkdir()
    return folder


@pytest.fixture
def prepare(tmp_path, source, capsys):
    """Makes the shards of a layout; gives the samples that were written by key, for train and val, and the messages.

    `files` are written to its made-up download (DOWNLOADS) in place of those there, None takes one away.
    """
    filled = set()

    def run(name, *options, files=(), code=0):
        download = DOWNLOADS[name]() if name in DOWNLOADS and name not in filled else {}
        filled.add(name)
        fill(source, {key: content for key, content in {**download, **dict(files)}.items() if content is not None})
        for key, content in dict(files).items():
            if content is None:
                (source / key).unlink(missing_ok=True)
        root = tmp_path / "root"
        assert main(["shards", "--layout", name, str(source), "-o", str(root), *options]) == code
        result = {
            split: {s.key: s for shard in sorted((root / split).rglob("*.tar.gz")) for s in read_shard(shard)}
            for split in ("train", "val")
        }
        return types.SimpleNamespace(root=root, **result, **capsys.readouterr()._asdict())

    return run


def captions(sample):
    return sample.about["captions"]


def media(sample):
    return next(data for modality, data in sample.inputs.items() if modality != "text")


def size_of(sample):
    return Image.open(io.BytesIO(media(sample))).size


def wave_of(sample):
    import soundfile

    return soundfile.read(io.BytesIO(media(sample)))


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
    assert main(["shards", "--help"]) == 0
    assert ", ".join(LAYOUTS) in " ".join(capsys.readouterr().out.split())
    text = (ROOT / "data/README.md").read_text(encoding="utf-8")
    assert not [name for name in LAYOUTS if f"`{name}`" not in text]


def test_recipes_name_the_shards_that_the_layouts_write():
    """Those of the sets that have a layout, and a smaller copy's ("coco_mini") too."""
    code = "".join((PACKAGE / f"{name}.py").read_text() for name in LAYOUTS)
    written = re.findall(r'"train/\w+/(\w+)"', code)
    assert len(written) >= 7
    for path in [*ROOT.glob("recipes/pretrain/*.yaml"), ROOT / "recipes/ablation/base.yaml"]:
        for pattern in re.findall(r"train/\w+/([a-z][^\"]*)", path.read_text()):
            found = [name for name in written if fnmatch(f"{name}-00000.tar.gz", pattern)]
            assert len(found) == 1, f"{path.name}: {pattern}"


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
        ("MACS.yaml", MACS.replace("sentence: footsteps", "text: x"), ":6: no filename and annotations with sentences"),
        ("MACS.yaml", MACS.replace("footsteps, tags", "'.', tags"), ":6: public_square-paris-1-2-a.wav has no sent"),
        ("MACS.yaml", MACS + "- ]\n", ":9: not YAML"), ("MACS.yaml", "files: 3\n", ": has no list of files"),
        ("MACS.yaml", "files: []\n", ": its list of files is empty"), ("MACS.yaml", "", ": has no list of files"),
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
        (("cocos",), 2, "invalid choice: 'cocos' (choose from 'tiny_imagenet', "),
        (("coco", "--check"), 2, "--check is for a table or folder of your own"),
        (("coco", "--image", "x"), 2, "--image is for a table"),
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


def test_flickr8k(prepare):
    done = prepare("flickr8k", "keep_out=1")
    assert set(done.val) == {"f8k_test_a"}
    assert {"f8k_train_a", "f8k_other_a"} < set(done.train)
    assert len({"f8k_dev_a", "f8k_dev_b"} & set(done.train)) == 1
    assert captions(done.val["f8k_test_a"]) == [f"Sentence {i} of test_a" for i in range(5)]
    assert size_of(done.val["f8k_test_a"]) == (240, 160)
    assert size_of(done.train["f8k_train_a"]) == (216, 144)


def test_flickr8k_broken_and_missing_pictures_are_named_and_the_rest_written(prepare):
    folder = "Flicker8k_Dataset"
    done = prepare("flickr8k", files={f"{folder}/train_a.jpg": "", f"{folder}/test_a.jpg": None})
    assert not done.val
    assert "f8k_other_a" in done.train
    assert f"{folder}/train_a.jpg: " in done.err
    assert f"{folder}/test_a.jpg: No such file" in done.err
    assert "val/flickr8k/flickr8k_test: nothing to write; passed over" in done.err


def test_flickr30k_without_a_list_of_splits_is_training_data(prepare):
    done = prepare("flickr30k", files={"flickr30k-images/3.jpg": "no picture"})
    assert set(done.train) == {"f30k_1", "f30k_2"}
    assert captions(done.train["f30k_1"]) == [f"Sentence {j} of 1, here" for j in range(5)]
    assert size_of(done.train["f30k_1"]) == (216, 144)
    assert "/3.jpg: " in done.err


def test_flickr30k_by_karpathys_splits(prepare):
    splits = {"1.jpg": "train", "2.jpg": "val", "3.jpg": "test", "4.jpg": "test"}
    images = [{"filename": name, "split": split} for name, split in splits.items()]
    done = prepare("flickr30k", files={"dataset_flickr30k.json": {"images": images}})
    assert (set(done.train), set(done.val)) == ({"f30k_1"}, {"f30k_3"})
    assert size_of(done.val["f30k_3"]) == (240, 160)
    assert "4.jpg: No such file" in done.err


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


def test_coco(prepare):
    done = prepare("coco", files={"train2017/000000000025.jpg": "no picture"})
    # 234748 is a picture of data/samples
    assert set(done.train) == {"coco_000000000009"}
    assert set(done.val) == {"coco_000000000139"}
    assert captions(done.val["coco_000000000139"]) == [f"Caption {i} of 139" for i in range(5)]
    assert size_of(done.train["coco_000000000009"]) == (192, 144)
    assert "000000000025.jpg" in done.err


def test_coco_without_validation(prepare):
    done = prepare("coco", "train=[train2017,val2017]", "val=[]", "size=72")
    assert set(done.train) == {"coco_000000000009", "coco_000000000025", "coco_000000000139"}
    assert size_of(done.train["coco_000000000009"]) == (96, 72)
    assert not (done.root / "val").exists()


def test_coco_of_2014_has_other_names_and_the_same_keys(prepare):
    files = {}
    for split, number in {"train2014": 9, "val2014": 42}.items():
        files[f"{split}/COCO_{split}_{number:012d}.jpg"] = picture(number)
        rows = [{"image_id": number, "caption": "A dog."}]
        files[f"annotations/captions_{split}.json"] = {"annotations": rows}
    done = prepare("coco", "train=[train2014]", "val=[val2014]", files=files)
    assert (set(done.train), set(done.val)) == ({"coco_000000000009"}, {"coco_000000000042"})


def test_coco_without_photographs_is_an_error(prepare):
    done = prepare("coco", files={"val2017/000000000139.jpg": None, "val2017/dog.jpg": "x"}, code=1)
    assert "val2017: no photographs named NUMBER.jpg" in done.err


def test_conceptual_captions_with_pictures_that_are_there(prepare):
    done = prepare("conceptual_captions", files={"Train_GCC-training/00000/000000002.jpg": "no picture"})
    assert set(done.train) == {"cc_train_gcc_training_000000000"}
    dog, bird = *done.train.values(), *done.val.values()
    assert (captions(dog), dog.about["url"]) == (["a dog on the beach"], "https://example.org/1.jpg")
    assert size_of(dog) == (144, 216)
    assert captions(bird) == ["a bird"]
    assert "000000002.jpg: " in done.err
    assert "Train_GCC-training.tsv: 2 of 4 image files are not there" in done.err
    assert set(prepare("conceptual_captions", "rows=1").train) == {"cc_train_gcc_training_000000000"}


def test_conceptual_captions_are_downloaded_once_and_failures_named(source, prepare, monkeypatch):
    asked = []

    def download(url, name, max_bytes):
        asked.append(url)
        if url.endswith("3.jpg"):
            raise UserError(f"{name}: the server answered 404 Not Found")
        buffer = io.BytesIO()
        picture(5).save(buffer, "PNG")
        return buffer.getvalue()

    monkeypatch.setattr("onepeace.files.source._download", download)
    done = prepare("conceptual_captions", "download=true")
    assert set(done.train) == {"cc_train_gcc_training_000000000", "cc_train_gcc_training_000000001"}
    assert sorted(asked) == ["https://example.org/2.png?x=1", "https://example.org/3.jpg"]
    assert "row 2: https://example.org/3.jpg: the server answered 404" in done.err
    assert "row 3: ftp://example.org/4.jpg: addresses must be http or https, not ftp" in done.err
    assert (source / "Train_GCC-training/00000/000000001.png").is_file()
    prepare("conceptual_captions", "download=true")
    assert asked.count("https://example.org/2.png?x=1") == 1


def test_conceptual_captions_without_a_picture_say_what_to_do(source, prepare):
    table = "Validation_GCC-1.1.0-Validation.tsv"
    done = prepare("conceptual_captions", files={table: "a bird\thttps://example.org/9.jpg\n"})
    assert f"{source / table}: not one of its 1 image files is there; " in done.err
    assert "give download=true" in done.err


# ------------------------------------------------------------------ drawings


def test_emoji_from_folders_of_png(source, prepare):
    done = prepare(
        "emoji",
        f"png=[noto={source / 'noto-png'},openmoji={source / 'openmoji-png'}]",
        files={"noto-png/emoji_u1f436.png": "no picture"},
    )
    # validation has drawings of some sets only, and no other set's drawing of its names goes to training
    assert set(done.val) == {"emoji_noto_1f171"}
    assert set(done.train) == {"emoji_openmoji_1f436"}
    sample = done.train["emoji_openmoji_1f436"]
    assert captions(sample) == ["dog face", "a drawing of dog face", "dog face, an emoji", "dog face: pet, puppy"]
    assert (sample.about["license"], sample.about["name"]) == ("CC BY-SA 4.0", "dog face")
    assert captions(done.val["emoji_noto_1f171"])[0] == "B button (blood type)"
    assert size_of(sample) == (96, 96)
    assert "emoji_u1f436.png" in done.err


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


def test_tuxpaint(prepare):
    names = ("animals/frog", "animals/cat", "symbols/letter", "food/fig_mirror", "food/pear", "food/dot")
    sizes = {"food/dot": (30, 30)}
    files = {f"{n}.png": picture(i, sizes.get(n, (200, 100)), "RGBA") for i, n in enumerate(names)}
    files |= {f"{n}.txt": f"A {n.split('/')[1]}.\nde.utf8=Ein Ding.\n" for n in names if n != "food/pear"}
    files |= {"food/soup.png": "no picture", "food/soup.txt": "A soup"}
    done = prepare("tuxpaint", "exclude=[animals/frog,animals/toad]", files=files)
    assert set(done.train) == {"tux_animals_cat"}
    sample = done.train["tux_animals_cat"]
    assert captions(sample) == ["A cat"]
    assert sample.about["license"].startswith("GPL-2")
    assert size_of(sample) == (112, 112)
    assert "soup.png" in done.err


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


def test_audiocaps(prepare):
    done = prepare("audiocaps", files={f"sounds/{VIDEOS[0]}.wav": "no sound", "sounds/91006.wav": 1.0})
    assert set(done.train) == {f"acaps_{video}_30" for video in VIDEOS[1:8]}
    (test,) = done.val.values()
    assert test.key == "acaps_ttttttttttt_0"
    assert captions(test) == [f"test {i}" for i in range(5)]
    wave, rate = wave_of(test)
    assert (wave.shape, rate) == ((160000,), 16000)
    sample = done.train[f"acaps_{VIDEOS[3]}_30"]
    assert captions(sample) == ["Sound 3, and so on"]
    assert (sample.about["youtube_id"], sample.about["start"]) == (VIDEOS[3], 30)
    assert len(wave_of(sample)[0]) == 1.3 * 16000
    assert "train.csv: 1 of 9 audio files are not there" in done.err
    assert f"{VIDEOS[0]}.wav: " in done.err


def test_sets_of_sounds_take_no_videos(prepare):
    sounds = [name for name, content in DOWNLOADS["audiocaps"]().items() if isinstance(content, float)]
    done = prepare(
        "audiocaps", files={**dict.fromkeys(sounds), **{f"{name}.mp4": "a video" for name in sounds}}, code=1
    )
    assert "test.csv: not one of its 1 audio files is there; " in done.err
    assert "train.csv: not one of its 9 audio files is there; " in done.err
    assert "not videos: extract their sound" in done.err
    assert done.err.splitlines()[-1].endswith("download: nothing in it can be used; nothing is written")


@pytest.mark.parametrize(
    ("name", "test"),
    [
        ("audiocaps", "sounds/test/ttttttttttt.wav"),
        ("clotho", "evaluation/c.wav"),
        ("vggsound", "clips/---g-f_I2yQ_000001.wav"),
    ],
)
def test_split_without_sounds_is_told_and_passed_over(prepare, name, test):
    done = prepare(name, files={test: None})
    assert done.train
    assert not done.val
    assert re.search(r"\.csv: not one of its 1 audio files is there; .* are read, not videos", done.err)
    assert (
        f"val/{name}/{name}_{'evaluation' if name == 'clotho' else 'test'}: nothing to write; passed over" in done.err
    )


def test_clotho(prepare):
    done = prepare("clotho", files={"development/b.wav": "no sound"})
    assert (set(done.train), set(done.val)) == ({"clotho_development_00000"}, {"clotho_evaluation_00000"})
    sample = done.train["clotho_development_00000"]
    assert captions(sample) == [f"It rains {i}" for i in range(5)]
    assert sample.about["file_name"] == "Rain, 1.wav"
    assert "b.wav: " in done.err
    done = prepare("clotho", files={"development/b.wav": None})
    assert "clotho_captions_development.csv: 1 of 2 audio files are not there" in done.err


def test_macs(prepare):
    done = prepare("macs")
    (sample,) = done.train.values()
    assert sample.key == "macs_airport-lisbon-0-0-a"
    assert (captions(sample), sample.about["label"]) == (["people talk", "a child laughs"], "airport")
    assert "MACS.yaml: 1 of 2 audio files are not there (macs_public_square-paris-1-2-a" in done.err


def test_vggsound(prepare):
    done = prepare("vggsound")
    assert set(done.val) == {"vgg_---g-f_I2yQ_000001"}
    assert set(done.train) == {"vgg_--0PQM4-hqg_000030", "vgg_ttttttttttt_000000"}
    about = done.train["vgg_--0PQM4-hqg_000030"].about
    assert about["captions"][:2] == ["playing violin, fiddle", "the sound of playing violin, fiddle"]
    assert (about["label"], about["target"], about["youtube_id"]) == ("playing violin, fiddle", 1, "--0PQM4-hqg")
    classes = json.loads((done.root / "val/vggsound/classes.json").read_text())
    assert classes == ["people marching", "playing violin, fiddle", "waterfall"]
    assert "vggsound.csv: 1 of 3 audio files are not there (vgg_gonegonegon_000005" in done.err


def test_sets_of_youtube_share_no_video_between_training_and_validation(prepare):
    prepare("audiocaps")
    done = prepare("vggsound")
    assert "vgg_--0PQM4-hqg_000030" in done.train
    assert "vgg_ttttttttttt_000000" not in done.train  # its video is in AudioCaps' test split
    assert check_leaks(done.root).errors == []


# ------------------------------------------------------------------ what is written


def test_equal_downloads_give_equal_bytes(prepare, tmp_path):
    """Not the time, nor where the shards lie; a sound too, whose stream number libsndfile takes from the clock."""
    import numpy as np
    import soundfile

    from onepeace.datasets.sounds import ogg

    first = prepare("coco").root
    written = {path.relative_to(first): path.read_bytes() for path in first.rglob("*.gz")}
    first.rename(tmp_path / "other")
    again = prepare("coco", "--shard-size", "15MB").root
    assert {path.relative_to(again): path.read_bytes() for path in again.rglob("*.gz")} == written
    assert all(content[4:8] == bytes(4) for content in written.values())
    wave = np.sin(np.arange(16000) / 20).astype(np.float32) * 0.5
    sound = ogg(wave, 16000, 0.9)
    assert sound == ogg(wave, 16000, 0.9)
    assert sound[14:18] == bytes([1, 0, 0, 0])
    decoded, _ = soundfile.read(io.BytesIO(sound))  # refuses pages whose checksum is wrong
    assert np.corrcoef(decoded, wave)[0, 1] > 0.99


def test_a_key_that_comes_twice_is_told(prepare):
    same = {"food/pear.png": picture(1, (99, 99), "RGBA"), "food-pear.png": picture(2, (99, 99), "RGBA")}
    done = prepare("tuxpaint", files={**same, "food/pear.txt": "A pear", "food-pear.txt": "A pear"})
    assert set(done.train) == {"tux_food_pear"}
    assert "tux_food_pear: an earlier sample has this key" in done.err


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
    assert {row["file"] for row in rows} == on_disk
    assert len(on_disk) == 37
    assert all(row["caption"] and row["source"] and row["license"] and "GPL" not in row["license"] for row in rows)
    assert sum(p.stat().st_size for p in samples.rglob("*") if p.is_file()) <= 4_000_000
