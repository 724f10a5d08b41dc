#!/usr/bin/env python3
"""Conceptual Captions and sets like it: a table of captions and addresses of pictures on the web.

SOURCE holds .tsv files with rows `caption TAB address` (or `address TAB caption`, as in CC12M), and the pictures that
are there already: in a third column, as paths relative to the table, or in a folder named as the table, under the
number of their row from 0, as img2dataset names them (Train_GCC-training/00012/000120345.jpg, at any depth). With
--download the others are fetched into that folder, http and https only; a later run goes on where one stopped. A table
whose name has a word that begins with "val" is validation data.
"""

import argparse
import os
import re
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from shardwriter import (
    Seen,
    SetWriter,
    open_picture,
    parser,
    picture_arguments,
    read_lines,
    run,
    sentence,
    shrink,
    shuffled,
    webp,
)

from onepeace.errors import UserError
from onepeace.files import source
from onepeace.processors import ImageProcessor

LICENSE = "captions: Conceptual Captions terms (free use, name Google); pictures belong to their owners"
MAX_BYTES = 50_000_000
"""Larger answers are no picture of a web page."""
AT_ONCE = 32
"""Downloads at the same time."""
CHUNK = 8 * AT_ONCE
"""Rows that are handed to the downloads together, hence waited for after Ctrl-C."""
IN_FOLDER = 10_000
"""Pictures of one folder of downloads, as img2dataset has them."""


class Item(NamedTuple):
    """A row of a table."""

    number: int
    caption: str
    url: str
    file: Path | None
    """Of the third column."""


def build(args: argparse.Namespace) -> None:
    """Write the shards of each table, those of validation data first."""
    tables = sorted(args.source.glob("*.tsv"), key=lambda path: (not _is_validation(path), path))
    if not tables:
        raise UserError(f"{args.source}: no .tsv files")
    new = Seen()
    for table in tables:
        items = _items(table)[: args.rows]
        name = re.sub(r"[^a-z0-9]+", "_", table.stem.lower())
        folder = args.out / ("val/conceptual_captions" if _is_validation(table) else "train/image_text")
        with SetWriter(folder, f"cc_{name}") as writer:
            paths = _pictures(table)
            if args.download:
                _download(table, [item for item in items if item.file is None and item.number not in paths], writer)
                paths = _pictures(table)
            _write(writer, name, items, paths, new, args)
            if lacking := sum(item.file is None and item.number not in paths for item in items):
                writer.skip(table, f"{lacking} of {len(items)} rows have no picture")
            if not writer.count:
                hint = writer.skipped[0] if args.download else f"none is in {table.with_suffix('')}; give --download"
                raise UserError(f"{table}: not one picture of {len(items)} rows; {hint}")


def _write(
    writer: SetWriter, name: str, items: Sequence[Item], paths: dict[int, Path], new: Seen, args: argparse.Namespace
) -> None:
    for item in shuffled(items):
        path = item.file or paths.get(item.number)
        if path is None:
            continue
        try:
            data = path.read_bytes()
            media = webp(shrink(open_picture(data), args.size), args.quality)
        except OSError as error:
            writer.skip(path, error)
            continue
        if new(data):
            key = f"cc_{name}_{item.number:09d}"
            writer.add(key, "webp", media, [item.caption], source=f"Conceptual Captions {name}", license=LICENSE,
                       url=item.url)  # fmt: skip


def _items(table: Path) -> list[Item]:
    items = []
    for where, line in read_lines(table):
        cells = line.split("\t")
        if not items and {"caption", "url"} <= {cell.strip().lower() for cell in cells}:
            continue  # the names of the columns, which img2dataset wants
        if len(cells) < 2 or not (source.scheme(cells[0]) or source.scheme(cells[1])):
            raise UserError(f"{where}: expected a caption, a tab and an address; found {line[:60]!r}")
        caption, url = cells[:2] if source.scheme(cells[1]) else (cells[1], cells[0])
        if not (caption := sentence(caption)):
            raise UserError(f"{where}: the caption is empty")
        file = table.parent / cells[2].strip() if len(cells) > 2 and cells[2].strip() else None
        items.append(Item(len(items), caption, url.strip(), file))
    return items


def _pictures(table: Path) -> dict[int, Path]:
    """The pictures in a table's folder by the number of their row."""
    return {
        int(path.stem): path
        for path in sorted(table.with_suffix("").rglob("*"))
        if path.stem.isdecimal() and path.suffix.lower() in ImageProcessor.suffixes
    }


def _download(table: Path, items: Sequence[Item], writer: SetWriter) -> None:
    """Fetch pictures into the table's folder; what fails is noted with its row."""

    def fetch(item: Item) -> str | None:
        try:
            if not source.scheme(item.url):
                raise UserError(f"{item.url}: not an address")
            data = source.read_bytes(item.url, max_bytes=MAX_BYTES)
            open_picture(data)
        except (UserError, OSError) as error:
            text = str(error)
            return text if text.startswith(source.describe(item.url)) else f"{source.describe(item.url)}: {text}"
        suffix = source.suffix(item.url)
        name = f"{item.number:09d}{suffix if suffix in ImageProcessor.suffixes else '.jpg'}"
        path = table.with_suffix("") / f"{item.number // IN_FOLDER:05d}" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f"{name}.part")
        part.write_bytes(data)
        os.replace(part, path)
        return None

    with ThreadPoolExecutor(AT_ONCE) as pool:
        for start in range(0, len(items), CHUNK):
            chunk = items[start : start + CHUNK]
            for item, failure in zip(chunk, pool.map(fetch, chunk), strict=True):
                if failure is not None:
                    writer.skip(f"{table}: row {item.number}", failure)


def _is_validation(table: Path) -> bool:
    return re.search("(?<![a-z])val", table.stem.lower()) is not None


def main(argv: Sequence[str] | None = None) -> int:
    """Command line of this script."""
    arguments = parser(__doc__)
    picture_arguments(arguments)
    arguments.add_argument("--rows", type=int, metavar="N", help="the first N rows of each table only")
    arguments.add_argument("--download", action="store_true", help="fetch the pictures that are not there")
    return run(build, arguments, argv)


if __name__ == "__main__":
    sys.exit(main())
