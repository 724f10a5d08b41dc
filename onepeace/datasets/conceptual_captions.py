"""Conceptual Captions (Sharma et al., ACL 2018) and sets like it, with their download."""

import re
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from onepeace.datasets.layout import HeldOut, Record, Skipped, Split, option, present, skipped
from onepeace.datasets.pictures import Photographs, open_picture
from onepeace.datasets.reading import read_lines, sentence
from onepeace.errors import UserError
from onepeace.files import source
from onepeace.files.atomic import write_atomic
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

Row = tuple[str, str, Path | None]
"""Caption, address, and the file that the third column names."""


@dataclass(frozen=True)
class ConceptualCaptions(Photographs):
    """Conceptual Captions and sets like it: a table of captions and addresses of pictures on the web.

    SOURCE holds .tsv files with rows `caption TAB address` (or `address TAB caption`, as in CC12M), and the pictures
    that are there already: in a third column, as paths relative to the table, or in a folder named as the table, under
    the number of their row from 0, as img2dataset names them (Train_GCC-training/00012/000120345.jpg, at any depth).
    With download=true the others are fetched into that folder, http and https only; a later run goes on where one
    stopped. A table whose name has a word that begins with "val" is validation data.
    """

    family = "cc"
    rows: int | None = option(None, "the first so many rows of each table only")
    download: bool = option(False, "fetch the pictures that are not there")

    def splits(self, folder: Path, held_out: HeldOut) -> Iterator[Split]:
        tables = sorted(folder.glob("*.tsv"), key=lambda path: (not _is_validation(path), path))
        if not tables:
            raise UserError(f"{folder}: no .tsv files")
        for table in tables:
            name = re.sub(r"[^a-z0-9]+", "_", table.stem.lower())
            shards = "val/conceptual_captions" if _is_validation(table) else "train/image_text"
            yield Split(f"{shards}/cc_{name}", self._records(table, name, _rows(table)[: self.rows]), self.encode)

    def _records(self, table: Path, name: str, rows: Sequence[Row]) -> Iterator[Record | Skipped]:
        paths = _pictures(table)
        if self.download:
            yield from _download(table, {i: row[1] for i, row in enumerate(rows) if row[2] is None and i not in paths})
            paths = _pictures(table)
        records = []
        for i, (caption, url, file) in enumerate(rows):
            inputs = {"image": file or paths.get(i), "text": [caption]}
            about = {"license": LICENSE, "url": url}
            records.append(Record(f"cc_{name}_{i:09d}", f"Conceptual Captions {name}", inputs, {}, about))
        yield from present(records, "image", table, f"they belong into {table.with_suffix('')}, or give download=true")


def _rows(table: Path) -> list[Row]:
    rows: list[Row] = []
    for where, line in read_lines(table):
        cells = line.split("\t")
        if not rows and {"caption", "url"} <= {cell.strip().lower() for cell in cells}:
            continue  # the names of the columns, which img2dataset wants
        if len(cells) < 2 or not (source.scheme(cells[0]) or source.scheme(cells[1])):
            raise UserError(f"{where}: expected a caption, a tab and an address; found {line[:60]!r}")
        caption, url = cells[:2] if source.scheme(cells[1]) else (cells[1], cells[0])
        if not (caption := sentence(caption)):
            raise UserError(f"{where}: the caption is empty")
        file = table.parent / cells[2].strip() if len(cells) > 2 and cells[2].strip() else None
        rows.append((caption, url.strip(), file))
    return rows


def _pictures(table: Path) -> dict[int, Path]:
    """The pictures in a table's folder by the number of their row."""
    return {
        int(path.stem): path
        for path in sorted(table.with_suffix("").rglob("*"))
        if path.stem.isdecimal() and path.suffix.lower() in ImageProcessor.suffixes
    }


def _download(table: Path, urls: Mapping[int, str]) -> Iterator[Skipped]:
    """Fetch the pictures of rows into the table's folder; those that fail come back."""

    def fetch(number: int) -> str | None:
        url = urls[number]
        name = source.describe(url)
        try:
            if not source.scheme(url):
                raise UserError("not an address")
            data = source.read_bytes(url, max_bytes=MAX_BYTES)
            open_picture(data)
        except (UserError, OSError) as error:
            return f"{name}: {str(error).removeprefix(f'{name}: ')}"
        ending = suffix if (suffix := source.suffix(url)) in ImageProcessor.suffixes else ".jpg"
        folder = table.with_suffix("") / f"{number // IN_FOLDER:05d}"
        folder.mkdir(parents=True, exist_ok=True)
        with write_atomic(folder / f"{number:09d}{ending}") as path:
            path.write_bytes(data)
        return None

    numbers = list(urls)
    with ThreadPoolExecutor(AT_ONCE) as pool:
        for start in range(0, len(numbers), CHUNK):
            chunk = numbers[start : start + CHUNK]
            for number, failure in zip(chunk, pool.map(fetch, chunk), strict=True):
                if failure is not None:
                    yield skipped(f"{table}: row {number}", failure)


def _is_validation(table: Path) -> bool:
    return re.search("(?<![a-z])val", table.stem.lower()) is not None
