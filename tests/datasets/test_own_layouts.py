"""The layouts of recipes/own_layouts.py, added on the command line."""

import io
import sys
import types
from functools import partial
from pathlib import Path

import pytest
from open_clip import IMAGENET_CLASSNAMES
from PIL import Image
from support.downloads import macs, picture
from support.layouts import captions, size_of

from onepeace.datasets.written import read_shard

RECIPES = Path(__file__).resolve().parents[2] / "recipes"
pytestmark = pytest.mark.usefixtures("layouts_restored")


@pytest.fixture
def own(prepare):
    return partial(prepare, layouts=("--import", str(RECIPES / "own_layouts.py")))


def iconify(folder, prefix, icons, chars, **more):
    """A drawing set as an npm package."""
    bodies = {name: {"body": f"<g>{name}</g>"} for name in icons}
    return {
        f"{folder}/icons.json": {"prefix": prefix, "icons": bodies, "width": 32, "height": 32, **more},
        f"{folder}/info.json": {"prefix": prefix, "license": {"title": f"licence of {prefix}"}},
        **({f"{folder}/chars.json": chars} if chars else {}),
    }


def test_emoji_are_divided_by_name(own, monkeypatch):
    """dog face is training data, B button validation data; a flag, a family and a man are left out."""
    drawn = []

    def svg_to_bytes(svg_string, width):
        drawn.append(svg_string)
        if "broken" in svg_string:
            raise ValueError("not SVG")
        buffer = io.BytesIO()
        picture(len(drawn), (width, width), "RGBA").save(buffer, "PNG")
        return list(buffer.getvalue())

    names = [
        {"hexcode": "1F436", "label": "dog face", "tags": ["dog", "face", "pet", "puppy"], "group": 3},
        {"hexcode": "1F171", "label": "B button (blood type)", "tags": ["blood"], "group": 8},
        {"hexcode": "1F3F4-200D-2620-FE0F", "label": "pirate flag", "tags": [], "group": 9},
        {"hexcode": "1F468-200D-1F466", "label": "family: man, boy", "tags": [], "group": 1},
    ]
    codes = {"1f436": "dog-face", "1f171": "b-button", "1f3f4-200d-2620-fe0f": "flag", "1f468-1f466": "family"}
    files = {
        "emojibase-data/en/data.json": names,
        **iconify("noto", "noto", ["dog-face", "b-button-blood", "flag", "family"], codes,
                  aliases={"b-button": {"parent": "b-button-blood"}}),
        # no table of code points: known by the names another set gives
        **iconify("fluent", "fluent-emoji-flat", ["dog-face", "unheard-of"], None),
        **iconify("twemoji", "twemoji", ["dog-face-broken"], {"1f436": "dog-face-broken"}),
        **iconify("mdi", "mdi", ["dog"], {"1f436": "dog"}),
    }  # fmt: skip
    monkeypatch.setitem(sys.modules, "resvg_py", None)
    assert "pip install resvg-py" in own("emoji", files=files, code=1).err
    monkeypatch.setitem(sys.modules, "resvg_py", types.SimpleNamespace(svg_to_bytes=svg_to_bytes))
    done = own("emoji")
    assert {key: captions(sample) for key, sample in done.val.items()} == {
        "emoji_noto_1f171": ["B button (blood type)"]
    }
    assert set(done.train) == {"emoji_noto_1f436", "emoji_fluent_emoji_flat_1f436"}
    dog = done.train["emoji_noto_1f436"]
    assert captions(dog) == ["dog face", "a drawing of dog face", "dog face, an emoji", "dog face: pet, puppy"]
    assert (size_of(dog), dog.about["license"]) == ((96, 96), "licence of noto")
    assert "dog-face-broken: not SVG" in done.err


def test_openclipart(own):
    held_out = (RECIPES / "openclipart_val.txt").read_text(encoding="utf-8").splitlines()[0]
    names = {
        # "jane_doe" follows two titles and is an author
        "animals/wild_cat_jane_doe_01": 1, "animals/sleepy-dog_jane_doe": 2, "food/red_apple": 3, "food/cartoon": 4,
        "signs/flags/france": 5, f"food/{held_out.replace(' ', '_')}": 6, f"things/{held_out.replace(' ', '_')}_02": 7,
    }  # fmt: skip
    files = {f"{name}.png": picture(seed, (300, 200), "RGBA") for name, seed in names.items()}
    files |= {"food/thin_line.png": picture(8, (300, 20), "RGBA"), "food/broken_bottle.png": "no picture"}
    files |= {"food/nothing_here.png": Image.new("RGBA", (100, 100), "white")}
    done = own("openclipart", files=files)
    titles = {captions(s)[0]: s for s in done.train.values()}
    assert set(titles) == {"wild cat", "sleepy dog", "red apple"}
    assert captions(titles["wild cat"]) == ["wild cat", "a drawing of wild cat", "wild cat (animals)"]
    assert [captions(one) for one in done.val.values()] == [[held_out]]
    assert "broken_bottle.png" in done.err


def test_stamps_of_tuxpaint(own):
    names = ("animals/frog", "animals/cat", "symbols/letter", "food/fig_mirror", "food/pear", "food/dot")
    sizes = {"food/dot": (30, 30)}
    files = {f"{n}.png": picture(i, sizes.get(n, (200, 100)), "RGBA") for i, n in enumerate(names)}
    files |= {f"{n}.txt": f"A {n.split('/')[1]}.\nde.utf8=Ein Ding.\n" for n in names if n != "food/pear"}
    files |= {"animals-cat.png": picture(9, (99, 99), "RGBA"), "animals-cat.txt": "Another cat"}  # the same key
    done = own(
        "tuxpaint", "exclude=[animals/frog]", files={**files, "food/soup.png": "no picture", "food/soup.txt": "A soup"}
    )
    assert set(done.train) == {"tux_animals_cat"}
    assert "soup.png" in done.err
    assert "tux_animals_cat: an earlier sample has this key" in done.err


def test_imagenet_samples_leave_out_near_copies_of_validation(own):
    near = picture(101, (64, 64)).resize((256, 256))  # the picture of val_1, larger and stored anew
    files = {"n02123045_tabby_cat.JPEG": picture(7, (300, 200)), "n02509815_red_panda.JPEG": near}
    assert "make those of tiny_imagenet first" in own("imagenet_samples", files=files, code=1).err
    own("tiny_imagenet")
    done = own("imagenet_samples")
    assert "ins_n02509815" not in done.train
    assert "n02509815_red_panda.JPEG: near copy" in done.err
    assert captions(done.train["ins_n02123045"]) == [
        "a photo of a tabby cat",
        "a picture of a tabby cat",
        "a tabby cat",
    ]


def test_macs(own):
    done = own("macs")
    (sample,) = done.train.values()
    assert (captions(sample), sample.about["label"]) == (["people talk", "a child laughs"], "airport")
    assert "MACS.yaml: 1 of 2 audio files are missing (macs_public_square-paris-1-2-a" in done.err
    broken = {"MACS.yaml": macs()["MACS.yaml"].replace("sentence: footsteps", "text: x")}
    assert "MACS.yaml: file 2 of the list has no filename" in own("macs", files=broken, code=1).err


def test_words_come_alone_and_in_sentences(own):
    vocabulary = {"vocab.txt": "[PAD]\n[unused0]\n##ing\nit\ndog\nkite\nsnow\ndog2\n1990\nÉté\n"}
    words = dict(captions(sample) for sample in own("words", files=vocabulary).train.values())
    assert set(words) == {"dog", "kite", "snow", *IMAGENET_CLASSNAMES}
    assert all(word in sentence and sentence != word for word, sentence in words.items())
    assert "no vocab.txt" in own("words", files={"vocab.txt": None}, code=1).err


def test_held_out_names_are_those_of_the_shards(shared):
    names = {split: set() for split in ("train", "val")}
    for split in names:
        for shard in sorted((shared / "data" / split).rglob("emoji-*.tar.gz")):
            names[split] |= {(s.about["hexcode"], s.about["name"]) for s in read_shard(shard)}
    listed = {tuple(line.split("\t")) for line in (RECIPES / "emoji_val.txt").read_text(encoding="utf-8").splitlines()}
    assert names["val"] == listed
    assert not {name for _, name in names["train"]} & {name for _, name in listed}
    titles = {captions(s)[0] for p in (shared / "data/val/openclipart").glob("*.gz") for s in read_shard(p)}
    assert titles == set((RECIPES / "openclipart_val.txt").read_text(encoding="utf-8").splitlines())
