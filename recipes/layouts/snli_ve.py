"""SNLI-VE (Xie, Lai, Doran, Kadav, arXiv 1901.06706)."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from onepeace.config.reader import Count
from onepeace.datasets.layout import HeldOut, OfficialSplits, Record, Table, option
from onepeace.datasets.media import SharedPhotographs
from onepeace.datasets.reading import find, plain_name, read_json_lines
from onepeace.errors import UserError

LICENSE = "statements CC BY-SA 4.0 (SNLI); Flickr photographs, research and educational use (Flickr30k terms)"
FIELDS = ("pairID", "Flickr30K_ID", "gold_label", "sentence1", "sentence2")
CLASSES = ("contradiction", "entailment", "neutral")


@dataclass(frozen=True)
class SnliVE(SharedPhotographs, OfficialSplits):
    """SNLI-VE: statements that a photograph of Flickr30k implies, denies or leaves open, from
    github.com/necla-ml/SNLI-VE.

    SOURCE holds, at any depth, snli_ve_SPLIT.jsonl and the folder flickr30k-images (or flickr30k_images). One sample
    per statement, which is its caption; the target "label" is one of three, the target "premise" a sentence of a person
    about the photograph.
    """

    prefix = "snli_ve"
    hint = "ask the authors of Flickr30k for them"
    size: Count = option(480, "short side of the pictures in pixels")
    train: tuple[str, ...] = option(("train",), "official splits that are training data")
    val: tuple[str, ...] = option(("dev",), "official splits that are validation data: dev, test, or both")

    def tables(self, folder: Path, held_out: HeldOut) -> Mapping[str, Table]:
        images = find(folder, "flickr30k-images", "flickr30k_images", what="the photographs")
        pictures = {path.stem: path for path in sorted(images.rglob("*.jpg"))}
        return {name: _table(folder, name, pictures) for name in self.chosen_splits}


def _table(folder: Path, split: str, pictures: Mapping[str, Path]) -> Table:
    table = find(folder, f"snli_ve_{split}.jsonl", what="the statements")
    records = []
    for where, row in read_json_lines(table):
        values = {}
        for name in FIELDS:
            text = str(row.get(name, ""))
            values[name] = " ".join(text.split())
        label = values["gold_label"]
        if not all(values.values()) or label not in CLASSES:
            raise UserError(f"expected {', '.join(FIELDS)}, and gold_label one of {', '.join(CLASSES)}", where=where)
        image_id = values["Flickr30K_ID"].removesuffix(".jpg")
        pair_id = plain_name(values["pairID"].replace(".jpg", ""))
        record = Record(
            key=f"snlive_{pair_id}",
            source=f"SNLI-VE {split}",
            inputs={"image": pictures.get(image_id), "text": [values["sentence2"]]},
            targets={"label": label, "premise": values["sentence1"]},
            about={"license": LICENSE, "image_id": image_id},
        )
        records.append(record)
    return Table(table, records, CLASSES)


layout = SnliVE()
