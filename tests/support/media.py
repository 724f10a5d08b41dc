"""Sounds and videos made by the program ffmpeg, and raw pictures written by hand; each file is made once per run."""

import functools
import io
import shutil
import struct
import subprocess
import tempfile
from pathlib import Path

import numpy as np
import pytest
import soundfile
from PIL import Image

SAMPLES = Path(__file__).resolve().parents[2] / "data" / "samples"
TWO_SCENES = Path(__file__).with_name("two_scenes.webm")
"""Ten seconds of the sample picture of a cat, ten of that of a coffee, 160 x 120, two a second; a dog barks from
second 15 on. VP9 (-crf 48) and Opus (10 kbit/s), made by ffmpeg. Picture and sound are CC0."""
_FOLDER = tempfile.TemporaryDirectory(prefix="onepeace-media-")
SECONDS, RATE = 3.0, 44100
H264 = ("-c:v", "libx264", "-preset", "ultrafast", "-pix_fmt", "yuv420p")
# Three scenes of two seconds, ten pictures a second.
SCENES = ("-f", "lavfi", "-i", "smptebars=d=2:s=160x120:r=10,setsar=1[a];testsrc2=d=2:s=160x120:r=10,setsar=1[b];"
          "color=navy:d=2:s=160x120:r=10,setsar=1[c];[a][b][c]concat=n=3")  # fmt: skip
SOUND = ("-i", "SOUND")
"""Stands for a file with the samples of `sound`."""


def sound() -> np.ndarray:
    """(n, 2) float32: a rising tone that swells, on the left louder than on the right."""
    t = np.arange(round(SECONDS * RATE)) / RATE
    tone = np.sin(2 * np.pi * (150 + 200 * t) * t) * (0.2 + 0.1 * t)
    return np.stack([tone, 0.5 * tone], axis=1).astype(np.float32)


@functools.cache
def media(name: str, *arguments: str) -> Path:
    """The file that ffmpeg makes with these arguments, "SOUND" being a file with `sound`; skips without ffmpeg."""
    folder = Path(tempfile.mkdtemp(dir=_FOLDER.name))
    source = folder / "sound.wav"
    soundfile.write(source, sound(), RATE)
    ffmpeg(*(str(source) if argument == "SOUND" else argument for argument in arguments), folder / name)
    return folder / name


def ffmpeg(*arguments: object) -> bytes:
    """What the program writes to its output; skips the test where it is not installed."""
    program = shutil.which("ffmpeg")
    if program is None:
        pytest.skip("needs the program ffmpeg (Debian: apt install ffmpeg)")
    fixed = (program, "-v", "error", "-nostdin", "-y", "-threads", "1")
    return subprocess.run([*fixed, *map(str, arguments)], check=True, stdout=subprocess.PIPE).stdout


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
    height, width = pixels.shape
    samples = pixels.astype("<u2").tobytes()
    beside = io.BytesIO()
    if preview is not None and jpeg:
        preview.save(beside, "JPEG", quality=95)
    elif preview is not None:
        beside.write(preview.tobytes())
    # tag: (type, values); types 1 byte, 2 text, 3 short, 4 long, 5 rational, 10 signed rational
    raw = {254: (4, [0]), 256: (4, [width]), 257: (4, [height]), 258: (3, [16]), 259: (3, [1]), 262: (3, [32803]),
           271: (2, b"Maker\0"), 272: (2, b"Model\0"), 273: (4, [0]), 274: (3, [orientation]), 277: (3, [1]),
           278: (4, [height]), 279: (4, [len(samples)]), 306: (2, date.encode() + b"\0"), 330: (4, [0]),
           33421: (3, [2, 2]), 33422: (1, [0, 1, 1, 2]), 50706: (1, [1, 4, 0, 0]), 50708: (2, b"Maker Model\0"),
           50717: (4, [65535]), 50721: (10, [1, 1, 0, 1, 0, 1, 0, 1, 1, 1, 0, 1, 0, 1, 0, 1, 1, 1]),
           50728: (5, [1, 1, 1, 1, 1, 1]), 50778: (3, [21])}  # fmt: skip
    small = {}
    if preview is None:
        del raw[330]
    else:
        small = {254: (4, [1]), 256: (4, [preview.width]), 257: (4, [preview.height]), 258: (3, [8, 8, 8]),
                 259: (3, [7 if jpeg else 1]), 262: (3, [6 if jpeg else 2]), 273: (4, [0]), 277: (3, [3]),
                 278: (4, [preview.height]), 279: (4, [beside.getbuffer().nbytes])}  # fmt: skip
    second = 8 + len(_directory(raw, 8))
    behind = second + len(_directory(small, second)) if small else second
    raw[273] = (4, [behind])
    if small:
        raw[330] = (4, [second])
        small[273] = (4, [behind + len(samples)])
    directories = _directory(raw, 8) + (_directory(small, second) if small else b"")
    return b"II*\0" + struct.pack("<I", 8) + directories + samples + beside.getvalue()


def _directory(tags: dict[int, tuple[int, object]], at: int) -> bytes:
    """A TIFF directory that lies at byte `at`, with the values that are too long for it behind it."""
    letters, sizes = {1: "B", 3: "H", 4: "I", 5: "I", 10: "i"}, {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 10: 8}
    entries, values = struct.pack("<H", len(tags)), b""
    for tag, (kind, content) in sorted(tags.items()):
        data = content if isinstance(content, bytes) else struct.pack(f"<{len(content)}{letters[kind]}", *content)
        entries += struct.pack("<HHI", tag, kind, len(data) // sizes[kind])
        if len(data) <= 4:
            entries += data.ljust(4, b"\0")
        else:
            entries += struct.pack("<I", at + 2 + 12 * len(tags) + 4 + len(values))
            values += data + b"\0" * (len(data) % 2)
    return entries + bytes(4) + values
