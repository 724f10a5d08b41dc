"""RefCOCO and RefCOCO+ (Yu, Poirson, Yang, Berg, Berg, ECCV 2016), RefCOCOg (Mao et al., CVPR 2016)."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from onepeace.datasets.coco import photographs_by_id
from onepeace.datasets.instances import read_instances
from onepeace.datasets.layout import HeldOut, OfficialSplits, Record, Split, option, present
from onepeace.datasets.pictures import SharedPhotographs
from onepeace.datasets.reading import find, read_json
from onepeace.errors import UserError
from onepeace.hub.convert.unpickle import read_pickle

LICENSE = "expressions Apache-2.0 (github.com/lichengunc/refer); photographs under their Flickr licences"


@dataclass(frozen=True)
class RefCOCO(SharedPhotographs, OfficialSplits):
    """RefCOCO: expressions that name one object in a photograph of COCO, from github.com/lichengunc/refer.

    SOURCE holds a folder refcoco with "refs(unc).p" and instances.json, and COCO's photographs in a folder train2014,
    at any depth. The list of expressions is a pickle, whose content is read and not run; the same list as JSON,
    "refs(unc).json", will do. One sample per expression, which is its caption; the target "box" is relative to the
    picture. The sets refcoco, refcoco_plus and refcocog share photographs, also those of validation data.
    """

    family = "refcoco"
    folder_name: ClassVar[str] = "refcoco"
    size: int = option(384, "short side of the pictures in pixels")
    train: tuple[str, ...] = option(("train",), "official splits that are training data")
    val: tuple[str, ...] = option(("val", "testA", "testB"), "official splits that are validation data")
    split_by: str = option("unc", "who split it: unc, google or umd, as the name of the list says")

    def splits(self, folder: Path, held_out: HeldOut) -> Iterator[Split]:
        place = find(folder, self.folder_name, what="the expressions")
        table = find(place, f"refs({self.split_by}).p", f"refs({self.split_by}).json", what="the expressions")
        objects = {one.key: one for one in read_instances(find(place, "instances.json", what="the boxes")).objects}
        pictures = photographs_by_id(folder, "train2014")
        records: dict[str, list[Record]] = {}
        for i, row in enumerate(_read(table), 1):
            try:
                found, split = objects[row["ann_id"]], str(row["split"])
                about = {"license": LICENSE, "ref_id": row["ref_id"], "ann_id": found.key, "image_id": found.image_id}
                sentences = [(int(sentence["sent_id"]), sentence["sent"].split()) for sentence in row["sentences"]]
            except (KeyError, TypeError, ValueError, AttributeError) as error:
                what = "ref_id, split, sentences and ann_id of instances.json"
                raise UserError(f"{table}: entry {i} has no {what}: {row!r:.100}") from error
            for key, words in sentences:
                inputs = {"image": pictures.get(found.image_id), "text": [" ".join(words)]}
                source = f"{self.folder_name} {split} ({self.split_by})"
                record = Record(f"{self.family}_{key}", source, inputs, {"box": found.box}, about)
                records.setdefault(split, []).append(record)
        name = self.folder_name.replace("+", "_plus")
        for split, shards in self.chosen(f"val/{name}/{name}", f"train/{name}/{name}"):
            if split not in records:
                raise UserError(f"{table}: has no split {split!r}; it has {', '.join(sorted(records))}")
            yield Split(f"{shards}_{split}", present(records[split], "image", table, "unpack COCO's"), self.encode)

    def group(self, record: Record) -> tuple[str, str]:
        return self.family, str(record.about["image_id"])


@dataclass(frozen=True)
class RefCOCOPlus(RefCOCO):
    """RefCOCO+: expressions that name one object in a photograph of COCO without saying where it is, from
    github.com/lichengunc/refer.

    SOURCE holds a folder refcoco+ with "refs(unc).p" and instances.json, and COCO's photographs in a folder train2014,
    at any depth. Otherwise as refcoco.
    """

    family = "refcocoplus"
    folder_name: ClassVar[str] = "refcoco+"


@dataclass(frozen=True)
class RefCOCOg(RefCOCO):
    """RefCOCOg: longer expressions that name one object in a photograph of COCO, from github.com/lichengunc/refer.

    SOURCE holds a folder refcocog with "refs(umd).p" and instances.json, and COCO's photographs in a folder train2014,
    at any depth. Otherwise as refcoco.
    """

    family = "refcocog"
    folder_name: ClassVar[str] = "refcocog"
    val: tuple[str, ...] = option(("val", "test"), "official splits that are validation data")
    split_by: str = option("umd", "who split it: umd or google, as the name of the list says")


def _read(table: Path) -> list[Any]:
    content = read_json(table) if table.suffix == ".json" else read_pickle(table)
    if not isinstance(content, list):
        raise UserError(f"{table}: expected a list of expressions, found {type(content).__name__}")
    return content
