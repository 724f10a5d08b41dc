"""The tables with which the original ONE-PEACE is fine-tuned (github.com/OFA-Sys/ONE-PEACE, datasets.md)."""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from onepeace.datasets.coco import relative_box
from onepeace.datasets.layout import Encoded, HeldOut, OfficialSplits, Record, Split, Table, option
from onepeace.datasets.pictures import SharedPhotographs
from onepeace.datasets.reading import number, plain_name, read_rows, whole_number
from onepeace.datasets.sounds import HINT, Sounds
from onepeace.errors import UserError

LICENSE = "that of the data set, see datasets.md of ONE-PEACE"
Row = Mapping[str, str]
Names = dict[int, str]
"""Names of classes by number."""


class _Content(NamedTuple):
    files: list[str]
    text: str
    targets: dict[str, Any]


@dataclass(frozen=True)
class OnePeaceTSV(SharedPhotographs, Sounds, OfficialSplits):
    """The tables of the original ONE-PEACE for retrieval, VQA, NLVR2, RefCOCO, AVQA, FSD50K and VGGSound.

    SOURCE holds its folder "dataset": tables (.tsv, with a head) at any depth, and the files that they name relative to
    SOURCE. The columns tell the task: image, caption; image, question, refs; text, image1, image2, label; image, text,
    region_coord; audio, text (a caption, or numbers of classes with commas, or a question and answers with &&&). Each
    table becomes shards of its own, which are named after it. Where no table is named, those with "train" in their name
    are training data, the others validation data. Rows of retrieval with the same file become one sample.
    """

    family = "optsv"
    hint = f"paths are relative to SOURCE; {HINT}"
    train: tuple[str, ...] = option((), "tables that are training data, without .tsv: vqa/vqav2_vg_train")
    val: tuple[str, ...] = option((), "tables that are validation data")

    def splits(self, folder: Path, held_out: HeldOut) -> Iterator[Split]:
        if self.val or self.train:
            yield from super().splits(folder, held_out)
            return
        names = sorted(path.relative_to(folder).with_suffix("").as_posix() for path in folder.rglob("*.tsv"))
        if not names:
            raise UserError(f"{folder}: no tables (*.tsv)")
        val, train = ([name for name in names if ("train" in Path(name).stem) is train] for train in (False, True))
        yield from replace(self, val=tuple(val), train=tuple(train)).splits(folder, held_out)

    def shards(self, split: str) -> str:
        name = plain_name(split)
        return f"{'val' if split in self.val else 'train'}/{name}/{name}"

    def tables(self, folder: Path, held_out: HeldOut) -> Mapping[str, Table]:
        kinds: dict[str, Names] = {}
        found = {name: _records(folder, name, kinds) for name in (*self.val, *self.train)}
        tables = {}
        for name, (records, kind) in found.items():
            classes = [kinds[kind].get(i, f"#{i}") for i in range(max(kinds[kind], default=-1) + 1)]
            tables[name] = Table(folder / f"{name}.tsv", records, classes or None)
        return tables

    def encode(self, record: Record) -> Encoded:
        """The pictures, or the sound, of a record."""
        return Sounds.encode(self, record) if "audio" in record.inputs else SharedPhotographs.encode(self, record)


def _records(folder: Path, name: str, kinds: dict[str, Names]) -> tuple[list[Record], str]:
    """The samples of a table, and the kind that it is of; the names of classes are added to `kinds`."""
    table, kind = folder / f"{name}.tsv", ""
    records: dict[str, Record] = {}
    for i, (where, row) in enumerate(read_rows(table)):
        if not kind:
            fitting = [kind for kind, (columns, _) in KINDS.items() if {*columns} <= {*row}]
            if not fitting:
                raise UserError(f"{table}: the columns {', '.join(row)} are of no task of ONE-PEACE")
            kind = fitting[0]
            names = kinds.setdefault(kind, {})
        columns, read = KINDS[kind]
        if empty := [column for column in columns if not row[column]]:
            raise UserError(f"{where}: no {empty[0]}; expected the columns {', '.join(columns)}")
        files, text, targets = read(row, where, folder, names)
        if not targets and files[0] in records:
            records[files[0]].captions.append(text)
            continue
        paths = [path if path.is_file() else None for path in (folder / file for file in files)]
        value = None if None in paths else paths if len(paths) > 1 else paths[0]
        inputs = {"audio" if "audio" in columns else "image": value, "text": [text] if text else []}
        about = {"license": LICENSE, "file_name": files[0]}
        key = f"optsv_{plain_name(name)}_{i:06d}"
        records[key if targets else files[0]] = Record(key, f"ONE-PEACE {name}", inputs, targets, about)
    if not records:
        raise UserError(f"{table}: has no rows")
    return list(records.values()), kind


def _vqa(row: Row, where: str, folder: Path, names: Names) -> _Content:
    answers = {}
    for ref in row["refs"].split("&&"):
        parts = ref.split("|!+")
        if len(parts) != 3:
            raise UserError(f"{where}: expected refs ANSWER|!+NUMBER|!+SCORE with && between them, found {ref!r:.60}")
        names[whole_number(parts[1], where)] = parts[0]
        answers[parts[0]] = number(parts[2], where)
    return _Content([row["image"]], row["question"], {"answers": answers})


def _nlvr2(row: Row, where: str, folder: Path, names: Names) -> _Content:
    if row["label"] not in ("True", "False"):
        raise UserError(f"{where}: the label is {row['label']!r}, not True or False")
    names.update({0: "True", 1: "False"})
    return _Content([row["image1"], row["image2"]], row["text"], {"label": row["label"]})


def _box(row: Row, where: str, folder: Path, names: Names) -> _Content:
    """The corners are in pixels of the picture, whose head says how large it is."""
    edges = [number(edge, where) for edge in row["region_coord"].split(",")]
    if len(edges) != 4 or edges[0] >= edges[2] or edges[1] >= edges[3]:
        raise UserError(f"{where}: expected region_coord x0,y0,x1,y1, found {row['region_coord']!r:.60}")
    x0, y0, x1, y1 = edges
    from PIL import Image

    box = [0.0, 0.0, 1.0, 1.0]  # of a picture that is not there, or no picture, and left out
    try:
        with Image.open(folder / row["image"]) as picture:
            box = relative_box((x0, y0, x1 - x0, y1 - y0), picture.size)
    except OSError:
        pass
    return _Content([row["image"]], row["text"], {"box": box})


def _sound(row: Row, where: str, folder: Path, names: Names) -> _Content:
    text = row["text"]
    if "&&&" in text:
        question, *candidates, choice = text.split("&&&")
        if whole_number(choice, where) >= len(candidates):
            raise UserError(f"{where}: answer {choice} of {len(candidates)}, which count from 0")
        return _Content([row["audio"]], question, {"candidates": candidates, "choice": int(choice)})
    if re.fullmatch(r"\d+(,\d+)*", text):
        labels = text.split(",")
        names.update({int(label): label for label in labels})
        return _Content([row["audio"]], "", {"labels": labels, **({"label": text} if len(labels) == 1 else {})})
    return _Content([row["audio"]], text, {})


KINDS: dict[str, tuple[tuple[str, ...], Callable[[Row, str, Path, Names], _Content]]] = {
    "vqa": (("image", "question", "refs"), _vqa),
    "nlvr2": (("text", "image1", "image2", "label"), _nlvr2),
    "refcoco": (("image", "text", "region_coord"), _box),
    "retrieval": (("image", "caption"), lambda row, *_: _Content([row["image"]], row["caption"], {})),
    "sound": (("audio", "text"), _sound),
}
"""The columns of a task that must be filled, and how a row is read; the first whose columns are there is taken."""
