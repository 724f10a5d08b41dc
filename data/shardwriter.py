"""What the prepare.py scripts share: their writer of shards, small pictures and sounds, and the frame of a script.

A shard is a gzip-compressed tar. Each sample is KEY.<media>, KEY.txt (one caption) and KEY.json (captions, label,
source, license and fields of the set); README.md has the details. The same input gives the same bytes, as
onepeace/data/shard_writer.py writes no times, and nothing here depends on the order in which a folder is listed.
"""

import argparse
import hashlib
import io
import json
import random
import re
import struct
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from onepeace.data.shard_writer import ShardWriter
from onepeace.datasets.tables import BadRow, read_table
from onepeace.errors import UserError

T = TypeVar("T")

SHARD_BYTES = 15_000_000
"""Media bytes after which a new shard begins."""

RATE = 16000
"""Samples of a second of sound in the shards."""

SOUNDS = frozenset({".wav", ".flac", ".ogg", ".opus", ".mp3"})
"""Endings of the sound files that are read. No containers of videos: extract their sound first."""


class SetWriter(ShardWriter):
    """The package's writer of shards, for samples that say where they come from and what may be done with them.

    Writes FOLDER/PREFIX-00000.tar.gz, -00001, ... and says in the end how much, and which files were left out.
    """

    def __init__(self, folder: Path, prefix: str, shard_bytes: int = SHARD_BYTES) -> None:
        super().__init__(folder, prefix, max_bytes=shard_bytes, compress=True)
        self.skipped: list[str] = []
        """One line per file that was left out: its name and why."""

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
        if not captions:
            raise ValueError(f"{key!r}: a sample of a set has captions")
        if not self.write(key, {suffix: media}, captions, label=label, source=source, license=license, **fields):
            self.skip(key, "an earlier sample has this key")

    def skip(self, path: Path | str, reason: object) -> None:
        """Note a file that cannot be used; it is counted and named at the end."""
        text = " ".join(str(getattr(reason, "strerror", None) or reason).split())
        self.skipped.append(f"{path}: {text.removeprefix(f'{path}: ')}")

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        super().__exit__(kind, error, trace)
        if kind is not None:
            return
        size = sum(path.stat().st_size for path in self.paths)
        print(f"{self.folder}/{self.prefix}: {self.count} samples, {size} bytes in {len(self.paths)} shards")
        for line in self.skipped[:10]:
            print(f"  left out {line}", file=sys.stderr)
        if len(self.skipped) > 10:
            print(f"  left out {len(self.skipped)} files in all", file=sys.stderr)


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


def load_sound(path: Path, seconds: float) -> Any:
    """(n,) float32 from -1 to 1: the first `seconds` of a file, mono, at `RATE`; UserError when it cannot be read."""
    from onepeace.processors import AudioProcessor

    return AudioProcessor(sample_rate=RATE).load(path, seconds=seconds).clamp(-1, 1).numpy()


class Clip(NamedTuple):
    """A sound to write."""

    key: str
    path: Path | None
    """None where the download lacks it."""
    captions: Sequence[str]
    fields: dict[str, Any]
    """Further ones of the json, `label` among them."""


class ClipSet(NamedTuple):
    """The sounds of one split."""

    folder: str
    """Where their shards go below ROOT,"""
    prefix: str
    """and how those are named."""
    clips: Sequence[Clip]
    table: Path
    """What lists them."""
    source: str
    """What they are called in the samples' json."""


def write_clips(sets: Iterable[ClipSet], args: argparse.Namespace, license: str) -> None:
    """Write the clips that are there, shuffled, as Ogg Vorbis; those that are not are counted.

    Takes `seconds` and `level` of `args` (`sound_arguments`). A split of which no sound is there is passed over and
    told at the end, since many download one only; UserError when that is so of all.
    """
    written, empty = False, []
    for split in sets:
        if all(clip.path is None for clip in split.clips):
            empty.append(f"the {len(split.clips)} sounds of {split.source} ({split.table.name})")
            continue
        with SetWriter(args.out / split.folder, split.prefix) as writer:
            _write_clips(writer, split, args, license)
        written = True
    if not written:
        raise UserError(
            f"{args.source}: holds none of {', nor of '.join(empty)}; {', '.join(sorted(SOUNDS))} are read, "
            "not videos: extract their sound"
        )
    for sounds in empty:
        print(f"{args.source}: holds none of {sounds}; passed over", file=sys.stderr)


def _write_clips(writer: SetWriter, split: ClipSet, args: argparse.Namespace, license: str) -> None:
    lacking = [clip.key for clip in split.clips if clip.path is None]
    if lacking:
        found = f"{len(lacking)} of {len(split.clips)} sounds are not there ({', '.join(lacking[:3])}, ...)"
        writer.skip(split.table, found)
    for clip in shuffled(split.clips):
        if clip.path is None:
            continue
        try:
            samples = load_sound(clip.path, args.seconds)
        except UserError as error:
            writer.skip(clip.path, error)
            continue
        media = ogg(samples, RATE, args.level)
        writer.add(clip.key, "ogg", media, clip.captions, source=split.source, license=license, **clip.fields)


def sounds_below(folder: Path) -> list[Path]:
    """The sound files of a folder and of those in it, by name."""
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in SOUNDS)


def sentence(text: str) -> str:
    """A caption with one space between words, none before punctuation, and no final stop."""
    return re.sub(r"\s+([.,!?;:'])", r"\1", " ".join(text.split())).rstrip(" .")


def read_lines(path: Path) -> Iterator[tuple[str, str]]:
    """The non-empty lines of a text file, each with "FILE:LINE" for messages."""
    try:
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield f"{path}:{number}", line.rstrip("\r\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({error})") from error


def read_rows(path: Path, *needed: str, columns: Sequence[str] | None = None) -> Iterator[tuple[str, dict[str, str]]]:
    """The rows of a .csv file, each with "FILE:LINE" for messages; a broken one is a UserError, an empty cell too.

    Args:
        needed: columns that must be there and filled.
        columns: names of the columns of a file that does not begin with them.
    """
    for row in read_table(path, columns):
        where = f"{path}:{row.line}"
        if isinstance(row, BadRow):
            raise UserError(f"{where}: {row.reason}")
        if empty := [name for name in needed if not row.cells.get(name, "").strip()]:
            raise UserError(f"{where}: no {empty[0]}; expected the columns {', '.join(needed)}")
        yield where, row.cells


def whole_number(text: str, where: str) -> int:
    """The number that a cell holds; UserError names the place."""
    if not text.strip().isdecimal():
        raise UserError(f"{where}: expected a whole number, found {text!r}")
    return int(text)


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


def picture_arguments(parser: argparse.ArgumentParser, size: int = 144) -> None:
    """Size and quality of the pictures."""
    parser.add_argument("--size", type=int, default=size, help=f"short side in pixels (default {size})")
    parser.add_argument("--quality", type=int, default=78, help="WebP quality (default 78)")


def sound_arguments(parser: argparse.ArgumentParser, seconds: float) -> None:
    """Length and quality of the sounds."""
    parser.add_argument("--seconds", type=float, default=seconds, help=f"longest sound; default {seconds:g}")
    parser.add_argument(
        "--level", type=float, default=0.9, help="Vorbis compression, 0 (best) to 1 (smallest); default 0.9"
    )


def split_arguments(parser: argparse.ArgumentParser, train: str, val: str) -> None:
    """Which of the official splits are training and validation data."""

    def names(text: str) -> list[str]:
        return [name for name in text.split(",") if name]

    parser.add_argument("--train", type=names, default=train, help=f"training splits, a,b (default {train})")
    parser.add_argument("--val", type=names, default=val, help=f'validation splits (default {val}; "" = none)')


def refuse_split_in_both(args: argparse.Namespace) -> None:
    """UserError when a split is both training and validation data."""
    if both := set(args.train) & set(args.val):
        raise UserError(f"{sorted(both)[0]} cannot be both training and validation data")


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
