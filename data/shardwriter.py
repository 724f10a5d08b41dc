"""What the prepare.py scripts share: a writer of shards, small pictures and sounds, and the frame of a script.

A shard is a gzip-compressed tar. Each sample is KEY.<media>, KEY.txt (one caption) and KEY.json (captions, label,
source, license and fields of the set); README.md has the details. The same input gives the same bytes: members and the
gzip header carry no time, and nothing depends on the order in which a file system lists a folder.
"""

import argparse
import gzip
import hashlib
import io
import json
import random
import struct
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from onepeace.errors import UserError

T = TypeVar("T")

SHARD_BYTES = 15_000_000
"""Media bytes after which a new shard begins."""


class ShardWriter:
    """Writes samples to FOLDER/PREFIX-00000.tar.gz, -00001, ... in the order given.

    A context manager. The files get their names, in place of all older ones, when everything is written; after an
    error the older ones are still there and nothing else.
    """

    def __init__(self, folder: Path, prefix: str, shard_bytes: int = SHARD_BYTES) -> None:
        self.folder, self.prefix, self.shard_bytes = folder, prefix, shard_bytes
        self.count = 0
        self.skipped: list[str] = []
        """One line per file that was left out: its name and why."""
        self._files: list[Path] = []
        self._keys: set[str] = set()
        self._tar: Any = None

    def __enter__(self) -> "ShardWriter":
        self.folder.mkdir(parents=True, exist_ok=True)
        return self

    def add(
        self,
        key: str,
        suffix: str,
        media: bytes,
        captions: Sequence[str],
        *,
        source: str,
        license: str,
        label: str | None = None,
        **fields: Any,
    ) -> None:
        """Add one sample; `fields` go into its json. One whose key came before is skipped."""
        if "." in key or "/" in key or not captions:
            raise ValueError(f"{key!r}: a key has no dot and no slash, and a sample has captions (got {captions!r})")
        if key in self._keys:
            self.skip(key, "an earlier sample has this key")
            return
        self._keys.add(key)
        if self._tar is None or (self._bytes and self._bytes + len(media) > self.shard_bytes):
            self._close_shard()
            self._open_shard()
        about = {"captions": list(captions), "label": label, "source": source, "license": license, **fields}
        # The one caption of the .txt depends on the key alone.
        pick = int(hashlib.md5(key.encode(), usedforsecurity=False).hexdigest(), 16) % len(captions)
        text = json.dumps(about, ensure_ascii=False)
        self._tar.write({"__key__": key, suffix: media, "txt": captions[pick].encode(), "json": text.encode()})
        self._bytes += len(media)
        self.count += 1

    def skip(self, path: Path | str, reason: object) -> None:
        """Note a file that cannot be used; it is counted and named at the end."""
        text = " ".join(str(getattr(reason, "strerror", None) or reason).split())
        self.skipped.append(f"{path}: {text.removeprefix(f'{path}: ')}")

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        self._close_shard()
        if kind is not None:
            for path in self._files:
                path.unlink()
            return
        for old in self.folder.glob(f"{self.prefix}-[0-9][0-9][0-9][0-9][0-9].tar.gz"):
            old.unlink()
        size = 0
        for path in self._files:
            size += path.stat().st_size
            path.rename(path.with_suffix(""))  # drops ".part"
        print(f"{self.folder}/{self.prefix}: {self.count} samples, {size} bytes in {len(self._files)} shards")
        for line in self.skipped[:10]:
            print(f"  left out {line}", file=sys.stderr)
        if len(self.skipped) > 10:
            print(f"  left out {len(self.skipped)} files in all", file=sys.stderr)

    def _open_shard(self) -> None:
        from webdataset import TarWriter

        path = self.folder / f"{self.prefix}-{len(self._files):05d}.tar.gz.part"
        self._files.append(path)
        self._raw = path.open("wb")
        self._gzip = gzip.GzipFile(filename="", fileobj=self._raw, mode="wb", compresslevel=6, mtime=0)
        self._tar = TarWriter(self._gzip, user="", group="", mtime=0, encoder=False, compress=False)
        self._bytes = 0

    def _close_shard(self) -> None:
        if self._tar is not None:
            self._tar.close()
            self._gzip.close()
            self._raw.close()
            self._tar = None


def shuffled(items: Iterable[T]) -> list[T]:
    """The items in an order that is random and always the same."""
    result = list(items)
    random.Random(0).shuffle(result)  # noqa: S311
    return result


class Seen:
    """Says of media whether equal content came before, in whatever split it was."""

    def __init__(self) -> None:
        self._hashes: set[bytes] = set()

    def __call__(self, content: bytes) -> bool:
        """True when this content is new."""
        digest = hashlib.sha1(content, usedforsecurity=False).digest()
        new = digest not in self._hashes
        self._hashes.add(digest)
        return new


def open_picture(source: Path | bytes, mode: str = "RGB") -> Any:
    """A PIL picture, upright and in the given mode; OSError when it is none."""
    from PIL import Image, ImageOps

    try:
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as picture:
            return ImageOps.exif_transpose(picture).convert(mode)
    except (ValueError, SyntaxError, Image.DecompressionBombError) as error:  # what PIL raises for some broken files
        raise OSError(f"not a picture ({error})") from error


def shrink(picture: Any, short: int) -> Any:
    """The picture with its short side at most `short` pixels, same proportions."""
    scale = short / min(picture.size)
    if scale >= 1:
        return picture
    from PIL import Image

    return picture.resize([max(1, round(side * scale)) for side in picture.size], Image.Resampling.LANCZOS)


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
    """True when a picture has almost no content: fewer than four colours at 16 x 16 pixels."""
    return len(picture.resize((16, 16)).getcolors()) < 4


def webp(picture: Any, quality: int) -> bytes:
    """The picture as WebP."""
    buffer = io.BytesIO()
    picture.save(buffer, "WEBP", quality=quality, method=6)
    return buffer.getvalue()


def difference_hash(picture: Any) -> int:
    """64 bits: whether each of 8 x 8 cells is darker than its right neighbour. Near copies differ in few bits."""
    pixels = picture.convert("L").resize((9, 8)).tobytes()
    bits = (pixels[row * 9 + column] < pixels[row * 9 + column + 1] for row in range(8) for column in range(8))
    return int("".join("1" if bit else "0" for bit in bits), 2)


def ogg(samples: Any, rate: int, level: float) -> bytes:
    """Mono float samples as Ogg Vorbis; level is libsndfile's, 0 (best) to 1 (smallest)."""
    import soundfile

    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate, format="OGG", subtype="VORBIS", compression_level=level)
    return _with_serial_number_one(buffer.getvalue())


def read_lines(path: Path) -> Iterator[tuple[str, str]]:
    """The non-empty lines of a text file, each with "FILE:LINE" for messages."""
    try:
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield f"{path}:{number}", line.rstrip("\r\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({error})") from error


def read_json(path: Path) -> Any:
    """The content of a JSON file; UserError names the file and line of a mistake."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise UserError(f"{path}:{error.lineno}: not JSON ({error.msg})") from error
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({error})") from error


def write_classes(path: Path, classes: Sequence[Any]) -> None:
    """The list of classes beside the shards of a labelled set."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(classes, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def find(root: Path, *names: str, what: str) -> Path:
    """The first file or folder below `root` that has one of these names; UserError says what is missing."""
    if not root.is_dir():
        raise UserError(f"{root} is not a folder")
    for name in names:
        if found := sorted(root.rglob(name)):
            return found[0]
    raise UserError(f"{root}: holds no {' or '.join(names)} ({what})")


def parser(description: str) -> argparse.ArgumentParser:
    """Arguments every script has: the download's folder and the root of the shards."""
    result = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    result.add_argument("source", type=Path, metavar="SOURCE", help="folder of the unpacked download")
    result.add_argument("out", type=Path, metavar="ROOT", help="folder that gets train/ and val/ ($ONEPEACE_DATA)")
    return result


def run(
    build: Callable[[argparse.Namespace], None], arguments: argparse.ArgumentParser, argv: Sequence[str] | None
) -> int:
    """Parse, build, and turn a user's mistake into one line and exit code 1."""
    args = arguments.parse_args(argv)
    try:
        build(args)
    except UserError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def _with_serial_number_one(data: bytes) -> bytes:
    """The Ogg file with stream number 1 on every page; libsndfile takes a random one, so no two runs would agree."""
    out, place = bytearray(data), 0
    while place < len(out):
        lacing = out[place + 26]
        end = place + 27 + lacing + sum(out[place + 27 : place + 27 + lacing])
        out[place + 14 : place + 18] = struct.pack("<I", 1)
        out[place + 22 : place + 26] = bytes(4)  # the checksum is taken with zeros in its own place
        out[place + 22 : place + 26] = struct.pack("<I", _ogg_checksum(out[place:end]))
        place = end
    return bytes(out)


def _checksum_table() -> list[int]:
    table = []
    for value in range(256):
        value <<= 24
        for _ in range(8):
            value = (value << 1 ^ 0x04C11DB7 if value & 0x80000000 else value << 1) & 0xFFFFFFFF
        table.append(value)
    return table


_TABLE = _checksum_table()


def _ogg_checksum(page: bytes) -> int:
    """CRC-32 as in RFC 3533: polynomial 04C11DB7, first bit first, start and end value 0."""
    value = 0
    for byte in page:
        value = (value << 8 & 0xFFFFFFFF) ^ _TABLE[value >> 24 ^ byte]
    return value
