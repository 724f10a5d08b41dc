"""Files of every kind that cannot be read, and real ones beside them."""

import shutil
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
from PIL import Image

from onepeace.errors import UserError

Content = bytes | Callable[[Path], object]
"""What a file holds, or a function that makes something else at its path."""


def write_content(path: Path, content: Content) -> Path:
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        content(path)
    return path


def assert_refused(read: Callable[[object], object], item: object, words: str) -> UserError:
    """Reading the item is an error on one line, in which the words (a regular expression) occur; returns it."""
    with pytest.raises(UserError, match=words) as error:
        read(item)
    message = str(error.value)
    assert "\n" not in message
    assert "object at 0x" not in message
    assert len(message) < 400
    return error.value


def png_chunk(name: bytes, content: bytes) -> bytes:
    checksum = zlib.crc32(name + content)
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", checksum)


def bomb() -> bytes:
    """A PNG of a few bytes that claims 50,000 x 50,000 pixels."""
    header = struct.pack(">IIBBBBB", 50_000, 50_000, 8, 2, 0, 0, 0)
    chunks = [
        png_chunk(b"IHDR", header),
        png_chunk(b"IDAT", zlib.compress(bytes(1000))),
        png_chunk(b"IEND", b""),
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def write_broken(folder: Path, samples: Path) -> dict[str, str]:
    """Writes broken files into `folder`; returns their names, and a word of the reason each is to be refused for."""
    folder.mkdir(parents=True, exist_ok=True)
    return {
        **_write_contents(folder, samples),
        **_write_sounds(folder),
        **_write_link(folder),
    }


def _write_contents(folder: Path, samples: Path) -> dict[str, str]:
    dog = (samples / "images" / "dog.jpg").read_bytes()
    bark = (samples / "sounds" / "dog.ogg").read_bytes()
    png = folder / "cut.png"
    Image.open(samples / "images" / "cat.jpg").save(png)
    contents = {
        "empty.jpg": (b"", "empty"),
        "empty.ogg": (b"", "empty"),
        "empty.txt": (b"", "no text"),
        "cut.jpg": (dog[: len(dog) // 2], "truncated"),
        "cut.png": (png.read_bytes()[: png.stat().st_size // 2], "truncated"),
        "header only.wav": (b"RIFF\x24\x00\x00\x00WAVE", "sound"),
        "text inside.jpg": (b"this is no picture\n" * 20, "not a picture"),
        "text inside.flac": (b"this is no sound\n" * 20, "sound"),
        "picture inside.ogg": (dog, "sound"),
        "sound inside.png": (bark, "not a picture"),
        "zeros.bmp": (bytes(5000), "not a picture"),
        "bomb.png": (bomb(), "pixels"),
        "bytes inside.txt": (bytes(range(256)), "not UTF-8"),
        "page inside.gif": (b"<!doctype html><p>404", "not a picture"),
        "line\nbreak.jpg": (b"\xff\xd8\xff\xe0", "picture"),
    }
    reasons = {}
    for name, (content, reason) in contents.items():
        (folder / name).write_bytes(content)
        reasons[name] = reason
    return reasons


def _write_sounds(folder: Path) -> dict[str, str]:
    one_nan = np.full(16000, 0.1)
    one_nan[9000] = np.nan
    sounds = {
        "nan.wav": (np.full(16000, np.nan), "NaN"),
        "one nan.wav": (one_nan, "NaN"),
        "infinite.wav": (np.full(16000, np.inf), "NaN or infinite"),
        "no samples.wav": (np.zeros(0), "0 samples"),
        "cut.wav": (np.full(16000, 0.1), "cut off"),
    }
    reasons = {}
    for name, (samples, reason) in sounds.items():
        soundfile.write(folder / name, samples, 16000, subtype="FLOAT")
        reasons[name] = reason
    whole = (folder / "cut.wav").read_bytes()
    (folder / "cut.wav").write_bytes(whole[:32000])
    return reasons


def _write_link(folder: Path) -> dict[str, str]:
    (folder / "gone.jpg").symlink_to(folder / "never was.jpg")
    return {"gone.jpg": "link to nothing"}


NAMES = [
    "plain",
    "two words",
    "neue-Straße",
    "写真",
    "quote'\"s",
    "line\nbreak",
    "tab\tin",
    "-dash",
    "UPPER",
]


def write_good(folder: Path, samples: Path, count: int) -> None:
    """Write copies of real pictures and sounds, and texts, under awkward names in nested folders."""
    sources = sorted((samples / "images").iterdir()) + sorted((samples / "sounds").iterdir())
    for index in range(count):
        subfolder = folder / f"part {index % 3}"
        subfolder.mkdir(parents=True, exist_ok=True)
        stem = f"{NAMES[index % len(NAMES)]} {index}"
        if index % 7 == 6:
            path = subfolder / f"{stem}.txt"
            path.write_text(f"a text about thing number {index}\n", encoding="utf-8")
        else:
            source = sources[index * 5 % len(sources)]
            suffix = source.suffix.upper() if index % 9 == 0 else source.suffix
            path = subfolder / f"{stem}{suffix}"
            shutil.copyfile(source, path)
