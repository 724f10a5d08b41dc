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


FIELDS = {"size": size_of, "samples": lambda sample: len(wave_of(sample)[0])}
"""What a sample's media say; other fields are those of its json."""


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
        ("MACS.yaml", MACS.replace("sentence: footsteps", "text: x"), ": file 2 of the list has no filename"),
        ("MACS.yaml", MACS.replace("footsteps, tags", "'.', tags"), ": file 2 of the list, public_square-paris-1"),
        ("MACS.yaml", MACS + "- ]\n", ": line 9: not YAML"), ("MACS.yaml", "files: 3\n", ": has no list of files"),
        ("MACS.yaml", "files: []\n", ": has no list of files, or an empty one"),
        ("MACS.yaml", "", ": expected a mapping"),
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
        (("coco", "--image", "x"), 2, "--column is for a table"),
    ],
)
def test_wrong_options_are_named(prepare, options, code, message):
    name, *rest = options
    assert message in prepare(name, *rest, code=code).err


# ------------------------------------------------------------------ what is written of a download


def photographs_of_2014():
    files = {}
    for split, number in {"train2014": 9, "val2014": 42}.items():
        files[f"{split}/COCO_{split}_{number:012d}.jpg"] = picture(number)
        rows = [{"image_id": number, "caption": "A dog."}]
        files[f"annotations/captions_{split}.json"] = {"annotations": rows}
    return files


def stamps():
    names = ("animals/frog", "animals/cat", "symbols/letter", "food/fig_mirror", "food/pear", "food/dot")
    sizes = {"food/dot": (30, 30)}
    files = {f"{n}.png": picture(i, sizes.get(n, (200, 100)), "RGBA") for i, n in enumerate(names)}
    files |= {f"{n}.txt": f"A {n.split('/')[1]}.\nde.utf8=Ein Ding.\n" for n in names if n != "food/pear"}
    return {**files, "food/soup.png": "no picture", "food/soup.txt": "A soup"}


KARPATHY = {"1.jpg": "train", "2.jpg": "val", "3.jpg": "test", "4.jpg": "test"}
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
    "flickr30k without a list of splits": (
        [], {"flickr30k-images/3.jpg": "no picture"},
        {"f30k_1": {"captions": [f"Sentence {i} of 1, here" for i in range(5)], "size": (216, 144)}, "f30k_2": {}}, {},
        [r"/3\.jpg: "],
    ),
    "flickr30k by Karpathy's splits": (
        [], {"dataset_flickr30k.json": {"images": [{"filename": n, "split": s} for n, s in KARPATHY.items()]}},
        {"f30k_1": {}}, {"f30k_3": {"size": (240, 160)}}, [r"4\.jpg: No such file"],
    ),
    # 234748 is a picture of data/samples
    "coco": (
        [], {"train2017/000000000025.jpg": "no picture"},
        {"coco_000000000009": {"size": (192, 144)}},
        {"coco_000000000139": {"captions": [f"Caption {i} of 139" for i in range(5)]}}, [r"000000000025\.jpg"],
    ),
    "coco without validation data": (
        ["train=[train2017,val2017]", "val=[]", "size=72"], {},
        {"coco_000000000009": {"size": (96, 72)}, "coco_000000000025": {}, "coco_000000000139": {}}, {}, [],
    ),
    "coco of 2014, with other names and the same keys": (
        ["train=[train2014]", "val=[val2014]"], photographs_of_2014(),
        {"coco_000000000009": {}}, {"coco_000000000042": {}}, [],
    ),
    "conceptual_captions with pictures that are there": (
        [], {"Train_GCC-training/00000/000000002.jpg": "no picture"},
        {"cc_train_gcc_training_000000000": {
            "captions": ["a dog on the beach"], "url": "https://example.org/1.jpg", "size": (144, 216),
        }},
        {"cc_validation_gcc_1_1_0_validation_000000000": {"captions": ["a bird"]}},
        [r"000000002\.jpg: ", r"Train_GCC-training\.tsv: 2 of 4 image files are not there"],
    ),
    "conceptual_captions, some rows": (["rows=1"], {}, {"cc_train_gcc_training_000000000": {}}, None, []),
    "conceptual_captions without a picture": (
        [], {"Validation_GCC-1.1.0-Validation.tsv": "a bird\thttps://example.org/9.jpg\n"},
        {"cc_train_gcc_training_000000000": {}}, {},
        [r"Validation\.tsv: not one of its 1 image files is there; .*give download=true"],
    ),
    # validation has drawings of some sets only, and no other set's drawing of its names goes to training
    "emoji from folders of PNG": (
        ["png=[noto={}/noto-png,openmoji={}/openmoji-png]"], {"noto-png/emoji_u1f436.png": "no picture"},
        {"emoji_openmoji_1f436": {
            "captions": ["dog face", "a drawing of dog face", "dog face, an emoji", "dog face: pet, puppy"],
            "license": "CC BY-SA 4.0", "name": "dog face", "size": (96, 96),
        }},
        {"emoji_noto_1f171": {"captions": ["B button (blood type)"]}},
        [r"emoji_u1f436\.png"],
    ),
    "tuxpaint": (
        ["exclude=[animals/frog,animals/toad]"], stamps(),
        {"tux_animals_cat": {
            "captions": ["A cat"], "license": "GPL-2 (package); see its own copyright notes", "size": (112, 112),
        }},
        {}, [r"soup\.png"],
    ),
    "audiocaps": (
        [], {f"sounds/{VIDEOS[0]}.wav": "no sound", "sounds/91006.wav": 1.0},
        {f"acaps_{video}_30": {"youtube_id": video, "start": 30} for video in VIDEOS[1:8]}
        | {f"acaps_{VIDEOS[3]}_30": {"captions": ["Sound 3, and so on"], "samples": 1.3 * 16000}},
        {"acaps_ttttttttttt_0": {"captions": [f"test {i}" for i in range(5)], "samples": 160000}},
        [r"train\.csv: 1 of 9 audio files are not there", rf"{VIDEOS[0]}\.wav: "],
    ),
    "clotho": (
        [], {"development/b.wav": "no sound"},
        {"clotho_development_00000": {"captions": [f"It rains {i}" for i in range(5)], "file_name": "Rain, 1.wav"}},
        {"clotho_evaluation_00000": {}}, [r"b\.wav: "],
    ),
    "clotho with a missing sound": (
        [], {"development/b.wav": None}, {"clotho_development_00000": {}}, {"clotho_evaluation_00000": {}},
        [r"clotho_captions_development\.csv: 1 of 2 audio files are not there"],
    ),
    "macs": (
        [], {},
        {"macs_airport-lisbon-0-0-a": {"captions": ["people talk", "a child laughs"], "label": "airport"}}, {},
        [r"MACS\.yaml: 1 of 2 audio files are not there \(macs_public_square-paris-1-2-a"],
    ),
    "vggsound": (
        [], {},
        {"vgg_ttttttttttt_000000": {}, "vgg_--0PQM4-hqg_000030": {
            "captions": [f"{start}playing violin, fiddle" for start in ("", "the sound of ", "a recording of ")],
            "label": "playing violin, fiddle", "target": 1, "youtube_id": "--0PQM4-hqg",
        }},
        {"vgg_---g-f_I2yQ_000001": {}}, [r"vggsound\.csv: 1 of 3 audio files are not there \(vgg_gonegonegon_000005"],
    ),
    **{
        f"{name} without sounds of a split": (
            [], {file: None}, None, {},
            [r"\.csv: not one of its 1 audio files is there; .* are read, not videos",
             f"val/{name}/{name}_{split}: nothing to write; passed over"],
        )
        for name, split, file in (
            ("audiocaps", "test", "sounds/test/ttttttttttt.wav"), ("clotho", "evaluation", "evaluation/c.wav"),
            ("vggsound", "test", "clips/---g-f_I2yQ_000001.wav"),
        )
    },
}  # fmt: skip
"""By the name of the layout and what is special: options, files in the download, the fields of the samples that are
written for train and val (None: some are), and what is told."""


@pytest.mark.parametrize("case", CASES)
def test_what_is_written_of_a_download(source, prepare, case):
    options, files, train, val, told = CASES[case]
    done = prepare(re.match(r"\w+", case)[0], *(text.replace("{}", str(source)) for text in options), files=files)
    for samples, expected in ((done.train, train), (done.val, val)):
        if expected is None:
            assert samples
            continue
        assert set(samples) == set(expected)
        for key, fields in expected.items():
            for name, value in fields.items():
                assert FIELDS.get(name, lambda sample, name=name: sample.about[name])(samples[key]) == value
    assert not [text for text in told if not re.search(text, done.err)], done.err


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
    sound = ogg(wave, 0.9)
    assert sound == ogg(wave, 0.9)
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
    assert {row["image"] or row["audio"] for row in rows} == on_disk
    assert len(on_disk) == 37
    assert all(row["caption"] and row["source"] and row["license"] and "GPL" not in row["license"] for row in rows)
    assert sum(p.stat().st_size for p in samples.rglob("*") if p.is_file()) <= 4_000_000
