"""The splits of Karpathy and Fei-Fei (CVPR 2015) of COCO, Flickr8k and Flickr30k, on which retrieval is reported."""

from collections.abc import Iterator
from pathlib import Path

from onepeace.datasets.layout import Record, Skipped, skipped
from onepeace.datasets.reading import find, json_list
from onepeace.errors import UserError

NAMES = ("coco", "flickr8k", "flickr30k")
CAPTIONS = 5
"""A few pictures of COCO have six or seven captions; as usual the first five count: 25,000 queries in its test split,
where CLIP_benchmark has 25,010."""


def karpathy(name: str, folder: Path, split: str) -> Iterator[Record | Skipped]:
    """The pictures of a split with their captions as they are written, in the order of the file.

    `folder` holds dataset_NAME.json, from caption_datasets.zip, and the pictures at any depth: FILEPATH/FILENAME, or
    FILENAME where the file names no folder.
    """
    table = find(folder, f"dataset_{name}.json", what="Karpathy's split and captions")
    rows = [_row(row, f"{table}: image {i} of the list") for i, row in enumerate(json_list(table, "images"), 1)]
    places = {path.name: path for path in sorted(folder.rglob("*.jpg"))}
    wanted = [row for row in rows if row[1] == split]
    if not wanted:
        raise UserError(f"{table}: has no split {split!r}; it has {', '.join(sorted({row[1] for row in rows}))}")
    for file, _, captions in wanted:
        if file not in places:
            yield skipped(table, f"{file} is not below {folder}")
        else:
            inputs = {"image": places[file], "text": captions[:CAPTIONS]}
            yield Record(Path(file).stem, f"{name}, Karpathy's {split}", inputs, {}, {})


def _row(row: object, where: str) -> tuple[str, str, list[str]]:
    """File name, split and captions."""
    try:
        captions = [" ".join(sentence["raw"].split()) for sentence in row["sentences"]]  # type: ignore[index]
        return str(row["filename"]), str(row["split"]), [caption for caption in captions if caption]  # type: ignore[index]
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{where} has no filename, split and sentences: {row!r:.100}") from error
