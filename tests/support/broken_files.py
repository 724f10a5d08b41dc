"""Files of every kind that cannot be read, and real ones beside them."""

import shutil
import struct
import zlib
from pathlib import Path

import numpy as np
import soundfile
from PIL import Image


def png_chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def bomb() -> bytes:
    """A PNG of a few bytes that claims 50,000 x 50,000 pixels."""
    header = struct.pack(">IIBBBBB", 50_000, 50_000, 8, 2, 0, 0, 0)
    body = zlib.compress(bytes(1000))
    return b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header) + png_chunk(b"IDAT", body) + png_chunk(b"IEND", b"")


def write_broken(folder: Path, samples: Path) -> dict[str, str]:
    """Writes broken files into `folder`; returns their names, and a word of the reason each is to be refused for."""
    folder.mkdir(parents=True, exist_ok=True)
    dog, bark = (samples / "images" / "dog.jpg").read_bytes(), (samples / "sounds" / "dog.ogg").read_bytes()
    Image.open(samples / "images" / "cat.jpg").save(folder / "whole.png")
    cat = (folder / "whole.png").read_bytes()
    (folder / "whole.png").unlink()
    contents = {
        "empty.jpg": (b"", "empty"),
        "empty.ogg": (b"", "empty"),
        "empty.txt": (b"", "no text"),
        "cut.jpg": (dog[: len(dog) // 2], "truncated"),
        "cut.png": (cat[: len(cat) // 2], "truncated"),
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
    for name, (content, _) in contents.items():
        (folder / name).write_bytes(content)
    reasons = {name: reason for name, (_, reason) in contents.items()}

    def sound(name: str, values: np.ndarray, reason: str) -> None:
        soundfile.write(folder / name, values, 16000, subtype="FLOAT")
        reasons[name] = reason

    sound("nan.wav", np.full(16000, np.nan, np.float32), "NaN")
    sound("one nan.wav", np.where(np.arange(16000) == 9000, np.nan, 0.1).astype(np.float32), "NaN")
    sound("infinite.wav", np.full(16000, np.inf, np.float32), "NaN or infinite")
    sound("no samples.wav", np.zeros(0, np.float32), "0 samples")
    sound("cut.wav", np.full(16000, 0.1, np.float32), "cut off")
    (folder / "cut.wav").write_bytes((folder / "cut.wav").read_bytes()[:32000])
    (folder / "gone.jpg").symlink_to(folder / "never was.jpg")
    reasons["gone.jpg"] = "link to nothing"
    return reasons


def write_good(folder: Path, samples: Path, count: int) -> list[Path]:
    """Copies of real pictures and sounds, and texts, under awkward names in nested folders; their paths."""
    names = ["plain", "two words", "neue-Straße", "写真", "quote'\"s", "line\nbreak", "tab\tin", "-dash", "UPPER"]
    sources = sorted((samples / "images").iterdir()) + sorted((samples / "sounds").iterdir())
    written = []
    for index in range(count):
        inside = folder / f"part {index % 3}"
        inside.mkdir(parents=True, exist_ok=True)
        name = f"{names[index % len(names)]} {index}"
        if index % 7 == 6:
            path = inside / f"{name}.txt"
            path.write_text(f"a text about thing number {index}\n", encoding="utf-8")
        else:
            source = sources[index * 5 % len(sources)]
            path = inside / (f"{name}{source.suffix}" if index % 9 else f"{name}{source.suffix.upper()}")
            shutil.copyfile(source, path)
        written.append(path)
    return written
