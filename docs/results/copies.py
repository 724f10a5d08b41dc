"""Made copies found by `onepeace index duplicates`, and by the fold of very similar hits: the tables of "Duplicates".

``python docs/results/copies.py SHARDS`` takes pictures and sounds of the validation sets below SHARDS (val/flickr8k,
...) and twelve printed pages, makes five copies of some, and compares all files that are near each other.
"""

import argparse
import io
import random
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from PIL import Image, ImageDraw, ImageEnhance

import onepeace
from onepeace.errors import UserError
from onepeace.index.copies import LOOKS
from onepeace.index.groups import _candidates, _compared
from onepeace.index.search import NEAR_COPY

PICTURES = {"flickr8k": 1000, "caltech101": 300, "openclipart": 187, "fashion": 200, "sports": 160, "grocery": 150}
SOUNDS = {"sounds": 400, "esc50_fold5": 400}
COPIED = {"image": 115, "audio": 60}
WORDS = "invoice report letter total amount dear meeting the of to we with account number order date please".split()


def members(shards: Path, sets: dict[str, int]) -> Iterator[tuple[str, bytes]]:
    """Yield the names and contents of the first pictures or sounds of each set."""
    for name, count in sets.items():
        num_left = count
        for shard in sorted((shards / "val" / name).glob("*.tar.gz")):
            with tarfile.open(shard) as archive:
                for member in archive:
                    if num_left and not member.name.endswith((".txt", ".json")):
                        num_left -= 1
                        yield f"{name}-{num_left}", archive.extractfile(member).read()  # type: ignore[union-attr]


def page(number: int) -> bytes:
    """A printed page of words."""
    rng = random.Random(number)  # noqa: S311
    image = Image.new("RGB", (620, 877), (250, 250, 248))
    draw = ImageDraw.Draw(image)
    for line in range(rng.randint(18, 38)):
        text = " ".join(rng.choice(WORDS) for _ in range(rng.randint(6, 13)))
        draw.text((60, 60 + 20 * line), text, fill=(30, 30, 30))
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def copies_of_picture(content: bytes) -> dict[str, bytes]:
    image = Image.open(io.BytesIO(content)).convert("RGB")
    width, height = image.size
    changed: dict[str, tuple[Image.Image, dict[str, Any]]] = {
        "half.jpg": (image.resize((width // 2, height // 2)), {"quality": 90}),
        "compressed.jpg": (image, {"quality": 25}),
        "cropped.jpg": (image.crop((width // 20, 0, width, height - height // 20)), {"quality": 90}),
        "brighter.jpg": (ImageEnhance.Brightness(image).enhance(1.2), {"quality": 90}),
        "other.png": (image, {}),
    }
    contents = {}
    for name, (picture, options) in changed.items():
        file = io.BytesIO()
        picture.save(file, Image.registered_extensions()[f".{name.rpartition('.')[2]}"], **options)
        contents[name] = file.getvalue()
    return contents


def copies_of_sound(content: bytes) -> dict[str, bytes]:
    sound, rate = soundfile.read(io.BytesIO(content))
    start = len(sound) // 40
    changed = {
        "half.wav": (sound[::2], rate // 2),
        "compressed.ogg": (sound, rate),
        "cropped.wav": (sound[start:-start], rate),
        "quieter.wav": (sound / 4, rate),
        "other.flac": (sound, rate),
    }
    contents = {}
    for name, (samples, new_rate) in changed.items():
        file = io.BytesIO()
        soundfile.write(file, samples, new_rate, format=name.rpartition(".")[2].upper())
        contents[name] = file.getvalue()
    return contents


def report(kind: str, originals: dict[str, bytes], make: Callable[[bytes], dict[str, bytes]], folder: Path) -> None:
    """Print how many copies are found, and how many different files are taken for copies."""
    origins: dict[Path, tuple[str, str]] = {}
    copied = random.Random(0).sample(sorted(originals), COPIED[kind])  # noqa: S311
    for name, content in originals.items():
        made = make(content) if name in copied else {}
        for change, changed in {"original": content, **made}.items():
            path = folder / f"{name}-{change}"
            path.write_bytes(changed)
            origins[path] = name, change
    paths = [*origins]
    inputs = [{kind: path} for path in paths]
    vectors = np.asarray(onepeace.load("tiny").encode(inputs, progress=False))
    look, same = LOOKS[kind]
    looks = {}
    pairs = _candidates(vectors)
    for place in np.unique(pairs).tolist():
        try:
            looks[place] = look(paths[place])
        except UserError:
            continue
    pairs = pairs[[first in looks and second in looks for first, second in pairs.tolist()]]
    cosines = (vectors[pairs[:, 0]] * vectors[pairs[:, 1]]).sum(axis=1)
    for rule, is_copy in (("duplicates", _compared(same, looks, pairs)), ("very similar", cosines >= NEAR_COPY)):
        found = dict.fromkeys(sorted({change for _, change in origins.values()}), 0)
        num_false = 0
        for first, second in pairs[is_copy].tolist():
            (name, change), (other_name, other_change) = origins[paths[first]], origins[paths[second]]
            if name != other_name:
                num_false += 1
            elif "original" in (change, other_change):
                found[other_change if change == "original" else change] += 1
        print(f"{kind}, {len(paths)} files, {rule}: {found} of {COPIED[kind]} each; different files: {num_false}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("shards", type=Path)
    shards = parser.parse_args().shards
    pictures = {**dict(members(shards, PICTURES)), **{f"page-{number}": page(number) for number in range(12)}}
    with tempfile.TemporaryDirectory() as folder:
        report("image", pictures, copies_of_picture, Path(folder))
        report("audio", dict(members(shards, SOUNDS)), copies_of_sound, Path(folder))


if __name__ == "__main__":
    main()
