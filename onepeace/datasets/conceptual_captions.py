"""Conceptual Captions (Sharma et al., ACL 2018) and sets like it."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from onepeace.datasets.layout import HeldOut, Record, Skipped, Split, present
from onepeace.datasets.pictures import Photographs
from onepeace.datasets.reading import read_lines, sentence
from onepeace.errors import UserError
from onepeace.files import source
from onepeace.processors import ImageProcessor

LICENSE = "captions: Conceptual Captions terms (free use, name Google); pictures belong to their owners"


@dataclass(frozen=True)
class ConceptualCaptions(Photographs):
    """Conceptual Captions and sets like it: a table of captions and addresses of pictures on the web.

    SOURCE holds .tsv files with rows `caption TAB address` (or `address TAB caption`, as in CC12M), and the pictures
    that img2dataset has fetched: in a folder named as the table, under the number of their row from 0, at any depth
    (Train_GCC-training/00012/000120345.jpg). A table whose name has a word that begins with "val" is validation data.
    """

    family = "cc"

    def splits(self, folder: Path, held_out: HeldOut) -> Iterator[Split]:
        tables = sorted(folder.glob("*.tsv"), key=lambda path: (not _is_validation(path), path))
        if not tables:
            raise UserError(f"{folder}: no .tsv files")
        for table in tables:
            name = re.sub(r"[^a-z0-9]+", "_", table.stem.lower())
            shards = "val/conceptual_captions" if _is_validation(table) else "train/image_text"
            yield Split(f"{shards}/cc_{name}", self._records(table, name, _rows(table)), self.encode)

    def _records(self, table: Path, name: str, rows: Sequence[tuple[str, str]]) -> Iterator[Record | Skipped]:
        paths = _pictures(table)
        records = []
        for i, (caption, url) in enumerate(rows):
            inputs = {"image": paths.get(i), "text": [caption]}
            about = {"license": LICENSE, "url": url}
            records.append(Record(f"cc_{name}_{i:09d}", f"Conceptual Captions {name}", inputs, {}, about))
        yield from present(records, table, f"they belong into {table.with_suffix('')}; img2dataset fetches them")


def _rows(table: Path) -> list[tuple[str, str]]:
    """Caption and address of each row."""
    rows: list[tuple[str, str]] = []
    for where, line in read_lines(table):
        cells = line.split("\t")
        if not rows and {"caption", "url"} <= {cell.strip().lower() for cell in cells}:
            continue  # the names of the columns, which img2dataset wants
        if len(cells) < 2 or not (source.scheme(cells[0]) or source.scheme(cells[1])):
            raise UserError(f"{where}: expected a caption, a tab and an address; found {line[:60]!r}")
        caption, url = cells[:2] if source.scheme(cells[1]) else (cells[1], cells[0])
        if not (caption := sentence(caption)):
            raise UserError(f"{where}: the caption is empty")
        rows.append((caption, url.strip()))
    return rows


def _pictures(table: Path) -> dict[int, Path]:
    """The pictures in a table's folder by the number of their row."""
    return {
        int(path.stem): path
        for path in sorted(table.with_suffix("").rglob("*"))
        if path.stem.isdecimal() and path.suffix.lower() in ImageProcessor.suffixes
    }


def _is_validation(table: Path) -> bool:
    return re.search("(?<![a-z])val", table.stem.lower()) is not None
