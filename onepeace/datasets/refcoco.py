"""RefCOCO and RefCOCO+ (Yu, Poirson, Yang, Berg, Berg, ECCV 2016), RefCOCOg (Mao et al., CVPR 2016)."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from onepeace.datasets.coco import photographs_by_id, read_instances
from onepeace.datasets.layout import HeldOut, OfficialSplits, Record, Table, option
from onepeace.datasets.pictures import SharedPhotographs
from onepeace.datasets.reading import fields, find, json_rows
from onepeace.hub.convert.unpickle import read_checkpoint

LICENSE = "expressions Apache-2.0 (github.com/lichengunc/refer); photographs under their Flickr licences"


@dataclass(frozen=True)
class RefCOCO(SharedPhotographs, OfficialSplits):
    """RefCOCO: expressions that name one object in a photograph of COCO, from github.com/lichengunc/refer.

    SOURCE holds a folder refcoco with "refs(unc).p" and instances.json, and COCO's photographs in a folder train2014,
    at any depth. The list of expressions is a pickle, whose content is read and not run. One sample per expression,
    which is its caption; the target "box" is relative to the picture. The sets refcoco, refcoco_plus and refcocog share
    photographs, also those of validation data.
    """

    key = prefix = "refcoco"
    folder_name: ClassVar[str] = "refcoco"
    hint = "unpack COCO's"
    size: int = option(384, "short side of the pictures in pixels")
    train: tuple[str, ...] = option(("train",), "official splits that are training data")
    val: tuple[str, ...] = option(("val", "testA", "testB"), "official splits that are validation data")
    split_by: str = option("unc", "who split it: unc, google or umd, as the name of the list says")

    def tables(self, folder: Path, held_out: HeldOut) -> Mapping[str, Table]:
        place = find(folder, self.folder_name, what="the expressions")
        table = find(place, f"refs({self.split_by}).p", what="the expressions")
        objects = {one.key: one for one in read_instances(find(place, "instances.json", what="the boxes")).objects}
        pictures = photographs_by_id(folder, "train2014")
        records: dict[str, list[Record]] = {}
        for where, row in json_rows(table, content=read_checkpoint(table)):
            with fields(where, row, "ref_id, split, sentences and ann_id of instances.json"):
                found, split = objects[row["ann_id"]], str(row["split"])
                about = {"license": LICENSE, "ref_id": row["ref_id"], "ann_id": found.key, "image_id": found.image_id}
                sentences = [(int(sentence["sent_id"]), sentence["sent"].split()) for sentence in row["sentences"]]
            for key, words in sentences:
                inputs = {"image": pictures.get(found.image_id), "text": [" ".join(words)]}
                source = f"{self.folder_name} {split} ({self.split_by})"
                record = Record(f"{self.key}_{key}", source, inputs, {"box": found.box}, about)
                records.setdefault(split, []).append(record)
        return {split: Table(table, found) for split, found in records.items()}


@dataclass(frozen=True)
class RefCOCOPlus(RefCOCO):
    """RefCOCO+: expressions that name one object in a photograph of COCO without saying where it is, from
    github.com/lichengunc/refer.

    SOURCE holds a folder refcoco+ with "refs(unc).p" and instances.json, and COCO's photographs in a folder train2014,
    at any depth. Otherwise as refcoco.
    """

    key, prefix, folder_name = "refcocoplus", "refcoco_plus", "refcoco+"


@dataclass(frozen=True)
class RefCOCOg(RefCOCO):
    """RefCOCOg: longer expressions that name one object in a photograph of COCO, from github.com/lichengunc/refer.

    SOURCE holds a folder refcocog with "refs(umd).p" and instances.json, and COCO's photographs in a folder train2014,
    at any depth. Otherwise as refcoco.
    """

    key = prefix = folder_name = "refcocog"
    val: tuple[str, ...] = option(("val", "test"), "official splits that are validation data")
    split_by: str = option("umd", "who split it: umd or google, as the name of the list says")
