"""Layouts of datasets for the recipes of the bundled model, and of MACS for audio_retrieval.yaml.

    onepeace shards --import recipes/own_layouts.py --layout emoji ~/downloads/emoji -o $ONEPEACE_DATA

A file like this one can add other layouts: its last lines add them to `LAYOUTS`.
"""

import glob
import json
import random
import re
import tarfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import resources
from itertools import count
from pathlib import Path
from typing import Any

from onepeace.config import read_yaml
from onepeace.datasets import LAYOUTS
from onepeace.datasets.layout import (
    Encoded,
    HeldOut,
    Layout,
    Record,
    Skipped,
    Split,
    option,
    present,
    shuffled,
    skipped,
)
from onepeace.datasets.pictures import DuplicateFilter, Photographs, read_picture, shrink, webp
from onepeace.datasets.reading import find, read_json, read_lines, sentence
from onepeace.datasets.sounds import HINT, Sounds, sounds_below
from onepeace.embed.zero_shot import fill
from onepeace.errors import UserError

HERE = Path(__file__).parent


def on_white_square(picture: Any, longest: int) -> Any:
    """An RGBA picture, at most `longest` pixels wide and high, in the middle of a white RGB square."""
    from PIL import Image

    picture = picture.copy()
    picture.thumbnail((longest, longest), Image.Resampling.LANCZOS)
    side = max(picture.size)
    square = Image.new("RGBA", (side, side), "white")
    square.alpha_composite(picture, ((side - picture.width) // 2, (side - picture.height) // 2))
    return square.convert("RGB")


def is_plain(picture: Any) -> bool:
    """Whether a picture has almost no content: fewer than four colours at 16 x 16 pixels."""
    return len(picture.resize((16, 16)).getcolors()) < 4


def drawing(record: Record) -> Encoded:
    """Encode a record whose picture is WebP already."""
    return Encoded({"webp": record.inputs["image"]})


# ---------------------------------------------------------------------------------------------------------- drawings

EMOJI_SIZE = 96
LICENSES = {
    "noto": "Apache 2.0",
    "twemoji": "CC BY 4.0",
    "openmoji": "CC BY-SA 4.0",
    "fluent-emoji": "MIT",
    "fluent-emoji-flat": "MIT",
    "emojione": "CC BY 4.0",
    "noto-v1": "Apache 2.0",
}
"""Drawing sets, and their licences if the package does not state them."""
VAL_SETS = ("noto", "twemoji", "fluent-emoji")


Drawing = tuple[str, str, str, str, Callable[[], Any]]
"""Code points as in `_code`, drawing set, licence, place for messages, and a function that draws the RGBA picture."""


@dataclass(frozen=True)
class Emoji(Layout):
    """Emoji: drawings of one idea in several styles with its Unicode name.

    SOURCE holds, at any depth, the unpacked npm packages
      emojibase-data                        en/data.json: names and keywords
      @iconify-json/noto, .../twemoji, ...  icons.json, info.json and mostly chars.json: one drawing set each
    The drawings are SVG; drawing them needs: pip install resvg-py.

    The split is by code point, hence by name, across all drawing sets: the 275 of recipes/emoji_val.txt are validation
    data (drawings of noto, twemoji and fluent-emoji), all others training data. Flags, keycaps, skin tones, gender
    variants and names with a colon are left out.
    """

    def splits(self, folder: Path, held_out: HeldOut) -> Iterator[Split]:
        words = _names(folder)
        apart = dict(line.split("\t") for _, line in read_lines(HERE / "emoji_val.txt"))
        apart_names = {*apart.values()}
        drawings = [drawing for drawing in _iconify(folder) if drawing[0] in words]
        if not drawings:
            raise UserError(f"{folder}: no drawing set (icons.json beside info.json)")
        drawings = shuffled(sorted(drawings, key=lambda drawing: drawing[:2]))
        seen = DuplicateFilter()

        def records(validation: bool) -> Iterator[Record | Skipped]:
            for code, name, license, where, draw in drawings:
                label, keywords = words[code]
                # by name too: a later Unicode version may reuse a name
                if (code in apart or label in apart_names) != validation or (validation and name not in VAL_SETS):
                    continue
                try:
                    picture = on_white_square(draw(), EMOJI_SIZE)
                except (OSError, ValueError) as error:
                    yield skipped(where, error)
                    continue
                if seen(picture.tobytes()):
                    continue
                captions = [label] if validation else [label, f"a drawing of {label}", f"{label}, an emoji"]
                if keywords:
                    captions.append(f"{label}: {', '.join(keywords[:3])}")
                about = {"license": license, "hexcode": code, "name": label}
                inputs = {"image": webp(picture, 80), "text": captions}
                yield Record(f"emoji_{name.replace('-', '_')}_{code}", f"emoji drawing set {name}", inputs, {}, about)

        yield Split("val/emoji/emoji", records(True), drawing)
        yield Split("train/image_text/emoji", records(False), drawing)


def _names(folder: Path) -> dict[str, tuple[str, list[str]]]:
    """Name and further keywords by code."""
    found = sorted(folder.rglob("en/data.json"))
    if not found:
        raise UserError(f"{folder}: no en/data.json of the npm package emojibase-data")
    names = {}
    for i, entry in enumerate(read_json(found[0])):
        try:
            code, label = entry["hexcode"], entry["label"]
        except (KeyError, TypeError) as error:
            raise UserError(f"{found[0]}: entry {i} has no hexcode and label: {entry!r}") from error
        # group 2: parts such as skin tones, 9: flags; 264x after a joiner: gender
        if entry.get("group") in (None, 2, 9) or re.search("200D-264[02]", code) or ":" in label or "keycap" in label:
            continue
        names[_code(code)] = (label, [tag for tag in entry.get("tags", []) if tag.lower() not in label.lower()])
    return names


def _code(text: str) -> str:
    """Code points in one spelling, without joiners: 1F468-200D-1F373 is 1f468-1f373."""
    return re.sub("-fe0f|-200d", "", text.lower())


def _iconify(folder: Path) -> list[Drawing]:
    sets: dict[str, tuple[Path, Any, dict[str, str]]] = {}
    for path in sorted(folder.rglob("icons.json")):
        icons, table = read_json(path), path.with_name("chars.json")
        if icons.get("prefix") in LICENSES:
            sets[icons["prefix"]] = (path, icons, read_json(table) if table.exists() else {})
    # Sets without a table of code points use the same icon names as other sets.
    named: dict[str, str] = {}
    for _, _, chars in sets.values():
        for code, name in chars.items():
            named.setdefault(name, _code(code))
    drawings: list[Drawing] = []
    for prefix, (path, icons, chars) in sets.items():
        info = path.with_name("info.json")
        license = read_json(info)["license"]["title"] if info.exists() else LICENSES[prefix]
        codes = {_code(code): name for code, name in chars.items()}
        for code, name in (codes or {named[name]: name for name in icons["icons"] if name in named}).items():
            icon = icons["icons"].get(icons.get("aliases", {}).get(name, {}).get("parent", name))
            if icon is not None:
                size = [icon.get(side, icons.get(side, 16)) for side in ("width", "height")]
                draw = partial(_draw_svg, icon["body"], *size)
                drawings.append((code, prefix, license, f"{path}: {name}", draw))
    return drawings


def _draw_svg(body: str, width: float, height: float) -> Any:
    try:
        import resvg_py
    except ImportError as error:
        raise UserError("drawing SVG needs resvg-py: pip install resvg-py") from error

    svg = (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'viewBox="0 0 {width} {height}">{body}</svg>'
    )
    return read_picture(bytes(resvg_py.svg_to_bytes(svg_string=svg, width=EMOJI_SIZE)), "RGBA")


CLIPART_SIZE = 128
UNWANTED = re.compile(
    "/(icons|stars|flags|map_symbols|gradients|patterns|roadsigns|buttons|led|aiga-symbols|duplicates|cards|unsorted|"
    "arrows|templates|logos|banners)/|/computer/"
)
SAYS_NOTHING = re.compile("cartoon|simple|image|drawing|new|icon|the|no|misc|untitled")


@dataclass(frozen=True)
class OpenClipart(Layout):
    """Open Clip Art: drawings in the public domain, from Debian's package openclipart-png.

    SOURCE is its folder of PNG files (usr/share/openclipart/png). The title comes from the file name, which mostly is
    title_author_01.png; a tail that follows several titles is taken for an author and dropped. Icons, flags, signs,
    patterns and the like are left out. The split is by title: those of recipes/openclipart_val.txt are validation data,
    one drawing each.
    """

    def splits(self, folder: Path, held_out: HeldOut) -> Iterator[Split]:
        found = sorted(folder.rglob("*.png"))
        paths = [path for path in found if not UNWANTED.search(f"/{path.relative_to(folder).as_posix()}")]
        titled = shuffled((title, path) for path, title in zip(paths, _titles(paths), strict=True) if title)
        if not titled:
            raise UserError(f"{folder}: no .png files with a title in their name")
        apart = {line for _, line in read_lines(HERE / "openclipart_val.txt")}
        seen, numbers = DuplicateFilter(), count(1)

        def records(validation: bool) -> Iterator[Record | Skipped]:
            done: set[str] = set()
            for title, path in titled:
                if (title in apart) != validation or (validation and title in done):
                    continue
                try:
                    picture = read_picture(path, "RGBA")
                except OSError as error:
                    yield skipped(path, error)
                    continue
                small = min(picture.size) * min(1, CLIPART_SIZE / max(picture.size)) < 24
                picture = on_white_square(picture, CLIPART_SIZE)
                if small or is_plain(picture) or seen(picture.tobytes()):
                    continue
                done.add(title)
                category = re.sub("[_-]", " ", path.parent.name)
                captions = [title] if validation else [title, f"a drawing of {title}", f"{title} ({category})"]
                key = f"oca_{next(numbers):05d}_{re.sub('[^a-z0-9]+', '_', title)[:40]}"
                about = {"license": "CC0 / public domain", "category": category}
                yield Record(key, "openclipart", {"image": webp(picture, 78), "text": captions}, {}, about)

        yield Split("val/openclipart/openclipart", records(True), drawing)
        yield Split("train/image_text/openclipart", records(False), drawing)


def _titles(paths: Sequence[Path]) -> list[str | None]:
    """Title of each file, None if its name is not descriptive."""
    names = [re.sub(r"_\d+$", "", re.sub(r"\.f?_|\.", "_", path.stem.lower())).split("_") for path in paths]
    heads: dict[str, set[str]] = {}
    for words in names:
        for i in range(1, len(words)):
            heads.setdefault("_".join(words[i:]), set()).add("_".join(words[:i]))

    def is_author(tail: str) -> bool:
        return len(tail) > 4 and len(heads[tail]) >= (2 if "_" in tail else 4)

    titles: list[str | None] = []
    for words in names:
        cut = next((i for i in range(1, len(words)) if is_author("_".join(words[i:]))), len(words))
        parts = re.split(r"[_\-\s]+", " ".join(words[:cut]))
        title = " ".join(part for part in parts if re.match("[a-z]{2,}$", part))
        titles.append(title if len(title) >= 3 and not SAYS_NOTHING.fullmatch(title) else None)
    return titles


@dataclass(frozen=True)
class TuxPaint(Layout):
    """Tux Paint stamps: cut-out photographs and drawings with a description each, from the package tuxpaint-stamps.

    SOURCE is its folder of stamps: NAME.png beside NAME.txt, whose first line is the English description. Letters and
    symbols, mirrored copies and tiny pictures are left out. All of it is training data.
    """

    exclude: tuple[str, ...] = option((), "stamps to leave out ([animals/frog, food/pear])")

    def splits(self, folder: Path, held_out: HeldOut) -> Iterator[Split]:
        stamps = sorted(folder.rglob("*.png"))
        if not stamps:
            raise UserError(f"{folder}: no .png files")
        yield Split("train/image_text/tuxpaint", self._records(folder, shuffled(stamps)), drawing)

    def _records(self, folder: Path, stamps: list[Path]) -> Iterator[Record | Skipped]:
        seen = DuplicateFilter()
        for path in stamps:
            name = path.relative_to(folder).with_suffix("").as_posix()
            text = path.with_suffix(".txt")
            if name.startswith("symbols/") or "mirror" in path.stem or name in self.exclude or not text.is_file():
                continue
            try:
                picture = read_picture(path, "RGBA")
            except OSError as error:
                yield skipped(path, error)
                continue
            caption = text.read_text(encoding="utf-8", errors="replace").partition("\n")[0].strip().rstrip(".!")
            if not 3 < len(caption) < 120 or min(picture.size) < 40:
                continue
            picture = on_white_square(picture, 112)
            if is_plain(picture) or seen(picture.tobytes()):
                continue
            key = "tux_" + re.sub(r"[^a-z0-9]+", "_", name.lower())
            about = {"license": "GPL-2 (package); see its own copyright notes", "category": path.parent.name}
            yield Record(key, "Tux Paint stamps", {"image": webp(picture, 80), "text": [caption]}, {}, about)


# ------------------------------------------------------------------------------------------------------- photographs

NEAR = 4
"""Maximum number of different bits, of 64, in the difference hashes of two pictures that are near copies."""


def difference_hash(picture: Any) -> int:
    """64 bits: whether each of 8 x 8 cells is darker than its right neighbour. Near copies differ in few bits."""
    pixels = picture.convert("L").resize((9, 8)).tobytes()
    bits = (pixels[row * 9 + column] < pixels[row * 9 + column + 1] for row in range(8) for column in range(8))
    return int("".join("1" if bit else "0" for bit in bits), 2)


@dataclass(frozen=True)
class ImageNetSamples(Photographs):
    """One photograph of each of the 1,000 ImageNet classes, from github.com/EliSchwartz/imagenet-sample-images.

    SOURCE is the checkout: WNID_name.JPEG files. All of it is training data. Make the shards of tiny_imagenet first:
    pictures that are near copies of its validation pictures are left out.
    """

    size: int = option(128, "short side of the pictures in pixels")

    def splits(self, folder: Path, held_out: HeldOut) -> Iterator[Split]:
        pictures = sorted(folder.glob("n*_*.JPEG"))
        if not pictures:
            raise UserError(f"{folder}: no WNID_name.JPEG files")
        val = list(held_out("tiny_imagenet"))
        if not val:
            raise UserError("val/tiny_imagenet: no shards to compare with; make those of tiny_imagenet first")
        hashes = [difference_hash(read_picture(record.inputs["image"])) for record in val]
        records = [self._record(path) for path in shuffled(pictures)]
        yield Split("train/image_text/imagenet_samples", records, partial(self._encode_if_new, hashes=hashes))

    def _encode_if_new(self, record: Record, hashes: list[int]) -> Encoded:
        """Encode a picture; UserError if it is a near copy of one with the given difference hashes."""
        picture = read_picture(record.inputs["image"])
        bits = difference_hash(picture)
        if any((bits ^ other).bit_count() <= NEAR for other in hashes):
            raise UserError("near copy of a validation picture of tiny_imagenet")
        return Encoded({"webp": webp(shrink(picture, self.size), self.quality)})

    def _record(self, path: Path) -> Record:
        wnid, _, name = path.stem.partition("_")
        name = name.replace("_", " ")
        templates = ("a photo of {a}", "a picture of {a}", "{a}")
        inputs = {"image": path, "text": [fill(template, name) for template in templates]}
        about = {"license": "ImageNet terms (research use); no licence stated", "wnid": wnid}
        return Record(f"ins_{wnid}", "one sample image per ImageNet-1k class", inputs, {"label": name}, about)


# ------------------------------------------------------------------------------------------------------------ sounds

MACS_LICENSE = "captions: MACS licence (Tampere University); sounds: non-commercial (TAU Urban Acoustic Scenes 2019)"


@dataclass(frozen=True)
class Macs(Sounds):
    """MACS: ten-second recordings of places in cities with two to five sentences each (Martin, Mesaros, DCASE 2021),
    from zenodo.org/records/5114771.

    SOURCE holds MACS.yaml and, at any depth, the sounds of TAU Urban Acoustic Scenes 2019, development
    (zenodo.org/records/2589280), such as audio/airport-barcelona-0-0-a.wav. The set has no splits; all of it is
    training data. The label is the kind of place, from the name of the file.
    """

    def splits(self, folder: Path, held_out: HeldOut) -> Iterator[Split]:
        table = find(folder, "MACS.yaml", what="the captions")
        sounds = {path.name: path for path in sounds_below(folder)}
        records = []
        rows = read_yaml(table).get("files")
        if not isinstance(rows, list) or not rows:
            raise UserError(f"{table}: has no list of files, or an empty one")
        for i, row in enumerate(rows, 1):
            where = f"{table}: file {i} of the list"
            try:
                name = Path(row["filename"]).name
                captions = [sentence(note["sentence"]) for note in row["annotations"]]
            except (KeyError, TypeError, AttributeError) as error:
                raise UserError(f"{where} has no filename and annotations with sentences: {row!r:.100}") from error
            inputs = {"audio": sounds.get(name), "text": [caption for caption in captions if caption]}
            if not inputs["text"]:
                raise UserError(f"{where}, {name}, has no sentence")
            label = name.partition("-")[0].replace("_", " ")
            key = f"macs_{Path(name).stem}"
            records.append(Record(key, "MACS", inputs, {"label": label}, {"license": MACS_LICENSE}))
        yield Split("train/audio_text/macs", present(records, table, HINT), self.encode)


# ------------------------------------------------------------------------------------------------------- texts alone

SENTENCES = (
    "a photo of a {}", "a picture of {}", "a drawing of a {}", "the sound of {}", "a {} in the background",
    "people and a {}",
)  # fmt: skip
"""Templates: each word is written alone and in one of these."""
REPLACED = 3
"""Maximum number of words that are replaced in a caption."""
TEXTS = 5
"""Maximum number of texts per sample: with few, all texts are used about equally often."""


@dataclass(frozen=True)
class Words(Layout):
    """The whole words of a sentence encoder's vocabulary, and the class names of ImageNet that open_clip lists.

    SOURCE is the model folder of the encoder, with its vocab.txt (WordPiece: a piece per line, "##" before those inside
    a word). All of it is training data of one modality, for terms that ask a teacher of texts.
    """

    shortest: int = option(3, "letters of the shortest word that is taken")
    definitions: bool = option(False, "also the 21,800 names of ImageNet-21k in timm, with their definitions (WordNet)")
    captions: tuple[str, ...] = option((), "shards (patterns) whose captions come too, some of their words replaced")
    variants: int = option(3, "such variants of each caption")

    def splits(self, folder: Path, held_out: HeldOut) -> Iterator[Split]:
        path = folder / "vocab.txt"
        if not path.is_file():
            raise UserError(f"{folder}: no vocab.txt; name the model folder of a sentence encoder")
        pieces = path.read_text(encoding="utf-8", errors="replace").split("\n")
        words = [piece for piece in pieces if re.fullmatch("[a-z]+", piece) and len(piece) >= self.shortest]
        if not words:
            lines = f"not one of its {len(pieces)} lines"
            raise UserError(f"{path}: {lines} is a word of {self.shortest} letters or more")
        yield Split("train/text/words", self._words(path, words), _no_files)
        if self.definitions:
            yield Split("train/text/definitions", self._definitions(), _no_files)
        if self.captions:
            yield Split("train/text/variants", self._variants(words), _no_files)

    def _words(self, path: Path, words: list[str]) -> Iterator[Record]:
        from open_clip import IMAGENET_CLASSNAMES as names

        rng = random.Random(0)  # noqa: S311
        for i, word in enumerate(shuffled(dict.fromkeys([*words, *names]))):
            texts = [word, rng.choice(SENTENCES).format(word)]
            yield _texts(f"word_{i:05d}", "vocabulary", texts, "Apache-2.0", f"{path} {word}")

    def _definitions(self) -> Iterator[Record]:
        folder = resources.files("timm") / "data" / "_info"
        names, meanings = (
            dict(line.split("\t") for line in (folder / f"imagenet_synset_to_{kind}.txt").read_text().splitlines())
            for kind in ("lemma", "definition")
        )
        rng = random.Random(0)  # noqa: S311
        for synset in shuffled(names):
            synonyms = names[synset].split(", ")[: TEXTS - 2]
            text = rng.choice(SENTENCES).format(synonyms[0])
            texts = [*synonyms, text, f"{synonyms[0]}, {meanings[synset]}"]
            yield _texts(f"word_{synset}", "definition", texts, "WordNet 3.0", f"timm {synset}")

    def _variants(self, words: list[str]) -> Iterator[Record]:
        captions = dict.fromkeys(caption for pattern in self.captions for caption in _captions(pattern))
        rng = random.Random(0)  # noqa: S311
        for i, caption in enumerate(shuffled(captions)):
            parts = caption.split()
            long = [j for j, part in enumerate(parts) if len(part) > 3]
            if not long:
                continue
            texts = []
            for _ in range(self.variants):
                changed = list(parts)
                for j in rng.sample(long, min(len(long), rng.randint(1, REPLACED))):
                    changed[j] = rng.choice(words)
                texts.append(" ".join(changed))
            yield _texts(f"word_v{i:06d}", "caption", texts, "of the captions", f"a variant of {caption!r}")


def _captions(pattern: str) -> Iterator[str]:
    """The captions in the .json files of shards."""
    shards = sorted(glob.glob(pattern))
    if not shards:
        raise UserError(f"no shard matches {pattern}")
    for shard in shards:
        with tarfile.open(shard, "r|*") as members:
            for member in members:
                if member.name.endswith(".json") and (file := members.extractfile(member)):
                    yield from json.load(file).get("captions", [])


def _texts(key: str, source: str, texts: list[str], license_: str, where: str) -> Record:
    return Record(key, source, {"text": texts}, {}, {"license": license_}, where)


def _no_files(record: Record) -> Encoded:
    return Encoded({})


LAYOUTS["emoji"] = Emoji()
LAYOUTS["openclipart"] = OpenClipart()
LAYOUTS["tuxpaint"] = TuxPaint()
LAYOUTS["imagenet_samples"] = ImageNetSamples()
LAYOUTS["macs"] = Macs()
LAYOUTS["words"] = Words()
