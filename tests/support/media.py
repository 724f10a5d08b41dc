"""Sounds and videos made by the program ffmpeg, and raw pictures written by hand; each file is made once per run."""

import functools
import io
import shlex
import shutil
import struct
import subprocess
import tempfile
from pathlib import Path

import numpy as np
import pytest
import soundfile
from PIL import Image

TWO_SCENES = Path(__file__).with_name("two_scenes.webm")
"""Ten seconds of the sample picture of a cat, ten of that of a coffee, 160 x 120, two a second; a dog barks from
second 15 on. VP9 (-crf 48) and Opus (10 kbit/s), made by ffmpeg. Picture and sound are CC0."""
_FOLDER = tempfile.TemporaryDirectory(prefix="onepeace-media-")
SECONDS = 3.0
RATE = 44100
H264 = "-c:v libx264 -preset ultrafast -pix_fmt yuv420p"
SCENES = (
    "-f lavfi -i smptebars=d=2:s=160x120:r=10,setsar=1[a];testsrc2=d=2:s=160x120:r=10,setsar=1[b];"
    "color=navy:d=2:s=160x120:r=10,setsar=1[c];[a][b][c]concat=n=3"
)
"""Three scenes of two seconds, ten pictures a second."""
SOUND = "-i SOUND"
"""Stands for a file with the samples of `sound`."""


def sound() -> np.ndarray:
    """(n, 2) float32: a rising tone that swells, on the left louder than on the right."""
    t = np.arange(round(SECONDS * RATE)) / RATE
    tone = np.sin(2 * np.pi * (150 + 200 * t) * t) * (0.2 + 0.1 * t)
    return np.stack([tone, 0.5 * tone], axis=1).astype(np.float32)


@functools.cache
def media(name: str, *options: str) -> Path:
    """The file that ffmpeg makes with these options, "SOUND" being a file with `sound`; skips without ffmpeg."""
    folder = Path(tempfile.mkdtemp(dir=_FOLDER.name))
    source = folder / "sound.wav"
    soundfile.write(source, sound(), RATE)
    options_with_source = " ".join(options).replace(SOUND, f"-i '{source}'")
    ffmpeg(options_with_source, folder / name)
    return folder / name


def ffmpeg(options: str, output: Path | str = "-") -> bytes:
    """What the program writes to its output; skips the test where it is not installed."""
    program = shutil.which("ffmpeg")
    if program is None:
        pytest.skip("needs the program ffmpeg (Debian: apt install ffmpeg)")
    command = [program, *shlex.split(f"-v error -nostdin -y -threads 1 {options}"), str(output)]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout


# Raw pictures

BYTE = 1
TEXT = 2
SHORT = 3
LONG = 4
RATIONAL = 5
SIGNED_RATIONAL = 10
LETTERS = {BYTE: "B", SHORT: "H", LONG: "I", RATIONAL: "I", SIGNED_RATIONAL: "i"}
"""The letter of `struct` for the numbers of a value; a rational has two."""
SIZES = {BYTE: 1, TEXT: 1, SHORT: 2, LONG: 4, RATIONAL: 8, SIGNED_RATIONAL: 8}
"""Bytes of a value."""
STRIP_OFFSETS = 273
SUB_IFDS = 330
Tags = dict[int, tuple[int, list[int] | bytes]]
"""Type and values of each tag."""


def dng(
    pixels: np.ndarray,
    preview: Image.Image | None = None,
    *,
    jpeg: bool = True,
    orientation: int = 1,
    date: str = "",
) -> bytes:
    """A raw picture as phones write it (Adobe's DNG specification 1.4): (H, W) uint16 behind red, green, green, blue
    filters, and perhaps a preview as JPEG or uncompressed."""
    samples = pixels.astype("<u2").tobytes()
    raw_tags = _raw_tags(pixels, orientation, date)
    if preview is None:
        samples_start = 8 + _size(raw_tags)
        raw_tags[STRIP_OFFSETS] = (LONG, [samples_start])
        return _tiff(_directory(raw_tags, 8), samples)
    preview_content = _preview_content(preview, jpeg)
    preview_tags = _preview_tags(preview, jpeg, len(preview_content))
    raw_tags[SUB_IFDS] = (LONG, [0])
    preview_start = 8 + _size(raw_tags)
    samples_start = preview_start + _size(preview_tags)
    raw_tags[SUB_IFDS] = (LONG, [preview_start])
    raw_tags[STRIP_OFFSETS] = (LONG, [samples_start])
    preview_tags[STRIP_OFFSETS] = (LONG, [samples_start + len(samples)])
    return _tiff(
        _directory(raw_tags, 8),
        _directory(preview_tags, preview_start),
        samples,
        preview_content,
    )


def _raw_tags(pixels: np.ndarray, orientation: int, date: str) -> Tags:
    height, width = pixels.shape
    return {
        254: (LONG, [0]),  # not a preview
        256: (LONG, [width]),
        257: (LONG, [height]),
        258: (SHORT, [16]),  # bits of a sample
        259: (SHORT, [1]),  # uncompressed
        262: (SHORT, [32803]),  # behind filters
        271: (TEXT, b"Maker\0"),
        272: (TEXT, b"Model\0"),
        STRIP_OFFSETS: (LONG, [0]),
        274: (SHORT, [orientation]),
        277: (SHORT, [1]),  # samples of a pixel
        278: (LONG, [height]),
        279: (LONG, [2 * height * width]),
        306: (TEXT, date.encode() + b"\0"),
        33421: (SHORT, [2, 2]),  # size of the pattern of the filters
        33422: (BYTE, [0, 1, 1, 2]),
        50706: (BYTE, [1, 4, 0, 0]),  # version
        50708: (TEXT, b"Maker Model\0"),
        50717: (LONG, [65535]),  # white
        50721: (
            SIGNED_RATIONAL,
            [1, 1, 0, 1, 0, 1, 0, 1, 1, 1, 0, 1, 0, 1, 0, 1, 1, 1],
        ),  # colours
        50728: (RATIONAL, [1, 1, 1, 1, 1, 1]),  # a neutral colour
        50778: (SHORT, [21]),  # daylight
    }


def _preview_content(preview: Image.Image, jpeg: bool) -> bytes:
    if not jpeg:
        return preview.tobytes()
    file = io.BytesIO()
    preview.save(file, "JPEG", quality=95)
    return file.getvalue()


def _preview_tags(preview: Image.Image, jpeg: bool, num_bytes: int) -> Tags:
    return {
        254: (LONG, [1]),  # a preview
        256: (LONG, [preview.width]),
        257: (LONG, [preview.height]),
        258: (SHORT, [8, 8, 8]),
        259: (SHORT, [7 if jpeg else 1]),
        262: (SHORT, [6 if jpeg else 2]),
        STRIP_OFFSETS: (LONG, [0]),
        277: (SHORT, [3]),
        278: (LONG, [preview.height]),
        279: (LONG, [num_bytes]),
    }


def _tiff(*parts: bytes) -> bytes:
    return b"II*\0" + struct.pack("<I", 8) + b"".join(parts)


def _size(tags: Tags) -> int:
    return len(_directory(tags, 0))


def _directory(tags: Tags, start: int) -> bytes:
    """A TIFF directory that lies at byte `start`, with the values that are too long for it behind it."""
    entries = struct.pack("<H", len(tags))
    values = b""
    values_start = start + 2 + 12 * len(tags) + 4
    for tag, (kind, content) in sorted(tags.items()):
        if isinstance(content, list):
            content = struct.pack(f"<{len(content)}{LETTERS[kind]}", *content)
        entries += struct.pack("<HHI", tag, kind, len(content) // SIZES[kind])
        if len(content) <= 4:
            entries += content.ljust(4, b"\0")
        else:
            entries += struct.pack("<I", values_start + len(values))
            values += content + b"\0" * (len(content) % 2)
    return entries + bytes(4) + values
