"""RefCOCO and RefCOCO+ (Yu, Poirson, Yang, Berg, Berg, ECCV 2016), RefCOCOg (Mao et al., CVPR 2016)."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from coco_files import photographs_by_id, read_instances

from onepeace.config.reader import Count
from onepeace.datasets.layout import HeldOut, OfficialSplits, Record, Table, option
from onepeace.datasets.media import SharedPhotographs
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

    key: ClassVar[str] = "refcoco"
    """Beginning of the keys."""
    prefix = "refcoco"
    folder_name: ClassVar[str] = "refcoco"
    hint = "unpack COCO's"
    size: Count = option(512, "short side of the pictures in pixels")
    train: tuple[str, ...] = option(("train",), "official splits that are training data")
    val: tuple[str, ...] = option(("val", "testA", "testB"), "official splits that are validation data")
    split_by: str = option("unc", "who split it: unc, google or umd, as the name of the list says")

    def tables(self, folder: Path, held_out: HeldOut) -> Mapping[str, Table]:
        lists = find(folder, self.folder_name, what="the expressions")
        table = find(lists, f"refs({self.split_by}).p", what="the expressions")
        instances = read_instances(find(lists, "instances.json", what="the boxes"))
        instance_by_key = {instance.key: instance for instance in instances.objects}
        photographs = photographs_by_id(folder, "train2014")
        records_by_split: dict[str, list[Record]] = {}
        for where, row in json_rows(table, content=read_checkpoint(table)):
            with fields(where, row, "ref_id, split, sentences and ann_id of instances.json"):
                instance = instance_by_key[row["ann_id"]]
                split = str(row["split"])
                reference = row["ref_id"]
                texts = {}
                for entry in row["sentences"]:
                    texts[int(entry["sent_id"])] = " ".join(entry["sent"].split())
            for sentence_id, text in texts.items():
                record = Record(
                    key=f"{self.key}_{sentence_id}",
                    source=f"{self.folder_name} {split} ({self.split_by})",
                    inputs={"image": photographs.get(instance.image_id), "text": [text]},
                    targets={"box": instance.box},
                    about={
                        "license": LICENSE,
                        "ref_id": reference,
                        "ann_id": instance.key,
                        "image_id": instance.image_id,
                    },
                )
                records_by_split.setdefault(split, []).append(record)
        return {split: Table(table, records) for split, records in records_by_split.items()}


layout = RefCOCO()
