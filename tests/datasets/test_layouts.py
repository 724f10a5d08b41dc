"""data/: each prepare.py on a few made-up files of its download's layout, the shard writer, the check for leaks."""

import importlib.util
import io
import json
import re
import sys
import types
from fnmatch import fnmatch
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from onepeace.data.shards import read_source
from onepeace.errors import UserError

DATA = Path(__file__).resolve().parents[2] / "data"
SETS = sorted(path.parent.name for path in DATA.glob("*/prepare.py"))


def load(name):
    """A script below data/ as a module."""
    spec = importlib.util.spec_from_file_location(f"data_{name.replace('/', '_')}", DATA / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(autouse=True)
def _scripts_find_each_other(monkeypatch):
    monkeypatch.setattr(sys, "path", [str(DATA), *sys.path])


@pytest.fixture
def source(tmp_path):
    folder = tmp_path / "download"
    folder.mkdir()
    return folder


@pytest.fixture
def prepare(tmp_path, source, capsys):
    """Runs the script of a set; gives the samples it wrote by key, for train and val, and its messages."""

    def run(name, *arguments):
        code = load(f"{name}/prepare").main([str(source), str(tmp_path / "root"), *arguments])
        check, root = load("check"), tmp_path / "root"
        result = {
            split: {s.key: s for shard in sorted((root / split).rglob("*.tar.gz")) for s in check.read_shard(shard)}
            for split in ("train", "val")
        }
        return types.SimpleNamespace(code=code, root=root, **result, **capsys.readouterr()._asdict())

    return run


def picture(seed, size=(60, 48), mode="RGB"):
    """A picture of coarse random blocks: nothing like another seed's."""
    channels = len(mode)
    blocks = np.random.default_rng(seed).integers(0, 256, (6, 8, channels), dtype=np.uint8)
    if mode == "RGBA":
        blocks[..., 3] = 255
    return Image.fromarray(blocks, mode).resize(size, Image.Resampling.NEAREST)


def save(path, seed, size=(60, 48), mode="RGB"):
    path.parent.mkdir(parents=True, exist_ok=True)
    picture(seed, size, mode).save(path, "JPEG" if path.suffix.lower() in (".jpg", ".jpeg") else "PNG")
    return path


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def size_of(sample):
    return Image.open(io.BytesIO(sample.media)).size


# ------------------------------------------------------------------ every script


@pytest.mark.parametrize("name", SETS)
def test_help_says_what_the_script_reads(name, capsys):
    with pytest.raises(SystemExit) as stop:
        load(f"{name}/prepare").main(["--help"])
    assert stop.value.code == 0
    out = capsys.readouterr().out
    assert "SOURCE" in out
    assert "ROOT" in out


@pytest.mark.parametrize("name", SETS)
def test_an_empty_download_is_one_line_that_names_it(name, source, prepare):
    done = prepare(name)
    assert done.code == 1
    assert done.err.count("\n") == 1
    assert str(done.root if name == "imagenet_samples" else source) in done.err
    assert not done.train
    assert not done.val


def test_every_set_is_in_the_readme():
    text = (DATA / "README.md").read_text(encoding="utf-8")
    assert SETS
    assert not [name for name in SETS if f"`{name}`" not in text]


# ------------------------------------------------------------------ one set each


@pytest.fixture
def tiny_imagenet(source):
    folder = source / "tiny-imagenet-200"
    write(
        folder / "words.txt", "n01443537\tgoldfish, Carassius auratus\nn02509815\tlesser panda, red panda, bear cat\n"
    )
    for i, wnid in enumerate(("n01443537", "n02509815")):
        for j in range(3):
            save(folder / f"train/{wnid}/images/{wnid}_{j}.JPEG", 10 * i + j, (64, 64))
    rows = [("val_0.JPEG", "n01443537"), ("val_1.JPEG", "n02509815"), ("val_2.JPEG", "n02509815")]
    for i, (name, _) in enumerate(rows):
        save(folder / "val/images" / name, 100 + i, (64, 64))
    write(folder / "val/val_annotations.txt", "".join(f"{name}\t{wnid}\t0\t0\t9\t9\n" for name, wnid in rows))
    return folder


def test_tiny_imagenet(tiny_imagenet, prepare):
    write(tiny_imagenet / "train/n01443537/images/n01443537_2.JPEG", "no picture")
    copy = tiny_imagenet / "train/n02509815/images/n02509815_1.JPEG"
    copy.write_bytes((tiny_imagenet / "val/images/val_0.JPEG").read_bytes())
    done = prepare("tiny_imagenet", "--val-per-class", "1")
    assert done.code == 0
    assert set(done.train) == {"tin_n01443537_0", "tin_n01443537_1", "tin_n02509815_0", "tin_n02509815_2"}
    assert len(done.val) == 2
    assert {s.about["label"] for s in done.val.values()} == {"goldfish", "red panda"}
    sample = done.train["tin_n02509815_0"]
    assert sample.media == (tiny_imagenet / "train/n02509815/images/n02509815_0.JPEG").read_bytes()
    assert sample.about["captions"] == [
        *("a photo of a red panda", "a picture of a red panda", "a red panda", "a small photo of a red panda"),
        *("a photo of a lesser panda", "a photo of a bear cat"),
    ]
    assert (sample.about["wnid"], sample.about["target"]) == ("n02509815", 1)
    classes = json.loads((done.root / "val/tiny_imagenet/classes.json").read_text())
    assert [entry["name"] for entry in classes] == ["goldfish", "red panda"]
    assert "n01443537_2.JPEG" in done.err
    assert "train/image_text/tiny_imagenet: " in done.out


@pytest.mark.parametrize(
    ("file", "row"),
    [
        ("words.txt", "n01443537 goldfish\n"),
        ("val/val_annotations.txt", "val_0.JPEG\n"),
        ("words.txt", "n01443537\t \n"),
    ],
)
def test_tiny_imagenet_bad_row_names_file_and_line(tiny_imagenet, prepare, file, row):
    path = tiny_imagenet / file
    write(path, path.read_text().splitlines(keepends=True)[0] + row)
    done = prepare("tiny_imagenet")
    assert done.code == 1
    assert f"{path}:2: " in done.err


def test_tiny_imagenet_class_without_a_name_is_named(tiny_imagenet, prepare):
    save(tiny_imagenet / "train/n09999999/images/n09999999_0.JPEG", 1)
    assert "words.txt: has no line for class n09999999" in prepare("tiny_imagenet").err


def test_imagenet_samples_leave_out_near_copies_of_validation(source, tiny_imagenet, prepare):
    assert prepare("tiny_imagenet").code == 0
    save(source / "n02123045_tabby_cat.JPEG", 7, (300, 200))
    # the picture of val_1, larger and stored anew
    picture(101, (64, 64)).resize((256, 256)).save(source / "n02509815_red_panda.JPEG", quality=90)
    done = prepare("imagenet_samples")
    assert done.code == 0
    assert "ins_n02509815" not in done.train
    assert "n02509815_red_panda.JPEG: near copy" in done.err
    sample = done.train["ins_n02123045"]
    assert sample.about["captions"] == ["a photo of a tabby cat", "a picture of a tabby cat", "a tabby cat"]
    assert size_of(sample) == (192, 128)


@pytest.fixture
def flickr8k(source):
    names = ("train_a", "dev_a", "dev_b", "test_a", "other_a")
    for i, name in enumerate(names):
        save(source / f"Flicker8k_Dataset/{name}.jpg", i, (500, 333))
    rows = [f"{name}.jpg#{i}\t Sentence {i} of  {name} .\n" for name in names for i in range(5)]
    write(source / "text/Flickr8k.token.txt", "".join(rows))
    for split, members in {"train": ["train_a"], "dev": ["dev_a", "dev_b"], "test": ["test_a"]}.items():
        write(source / f"text/Flickr_8k.{split}Images.txt", "".join(f"{name}.jpg\n" for name in members))
    return source


def test_flickr8k(flickr8k, prepare):
    done = prepare("flickr8k", "--keep-out", "1")
    assert done.code == 0
    assert set(done.val) == {"f8k_test_a"}
    assert {"f8k_train_a", "f8k_other_a"} < set(done.train)
    assert len({"f8k_dev_a", "f8k_dev_b"} & set(done.train)) == 1
    assert done.val["f8k_test_a"].about["captions"] == [f"Sentence {i} of test_a" for i in range(5)]
    assert size_of(done.val["f8k_test_a"]) == (240, 160)
    assert size_of(done.train["f8k_train_a"]) == (216, 144)


def test_flickr8k_broken_and_missing_pictures_are_counted(flickr8k, prepare):
    write(flickr8k / "Flicker8k_Dataset/train_a.jpg", "")
    (flickr8k / "Flicker8k_Dataset/test_a.jpg").unlink()
    done = prepare("flickr8k")
    assert done.code == 0
    assert not done.val
    assert {"train_a.jpg", "test_a.jpg"} == {line.split("/")[-1].split(":")[0] for line in done.err.splitlines()}


def test_flickr8k_bad_row_names_file_and_line(flickr8k, prepare):
    path = flickr8k / "text/Flickr8k.token.txt"
    write(path, "train_a.jpg#0\tfine\n\ntrain_a.jpg no tab\n")
    done = prepare("flickr8k")
    assert done.code == 1
    assert f"{path}:3: " in done.err


@pytest.fixture
def coco(source):
    for split, numbers in {"train2017": (9, 25, 234748), "val2017": (139,)}.items():
        for number in numbers:
            save(source / f"{split}/{number:012d}.jpg", number, (640, 480))
        rows = [{"image_id": n, "caption": f"Caption {i} \n of {n}."} for n in numbers for i in range(5)]
        write(source / f"annotations/captions_{split}.json", json.dumps({"annotations": rows}))
    return source


def test_coco(coco, prepare):
    write(coco / "train2017/000000000025.jpg", "no picture")
    done = prepare("coco")
    assert done.code == 0
    # 234748 is a picture of data/samples
    assert set(done.train) == {"coco_000000000009"}
    assert set(done.val) == {"coco_000000000139"}
    assert done.val["coco_000000000139"].about["captions"] == [f"Caption {i} of 139" for i in range(5)]
    assert size_of(done.train["coco_000000000009"]) == (192, 144)
    assert "000000000025.jpg" in done.err


def test_recipes_name_the_shards_that_the_scripts_write():
    """Those of the sets that have a script, and a smaller copy's ("coco_mini") too."""
    prefixes = {path.parent.name: path.read_text() for path in DATA.glob("*/prepare.py")}
    recipes = DATA.parent / "recipes"
    for path in [*recipes.glob("pretrain/*.yaml"), recipes / "ablation/base.yaml"]:
        for pattern in re.findall(r"train/\w+/([a-z][^\"]*)", path.read_text()):
            written = [name for name, text in prefixes.items() if fnmatch(f"{name}-00000.tar.gz", pattern)]
            assert len(written) == 1, f"{path.name}: {pattern}"
            assert f'"{written[0]}"' in prefixes[written[0]]


def test_coco_without_validation(coco, prepare):
    done = prepare("coco", "--train", "train2017,val2017", "--val", "")
    assert set(done.train) == {"coco_000000000009", "coco_000000000025", "coco_000000000139"}
    assert not (done.root / "val").exists()


def test_coco_split_in_both_is_an_error(coco, prepare):
    assert "train2017 cannot be both" in prepare("coco", "--val", "train2017").err


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"annotations": [\n{"image_id": 9}]}', "captions_train2017.json: annotation 1 has no"),
        ('{"annotations": [\n{"image_id": }]}', "captions_train2017.json:2: not JSON"),
        ("[]", "captions_train2017.json: has no list of annotations"),
    ],
)
def test_coco_bad_annotation_is_named(coco, prepare, content, message):
    write(coco / "annotations/captions_train2017.json", content)
    done = prepare("coco")
    assert done.code == 1
    assert message in done.err


def save_sound(path, seconds, rate=44100, channels=1):
    import soundfile

    path.parent.mkdir(parents=True, exist_ok=True)
    wave = np.random.default_rng(len(path.name)).normal(size=(int(seconds * rate), channels)) * 0.1
    soundfile.write(path, wave, rate)
    return path


def test_esc50(source, prepare):
    import soundfile

    save_sound(source / "audio/1-100032-A-0.wav", 5)
    save_sound(source / "audio/5-200-B-2.wav", 2, rate=48000, channels=2)
    save_sound(source / "504 - Siren/3-77-A.ogg", 6, rate=16000)
    write(source / "audio/2-55-A-1.wav", "no sound")
    write(source / "audio/noise.wav", "")
    write(source / "audio/2-55-A-50.wav", "")
    done = prepare("esc50")
    assert done.code == 0
    assert set(done.train) == {"esc50_1-100032-A-0", "esc50_3-77-A-43"}
    assert set(done.val) == {"esc50_5-200-B-2"}
    dog, pig = done.train["esc50_1-100032-A-0"], done.val["esc50_5-200-B-2"]
    assert (dog.about["label"], dog.about["license"]) == ("dog", "CC BY 3.0")
    assert (pig.about["label"], pig.about["license"]) == ("pig", "CC BY-NC 3.0")
    assert (pig.about["target"], pig.about["fold"], pig.about["freesound_id"]) == (2, 5, "200")
    for sample in (dog, pig, done.train["esc50_3-77-A-43"]):
        wave, rate = soundfile.read(io.BytesIO(sample.media))
        assert (wave.shape, rate) == ((80000,), 16000)
        assert wave.std() > 0.02
    wave, _ = soundfile.read(io.BytesIO(pig.media))
    assert abs(wave[33000:]).max() < 0.01 < wave[:32000].std()
    names = json.loads((done.root / "val/esc50_fold5/classes.json").read_text())
    assert (len(names), names[0], names[43]) == (50, "dog", "car horn")
    assert all(name in done.err for name in ("2-55-A-1.wav", "noise.wav", "2-55-A-50.wav"))


def test_coco_of_2014_has_other_names_and_the_same_keys(source, prepare):
    for split, number in {"train2014": 9, "val2014": 42}.items():
        save(source / f"{split}/COCO_{split}_{number:012d}.jpg", number)
        rows = [{"image_id": number, "caption": "A dog."}]
        write(source / f"annotations/captions_{split}.json", json.dumps({"annotations": rows}))
    done = prepare("coco", "--train", "train2014", "--val", "val2014")
    assert done.code == 0
    assert (set(done.train), set(done.val)) == ({"coco_000000000009"}, {"coco_000000000042"})


def test_coco_without_photographs_is_an_error(coco, prepare):
    for path in coco.glob("*/*.jpg"):
        path.unlink()
    assert "val2017: no photographs named NUMBER.jpg" in prepare("coco").err


@pytest.fixture
def emoji(source):
    """Five names: dog face (training), B button (validation), and a flag, a family and a man that are left out."""
    left_out = ("1f3f4_200d_2620_fe0f", "1f468_200d_1f466", "26f9_fe0f_200d_2642_fe0f")
    base = [
        {"hexcode": "1F436", "label": "dog face", "tags": ["dog", "face", "pet", "puppy"], "group": 3},
        {"hexcode": "1F171", "label": "B button (blood type)", "tags": ["blood"], "group": 8},
        {"hexcode": "1F3F4-200D-2620-FE0F", "label": "pirate flag", "tags": [], "group": 9},
        {"hexcode": "1F468-200D-1F466", "label": "family: man, boy", "tags": [], "group": 1},
        {"hexcode": "26F9-FE0F-200D-2642-FE0F", "label": "man bouncing ball", "tags": [], "group": 1},
    ]
    write(source / "emojibase-data/en/data.json", json.dumps(base))
    for name, codes in {
        "noto": ("emoji_u1f436", "emoji_u1f171", *(f"emoji_u{c}" for c in left_out)),
        "openmoji": ("1F436", "1F171"),
    }.items():
        for code in codes:
            save(source / f"{name}-png/{code}.png", len(name + code), (128, 128), "RGBA")
    return source


def test_emoji_from_folders_of_png(emoji, prepare):
    write(emoji / "noto-png/emoji_u1f436.png", "no picture")
    done = prepare("emoji", "--png", f"noto={emoji / 'noto-png'}", "--png", f"openmoji={emoji / 'openmoji-png'}")
    assert done.code == 0
    # validation has drawings of some sets only, and no other set's drawing of its names goes to training
    assert set(done.val) == {"emoji_noto_1f171"}
    assert set(done.train) == {"emoji_openmoji_1f436"}
    sample = done.train["emoji_openmoji_1f436"]
    assert sample.about["captions"] == [
        *("dog face", "a drawing of dog face", "dog face, an emoji", "dog face: pet, puppy")
    ]
    assert (sample.about["license"], sample.about["name"]) == ("CC BY-SA 4.0", "dog face")
    assert done.val["emoji_noto_1f171"].about["captions"][0] == "B button (blood type)"
    assert size_of(sample) == (96, 96)
    assert "emoji_u1f436.png" in done.err


def write_iconify(folder, prefix, icons, chars, **more):
    content = {
        "prefix": prefix,
        "icons": {name: {"body": f"<g>{name}</g>"} for name in icons},
        "width": 32,
        "height": 32,
    }
    write(folder / "icons.json", json.dumps({**content, **more}))
    write(folder / "info.json", json.dumps({"prefix": prefix, "license": {"title": f"licence of {prefix}"}}))
    if chars:
        write(folder / "chars.json", json.dumps(chars))


def test_emoji_from_iconify_packages(emoji, prepare, monkeypatch):
    drawn = []

    def svg_to_bytes(svg_string, width):
        drawn.append(svg_string)
        if "broken" in svg_string:
            raise ValueError("not SVG")
        buffer = io.BytesIO()
        picture(len(drawn), (width, width), "RGBA").save(buffer, "PNG")
        return list(buffer.getvalue())

    monkeypatch.setitem(sys.modules, "resvg_py", types.SimpleNamespace(svg_to_bytes=svg_to_bytes))
    write_iconify(
        emoji / "noto", "noto", ["dog-face", "b-button-blood-type"], {"1f436": "dog-face", "1f171": "b-button"},
        aliases={"b-button": {"parent": "b-button-blood-type"}},
    )  # fmt: skip
    # no table of code points: known by the names another set gives
    write_iconify(emoji / "fluent", "fluent-emoji-flat", ["dog-face", "unheard-of"], None)
    write_iconify(emoji / "twemoji", "twemoji", ["dog-face-broken"], {"1f436": "dog-face-broken"})
    write_iconify(emoji / "mdi", "mdi", ["dog"], {"1f436": "dog"})
    done = prepare("emoji")
    assert done.code == 0
    assert set(done.val) == {"emoji_noto_1f171"}
    assert set(done.train) == {"emoji_noto_1f436", "emoji_fluent_emoji_flat_1f436"}
    assert done.val["emoji_noto_1f171"].about["license"] == "licence of noto"
    assert 'viewBox="0 0 32 32"' in drawn[0]
    assert "dog-face-broken: not SVG" in done.err


def test_emoji_without_the_svg_package_says_what_to_do(emoji, prepare, monkeypatch):
    monkeypatch.setitem(sys.modules, "resvg_py", None)
    write_iconify(emoji / "noto", "noto", ["dog-face"], {"1f436": "dog-face"})
    done = prepare("emoji")
    assert done.code == 1
    assert "pip install resvg-py" in done.err


def test_emoji_mistakes_are_named(emoji, prepare):
    assert "--png apple=x" in prepare("emoji", "--png", "apple=x").err
    path = write(emoji / "emojibase-data/en/data.json", '[{"label": "dog"}]')
    assert f"{path}: entry 0" in prepare("emoji").err


def test_openclipart(source, prepare):
    held_out = (DATA / "openclipart/val.txt").read_text(encoding="utf-8").splitlines()[0]
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
    for name, seed in names.items():
        save(source / f"{name}.png", seed, (300, 200), "RGBA")
    save(source / "food/thin_line.png", 8, (300, 20), "RGBA")
    Image.new("RGBA", (100, 100), "white").save(source / "food/nothing_here.png")
    write(source / "food/broken_bottle.png", "no picture")
    done = prepare("openclipart")
    assert done.code == 0
    titles = {s.about["captions"][0]: s for s in done.train.values()}
    assert set(titles) == {"wild cat", "sleepy dog", "red apple"}
    assert titles["wild cat"].about["captions"] == ["wild cat", "a drawing of wild cat", "wild cat (animals)"]
    assert size_of(titles["wild cat"]) == (128, 128)
    (one,) = done.val.values()
    assert one.about["captions"] == [held_out]
    assert "broken_bottle.png" in done.err


def test_tuxpaint(source, prepare):
    for i, name in enumerate(
        ("animals/frog", "animals/cat", "symbols/letter", "food/fig_mirror", "food/pear", "food/dot")
    ):
        save(source / f"{name}.png", i, (30, 30) if name == "food/dot" else (200, 100), "RGBA")
        write(source / f"{name}.txt", f"A {name.split('/')[1]}.\nde.utf8=Ein Ding.\n")
    (source / "food/pear.txt").unlink()
    write(source / "food/soup.png", "no picture")
    write(source / "food/soup.txt", "A soup")
    done = prepare("tuxpaint", "--exclude", "animals/frog,animals/toad")
    assert done.code == 0
    assert set(done.train) == {"tux_animals_cat"}
    assert done.train["tux_animals_cat"].about["captions"] == ["A cat"]
    assert done.train["tux_animals_cat"].about["license"].startswith("GPL-2")
    assert size_of(done.train["tux_animals_cat"]) == (112, 112)
    assert "soup.png" in done.err


@pytest.fixture
def flickr30k(source):
    """Three photographs and a row as Kaggle's table has it, with its one broken separator."""
    for i in (1, 2, 3):
        save(source / f"flickr30k-images/{i}.jpg", i, (500, 333))
    rows = [f"{i}.jpg#{j}\tSentence {j} of {i} , here .\n" for i in (1, 2, 3) for j in range(5)]
    write(source / "results_20130124.token", "".join(rows))
    return source


def test_flickr30k_without_a_list_of_splits_is_training_data(flickr30k, prepare):
    write(flickr30k / "flickr30k-images/3.jpg", "no picture")
    done = prepare("flickr30k")
    assert done.code == 0
    assert set(done.train) == {"f30k_1", "f30k_2"}
    assert done.train["f30k_1"].about["captions"] == [f"Sentence {j} of 1, here" for j in range(5)]
    assert size_of(done.train["f30k_1"]) == (216, 144)
    assert "/3.jpg: " in done.err


def test_flickr30k_by_karpathys_splits(flickr30k, prepare):
    splits = {"1.jpg": "train", "2.jpg": "val", "3.jpg": "test", "4.jpg": "test"}
    images = [{"filename": name, "split": split} for name, split in splits.items()]
    write(flickr30k / "dataset_flickr30k.json", json.dumps({"images": images}))
    done = prepare("flickr30k")
    assert done.code == 0
    assert (set(done.train), set(done.val)) == ({"f30k_1"}, {"f30k_3"})
    assert size_of(done.val["f30k_3"]) == (240, 160)
    assert "4.jpg: No such file" in done.err
    write(flickr30k / "dataset_flickr30k.json", '{"images": [{"filename": "1.jpg"}]}')
    assert "dataset_flickr30k.json: image 1 of the list has no filename and split" in prepare("flickr30k").err


def test_flickr30k_as_kaggle_has_it(flickr30k, prepare):
    (flickr30k / "results_20130124.token").unlink()
    (flickr30k / "flickr30k-images").rename(flickr30k / "inner")
    (flickr30k / "flickr30k_images").mkdir()
    (flickr30k / "inner").rename(flickr30k / "flickr30k_images/flickr30k_images")
    table = flickr30k / "flickr30k_images/results.csv"
    write(
        table, "image_name| comment_number| comment\n1.jpg| 0| A dog | or so .\n1.jpg| 4   A cat .\n2.jpg| 0| A cow\n"
    )
    done = prepare("flickr30k")
    assert done.code == 0
    assert done.train["f30k_1"].about["captions"] == ["A dog | or so", "A cat"]
    assert set(done.train) == {"f30k_1", "f30k_2"}
    assert "3.jpg: it has no caption" in done.err
    write(table, "image_name| comment_number| comment\n1.jpg, 0, A dog\n")
    assert f"{table}:2: expected image_name| comment_number| comment" in prepare("flickr30k").err


def test_the_two_flickr_sets_share_no_photograph_between_training_and_validation(
    tmp_path, flickr30k, flickr8k, prepare
):
    """Flickr30k holds Flickr8k's photographs under the first part of their names."""
    (flickr8k / "Flicker8k_Dataset/test_a.jpg").rename(flickr8k / "Flicker8k_Dataset/1_ab.jpg")
    (flickr8k / "Flicker8k_Dataset/train_a.jpg").rename(flickr8k / "Flicker8k_Dataset/3_cd.jpg")
    for name in ("token", "trainImages", "testImages"):
        path = next((flickr8k / "text").glob(f"*{name}.txt"))
        write(path, path.read_text().replace("test_a", "1_ab").replace("train_a", "3_cd"))
    write(flickr30k / "dataset_flickr30k.json", '{"images": [{"filename": "3.jpg", "split": "test"}]}')
    assert "f8k_3_cd" in prepare("flickr8k").train
    done = prepare("flickr30k")
    assert "f30k_2" in done.train
    assert "f30k_1" not in done.train
    (error,) = load("check").check(done.root)
    assert "f30k_3 has the same group" in error
    done = prepare("flickr8k")
    assert "f8k_3_cd" not in done.train
    assert load("check").check(done.root) == []


@pytest.fixture
def conceptual(source):
    rows = ["a dog on the beach .\thttps://example.org/1.jpg", "a cat\thttps://example.org/2.png?x=1",
            "a cow\thttps://example.org/3.jpg", "a fly\tftp://example.org/4.jpg"]  # fmt: skip
    write(source / "Train_GCC-training.tsv", "\n".join(rows) + "\n")
    save(source / "Train_GCC-training/00000/000000000.jpg", 1, (200, 300))
    write(source / "Validation_GCC-1.1.0-Validation.tsv", "https://example.org/9.jpg\ta bird\tpictures/nine.png\n")
    save(source / "pictures/nine.png", 9)
    return source


def test_conceptual_captions_with_pictures_that_are_there(conceptual, prepare):
    write(conceptual / "Train_GCC-training/00000/000000002.jpg", "no picture")
    done = prepare("conceptual_captions")
    assert done.code == 0
    assert set(done.train) == {"cc_train_gcc_training_000000000"}
    dog, bird = *done.train.values(), *done.val.values()
    assert (dog.about["captions"], dog.about["url"]) == (["a dog on the beach"], "https://example.org/1.jpg")
    assert size_of(dog) == (144, 216)
    assert bird.about["captions"] == ["a bird"]
    assert "000000002.jpg: " in done.err
    assert "Train_GCC-training.tsv: 2 of 4 rows have no picture" in done.err


def test_conceptual_captions_are_downloaded_once_and_failures_named(conceptual, prepare, monkeypatch):
    asked = []

    def download(url, name, max_bytes):
        asked.append(url)
        if url.endswith("3.jpg"):
            raise UserError(f"{name}: the server answered 404 Not Found")
        buffer = io.BytesIO()
        picture(5).save(buffer, "PNG")
        return buffer.getvalue()

    monkeypatch.setattr("onepeace.files.source._download", download)
    done = prepare("conceptual_captions", "--download")
    assert done.code == 0
    assert set(done.train) == {"cc_train_gcc_training_000000000", "cc_train_gcc_training_000000001"}
    assert sorted(asked) == ["https://example.org/2.png?x=1", "https://example.org/3.jpg"]
    assert "row 2: https://example.org/3.jpg: the server answered 404" in done.err
    assert "row 3: ftp://example.org/4.jpg: addresses must be http or https, not ftp" in done.err
    assert (conceptual / "Train_GCC-training/00000/000000001.png").is_file()
    prepare("conceptual_captions", "--download")
    assert asked.count("https://example.org/2.png?x=1") == 1


def test_conceptual_captions_without_a_picture_say_what_to_do(conceptual, prepare):
    (conceptual / "pictures/nine.png").unlink()
    table = conceptual / "Validation_GCC-1.1.0-Validation.tsv"
    write(table, "a bird\thttps://example.org/9.jpg\n")
    assert f"{table}: not one picture of 1 rows" in prepare("conceptual_captions").err


@pytest.mark.parametrize("row", ["a dog", "a dog\tdog.jpg", " .\thttps://example.org/1.jpg"])
def test_conceptual_captions_bad_row_names_file_and_line(conceptual, prepare, row):
    table = write(conceptual / "Train_GCC-training.tsv", f"caption\turl\na dog\thttps://example.org/1.jpg\n{row}\n")
    assert f"{table}:3: " in prepare("conceptual_captions").err


VIDEOS = [f"{letter}-_bcdefghij"[:11] for letter in "ABCDEFGYZ"]


@pytest.fixture
def audiocaps(source):
    """Nine training clips of which seven are there, under all kinds of names; one clip each in val and test."""
    names = ["{}.wav", "Y{}.wav", "{}_30.flac", "{}_30_40.wav", "Y{}_30000_40000.wav", "{}_30.000_40.000.ogg", None,
             "{}.wav", "{}_99.wav"]  # fmt: skip
    rows = ["audiocap_id,youtube_id,start_time,caption"]
    for i, (video, name) in enumerate(zip(VIDEOS, names, strict=True)):
        if name:
            save_sound(source / "sounds" / name.format(video), 1 + i / 10, rate=8000)
        rows.append(f'{91000 + i},{video},30,"Sound {i}, and so on ."')
    write(source / "dataset/train.csv", "\n".join(rows))
    for split, video in {"val": "v" * 11, "test": "t" * 11}.items():
        save_sound(source / f"sounds/{split}/{video}.wav", 12, rate=8000)
        text = "".join(f"{5 * 91000 + i},{video},0,{split} {i}\n" for i in range(5))
        write(source / f"dataset/{split}.csv", rows[0] + "\n" + text)
    return source


def test_audiocaps(audiocaps, prepare):
    import soundfile

    write(audiocaps / "sounds" / f"{VIDEOS[0]}.wav", "no sound")
    save_sound(audiocaps / "sounds/91006.wav", 1, rate=8000)
    done = prepare("audiocaps")
    assert done.code == 0
    assert set(done.train) == {f"acaps_{video}_30" for video in VIDEOS[1:8]}
    (test,) = done.val.values()
    assert test.key == "acaps_ttttttttttt_0"
    assert test.about["captions"] == [f"test {i}" for i in range(5)]
    wave, rate = soundfile.read(io.BytesIO(test.media))
    assert (wave.shape, rate) == ((160000,), 16000)
    sample = done.train[f"acaps_{VIDEOS[3]}_30"]
    assert sample.about["captions"] == ["Sound 3, and so on"]
    assert (sample.about["youtube_id"], sample.about["start"]) == (VIDEOS[3], 30)
    assert len(soundfile.read(io.BytesIO(sample.media))[0]) == 1.3 * 16000
    assert "train.csv: 1 of 9 sounds are not there" in done.err
    assert f"{VIDEOS[0]}.wav: " in done.err


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("1,Abc,30,a dog", "'Abc' is not the id of a video"),
        ("1,Abcdefghijk,x,a dog", "expected a whole number, found 'x'"),
        ("1,Abcdefghijk,30, ", "no caption"),
        ("1,Abcdefghijk,30", "3 cells in place of 4"),
    ],
)
def test_audiocaps_bad_row_names_file_and_line(audiocaps, prepare, row, message):
    table = write(audiocaps / "dataset/test.csv", f"audiocap_id,youtube_id,start_time,caption\n\n{row}\n")
    done = prepare("audiocaps")
    assert done.code == 1
    assert f"{table}:3: {message}" in done.err


def test_sets_of_sounds_take_no_videos(audiocaps, prepare):
    for path in [*audiocaps.rglob("*.wav"), *audiocaps.rglob("*.flac"), *audiocaps.rglob("*.ogg")]:
        path.rename(path.with_suffix(".mp4"))
    done = prepare("audiocaps")
    assert done.code == 1
    assert "holds none of the 1 sounds of AudioCaps test (test.csv), nor of the 9 sounds of AudioCaps train" in done.err
    assert "not videos: extract their sound" in done.err


@pytest.mark.parametrize(
    ("name", "test"), [("audiocaps", "t" * 11), ("clotho", "c"), ("vggsound", "---g-f_I2yQ_000001")]
)
def test_split_without_sounds_is_told_and_passed_over(audiocaps, clotho, vggsound, prepare, name, test):
    for path in audiocaps.rglob(f"{test}*.wav"):
        path.unlink()
    if name == "clotho":
        (clotho / "evaluation").rmdir()
    done = prepare(name)
    assert done.code == 0
    assert done.train
    assert not done.val
    assert re.search(r"download: holds none of the 1 sounds of \S+ \S+ \(\S+\.csv\); passed over\n", done.err)


@pytest.fixture
def clotho(source):
    for split, names in {
        "development": ("Rain, 1.wav", "b.wav"),
        "evaluation": ("c.wav",),
        "validation": ("d.wav",),
    }.items():
        rows = ["file_name,caption_1,caption_2,caption_3,caption_4,caption_5"]
        for name in names:
            save_sound(source / split / name, 2, rate=8000)
            rows.append(f'"{name}",' + ",".join(f"It rains {i}." for i in range(5)))
        write(source / f"clotho_captions_{split}.csv", "\n".join(rows))
    return source


def test_clotho(clotho, prepare):
    write(clotho / "development/b.wav", "no sound")
    done = prepare("clotho")
    assert done.code == 0
    assert (set(done.train), set(done.val)) == ({"clotho_development_00000"}, {"clotho_evaluation_00000"})
    sample = done.train["clotho_development_00000"]
    assert sample.about["captions"] == [f"It rains {i}" for i in range(5)]
    assert sample.about["file_name"] == "Rain, 1.wav"
    assert "b.wav: " in done.err


def test_clotho_bad_rows_and_missing_sounds(clotho, prepare):
    (clotho / "development/b.wav").unlink()
    assert "clotho_captions_development.csv: 1 of 2 sounds are not there" in prepare("clotho").err
    table = clotho / "clotho_captions_development.csv"
    head = table.read_text().splitlines()[0]
    write(table, f"{head}\na.wav,1,2,3,,5\n")
    assert f"{table}:2: no caption_4" in prepare("clotho").err
    write(table, f'{head}\na.wav,1,2,3,4,5\n"a.wav\n')
    assert f"{table}:3: cannot be read" in prepare("clotho").err
    write(table, "name,text\na.wav,1\n")
    assert f"{table}:2: no file_name; expected the columns file_name, caption_1" in prepare("clotho").err
    assert "train2 cannot be both" in prepare("clotho", "--train", "train2", "--val", "train2").err


MACS = """\
files:
- filename: airport-lisbon-0-0-a.wav
  annotations:
  - {annotator_id: 1, sentence: 'people talk .', tags: [adults talking]}
  - {annotator_id: 2, sentence: a child laughs, tags: [children voices]}
- filename: public_square-paris-1-2-a.wav
  annotations:
  - {annotator_id: 1, sentence: footsteps, tags: [footsteps]}
"""


def test_macs(source, prepare):
    table = write(source / "MACS.yaml", MACS)
    save_sound(source / "TAU/audio/airport-lisbon-0-0-a.wav", 2, rate=48000, channels=2)
    done = prepare("macs")
    assert done.code == 0
    (sample,) = done.train.values()
    assert sample.key == "macs_airport-lisbon-0-0-a"
    assert (sample.about["captions"], sample.about["label"]) == (["people talk", "a child laughs"], "airport")
    assert "MACS.yaml: 1 of 2 sounds are not there (macs_public_square-paris-1-2-a" in done.err
    for content, message in (
        (MACS.replace("sentence: footsteps", "text: x"), "MACS.yaml:6: no filename and annotations with sentences"),
        (MACS.replace("footsteps, tags", "'.', tags"), "MACS.yaml:6: public_square-paris-1-2-a.wav has no sentence"),
        (MACS + "- ]\n", ":9: not YAML"),
        ("files: 3\n", "has no list of files"),
    ):
        write(table, content)
        done = prepare("macs")
        assert done.code == 1
        assert f"{table}" in done.err
        assert message in done.err


@pytest.fixture
def vggsound(source):
    rows = ["---g-f_I2yQ,1,people marching,test", '--0PQM4-hqg,30,"playing violin, fiddle",train',
            "ttttttttttt,0,people marching,train", "gonegonegon,5,waterfall,train"]  # fmt: skip
    write(source / "vggsound.csv", "\n".join(rows) + "\n")
    for name in ("---g-f_I2yQ_000001.wav", "--0PQM4-hqg_000030.flac", "ttttttttttt_000000.wav"):
        save_sound(source / "clips" / name, 2, rate=8000)
    write(source / "clips/gonegonegon_000005.mp4", "a video")
    return source


def test_vggsound(vggsound, prepare):
    done = prepare("vggsound")
    assert done.code == 0
    assert set(done.val) == {"vgg_---g-f_I2yQ_000001"}
    assert set(done.train) == {"vgg_--0PQM4-hqg_000030", "vgg_ttttttttttt_000000"}
    about = done.train["vgg_--0PQM4-hqg_000030"].about
    assert about["captions"][:2] == ["playing violin, fiddle", "the sound of playing violin, fiddle"]
    assert (about["label"], about["target"], about["youtube_id"]) == ("playing violin, fiddle", 1, "--0PQM4-hqg")
    classes = json.loads((done.root / "val/vggsound/classes.json").read_text())
    assert classes == ["people marching", "playing violin, fiddle", "waterfall"]
    assert "vggsound.csv: 1 of 3 sounds are not there (vgg_gonegonegon_000005" in done.err


def test_sets_of_youtube_share_no_video_between_training_and_validation(audiocaps, vggsound, prepare):
    assert prepare("audiocaps").code == 0
    done = prepare("vggsound")
    assert "vgg_--0PQM4-hqg_000030" in done.train
    assert "vgg_ttttttttttt_000000" not in done.train  # its video is in AudioCaps' test split
    assert load("check").check(done.root) == []


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("---g-f_I2yQ,1,people marching", "3 cells in place of 4"),
        ("---g-f_I2yQ,one,people marching,test", "expected a whole number, found 'one'"),
        ("---g-f_I2yQ,1,people marching,val", "the split is 'val', not train or test"),
        ("---g-f_I2yQ,1,,test", "no label"),
    ],
)
def test_vggsound_bad_row_names_file_and_line(vggsound, prepare, row, message):
    table = vggsound / "vggsound.csv"
    write(table, table.read_text() + row + "\n")
    assert f"{table}:5: {message}" in prepare("vggsound").err


# ------------------------------------------------------------------ the writer


def add(writer, key, media=b"media", **fields):
    writer.add(key, "png", media, fields.pop("captions", [f"{key} one", f"{key} two"]),
               **{"source": "made up", "license": "CC0", **fields})  # fmt: skip


def test_shards_are_equal_bytes_for_equal_samples(tmp_path):
    writer = load("shardwriter").SetWriter
    for folder in ("a", "b"):
        with writer(tmp_path / folder, "set", shard_bytes=10) as shards:
            for key in ("x", "y", "z"):
                add(shards, key, b"12345")
        # not the time, the user or the file's name
        (tmp_path / folder).rename(tmp_path / f"{folder}2")
    files = [sorted((tmp_path / folder).iterdir()) for folder in ("a2", "b2")]
    assert [path.name for path in files[0]] == ["set-00000.tar.gz", "set-00001.tar.gz"]
    assert [path.read_bytes() for path in files[0]] == [path.read_bytes() for path in files[1]]
    assert not any(path.read_bytes()[4:8] != bytes(4) for path in files[0])


def test_shards_are_read_by_the_trainer(tmp_path):
    with load("shardwriter").SetWriter(tmp_path / "s", "set") as shards:
        add(shards, "x", b"picture", label="dog")
    (sample,) = read_source("s/*.tar.gz", ("image", "text"), tmp_path).samples
    assert (sample.inputs["image"], sample.captions, sample.label) == (b"picture", ["x one", "x two"], "dog")


def test_an_error_leaves_the_older_shards(tmp_path):
    writer = load("shardwriter").SetWriter
    with writer(tmp_path, "set", shard_bytes=1) as shards:
        add(shards, "x")
        add(shards, "y")
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    assert len(before) == 2

    def fail():
        with writer(tmp_path, "set") as shards:
            add(shards, "z")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before
    write(tmp_path / "set-other.txt", "stays")
    with writer(tmp_path, "set") as shards:
        add(shards, "z")
    assert {path.name for path in tmp_path.iterdir()} == {"set-00000.tar.gz", "set-other.txt"}


def test_a_second_sample_of_a_key_is_skipped(tmp_path, capsys):
    with load("shardwriter").SetWriter(tmp_path, "set") as shards:
        add(shards, "x", b"first")
        add(shards, "x", b"second")
    assert [s.media for s in load("check").read_shard(tmp_path / "set-00000.tar.gz")] == [b"first"]
    assert "left out x: " in capsys.readouterr().err


def test_ogg_is_the_same_every_time_and_whole():
    import soundfile

    ogg = load("shardwriter").ogg
    wave = np.sin(np.arange(16000) / 20).astype(np.float32) * 0.5
    first = ogg(wave, 16000, 0.9)
    assert first == ogg(wave, 16000, 0.9)
    assert first[14:18] == bytes([1, 0, 0, 0])  # libsndfile's own number changes with the time
    decoded, _ = soundfile.read(io.BytesIO(first))  # refuses pages whose checksum is wrong
    assert np.corrcoef(decoded, wave)[0, 1] > 0.99


# ------------------------------------------------------------------ the check


@pytest.fixture
def clean(tmp_path):
    """A folder without leaks, and a function that writes one shard more."""
    writer = load("shardwriter").SetWriter

    def put(where, key, media, **fields):
        with writer(tmp_path / where, f"set_{key}") as shards:
            add(shards, key, media, **fields)

    put("train/image_text", "tin_a", b"1", captions=["a photo of a dog"], label="dog")
    put("train/image_text", "emoji_noto_1", b"2", captions=["dog face"], name="dog face")
    put("val/tiny_imagenet", "tin_b", b"3", captions=["a photo of a dog"], label="dog")
    put("val/emoji", "emoji_noto_2", b"4", captions=["cat face"], name="cat face")
    return types.SimpleNamespace(root=tmp_path, put=put, check=load("check"))


def test_check_passes_a_clean_folder(clean, capsys):
    assert clean.check.main([str(clean.root)]) == 0
    out = capsys.readouterr().out
    assert "val/emoji/set_emoji_noto_2: 1 samples" in out
    assert out.endswith("0 errors\n")


@pytest.mark.parametrize(
    ("what", "key", "media", "fields"),
    [
        ("media", "tin_c", b"1", {}),
        ("key", "tin_a", b"5", {}),
        ("group", "emoji_noto_3", b"5", {"name": "dog face"}),
    ],
)
def test_check_finds_a_leak(clean, capsys, what, key, media, fields):
    clean.put("val/more", key, media, **fields)
    assert clean.check.main([str(clean.root)]) == 1
    err = capsys.readouterr().err
    assert f"{key} has the same {what} as train/image_text/" in err
    assert err.count("\n") == 1


def test_check_knows_the_recordings_that_esc50_itself_splits(clean):
    for recording in ("209698", "1"):
        for fold, where in ((4, "train/audio_text"), (5, "val/esc50_fold5")):
            clean.put(where, f"esc50_{fold}-{recording}", f"{fold}{recording}".encode(), freesound_id=recording)
    errors = clean.check.check(clean.root)
    assert len(errors) == 1
    assert "esc50_5-1 has the same group" in errors[0]


def test_check_finds_what_a_sample_lacks(clean):
    clean.put("train/more", "x", b"7", license="")
    assert [error.partition(": ")[2] for error in clean.check.check(clean.root)] == ["x has no license and source"]


def test_check_names_a_shard_that_is_cut_off(clean, capsys):
    path = clean.root / "val/emoji/set_emoji_noto_2-00000.tar.gz"
    path.write_bytes(path.read_bytes()[:40])
    assert clean.check.main([str(clean.root)]) == 1
    assert str(path) in capsys.readouterr().err


def test_check_counts_photographs_that_look_alike(clean, capsys):
    shardwriter = load("shardwriter")
    clean.put("train/photos", "f8k_a", shardwriter.webp(picture(1, (200, 150)), 90))
    clean.put("val/photos", "f8k_b", shardwriter.webp(picture(1, (100, 75)), 80))
    clean.put("val/photos", "f8k_c", shardwriter.webp(picture(2, (100, 75)), 80))
    for folder, key in (("train/image_text", "tin_a"), ("val/tiny_imagenet", "tin_b")):  # not pictures
        (clean.root / folder / f"set_{key}-00000.tar.gz").unlink()
    assert clean.check.check(clean.root, near=2) == []
    assert "within 2 of 64 bits of one of train: 1 of 2" in capsys.readouterr().out


def test_shipped_shards_have_no_leak(shared):
    """The held-out emoji and drawings of this checkout are those of the shards, and in no training shard."""
    check = load("check")
    names = {split: set() for split in ("train", "val")}
    for split in names:
        for shard in sorted((shared / "data" / split).rglob("emoji-*.tar.gz")):
            names[split] |= {(s.about["hexcode"], s.about["name"]) for s in check.read_shard(shard)}
    listed = {tuple(line.split("\t")) for line in (DATA / "emoji/val.txt").read_text(encoding="utf-8").splitlines()}
    assert names["val"] == listed
    assert not {name for _, name in names["train"]} & {name for _, name in listed}
    titles = {
        s.about["captions"][0] for p in (shared / "data/val/openclipart").glob("*.gz") for s in check.read_shard(p)
    }
    assert titles == set((DATA / "openclipart/val.txt").read_text(encoding="utf-8").splitlines())


def test_bad_shard_member_is_a_user_error(tmp_path):
    path = write(tmp_path / "x.tar.gz", "nothing")
    with pytest.raises(UserError, match=r"x\.tar\.gz"):
        list(load("check").read_shard(path))


# ------------------------------------------------------------------ the samples


def test_samples_are_all_listed_with_licence(samples):
    import csv

    with (samples / "captions.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    on_disk = {p.relative_to(samples).as_posix() for p in samples.rglob("*") if p.suffix in (".jpg", ".ogg")}
    assert {row["file"] for row in rows} == on_disk
    assert len(on_disk) == 37
    assert all(row["caption"] and row["source"] and row["license"] and "GPL" not in row["license"] for row in rows)
    assert sum(p.stat().st_size for p in samples.rglob("*") if p.is_file()) <= 4_000_000
