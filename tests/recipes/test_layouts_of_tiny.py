"""The layouts that only the recipes of the bundled model read."""

import gzip
import json
import sys
import types
from pathlib import Path

from open_clip import IMAGENET_CLASSNAMES
from PIL import Image
from support.downloads import picture
from support.images import encoded_image
from support.layouts import FOLDER, captions, size_of

EMOJI = [
    {"hexcode": "1F436", "label": "dog face", "tags": ["dog", "face", "pet", "puppy"], "group": 3},
    {"hexcode": "1F171", "label": "B button (blood type)", "tags": ["blood"], "group": 8},
    {"hexcode": "1F3F4-200D-2620-FE0F", "label": "pirate flag", "tags": [], "group": 9},
    {"hexcode": "1F468-200D-1F466", "label": "family: man, boy", "tags": [], "group": 1},
]
DRAWING_SETS = {
    "emojibase-data/en/data.json": EMOJI,
    "noto/icons.json": {
        "prefix": "noto",
        "icons": {name: {"body": name} for name in ("dog", "blood", "flag", "family")},
        "aliases": {"b": {"parent": "blood"}},
    },
    "noto/info.json": {"license": {"title": "free"}},
    "noto/chars.json": {"1f436": "dog", "1f171": "b", "1f3f4-200d-2620-fe0f": "flag", "1f468-1f466": "family"},
    # known by the names that the other set gives
    "fluent/icons.json": {"prefix": "fluent-emoji", "icons": {"dog": {"body": "broken"}, "unheard-of": {"body": ""}}},
}


def test_emoji_are_divided_by_name(prepare, monkeypatch):
    """dog face is training data, B button validation data; a flag, a family and a man are left out."""

    def svg_to_bytes(svg_string, width):
        if "broken" in svg_string:
            raise ValueError("not SVG")
        return encoded_image(picture(len(svg_string), (width, width), "RGBA"))

    monkeypatch.setitem(sys.modules, "resvg_py", types.SimpleNamespace(svg_to_bytes=svg_to_bytes))
    shards = prepare("emoji", files=DRAWING_SETS)

    assert set(shards.val) == {"emoji_noto_1f171"}
    assert captions(shards.val["emoji_noto_1f171"]) == ["B button (blood type)"]
    assert set(shards.train) == {"emoji_noto_1f436"}
    dog = shards.train["emoji_noto_1f436"]
    assert captions(dog) == ["dog face", "a drawing of dog face", "dog face, an emoji", "dog face: pet, puppy"]
    assert size_of(dog) == (96, 96)
    assert dog.about["license"] == "free"
    assert f"{Path('fluent/icons.json')}: dog: not SVG" in shards.err


def test_openclipart_titles_are_without_authors(prepare):
    """Plain, narrow and broken pictures are left out."""
    held_out = (FOLDER / "openclipart_val.txt").read_text(encoding="utf-8").splitlines()[0]
    names = [
        "animals/wild_cat_jane_doe_01",
        "animals/sleepy-dog_jane_doe",
        "food/red_apple",
        "food/cartoon",
        "signs/flags/france",
        f"food/{held_out.replace(' ', '_')}",
        f"things/{held_out.replace(' ', '_')}_02",
    ]
    files = {
        "food/thin_line.png": picture(8, (300, 20), "RGBA"),
        "food/broken_bottle.png": "no picture",
        "food/nothing_here.png": Image.new("RGBA", (100, 100), "white"),
    }
    for seed, name in enumerate(names):
        files[f"{name}.png"] = picture(seed, (300, 200), "RGBA")

    shards = prepare("openclipart", files=files)

    titles = {captions(record)[0]: record for record in shards.train.values()}
    assert set(titles) == {"wild cat", "sleepy dog", "red apple"}
    assert captions(titles["wild cat"]) == ["wild cat", "a drawing of wild cat", "wild cat (animals)"]
    assert [captions(record) for record in shards.val.values()] == [[held_out]]
    assert "broken_bottle.png" in shards.err


def test_stamps_of_tuxpaint(prepare):
    names = ("animals/frog", "animals/cat", "symbols/letter", "food/fig_mirror", "food/pear", "food/dot")
    files = {}
    for seed, name in enumerate(names):
        files[f"{name}.png"] = picture(seed, (200, 100), "RGBA")
        files[f"{name}.txt"] = f"A {name.split('/')[1]}.\nde.utf8=Ein Ding.\n"
    files["food/dot.png"] = picture(5, (30, 30), "RGBA")
    del files["food/pear.txt"]
    files |= {"animals-cat.png": picture(9, (99, 99), "RGBA"), "animals-cat.txt": "Another cat"}  # the same key
    files |= {"food/soup.png": "no picture", "food/soup.txt": "A soup"}

    shards = prepare("tuxpaint", "exclude=[animals/frog]", files=files)

    assert set(shards.train) == {"tux_animals_cat"}
    assert "soup.png" in shards.err
    assert "tux_animals_cat: " in shards.err


def test_imagenet_samples_leave_out_near_copies_of_validation(prepare):
    prepare("tiny_imagenet")
    larger_val_1 = picture(101, (64, 64)).resize((256, 256))
    files = {"n02123045_tabby_cat.JPEG": picture(7, (300, 200)), "n02509815_red_panda.JPEG": larger_val_1}

    shards = prepare("imagenet_samples", files=files)

    assert "ins_n02509815" not in shards.train
    assert "n02509815_red_panda.JPEG: near copy" in shards.err
    assert captions(shards.train["ins_n02123045"]) == [
        "a photo of a tabby cat",
        "a picture of a tabby cat",
        "a tabby cat",
    ]


def test_macs_has_captions_and_place(prepare):
    shards = prepare("macs")
    (record,) = shards.train.values()
    assert captions(record) == ["people talk", "a child laughs"]
    assert record.about["label"] == "airport"
    assert "MACS.yaml: 1 of 2 audio files are missing (macs_public_square-paris-1-2-a" in shards.err


def test_texts_in_several_languages_begin_with_english(prepare):
    caption = {"en": "A dog", "de": "Ein Hund", "fr": "Un chien", "cs": "Pes"}
    noun = {"kind": "animal", "en": ["dog", "hound"], "de": ["Hund"], "ja": ["犬"]}
    files = {
        "train.jsonl.gz": gzip.compress(json.dumps(caption).encode()),
        "words.jsonl.gz": gzip.compress(json.dumps(noun).encode()),
    }
    shards = prepare("languages", "sentences=0.01", files=files)

    texts = {key: captions(record) for key, record in shards.train.items()}
    assert texts.pop("caption_00001") == ["A dog", "Ein Hund", "Un chien", "Pes"]
    assert texts.pop("noun_00001") == ["dog", "hound", "Hund", "犬"]
    templates = [texts.pop(key) for key in list(texts) if key.startswith("template")]
    assert len(templates) == 3
    for english, german, japanese in templates:
        assert ("dog" in english, "Hund" in german, "犬" in japanese) == (True, True, True)
    assert texts
    assert {len(sentence) for sentence in texts.values()} == {11}


def test_words_come_alone_and_in_sentences(prepare):
    vocabulary = "[PAD]\n[unused0]\n##ing\nit\ndog\nkite\nsnow\ndog2\n1990\nÉté\n"
    shards = prepare("words", files={"vocab.txt": vocabulary})

    words = set()
    for record in shards.train.values():
        word, sentence = captions(record)
        assert word in sentence
        assert sentence != word
        words.add(word)
    assert words == {"dog", "kite", "snow", *IMAGENET_CLASSNAMES}
